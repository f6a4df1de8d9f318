"""LoRAMoE and MixLoRA: against their formulas in torch, token by token, and trained for real.

The oracle is transformers' model whose FFN is replaced by the formula; MixLoRA's runs every chosen
expert as an FFN of its own.
"""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from lorage_jax import nano
from lorage_jax.config import MeshConfig
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.evaluate.answers import Generation
from lorage_jax.evaluate.harness import LorageLM
from lorage_jax.generator import loras
from lorage_jax.hf.family import family_decoder
from lorage_jax.hf.folder import open_folder
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.infer.score import score
from lorage_jax.methods.loramoe import LoraMoe, LoraMoeSettings, localised_balance
from lorage_jax.methods.method import get_method
from lorage_jax.methods.mixlora import MixLora, MixLoraSettings, load_balance
from lorage_jax.methods.training import train
from lorage_jax.models import routing
from lorage_jax.models.decoder import Decoder
from lorage_jax.sharding import Layout, make_mesh
from tests.methods.runs import experiment, interrupted
from tests.tiny import padded_batch, torch_logits

MOE = LoraMoeSettings(experts=4, rank=3, alpha=6.0, dropout=0.0)
MIX = MixLoraSettings(experts=4, top_k=2, rank=3, alpha=6.0, dropout=0.0)
FFN = ("gate", "up", "down")


@pytest.fixture(scope="module")
def edge(pair):
    return load_model(pair[1])


def drawn(method, edge, settings, seed=0):
    """Random trained parts, large enough to matter."""
    rng = np.random.default_rng(seed)
    leaves = method.leaves(edge.config, settings)
    return jax.tree.map(lambda x: (0.2 * rng.standard_normal(x.shape)).astype(np.float32), leaves)


def run(edge, pool, tokens, mask):
    """Logits and the routers' sums."""
    apply = jax.jit(
        lambda params, pool: Decoder(edge.config).apply(
            {"params": params}, tokens, jnp.asarray(mask), pool=pool, routing=True
        )
    )
    output = apply(edge.params, pool)
    return np.asarray(output.logits), output.routing


def as_torch(tree):
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x)), tree)


def with_ffn(folder, forward, trained):
    """transformers' model whose FFNs call `forward(mlp, parts of the layer, x)`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), attn_implementation="eager", dtype=torch.float32
    ).eval()
    for number, layer in enumerate(model.model.layers):
        parts = jax.tree.map(lambda x, i=number: x[i], as_torch(trained))
        layer.mlp.forward = lambda x, m=layer.mlp, p=parts: forward(m, p, x)
    return model


def test_loramoe_is_its_formula(edge, pair):
    """Every linear layer has its own router, which reads that layer's input."""
    trained, weights = drawn(LoraMoe, edge, MOE), []

    def linear(mlp, parts, name, x):
        a, b = parts["experts"][name]["a"], parts["experts"][name]["b"]
        w = torch.softmax(x @ parts["routers"][name], -1)
        weights.append((name, w.numpy()))
        update = sum(w[..., i, None] * (x @ a[i] @ b[i]) for i in range(4))
        return getattr(mlp, f"{name}_proj")(x) + 2.0 * update

    def ffn(mlp, parts, x):
        hidden = mlp.act_fn(linear(mlp, parts, "gate", x)) * linear(mlp, parts, "up", x)
        return linear(mlp, parts, "down", hidden)

    tokens, mask = padded_batch()
    expected = torch_logits(with_ffn(pair[1], ffn, trained), tokens, mask)
    pool = LoraMoe.routed(trained, MOE, "x")
    found, sums = run(edge, pool, tokens, mask)
    atol = 2e-5 * np.abs(expected[mask]).max()
    np.testing.assert_allclose(found[mask], expected[mask], atol=atol)
    assert np.abs(found - np.asarray(forward(edge, tokens, mask)))[mask].max() > 1

    counts = mask.sum(1)
    expected_loss, plain = 0.0, 0.0
    kinds = np.arange(len(tokens)) % 2
    for _, w in weights:
        q = np.stack([w[b, mask[b]].mean(0) for b in range(len(tokens))])
        wish = np.where((np.arange(4) < 2)[None] == (kinds[:, None] == 1), 1.1, 0.9)
        for z, add in ((q, False), (q * wish, True)):
            loss = z.var(ddof=1) / (z.mean() ** 2 + 1e-10)
            expected_loss, plain = expected_loss + loss * add, plain + loss * (not add)
    probabilities = [sums[name]["probability"] for name in FFN]
    tokens_of = jnp.asarray(counts, jnp.float32)
    local = sum(localised_balance(p, tokens_of, jnp.asarray(kinds), 0.1) for p in probabilities)
    assert float(local) == pytest.approx(expected_loss, rel=1e-4)
    weighed = dataclasses.replace(MOE, balance=0.3)
    assert float(LoraMoe.balance(weighed, sums, tokens_of)) == pytest.approx(0.3 * plain, rel=1e-4)
    assert float(LoraMoe.balance(MOE, sums, tokens_of)) == 0
    halves = dataclasses.replace(weighed, delta=0.1, first=(3, 7))
    found = LoraMoe.balance(halves, sums, tokens_of, jnp.where(jnp.asarray(kinds) == 1, 7, 2))
    assert float(found) == pytest.approx(0.3 * expected_loss, rel=1e-4)


