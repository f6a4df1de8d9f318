"""Prefixes: what was read before is found again, as if it had just been read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.errors import ConfigError
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.infer.prefixes import past_of, read_suffix, read_tokens, read_vectors
from lorage_jax.infer.sample import Sampling
from lorage_jax.infer.score import score
from lorage_jax.models.context import Branches
from lorage_jax.models.decoder import Decoder
from tests.tiny import FAMILIES, TOLERANCE

RNG = np.random.default_rng(3)
PROMPTS = [RNG.integers(3, 250, n).tolist() for n in (11, 7)]  # longer than a window of 6
QUESTIONS = [RNG.integers(3, 250, n).tolist() for n in (5, 9, 3)]


@jax.jit(static_argnums=0)
def _logits(config, params, tokens, mask, past=None, prefix=None, branches=None):
    given = {"past": past, "prefix": prefix, "branches": branches}
    return Decoder(config).apply({"params": params}, tokens, mask, **given).logits


def padded(rows, left):
    """Rows padded to 16 tokens, and their mask."""
    tokens, mask = np.zeros((len(rows), 16), np.int32), np.zeros((len(rows), 16), bool)
    for i, row in enumerate(rows):
        at = slice(16 - len(row), 16) if left else slice(0, len(row))
        tokens[i, at], mask[i, at] = row, True
    return tokens, mask


def alone(model, row):
    """Logits of a single row by the plain forward pass."""
    tokens, mask = np.zeros((1, 32), np.int32), np.arange(32)[None] < len(row)
    tokens[0, : len(row)] = row
    return np.asarray(forward(model, tokens, mask))[0, : len(row)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_prompt_gives_the_logits_of_the_whole_row(family, tiny):
    """Three questions under two prompts of different lengths, in one batch padded on the left."""
    model = load_model(tiny(family)[0])
    one, two = read_tokens(model, PROMPTS)
    past = past_of([(one, 11), (two, 7), (one, 11)])
    tokens, mask = padded(QUESTIONS, left=True)
    found = np.asarray(_logits(model.config, model.params, tokens, mask, past))
    for i, (prompt, asked) in enumerate(zip((0, 1, 0), QUESTIONS, strict=True)):
        wanted = alone(model, PROMPTS[prompt] + asked)[-len(asked) :]
        np.testing.assert_allclose(found[i][mask[i]], wanted, atol=TOLERANCE[family] / 2)


@pytest.fixture(scope="module", params=["gemma2", "opt"])
def model(request, tiny):
    """Scaled embeddings and a window of 6, or learned positions."""
    return load_model(tiny(request.param)[0])


@pytest.mark.parametrize("left", [True, False])
def test_vectors_stand_for_embedded_tokens(model, left):
    """A soft prompt of a real prompt's embeddings, after their scaling: the prompt's own logits."""
    config = model.config
    table = np.asarray(model.params["embed"]) * config.embedding_scale
    prefix = jnp.asarray(table[PROMPTS[0]])
    rows = jnp.broadcast_to(prefix, (3, *prefix.shape))
    tokens, mask = padded(QUESTIONS, left)
    found = np.asarray(_logits(config, model.params, tokens, mask, None, rows))
    past = past_of([(read_vectors(model, prefix), 0)] * 3)
    cached = np.asarray(_logits(config, model.params, tokens, mask, past))
    for i, asked in enumerate(QUESTIONS):
        wanted = alone(model, PROMPTS[0] + asked)[-len(asked) :]
        np.testing.assert_allclose(found[i][mask[i]], wanted, atol=3e-4)
        np.testing.assert_allclose(cached[i][mask[i]], wanted, atol=3e-4)


def test_continuations_behind_a_prefix(model):
    """Two answers to one question in a row, after a soft prompt and after its cache."""
    question, answers = QUESTIONS[0], (QUESTIONS[1][:4], QUESTIONS[2])
    row = [*question, *answers[0], *answers[1]]
    index = [0] * 5 + [1] * 4 + [2] * 3
    positions = [*range(5), *range(5, 9), *range(5, 8)]
    tokens, mask = padded([row], left=False)
    wide = [np.pad(np.asarray([x], np.int32), [(0, 0), (0, 4)]) for x in (index, positions)]
    branches = Branches(*map(jnp.asarray, wide))
    config, table = model.config, np.asarray(model.params["embed"]) * model.config.embedding_scale
    prefix = jnp.asarray(table[PROMPTS[1]])
    past = past_of([(read_tokens(model, [PROMPTS[1]])[0], 7)])
    for given in ((None, prefix[None]), (past, None)):
        found = np.asarray(_logits(config, model.params, tokens, mask, *given, branches))[0]
        for answer, begin in zip(answers, (5, 9), strict=True):
            wanted = alone(model, PROMPTS[1] + question + answer)[-len(answer) :]
            np.testing.assert_allclose(found[begin : begin + len(answer)], wanted, atol=3e-4)


def test_scores_and_answers_behind_prefixes(tiny):
    """Rows with the prompt's tokens, of which some are given up early, against plain rows."""
    model = load_model(tiny("gemma2")[0])
    prefixes = read_tokens(model, PROMPTS)
    owners = [0, 1, 0, 1]
    rows = [PROMPTS[o] + QUESTIONS[i % 3] for i, o in enumerate(owners)]
    rows[3] = [*PROMPTS[1][:4], 5, 6, 7]  # agrees with four tokens of its prompt
    after = [prefixes[o] for o in owners]
    assert [one.shared(row) for one, row in zip(after, rows, strict=True)] == [11, 7, 11, 4]
    requests = [(row, [9, 8, 7]) for row in rows]
    found, wanted = score(model, requests, prefixes=after), score(model, requests)
    np.testing.assert_allclose(
        [one.loglikelihood for one in found], [one.loglikelihood for one in wanted], atol=2e-3
    )
    for sampling in (None, Sampling(repetition_penalty=1.3)):
        ways = {"max_new_tokens": 6, "sampling": sampling}
        assert generate_tokens(model, rows, prefixes=after, **ways) == generate_tokens(
            model, rows, **ways
        )
    with pytest.raises(ConfigError, match="1 prefixes for 4 rows"):
        generate_tokens(model, rows, max_new_tokens=2, prefixes=prefixes[:1])


