"""AutoCompressor and gist tokens: values, gradients and the mask against transformers."""

import copy
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lorage_jax.buckets import left_pad
from lorage_jax.config import GeneratorConfig, MeshConfig
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.data.templates import NEWEST
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.evaluate.answers import Generation, turns
from lorage_jax.hf.load import load_model
from lorage_jax.infer.prefixes import past_of
from lorage_jax.infer.score import score
from lorage_jax.methods.autocompressor import AutoCompressor, CompressorSettings
from lorage_jax.methods.gist import Gist
from lorage_jax.methods.training import train
from lorage_jax.models.decoder import Decoder
from lorage_jax.sharding import Layout, make_mesh
from lorage_jax.train.saved import saved_config
from tests.data.test_chat_templates import CHATML
from tests.methods.runs import experiment, interrupted

RNG = np.random.default_rng(5)
PROMPTS = ["Say it twice.", "Shout"]
QUESTION, ANSWER = RNG.integers(3, 250, 6).tolist(), RNG.integers(3, 250, 4).tolist()
VECTORS = 3


@pytest.fixture(scope="module")
def llama(tiny):
    """Our model and the torch model."""
    folder, model = tiny("llama")
    return load_model(folder), model


def summary():
    return np.random.default_rng(7).standard_normal((VECTORS, 48)).astype(np.float32)


def embedded(model, rows, vectors):
    """Embeddings of token ids, vectors and so on, in torch."""
    table = model.get_input_embeddings()
    parts = [table(torch.tensor(row)) for row in rows[:1]]
    return torch.cat([*parts, vectors, *[table(torch.tensor(row)) for row in rows[1:]]])[None]


def torch_autocompressor(model, prompt, vectors):
    """Logits at the question and answer, after the prompt's summary."""
    first = model.model(inputs_embeds=embedded(model, [prompt], vectors)).last_hidden_state
    table = model.get_input_embeddings()
    query = table(torch.tensor(QUESTION + ANSWER))
    return model(inputs_embeds=torch.cat([first[0, -VECTORS:], query])[None]).logits[0, VECTORS:]


def torch_gist(model, prompt, vectors):
    """The same in one masked pass: what comes after the gists does not see the prompt."""
    inputs = embedded(model, [prompt, QUESTION + ANSWER], vectors)
    length, last = inputs.shape[1], len(prompt) + VECTORS - 1
    i, j = np.arange(length)[:, None], np.arange(length)[None]
    allowed = (j <= i) & ~((i > last) & (j < len(prompt)))
    mask = torch.where(torch.tensor(allowed), 0.0, -1e30)[None, None]
    return model(inputs_embeds=inputs, attention_mask=mask).logits[0, last + 1 :]


ORACLES = {AutoCompressor: torch_autocompressor, Gist: torch_gist}


@pytest.mark.parametrize("cls", ORACLES, ids=lambda cls: cls.name)
def test_answers_behind_a_compressed_prompt(cls, llama):
    """Two prompts of different lengths, read together; log-likelihoods of an answer after each."""
    ours, model = llama
    method = cls(ours, None, jnp.asarray(summary()), NEWEST, "sha256:x")
    rows = method.prepare(PROMPTS)
    placed = method.place(ours, rows)
    found = score(ours, [(QUESTION, ANSWER)] * 2, prefixes=placed.prefixes)
    for row, prompt, one in zip(rows, PROMPTS, found, strict=True):
        ids = ours.template.read(prompt)
        assert row.facts == {"prefix_slots": VECTORS, "prompt_tokens": len(ids)}
        with torch.no_grad():
            logits = ORACLES[cls](model, ids, torch.tensor(summary()))
        likely = torch.log_softmax(logits[len(QUESTION) - 1 : -1], -1)
        wanted = likely.gather(1, torch.tensor(ANSWER)[:, None]).sum()
        assert one.loglikelihood == pytest.approx(float(wanted), abs=1e-3)