def test_mixlora_is_its_formula(edge, pair):
    """Whole FFNs are mixed: the trick with the down projection is exact."""
    trained, routed = drawn(MixLora, edge, MIX), []

    def expert(mlp, parts, i, x):
        def linear(name, x):
            one = parts["experts"][name]
            return getattr(mlp, f"{name}_proj")(x) + 2.0 * (x @ one["a"][i] @ one["b"][i])

        return linear("down", mlp.act_fn(linear("gate", x)) * linear("up", x))

    def ffn(mlp, parts, x):
        p = torch.softmax(x @ parts["routers"]["ffn"], -1)
        top, chosen = torch.topk(p, 2)
        routed.append((p.numpy(), chosen.numpy()))
        out = torch.zeros_like(x)
        for row in range(x.shape[0]):
            for t in range(x.shape[1]):
                gates = top[row, t] / top[row, t].sum()
                for g, i in zip(gates, chosen[row, t], strict=True):
                    out[row, t] += g * expert(mlp, parts, i, x[row, t])
        return out

    model = with_ffn(pair[1], ffn, {k: trained[k] for k in ("experts", "routers")})
    attention = as_torch(trained["attention"])
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            for name, one in attention.items():
                module = getattr(layer.self_attn, f"{name}_proj")
                a, b = one["a"][number].reshape(-1, 3), one["b"][number].reshape(3, -1)
                module.weight += 2.0 * (a @ b).T
    tokens, mask = padded_batch()
    expected = torch_logits(model, tokens, mask)
    pool = MixLora.routed(trained, MIX, "x")
    found, sums = run(edge, pool, tokens, mask)
    atol = 2e-5 * np.abs(expected[mask]).max()
    np.testing.assert_allclose(found[mask], expected[mask], atol=atol)

    p = np.concatenate([one[mask] for one, _ in routed])
    chosen = np.concatenate([one[mask] for _, one in routed])
    share = np.array([(chosen == i).any(1).mean() for i in range(4)])
    loss = 4 * (share * p.mean(0)).sum()
    counts = jnp.asarray(mask.sum(1), jnp.float32)
    assert float(load_balance(sums["ffn"], counts)) == pytest.approx(loss, rel=1e-4)
    even = {"kept": jnp.full((2, 3, 4), 5.0), "probability": jnp.full((2, 3, 4), 2.5)}
    assert float(load_balance(even, jnp.full(3, 10.0))) == pytest.approx(2)  # K, where balanced


def test_each_expert_drops_inputs_of_its_own(edge):
    """Equal experts answer alike, but not where each input of a LoRA is dropped by half."""
    config, rng = edge.config, np.random.default_rng(0)
    width, inside = config.width, config.ffn_width
    sizes = {"gate": (width, inside), "up": (width, inside), "down": (inside, width)}
    base = {name: jnp.asarray(rng.standard_normal(size)) for name, size in sizes.items()}

    def equal(size):
        return jnp.broadcast_to(jnp.asarray(rng.standard_normal(size)), (2, *size))

    experts = {name: {"a": equal((i, 3)), "b": equal((3, o))} for name, (i, o) in sizes.items()}
    x = jnp.asarray(rng.standard_normal((1, 4, width)))

    def output(expert, drop):
        gates = jnp.zeros((1, 4, 2)).at[..., expert].set(1.0)
        given = (lambda name, y: y @ base[name]), x, experts, gates, 1.0, drop
        return np.asarray(routing.mixed_ffn(config, *given))

    np.testing.assert_array_equal(output(0, None), output(1, None))
    drop = routing.Drop(jax.random.key(0), 0.5)
    assert np.abs(output(0, drop) - output(1, drop)).max() > 0.1
    np.testing.assert_array_equal(output(0, drop), output(0, drop))


