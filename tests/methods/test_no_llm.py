"""A generator without a language model: its readers against numpy and torch, its cards, a run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lorage_jax.config import GeneratorConfig
from lorage_jax.data.batches import Batch, host_rows
from lorage_jax.data.templates import NEWEST
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.generator.pool import make_pool, pool_leaves
from lorage_jax.generator.readers import Encoder, bag, encoded, encoder_leaves
from lorage_jax.generator.router import route, router_leaves, statistics_leaves
from lorage_jax.generator.sentences import load_encoder
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.no_llm import NoLlm, NoLlmSettings, states_of
from lorage_jax.methods.training import train
from lorage_jax.models.leaves import Leaf, initialise
from tests.methods.runs import experiment
from tests.tiny import make_encoder, padded_batch

PROMPTS = ["Say it twice.", "Shout.", "twice it Say."]
RNG = np.random.default_rng(2)
TABLE = RNG.standard_normal((20, 8)).astype(np.float32)
TOKENS = np.asarray([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]], np.int32)
MASK = np.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)


def test_the_bag_is_the_mean_of_real_tokens():
    found = bag(jnp.asarray(TABLE), jnp.asarray(TOKENS), jnp.asarray(MASK))
    scaled = TABLE / np.sqrt((TABLE**2).mean())
    for row, tokens, mask in zip(found, TOKENS, MASK, strict=True):
        np.testing.assert_allclose(row, scaled[tokens[mask]].mean(0), rtol=1e-5)


def test_the_encoder_sees_both_directions():
    """Each prompt alone, unpadded, in torch, where attention has no mask at all."""
    encoder = Encoder(width=8, heads=2)
    leaves = encoder_leaves(encoder)
    params = jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape).astype(np.float32), leaves)
    weights = jax.tree.map(jnp.asarray, params)
    arrays = (jnp.asarray(TABLE), jnp.asarray(TOKENS), jnp.asarray(MASK))
    found = encoded(encoder, weights, *arrays)
    table = torch.tensor(TABLE / np.sqrt((TABLE**2).mean()))

    def norm(x, scale):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * scale

    def turned(x):  # [T, heads, 4]: channels i and i + 2 are a pair
        angles = torch.arange(len(x))[:, None] / 10_000.0 ** (torch.arange(2) / 2)
        cos, sin = torch.cos(angles)[:, None], torch.sin(angles)[:, None]
        a, b = x[..., :2], x[..., 2:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    for row, tokens, mask in zip(found, TOKENS, MASK, strict=True):
        x = table[torch.tensor(tokens[mask]).long()]
        for layer in range(2):
            w = {k: torch.tensor(v[layer]) for k, v in params["layers"].items()}
            y = norm(x, w["attn_norm"])
            q, k, v = ((y @ w[name]).reshape(len(y), 2, 4) for name in "qkv")
            heads = [turned(q), turned(k), v]
            q, k, v = (one.transpose(0, 1)[None] for one in heads)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v)[0]
            x = x + y.transpose(0, 1).reshape(len(x), 8) @ w["o"]
            y = norm(x, w["ffn_norm"])
            x = x + (torch.nn.functional.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]
        wanted = norm(x.mean(0), torch.tensor(params["final_norm"]))
        np.testing.assert_allclose(row, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("reader", [pytest.param("bag", marks=pytest.mark.slow), "encoder"])
def test_it_trains_and_its_cards_answer(reader, pair, tmp_path):
    """The bag gives two orders of the same words one card; the encoder tells them apart."""
    generator = GeneratorConfig(experts=4, top_k=2, rank=2, dropout=0.1)
    settings = NoLlmSettings(reader=reader)
    config = experiment(pair, tmp_path / "run", "no_llm", settings=settings, generator=generator)
    done = train(config, progress=False)
    edge = load_model(pair[1])
    method = NoLlm.load(edge, done.folder)
    rows = method.prepare([*PROMPTS, PROMPTS[0]])
    first, second, third = (row.card.gates for row in rows[:3] if row.card is not None)
    assert rows[0].card is rows[3].card and np.allclose(first.sum(-1), 1)
    assert np.abs(first - second).max() > 1e-4
    assert np.allclose(first, third, atol=1e-5) == (reader == "bag")
    placed = method.place(edge, rows)
    assert placed.cards is not None
    tokens, mask = padded_batch(rows=4)
    unmerged = np.asarray(forward(placed.model, tokens, mask, list(placed.cards), placed.pool))
    merged = method.place(edge, [rows[1]]).model
    found = np.asarray(forward(merged, tokens, mask))[1][mask[1]]
    np.testing.assert_allclose(found, unmerged[1][mask[1]], atol=1e-4 * np.abs(found).max())
    with pytest.raises(ConfigError, match="a row has no card"):
        method.place(edge, Bare().prepare(PROMPTS))


def test_a_sentence_encoder_reads_the_prompts(pair, tmp_path):
    """The router reads its vectors, projected and normalised, with each layer's own vector."""
    folder = make_encoder(tmp_path / "encoder")
    generator = GeneratorConfig(experts=4, top_k=2, rank=2)
    settings = NoLlmSettings("sentence", str(folder))
    config = experiment(pair, tmp_path / "run", "no_llm", settings=settings, generator=generator)
    data = dataclasses.replace(config.data, prompts_per_batch=16, prompt_chunks=2)
    done = train(dataclasses.replace(config, data=data), progress=False)
    assert done.losses[-1][1] < done.losses[0][1]
    edge = load_model(pair[1])
    method = NoLlm.load(edge, done.folder)
    parts = method.parts["trained"]
    assert sum(x.size for x in parts["projection"].values()) == 16 * 48 + 3 * 48
    rows = method.prepare(["say it twice", "shout " * 20])
    assert [row.facts for row in rows] == [{"reader_truncated": False}, {"reader_truncated": True}]
    vectors = load_encoder(folder)(["say it twice"])
    x = torch.tensor(vectors) @ torch.tensor(np.asarray(parts["projection"]["weight"]))
    x = x + torch.tensor(np.asarray(parts["projection"]["bias"]))
    scale, bias = (torch.tensor(np.asarray(parts["projection"][n])) for n in ("norm", "norm_bias"))
    one = torch.nn.functional.layer_norm(x, (48,), scale, bias).numpy()
    states = jnp.asarray(one[:, None] + np.asarray(parts["layers"]))
    router, statistics = parts["router"], method.parts["statistics"]
    wanted, _ = route(method.config, router, statistics, states, train=False, key=None)
    assert rows[0].card is not None
    np.testing.assert_allclose(rows[0].card.gates, wanted[0], atol=1e-4)

    nothing: Any = None  # the encoder needs the texts only
    complete = NoLlm.completed(config, nothing)
    rows = host_rows(tokens=np.zeros((2, 3), np.int32), mask=np.ones((2, 3), bool))
    texts = ("say it", "shout", "twice", "the words")
    assert complete is not None
    found = complete(Batch((rows, rows), (rows, rows), texts=texts)).vectors
    assert [one.shape for one in found] == [(2, 16)] * 2
    np.testing.assert_array_equal(np.concatenate(found), load_encoder(folder)(texts))

    (folder / "modules.json").write_text('[{"type": "x.Normalize"}]')
    with pytest.raises(WeightsError, match="trained with another sentence encoder"):
        NoLlm.load(edge, done.folder)
    with pytest.raises(ConfigError, match="reader is bag and folder is 'x'"):
        NoLlmSettings(folder="x")
    with pytest.raises(ConfigError, match="reads on the host"):
        arrays = (jnp.asarray(TABLE), {}, jnp.asarray(TOKENS), jnp.asarray(MASK))
        states_of("sentence", edge.config, *arrays)


