"""Direct generation: both heads against numpy, a fresh head, merged and unmerged, trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.config import GeneratorConfig
from lorage_jax.data.templates import TemplateKind, question
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.evaluate.controls import MeanGates
from lorage_jax.generator.direct import EPS, factors, head_leaves
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.direct import Direct, DirectSettings
from lorage_jax.methods.training import train
from lorage_jax.models.leaves import initialise
from tests.data.test_chat_templates import CHATML, GEMMA, with_template
from tests.methods.runs import experiment
from tests.tiny import padded_batch

PROMPTS = ["Say it twice.", "Shout."]


@pytest.fixture(scope="module")
def edge(pair):
    return load_model(pair[1])


def drawn(head, edge):
    """A head with random numbers everywhere, and states of two prompts."""
    leaves = head_leaves(head, 5, 2, 7, edge.config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), leaves)
    return params, rng.standard_normal((2, edge.config.layers, 7)).astype(np.float32)


def silu(x):
    return x / (1 + np.exp(-x))


def embedded(params, states):
    centred = states - states.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
    return silu(normed @ params["f1"]["kernel"] + params["f1"]["bias"])


def test_a_whole_layer_at_once_in_numpy(edge):
    params, states = drawn("layers", edge)
    made = factors(params, jnp.asarray(states))
    params = jax.tree.map(np.asarray, params)
    u = embedded(params, states)
    for name in edge.config.projections:
        for part in ("a", "b"):
            weights, bias = params["out"][name][part], params["bias"][name][part]
            flat = u @ weights.reshape(5, -1)
            wanted = flat.reshape(2, -1, *weights.shape[1:]) + bias
            np.testing.assert_allclose(made[name][part], wanted, rtol=2e-4, atol=2e-4)


def test_one_rank_at_a_time_in_numpy(edge):
    params, states = drawn("ranks", edge)
    made = factors(params, jnp.asarray(states))
    params = jax.tree.map(np.asarray, params)
    u = embedded(params, states)
    for name in edge.config.projections:
        for r in range(2):
            z = u + params["module"][name] + params["rank"][r]
            z = z + silu(z @ params["f2"]["kernel"] + params["f2"]["bias"])
            heads, bias = params["out"][name], params["bias"][name]
            a, b = z @ heads["a"] + bias["a"][..., r], z @ heads["b"] + bias["b"][:, r]
            np.testing.assert_allclose(made[name]["a"][..., r], a, rtol=2e-4, atol=2e-4)
            np.testing.assert_allclose(made[name]["b"][:, :, r], b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("head", ["layers", "ranks"])
def test_a_fresh_head_makes_a_fresh_lora_of_every_prompt(head, edge):
    """B is zero; A and B do not depend on the states, so no gradient reaches the cloud yet."""
    params = initialise(head_leaves(head, 5, 2, 7, edge.config), jax.random.key(0))
    states = jnp.asarray(drawn(head, edge)[1])
    made = factors(params, states)
    for one in made.values():
        assert np.abs(one["a"]).min() > 0 and not np.any(one["b"])
        np.testing.assert_array_equal(one["a"][0], one["a"][1])

    def total(params, states):
        made = factors(params, states)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(made))

    own, trunk = jax.grad(total, argnums=(0, 1))(params, states)
    assert not np.any(trunk)
    assert all(np.any(x) for x in jax.tree.leaves({k: own[k] for k in ("out", "bias")}))
    assert not any(
        np.any(x) for k in own if k not in ("out", "bias") for x in jax.tree.leaves(own[k])
    )


def answers_in_the_turns_of_training(method, edge):
    """Placed on an edge whose chat template has changed since."""
    chat = with_template(CHATML)
    trained = edge.replace(tokenizer=chat, template=TemplateKind("chat").on(chat))
    changed = edge.replace(tokenizer=with_template(GEMMA), template=None)
    method = dataclasses.replace(method, edge=trained)
    right = trained.template.ids(question("hi"))
    assert TemplateKind("chat").on(changed.tokenizer).ids(question("hi")) != right
    rows = method.prepare(PROMPTS)
    for some in (rows[:1], rows):
        assert method.place(changed, some).model.template.ids(question("hi")) == right


@pytest.mark.parametrize("head", ["layers", pytest.param("ranks", marks=pytest.mark.slow)])
def test_it_trains_loads_and_merges(head, edge, pair, tmp_path):
    settings = DirectSettings(head=head, hidden=8, penalty=1e-3)
    generator = GeneratorConfig(rank=2, alpha=4.0, cloud_rank=2, dropout=0.1)
    config = experiment(pair, tmp_path / "run", "direct", settings=settings, generator=generator)
    done = train(config, progress=False)
    method = Direct.load(edge, done.folder)
    # Four steps leave the head near zero: make the LoRAs large.
    method.trained["head"]["out"] = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape),
        method.trained["head"]["out"],
    )
    rows = method.prepare([*PROMPTS, PROMPTS[0]])
    assert rows[0].card is rows[2].card and rows[0].facts["cloud_tokens"] > 0
    tokens, mask = padded_batch(rows=3)
    placed = method.place(edge, rows)
    assert placed.pool.count == 2
    unmerged = np.asarray(forward(placed.model, tokens, mask, list(placed.cards), placed.pool))
    bare = np.asarray(forward(edge, tokens, mask))
    for i, row in enumerate(rows):
        merged = method.place(edge, [row])
        assert merged.cards is None and merged.model.card is row.card
        found = np.asarray(forward(merged.model, tokens, mask))[i][mask[i]]
        np.testing.assert_allclose(found, unmerged[i][mask[i]], atol=2e-4 * np.abs(found).max())
        assert np.abs(found - bare[i][mask[i]]).max() > 0.1
    answers_in_the_turns_of_training(method, edge)
    with pytest.raises(ConfigError, match="there are no mean gates"):
        MeanGates(method).prepare(PROMPTS)
    with pytest.raises(ConfigError, match="a row has no LoRA"):
        method.place(edge, Bare().prepare(PROMPTS))
    with pytest.raises(WeightsError, match="was trained for the edge model"):
        Direct.load(method.cloud, done.folder)
