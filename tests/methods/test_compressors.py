"""AutoCompressor and gist tokens: values, gradients and the mask against transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lorage_jax.config import GeneratorConfig, MeshConfig
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.data.templates import NEWEST
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.evaluate.answers import Generation, turns
from lorage_jax.hf.load import load_model
from lorage_jax.infer.score import score
from lorage_jax.methods.autocompressor import AutoCompressor, CompressorSettings
from lorage_jax.methods.gist import Gist
from lorage_jax.methods.training import train
from lorage_jax.sharding import Layout, make_mesh
from tests.methods.runs import experiment

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
    """Logits at the question and answer, behind the prompt's summary."""
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
    """Two prompts of different lengths, read together; log-likelihoods of an answer behind each."""
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
    eos = ours.params["embed"][ours.config.eos_ids[0]]
    np.testing.assert_array_equal(trained["summary"], np.tile(eos, (VECTORS, 1)))
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
    assert not method.mergeable and method.vectors.shape == (2, 48)
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
    with pytest.raises(ConfigError, match="200 vectors and max_query_tokens 64 exceed"):
        train(config, progress=False)