@pytest.mark.parametrize("cls", ORACLES, ids=lambda cls: cls.name)
def test_the_gradient_flows_through_both_passes(cls, llama, pair, tmp_path):
    """Loss and gradient of the summary vectors against autograd; the LoRA's b has one, too."""
    ours, model = llama
    prompt = ours.template.read(PROMPTS[0])
    vectors = torch.tensor(summary(), requires_grad=True)
    logits = ORACLES[cls](model, prompt, vectors)
    wanted = torch.nn.functional.cross_entropy(
        logits[len(QUESTION) - 1 : -1], torch.tensor(ANSWER), reduction="sum"
    )
    wanted.backward()

    settings = CompressorSettings(vectors=VECTORS, rank=2, alpha=2.0, dropout=0.0)
    config = experiment(pair, tmp_path, cls.name, settings=settings)
    layout = Layout(make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    training = cls.training(config, {"edge": ours.config}, layout)
    trained, _ = training.new({"edge": ours.params}, jax.random.key(0))
    table = np.asarray(ours.params["embed"])
    first = table.mean(0) if cls is Gist else table[ours.config.eos_ids[0]]
    np.testing.assert_allclose(trained["summary"], np.tile(first, (VECTORS, 1)), rtol=1e-4)
    trained["summary"] = jnp.asarray(summary())
    row = np.asarray([QUESTION + ANSWER], np.int32)
    real = np.ones(row.shape, bool)
    asked = np.arange(row.shape[1])[None] >= len(QUESTION)
    left = np.asarray([[0, 0, *prompt]], np.int32)
    micro = Batch((Rows(left, np.arange(left.shape[1])[None] > 1),), (Rows(row, real, asked),))
    micro = jax.tree.map(jnp.asarray, micro)

    @jax.jit
    def run(trained, params):
        return jax.value_and_grad(
            lambda trained: training.loss(trained, {}, {"edge": params}, micro, None).nll
        )(trained)

    nll, gradient = run(trained, ours.params)
    assert float(nll) == pytest.approx(float(wanted.detach()), abs=1e-3)
    assert vectors.grad is not None
    largest = float(vectors.grad.abs().max())
    np.testing.assert_allclose(gradient["summary"], vectors.grad.numpy(), atol=1e-3 * largest)
    for name in ("q", "k", "v", "o"):
        assert np.any(gradient["lora"][name]["b"]) and not np.any(gradient["lora"][name]["a"])


def reads_prompts_in_the_turns_of_training(cls, folder, edge):
    """The chat template that the folder records, whatever the tokenizer has now."""
    manifest = folder / "lorage.json"
    before = manifest.read_text("utf-8")
    values = json.loads(before) | {"template": "chat", "chat_template": CHATML, "turns": None}
    manifest.write_text(json.dumps(values), "utf-8")
    assert cls.load(edge, folder).template.source == CHATML
    manifest.write_text(before, "utf-8")


def of_a_version_without_segments(config, folder, edge, method):
    """Its folders load, and its checkpoints have the same config as this version's."""
    assert "segments" not in saved_config(config, None, True)["settings"]
    manifest = folder / "lorage.json"
    values = json.loads(manifest.read_text("utf-8"))
    assert values["settings"].pop("segments") == 1 == method.segments
    manifest.write_text(json.dumps(values), "utf-8")
    old = AutoCompressor.load(edge, folder)
    assert old.segments == 1
    (was,), (now,) = old.prepare(PROMPTS[:1]), method.prepare(PROMPTS[:1])
    assert was.prefix.identity == now.prefix.identity
    np.testing.assert_array_equal(was.prefix.k, now.prefix.k)


@pytest.mark.parametrize(
    "cls", [AutoCompressor, pytest.param(Gist, marks=pytest.mark.slow)], ids=lambda cls: cls.name
)
def test_it_trains_and_answers(cls, pair, tmp_path):
    settings = CompressorSettings(vectors=2, rank=2, alpha=4.0)
    generator = GeneratorConfig(dropout=0.1)
    config = experiment(pair, tmp_path / "run", cls.name, settings=settings, generator=generator)
    done = train(config, progress=False)
    edge = load_model(pair[1])
    method = cls.load(edge, done.folder)
    reads_prompts_in_the_turns_of_training(cls, done.folder, edge)
    assert not method.mergeable and method.vectors.shape == (2, 48)
    if cls is AutoCompressor:
        of_a_version_without_segments(config, done.folder, edge, method)
    rows = method.prepare([*PROMPTS, PROMPTS[0]])
    assert rows[0] is rows[2]
    placed = method.place(edge, rows)
    assert placed.model.loras and np.any(
        placed.model.params["layers"]["k"] != edge.params["layers"]["k"]
    )
    said = Generation(4)("test", placed, [turns("ab", row) for row in rows])
    assert said.answers[0] == said.answers[2]
    with pytest.raises(WeightsError, match="was trained for the edge model"):
        cls.load(load_model(pair[0]), done.folder)
    with pytest.raises(ConfigError, match="a row has no prefix"):
        method.place(edge, [dataclasses.replace(rows[0], prefix=None)])
    deep = dataclasses.replace(settings, vectors=200)
    config = dataclasses.replace(config, settings=deep, out=str(tmp_path / "deep"))
    with pytest.raises(ConfigError, match="200 slots of vectors and max_query_tokens 64 exceed"):
        train(config, progress=False)


def torch_segments(model, prompt, segments, vectors):
    """Logits at the question and answer, after the summaries of a prompt's segments."""
    table, size = model.get_input_embeddings(), math.ceil(len(prompt) / segments)
    summaries = vectors[:0]
    for begin in range(0, len(prompt), size):
        words = table(torch.tensor(prompt[begin : begin + size]))
        read = model.model(inputs_embeds=torch.cat([summaries, words, vectors])[None])
        summaries = torch.cat([summaries, read.last_hidden_state[0, -VECTORS:]])
    query = table(torch.tensor(QUESTION + ANSWER))
    return model(inputs_embeds=torch.cat([summaries, query])[None]).logits[0, len(summaries) :]


def trained_lora(edge, scale, model):
    """Factors of a LoRA, none zero, and the torch model with it merged."""
    rng, lora, merged = np.random.default_rng(11), {}, copy.deepcopy(model)
    for name in ("q", "k", "v", "o"):
        heads = (edge.kv_heads if name in "kv" else edge.heads, edge.head_dim)
        inputs, outputs = (heads, (48,)) if name == "o" else ((48,), heads)
        a = 0.2 * rng.standard_normal((edge.layers, *inputs, 2)).astype(np.float32)
        b = 0.2 * rng.standard_normal((edge.layers, 2, *outputs)).astype(np.float32)
        lora[name] = {"a": a, "b": b}
        for layer, down, up in zip(merged.model.layers, a, b, strict=True):
            weight = getattr(layer.self_attn, f"{name}_proj").weight
            weight.data += scale * torch.tensor(down.reshape(-1, 2) @ up.reshape(2, -1)).T
    return lora, merged


@jax.jit(static_argnums=0)
def logits_behind(config, params, past):
    tokens = jnp.tile(jnp.asarray([QUESTION + ANSWER]), (past.valid.shape[0], 1))
    return Decoder(config).apply({"params": params}, tokens, past=past).logits


def test_answers_behind_two_segments(llama, pair, tmp_path):
    """From a folder with a LoRA; two prompts of different lengths are read together."""
    ours, model = llama
    lora, merged = trained_lora(ours.config, 3.0 / 2, model)
    settings = CompressorSettings(vectors=VECTORS, rank=2, alpha=3.0, segments=2)
    config = experiment(pair, tmp_path, "autocompressor", settings=settings)
    trained = {"summary": summary(), "lora": lora}
    AutoCompressor.finish(config, {"edge": ours}, trained, {}).write(tmp_path / "made")
    method = AutoCompressor.load(ours, tmp_path / "made")
    assert method.segments == 2

    rows = method.prepare(PROMPTS)
    placed = method.place(ours, rows)
    past = past_of([(prefix, 0) for prefix in placed.prefixes])
    found = logits_behind(ours.config, placed.model.params, past)
    for row, prompt, logits in zip(rows, PROMPTS, found, strict=True):
        ids = ours.template.read(prompt)
        assert row.facts == {"prefix_slots": 2 * VECTORS, "prompt_tokens": len(ids)}
        with torch.no_grad():
            wanted = torch_segments(merged, ids, 2, torch.tensor(summary()))
            whole = torch_segments(merged, ids, 1, torch.tensor(summary()))
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
        assert np.abs(logits - whole.numpy()).max() > 0.1
    other = dataclasses.replace(method, segments=1).prepare(PROMPTS[:1])[0]
    assert other.prefix.identity != rows[0].prefix.identity


@pytest.mark.parametrize("lengths", [(13,), (11, 4, 1)], ids=["one", "padded"])
def test_a_padded_batch_of_segments_equals_single_prompts(lengths, llama, pair, tmp_path):
    """Loss and gradients against autograd on each prompt alone, without padding.

    In three parts, prompts of 11, 4 and 1 tokens have 3, 2 and 1 of them.
    """
    ours, model = llama
    lora, merged = trained_lora(ours.config, 3.0 / 2, model)
    vectors, losses = torch.tensor(summary(), requires_grad=True), []
    prompts = [RNG.integers(3, 250, length).tolist() for length in lengths]
    for prompt in prompts:
        logits = torch_segments(merged, prompt, 3, vectors)[len(QUESTION) - 1 : -1]
        losses.append(
            torch.nn.functional.cross_entropy(logits, torch.tensor(ANSWER), reduction="sum")
        )
    wanted = sum(losses)
    wanted.backward()

    settings = CompressorSettings(vectors=VECTORS, rank=2, alpha=3.0, dropout=0.0, segments=3)
    config = experiment(pair, tmp_path, "autocompressor", settings=settings)
    layout = Layout(make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    training = AutoCompressor.training(config, {"edge": ours.config}, layout)
    tokens, mask = left_pad(prompts, 16 if len(prompts) > 1 else 13)
    asked = np.tile(np.asarray(QUESTION + ANSWER, np.int32), (len(prompts), 1))
    real = np.ones(asked.shape, bool)
    targets = np.tile(np.arange(asked.shape[1]) >= len(QUESTION), (len(prompts), 1))
    micro = Batch((Rows(tokens, mask),), (Rows(asked, real, targets),))
    trained, micro = jax.tree.map(jnp.asarray, ({"summary": summary(), "lora": lora}, micro))

    @jax.jit
    def run(trained, params, micro):
        return jax.value_and_grad(
            lambda trained: training.loss(trained, {}, {"edge": params}, micro, None).nll
        )(trained)

    nll, gradient = run(trained, ours.params, micro)
    assert float(nll) == pytest.approx(float(wanted.detach()), abs=1e-3)
    assert vectors.grad is not None
    largest = float(vectors.grad.abs().max())
    np.testing.assert_allclose(gradient["summary"], vectors.grad.numpy(), atol=1e-3 * largest)
    for name, one in lora.items():
        for i, layer in enumerate(merged.model.layers):
            of_weight = getattr(layer.self_attn, f"{name}_proj").weight.grad.numpy()
            due = 3.0 / 2 * one["a"][i].reshape(-1, 2).T @ of_weight.T
            own = gradient["lora"][name]["b"][i].reshape(2, -1)
            np.testing.assert_allclose(own, due, atol=1e-3 * np.abs(due).max())


@pytest.mark.slow
def test_it_trains_in_segments_and_resumes(pair, tmp_path, monkeypatch):
    settings = CompressorSettings(vectors=2, rank=2, alpha=4.0, dropout=0.1, segments=2)
    fields = {"settings": settings, "steps": 4}
    whole = train(experiment(pair, tmp_path / "whole", "autocompressor", **fields), progress=False)
    half = experiment(pair, tmp_path / "half", "autocompressor", **fields)
    rest = interrupted(half, monkeypatch)
    assert rest.first_step == 2 and rest.losses == whole.losses[2:]
    assert rest.fingerprint == whole.fingerprint

    edge = load_model(pair[1])
    method = AutoCompressor.load(edge, rest.folder)
    assert method.segments == 2 and method.vectors.shape == (2, 48)
    rows = method.prepare(PROMPTS)
    assert [row.prefix.slots for row in rows] == [4, 4]
    said = Generation(4)("test", method.place(edge, rows), [turns("ab", row) for row in rows])
    assert len(said.answers) == 2 and said.front_slots == 4


def test_impossible_segments(pair, tmp_path):
    with pytest.raises(ConfigError, match="segments is 0; expected 1 or more"):
        CompressorSettings(segments=0)
    settings = CompressorSettings(vectors=2, segments=2)
    config = experiment(pair, tmp_path / "gist", "gist", settings=settings)
    with pytest.raises(ConfigError, match="segments is 2, but gist reads a prompt as one"):
        train(config, progress=False)
    settings = CompressorSettings(vectors=70, segments=2)
    config = experiment(pair, tmp_path / "deep", "autocompressor", settings=settings)
    with pytest.raises(ConfigError, match="140 slots of vectors and max_query_tokens 64 exceed"):
        train(config, progress=False)