def lora_logits(edge, trained, factors, tokens, mask, scale):
    """Logits with a plain LoRA of these factors on the FFN."""
    adapters = {name: {"a": one["a"], "b": one["b"]} for name, one in factors.items()}
    mask = jnp.asarray(mask)
    output = jax.jit(
        lambda params, adapters: Decoder(edge.config).apply(
            {"params": params}, tokens, mask, adapters=adapters, adapter_scale=scale
        )
    )(edge.params, adapters | trained.get("attention", {}))
    return np.asarray(output.logits)


def test_one_expert_is_a_lora_and_equal_weights_are_one_of_their_ranks(edge):
    tokens, mask = padded_batch()
    one = dataclasses.replace(MOE, experts=1)
    trained = drawn(LoraMoe, edge, one)
    factors = loras.without_expert_axis(trained["experts"])
    expected = lora_logits(edge, trained, factors, tokens, mask, 2.0)
    atol = 2e-5 * np.abs(expected[mask]).max()
    found, _ = run(edge, LoraMoe.routed(trained, one), tokens, mask)
    np.testing.assert_allclose(found[mask], expected[mask], atol=atol)

    single = dataclasses.replace(MIX, experts=1, top_k=1)
    trained = drawn(MixLora, edge, single) | {"experts": trained["experts"]}
    expected = lora_logits(edge, trained, factors, tokens, mask, 2.0)
    found, _ = run(edge, MixLora.routed(trained, single), tokens, mask)
    np.testing.assert_allclose(found[mask], expected[mask], atol=atol)

    trained = drawn(LoraMoe, edge, MOE)
    trained["routers"] = jax.tree.map(np.zeros_like, trained["routers"])
    wide = {
        name: {
            "a": np.concatenate(np.moveaxis(one["a"], 1, 0), axis=-1),
            "b": np.concatenate(np.moveaxis(one["b"], 1, 0), axis=1),
        }
        for name, one in trained["experts"].items()
    }
    expected = lora_logits(edge, {}, wide, tokens, mask, 2.0 / 4)
    found, _ = run(edge, LoraMoe.routed(trained, MOE), tokens, mask)
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("method", "settings"), [(LoraMoe, MOE), (MixLora, MIX)])
def test_a_fresh_one_is_the_bare_edge(edge, method, settings):
    tokens, mask = padded_batch()
    trained = method.first(edge.config, settings, jax.random.PRNGKey(0))
    found, _ = run(edge, method.routed(trained, settings), tokens, mask)
    bare = np.asarray(forward(edge, tokens, mask))
    np.testing.assert_allclose(found[mask], bare[mask], atol=1e-5 * np.abs(bare).max())


