"""Generation against transformers, against the full forward pass, and against itself."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lorage_jax.buckets import left_pad
from lorage_jax.config import GeneratorConfig
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.generator.card import Card
from lorage_jax.generator.merge import merge
from lorage_jax.generator.pool import make_pool, pool_leaves
from lorage_jax.hf.load import load_model
from lorage_jax.infer import generate as module
from lorage_jax.infer.forward import forward
from lorage_jax.infer.generate import generate, generate_tokens
from lorage_jax.infer.sample import Sampling
from lorage_jax.models.cache import new_cache
from lorage_jax.models.decoder import Decoder
from tests.infer.rows import PROMPTS, with_eos
from tests.tiny import FAMILIES, make_tiny

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """The torch model of a family, and ours. Tied heads repeat the last token: here untied."""
    folder = tmp_path_factory.mktemp(request.param)
    torch_model = make_tiny(request.param, folder, tie_word_embeddings=False)
    return torch_model, load_model(folder)


def of_these(*families):
    """Of the families, these in every run and the others with the slow tests."""
    others = [pytest.param(x, marks=pytest.mark.slow) for x in FAMILIES if x not in families]
    return pytest.mark.parametrize("pair", [*families, *others], indirect=True)


@pytest.fixture(scope="module")
def stories():
    if not STORIES.is_dir():
        pytest.skip("the trained model ../shared/models/stories260K is not here")
    return load_model(STORIES)


def torch_greedy(torch_model, rows, steps):
    """New ids of transformers' own greedy generation, eos ignored."""
    tokens, mask = left_pad(rows, max(map(len, rows)))
    out = torch_model.generate(
        input_ids=torch.tensor(tokens, dtype=torch.long),
        attention_mask=torch.tensor(mask.astype(np.int64)),
        do_sample=False,
        max_new_tokens=steps,
        min_new_tokens=steps,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[:, tokens.shape[1] :].tolist()


def test_greedy_equals_transformers(pair):
    torch_model, model = pair
    ours = generate_tokens(with_eos(model), PROMPTS, max_new_tokens=24)
    assert ours == torch_greedy(torch_model, PROMPTS, 24)
    assert len({token for row in ours for token in row}) > 8  # no row is stuck on one token


@of_these("llama", "gemma2", "opt")
def test_cached_logits_equal_the_full_forward_pass(pair):
    _, model = pair
    rows = [row + generated for row, generated in zip(PROMPTS, [[5, 6, 7] * 4] * 3, strict=True)]
    tokens, mask = left_pad(rows, 36)
    full = forward(model, tokens, mask)
    cache = new_cache(model.config, 3, 40, jnp.float32)
    step = jax.jit(
        lambda tokens, mask, cache: Decoder(model.config).apply(
            {"params": model.params}, tokens, mask, cache=cache, last=True
        )
    )
    for start, end in [(0, 24), *((i, i + 1) for i in range(24, 36))]:
        output = step(tokens[:, start:end], mask[:, start:end], cache)
        cache = output.cache
        np.testing.assert_allclose(output.logits[:, 0], full[:, end - 1], atol=1e-3, rtol=1e-4)


def test_greedy_is_the_argmax_of_the_full_forward_pass(model):
    outputs = generate_tokens(with_eos(model), PROMPTS, max_new_tokens=20)
    for row, out in zip(PROMPTS, outputs, strict=True):
        logits = np.asarray(forward(model, row + out))[0]
        assert logits[len(row) - 1 : -1].argmax(1).tolist() == out


def test_eos_ends_a_row_and_only_that_row(model):
    plain = generate_tokens(with_eos(model), PROMPTS, max_new_tokens=24)
    end = plain[0][5]
    cut = [row[: row.index(end)] if end in row else row for row in plain]
    assert len(cut[0]) <= 5 and any(len(row) == 24 for row in cut)
    assert generate_tokens(with_eos(model, 263, end), PROMPTS, max_new_tokens=24) == cut
    # Both pieces of the loop know it, and the tokenizer's eos counts too.
    chunked = generate_tokens(
        with_eos(model, end), PROMPTS, max_new_tokens=24, watch=lambda rows, ended: [False] * 3
    )
    assert chunked == cut
    tokenizer = dataclasses.make_dataclass("T", ["eos_token_id"])(end)
    other = with_eos(model).replace(tokenizer=tokenizer)
    other = other.replace(config=dataclasses.replace(model.config, eos_ids=(9998, 9999)))
    assert generate_tokens(other, PROMPTS, max_new_tokens=24) == cut


def test_the_loop_stops_when_all_rows_are_done(model):
    first = [row[0] for row in generate_tokens(with_eos(model), PROMPTS, max_new_tokens=17)]
    seen = []
    ended = with_eos(model, *first)
    watch = lambda rows, done: seen.append(done) or done  # noqa: E731
    assert generate_tokens(ended, PROMPTS, max_new_tokens=24, watch=watch) == [[], [], []]
    assert seen == [[True] * 3]


def test_rows_do_not_depend_on_the_batch(model):
    model = with_eos(model)
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=5)):
        batch = generate_tokens(model, PROMPTS, max_new_tokens=18, sampling=sampling)
        alone = generate_tokens(model, PROMPTS[:1], max_new_tokens=18, sampling=sampling)
        assert batch[:1] == alone