def test_a_soft_prompt_takes_room(tiny):
    model = load_model(tiny("llama")[0])
    soft = read_vectors(model, np.zeros((10, 48), np.float32))
    assert (soft.slots, soft.length, soft.shared([1, 2])) == (10, 10, 0)
    whole, room = model.config.max_positions, model.config.max_positions - 10
    says = f"this model's context is {whole} less a prefix of 10, that is {room}"
    for length, more in ((room, 1), (room - 1, 2)):
        with pytest.raises(ConfigError, match=says):
            generate_tokens(model, [[5] * length], max_new_tokens=more, prefixes=[soft])
    with pytest.raises(ConfigError, match="a prompt has 256 tokens"):
        read_tokens(model, [[5] * 256])


def test_a_suffix_keeps_its_place_behind_each_text(model):
    """Vectors that stand for tokens: their keys and values are those of the whole text."""
    table = np.asarray(model.params["embed"]) * model.config.embedding_scale
    made, hidden = read_suffix(model, PROMPTS, table[QUESTIONS[2]])
    assert hidden.shape == (2, 3, 48)
    for prompt, one in zip(PROMPTS, made, strict=True):
        (whole,) = read_tokens(model, [prompt + QUESTIONS[2]])
        np.testing.assert_allclose(one.k, whole.k[:, -3:], atol=1e-4)
        np.testing.assert_allclose(one.v, whole.v[:, -3:], atol=1e-4)
        np.testing.assert_array_equal(one.positions, len(prompt) + np.arange(3))