def test_trained_parameters_are_as_many_as_the_formulas_say():
    sizes = {"width": 2048, "ffn_width": 5632, "layers": 22, "heads": 32, "kv_heads": 4}
    tinyllama = family_decoder("llama", vocab_size=32000, **sizes)
    for edge, expected in (
        (open_folder(nano.EDGE).config, (245_760, 909_312, 976_896, 890_880)),
        (tinyllama, (17_932_288, 66_592_768, 69_746_688, 65_241_088)),
    ):
        trees = (
            LoraMoe.leaves(edge, LoraMoeSettings()),
            LoraMoe.leaves(edge, LoraMoeSettings(rank=16)),
            MixLora.leaves(edge, MixLoraSettings()),
            MixLora.leaves(edge, MixLoraSettings(attention=())),
        )
        found = [sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in trees]
        assert tuple(found) == expected


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param(
            "loramoe",
            dataclasses.replace(MOE, balance=0.1, delta=0.1, dropout=0.1),
            marks=pytest.mark.slow,
        ),
        ("mixlora", dataclasses.replace(MIX, prompt="none", dropout=0.1)),
    ],
)
def test_training_resuming_and_answering_unmerged(pair, tmp_path, monkeypatch, name, settings):
    """The answers are those of the experts beside the edge, token by token and with a cache."""
    config = experiment(pair, tmp_path / "whole", name, settings=settings, steps=6, save_every=3)
    rest = whole = train(config, progress=False)
    assert whole.losses[-1][1] < whole.losses[0][1]
    if name == "loramoe":  # resuming is the same for both
        half = dataclasses.replace(config, out=str(tmp_path / "half"))
        rest = interrupted(half, monkeypatch, step=5)
        assert rest.losses == whole.losses[3:] and rest.fingerprint == whole.fingerprint

    cls: Any = get_method(name)
    edge = load_model(pair[1])
    assert not cls.mergeable
    method = cls.load(edge, rest.folder)
    rows = method.prepare(["Say it twice.", "Shout."])
    assert [row.context is not None for row in rows] == [settings.prompt == "in_context"] * 2
    placed = method.place(edge, rows)
    assert placed.cards is None
    ids = [3, 9, 27, 81]
    said = Generation(4)("answers", placed, [[{"role": "user", "content": "go"}]] * 2)
    assert len(said.answers) == 2
    logits = np.asarray(forward(placed.model, [ids], pool=placed.pool))
    logprobs = np.asarray(jax.nn.log_softmax(logits[0]))
    [found] = score(placed.model, [(ids[:2], ids[2:])], pool=placed.pool)
    expected = logprobs[1, ids[2]] + logprobs[2, ids[3]]
    assert found.loglikelihood == pytest.approx(float(expected), rel=1e-4)
    lm = LorageLM(edge)
    lm.reset(placed.model, experts=placed.pool)
    [(asked, _)] = lm._loglikelihood_tokens([(("", ""), ids[:2], ids[2:])])
    assert asked == pytest.approx(found.loglikelihood, rel=1e-4)
    assert np.abs(logits - np.asarray(forward(edge, [ids]))).max() > 1e-3
    manifest = rest.folder / "lorage.json"
    values = json.loads(manifest.read_text("utf-8"))
    values["settings"]["alpha"] = 7.0  # answers would differ, so the journal's keys have to
    manifest.write_text(json.dumps(values), "utf-8")
    louder = cls.load(edge, rest.folder).pool
    assert louder.scale == pytest.approx(7 / 3) and louder.generator != method.pool.generator
    other = edge.replace(params=edge.params | {"embed": edge.params["embed"] + 1}, source=None)
    with pytest.raises(WeightsError, match="Load the edge it was trained on"):
        cls.load(other, rest.folder)
    with pytest.raises(ConfigError, match="gates were given for experts that routers choose"):
        forward(edge, [ids], gates=np.ones((3, 4)), pool=placed.pool)


def test_rows_that_fill_a_batch_do_not_count_for_the_balance(edge, pair, tmp_path):
    """They have one slot and no targets."""
    settings = dataclasses.replace(MOE, balance=1.0)
    config = experiment(pair, tmp_path, "loramoe", settings=settings)
    layout = Layout(make_mesh(MeshConfig(1, 1, 1), jax.local_devices()[:1]))
    loss = jax.jit(LoraMoe.training(config, {"edge": edge.config}, layout).loss)
    trained = drawn(LoraMoe, edge, settings)
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 60, (3, 12)).astype(np.int32)
    mask = np.arange(12) < np.array([12, 7, 1])[:, None]
    targets = mask & (np.arange(12) > 3)
    found = []
    for filled in (tokens, np.where(np.arange(3)[:, None] == 2, 61, tokens)):
        queries = Rows(jnp.asarray(filled), jnp.asarray(mask), jnp.asarray(targets))
        made = loss(trained, {}, {"edge": edge.params}, Batch((), (queries,)), None)
        assert float(made.penalty) == float(made.metrics["balance"]) > 0
        assert np.asarray(made.metrics["gate_mass"]).sum(1) == pytest.approx(np.ones(3), rel=1e-4)
        assert "usage" not in made.metrics
        found.append(float(made.penalty))
    assert found[0] == found[1]
    sums = jnp.asarray(rng.uniform(1, 2, (2, 3, 4)))
    counts = jnp.array([9.0, 5.0, 0.0])
    expected = localised_balance(sums[:, :2], counts[:2])
    assert float(localised_balance(sums, counts)) == pytest.approx(float(expected), rel=1e-5)


def test_settings_that_cannot_be():
    for settings, words in (
        ({"top_k": 9}, "top_k is 9; expected 1 to 8"),
        ({"attention": ("q", "up")}, "attention has up, which the experts change already"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ):
        wrong: dict[str, Any] = settings
        with pytest.raises(ConfigError, match=words):
            MixLoraSettings(**wrong)
    with pytest.raises(ConfigError, match="delta needs two halves of experts; got 3 experts"):
        LoraMoeSettings(experts=3, delta=0.1)