def test_sampling_is_reproducible_and_chunks_do_not_matter(model):
    model = with_eos(model)
    hot = Sampling(temperature=1.5, top_k=50, top_p=0.95, seed=1)

    def run(steps=20, **changes):
        sampling = dataclasses.replace(hot, **changes)
        return generate_tokens(model, PROMPTS, max_new_tokens=steps, sampling=sampling)

    once = run()
    assert run() == once
    assert run(seed=2) != once
    assert run(steps=17) == [row[:17] for row in once]
    chunked = generate_tokens(
        model, PROMPTS, max_new_tokens=20, sampling=hot, watch=lambda rows, ended: ended
    )
    assert chunked == once
    greedy = run(temperature=0.0)
    assert run(top_k=1) == greedy
    assert run(top_p=1e-6) == greedy
    assert greedy != once


def test_flat_settings(model):
    texts = ["hello", "a"]
    flat = generate(model, texts, max_new_tokens=10, temperature=1.0, top_k=40, top_p=0.9, seed=3)
    assert flat == generate(model, texts, max_new_tokens=10, sampling=Sampling(1.0, 40, 0.9, 3))
    with pytest.raises(ConfigError, match="both"):
        generate(model, texts, max_new_tokens=10, sampling=Sampling(), seed=3)


def test_one_prompt_or_many(model):
    one = generate(model, "hello", max_new_tokens=8)
    assert isinstance(one, str)
    assert generate(model, ["hello"], max_new_tokens=8) == [one]
    assert generate(model, [], max_new_tokens=8) == []
    assert generate(model, [], max_new_tokens=8, stop="x") == []


def test_streaming_pieces_add_up(model):
    prompts = ["one", "two", "and three"]
    for settings in ({}, {"temperature": 1.3, "seed": 8}):
        whole = generate(model, prompts, max_new_tokens=24, **settings)
        pieces = [[], [], []]
        streamed = generate(
            model,
            prompts,
            max_new_tokens=24,
            stream=lambda i, piece, pieces=pieces: pieces[i].append(piece),
            **settings,
        )
        assert streamed == whole == ["".join(row) for row in pieces]
        assert max(map(len, pieces)) > 2  # in pieces, not all at the end


def test_stop_strings_end_a_row_before_them(stories):
    prompts = ["Once upon a time", "The dog"]
    whole = generate(stories, prompts, max_new_tokens=60)
    # "named Lily" is some tokens, ". One" lies across a token's edge.
    for stop in (" named Lily", ". One", ["nowhere", "y. S"]):
        stops = [stop] if isinstance(stop, str) else stop
        pieces = ["", ""]

        def collect(row, piece, pieces=pieces):
            pieces[row] += piece

        found = generate(stories, prompts, max_new_tokens=60, stop=stop, stream=collect)
        expected = [min((text.split(s)[0] for s in stops), key=len) for text in whole]
        assert expected[0] != whole[0]
        assert found == expected == pieces
        assert generate(stories, prompts, max_new_tokens=60, stop=stop) == expected


def test_a_stop_saves_the_rest_of_the_work(stories, monkeypatch):
    calls = []
    real = module.compiled_continue
    monkeypatch.setattr(module, "compiled_continue", lambda *a: calls.append(1) or real(*a))
    generate(stories, "Once upon a time", max_new_tokens=60, stop="little")
    assert len(calls) <= 2


def test_the_device_writes_pads_behind_eos(model, monkeypatch):
    end = generate_tokens(with_eos(model), PROMPTS, max_new_tokens=24)[0][5]
    seen, real = [], module.compiled_start
    monkeypatch.setattr(module, "compiled_start", lambda *a: seen.append(real(*a)) or seen[-1])
    config = dataclasses.replace(with_eos(model, end).config, pad_id=77)
    row = generate_tokens(with_eos(model, end).replace(config=config), PROMPTS, max_new_tokens=24)
    tokens = np.asarray(seen[0][1].tokens)[0].tolist()
    assert tokens == [*row[0], end] + [77] * (24 - len(row[0]) - 1)