def test_the_router_is_that_of_lora_gen(pair):
    """Gates of a prompt: the bag plus each layer's vector, through `route`."""
    edge = load_model(pair[1])
    config = GeneratorConfig(experts=4, top_k=2, rank=2)
    trained = initialise(
        {
            "layers": Leaf((edge.config.layers, 48), ("layers", "embed"), "unit"),
            "router": router_leaves(config, 48, edge.config.layers),
            "pool": pool_leaves(config, edge.config),
        },
        jax.random.key(3),
    )
    statistics = initialise(statistics_leaves(config, edge.config.layers), jax.random.key(4))
    parts = {"trained": trained, "statistics": statistics}
    pool = make_pool(trained["pool"], config, "sha256:x")
    (row,) = NoLlm(edge, config, "bag", parts, pool, NEWEST).prepare(["Shout."])
    table = np.asarray(edge.params["embed"])
    ids = NEWEST.on(edge.tokenizer).read("Shout.")
    mean = (table / np.sqrt((table**2).mean()))[ids].mean(0)
    states = jnp.asarray(mean + np.asarray(trained["layers"]))[None]
    wanted, _ = route(config, trained["router"], statistics, states, train=False, key=None)
    assert row.card is not None
    np.testing.assert_allclose(row.card.gates, wanted[0], atol=1e-5)