def test_a_finished_row_holds_no_pads(model):
    outputs = generate_tokens(
        with_eos(model), PROMPTS, max_new_tokens=24, watch=lambda rows, ended: [True, False, False]
    )
    whole = generate_tokens(with_eos(model), PROMPTS, max_new_tokens=24)
    assert outputs == [whole[0][: module.CHUNK], whole[1], whole[2]]


def test_trained_model_continues_its_story(stories):
    text = generate(stories, "Once upon a time", max_new_tokens=60, stop="high.")
    assert text == (
        ", there was a little girl named Lily. She loved to play outside in the park. One day, "
        "she saw a big, red ball. She wanted to play with it, but it was too "
    )


@pytest.mark.parametrize("combine", ["factors", "products"])
def test_rows_with_gates_of_their_own(model, combine):
    config = GeneratorConfig(experts=4, top_k=2, rank=3, combine=combine)
    rng = np.random.default_rng(0)
    experts = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
        pool_leaves(config, model.config),
    )
    pool = make_pool(experts, config)
    gates = rng.dirichlet(np.ones(4), (3, model.config.layers)).astype(np.float32)
    edge = with_eos(model)
    batch = generate_tokens(edge, PROMPTS, max_new_tokens=20, gates=gates, pool=pool)
    assert batch != generate_tokens(edge, PROMPTS, max_new_tokens=20)
    for i, row in enumerate(PROMPTS):
        alone = generate_tokens(edge, [row], max_new_tokens=20, gates=gates[i], pool=pool)
        assert alone == [batch[i]]
        merged = merge(edge, pool, Card(gates[i], pool.generator, edge.fingerprint))
        assert generate_tokens(merged, PROMPTS, max_new_tokens=20)[i] == batch[i]
    chunked = generate_tokens(
        edge, PROMPTS, max_new_tokens=20, gates=gates, pool=pool, watch=lambda rows, ended: ended
    )
    assert chunked == batch


def test_bfloat16(tmp_path):
    make_tiny("gemma2", tmp_path)
    model = with_eos(load_model(tmp_path, "bfloat16"))
    first = generate_tokens(model, PROMPTS, max_new_tokens=18)
    assert [len(row) for row in first] == [18] * 3
    watched = generate_tokens(model, PROMPTS, max_new_tokens=18, watch=lambda rows, ended: ended)
    assert watched == first


def test_errors(model):
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        generate(model, "a", max_new_tokens=0)
    with pytest.raises(ConfigError, match=r"together 302; this model's context is 256.* most 254"):
        generate(model, ["ab"], max_new_tokens=300)
    for length, excess in ((256, 1), (300, 45)):
        says = rf"alone has {length} tokens.*context is 256.* at least {excess}\.$"
        with pytest.raises(ConfigError, match=says):
            generate(model, "a" * length, max_new_tokens=1)
    assert generate(model, "ab", max_new_tokens=253) is not None
    with pytest.raises(DataError, match="prompt 1 is empty"):
        generate(model, ["a", " "], max_new_tokens=5)
    with pytest.raises(DataError, match="expected text, a list of token ids"):
        generate(model, ["a", 3.5], max_new_tokens=5)
    with pytest.raises(DataError, match="no tokens"):
        generate_tokens(model, [[]], max_new_tokens=5)
    with pytest.raises(DataError, match="vocabulary is 0 to 263"):
        generate_tokens(model, [[1, 264]], max_new_tokens=5)
    with pytest.raises(ConfigError, match="stop"):
        generate(model, "a", max_new_tokens=5, stop="")
    gates = np.full((2, model.config.layers, 4), 0.25, np.float32)
    with pytest.raises(ConfigError, match=r"pool=gen\.pool"):
        generate(model, "a", max_new_tokens=5, gates=gates)


@of_these("llama")
def test_the_repetition_penalty_is_that_of_transformers(pair):
    torch_model, model = pair
    prompts = PROMPTS[:1] * 2  # one length: transformers takes padding for a part of the prompt
    tokens = torch.tensor(prompts)
    for penalty in (1.3, 0.8):
        wanted = torch_model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=24,
            min_new_tokens=24,
            repetition_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
        )[:, tokens.shape[1] :].tolist()
        sampling = Sampling(repetition_penalty=penalty)
        ours = generate_tokens(with_eos(model), prompts, max_new_tokens=24, sampling=sampling)
        assert ours == wanted
        assert ours != generate_tokens(with_eos(model), prompts, max_new_tokens=24)
        watched = generate_tokens(  # in chunks
            with_eos(model),
            prompts,
            max_new_tokens=24,
            sampling=sampling,
            watch=lambda rows, ended: ended,
        )
        assert watched == wanted
    with pytest.raises(ConfigError, match="repetition_penalty is 0"):
        Sampling(repetition_penalty=0)
