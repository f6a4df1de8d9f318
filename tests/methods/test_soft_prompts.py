"""Prompt tuning and prefix tuning: against peft, from a real prompt, through the common loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from lorage_jax.data.pipeline import load_groups
from lorage_jax.data.templates import encode, fit_query, question
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.evaluate.answers import Generation
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.infer.prefixes import past_of, read_tokens, read_vectors
from lorage_jax.infer.score import score
from lorage_jax.methods.method import get_method
from lorage_jax.methods.prefix_tuning import PrefixTuning, PrefixTuningSettings, keys_and_values
from lorage_jax.methods.prompt_tuning import PromptTuning, PromptTuningSettings
from lorage_jax.methods.training import train
from lorage_jax.models.cache import new_cache
from lorage_jax.models.decoder import Decoder
from tests.methods.runs import experiment, interrupted

TOKENS = np.random.default_rng(1).integers(3, 250, (2, 16)).astype(np.int32)


def after(model, prefix):
    """Logits of TOKENS after a prefix."""
    past = past_of([(prefix, prefix.slots)] * 2)
    return np.asarray(_after(model.config, model.params, past))


@jax.jit(static_argnums=0)
def _after(config, params, past):
    cache = new_cache(config, *TOKENS.shape, jnp.float32, past)
    return Decoder(config).apply({"params": params}, jnp.asarray(TOKENS), cache=cache).logits


def of_peft(folder, config, weight):
    """Logits of the same model in peft; `weight` is its only trained array."""
    base = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    model = peft.get_peft_model(base, config).eval()
    (name,) = [name for name, value in model.named_parameters() if value.requires_grad]
    with torch.no_grad():
        model.get_parameter(name).copy_(torch.tensor(np.asarray(weight)))
        mask = torch.ones(TOKENS.shape, dtype=torch.long)
        logits = model(input_ids=torch.tensor(TOKENS).long(), attention_mask=mask).logits
    return logits[:, -TOKENS.shape[1] :].numpy()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about peft
def test_a_soft_prompt_against_peft(tiny):
    model = load_model(tiny("llama")[0])
    vectors = np.random.default_rng(2).standard_normal((5, 48)).astype(np.float32)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    expected = of_peft(model.source, config, vectors)
    assert np.abs(expected - np.asarray(forward(model, TOKENS))).max() > 0.1
    np.testing.assert_allclose(after(model, read_vectors(model, vectors)), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_prefix_against_peft(tiny):
    """peft keeps the keys and values of a slot in one row: layers, then k and v, then heads."""
    model = load_model(tiny("llama")[0])
    edge = model.config
    shape = (5, edge.layers, 2, edge.kv_heads, edge.head_dim)
    rows = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    expected = of_peft(model.source, config, rows.reshape(5, -1))
    k, v = rows.transpose(2, 1, 0, 3, 4)
    method = PrefixTuning(model, jnp.asarray(k), jnp.asarray(v))
    np.testing.assert_allclose(after(model, method.prefix), expected, atol=1e-4)


def test_the_mlp_of_prefix_tuning(tiny):
    """Its last product, cut as peft cuts a row, in numpy."""
    edge = load_model(tiny("llama")[0]).config
    rng, size = np.random.default_rng(4), 2 * edge.layers * edge.kv_heads * edge.head_dim
    shapes = {"embed": (5, 48), "f1": ((48, 7), (7,)), "f2": ((7, size), (size,))}
    embed = rng.standard_normal(shapes["embed"])
    parts = {
        name: dict(zip(("kernel", "bias"), map(rng.standard_normal, shapes[name]), strict=True))
        for name in ("f1", "f2")
    }
    trained = jax.tree.map(jnp.asarray, {"embed": embed, **parts})
    inner = np.tanh(embed @ parts["f1"]["kernel"] + parts["f1"]["bias"])
    out = inner @ parts["f2"]["kernel"] + parts["f2"]["bias"]
    wanted = out.reshape(5, edge.layers, 2, edge.kv_heads, edge.head_dim).transpose(2, 1, 0, 3, 4)
    np.testing.assert_allclose(keys_and_values(trained, edge), wanted, rtol=1e-5, atol=1e-5)


def test_a_prefix_of_a_real_prompt_gives_its_logits(tiny):
    """Exactly: the cache of the prompt and the trained prefix are the same arrays."""
    model = load_model(tiny("llama")[0])
    prompt = TOKENS[0, :6].tolist()
    (read,) = read_tokens(model, [prompt])
    method = PrefixTuning(model, read.k, read.v)
    np.testing.assert_array_equal(after(model, method.prefix), after(model, read))
    whole = np.concatenate([np.tile(TOKENS[:1, :6], (2, 1)), TOKENS], axis=1)
    expected = np.asarray(forward(model, whole))[:, 6:]
    np.testing.assert_allclose(after(model, method.prefix), expected, atol=2e-4)


CASES = {
    "prompt_tuning": PromptTuningSettings(vectors=6),
    "prefix_tuning": PrefixTuningSettings(slots=6),
}


def first_loss(config, edge, prefix):
    """Nats per target token of the run's first batch, each row after a prefix, by `score`."""
    groups = load_groups(config.data, config.seed)
    turns, requests = edge.template, []
    for i in range(config.data.prompts_per_batch):
        ((user, target),) = groups[i].queries
        requests.append(fit_query(turns, user, target, config.data.max_query_tokens)[:2])
    found = score(edge, requests, prefixes=[prefix] * len(requests))
    return -sum(one.loglikelihood for one in found) / sum(len(target) for _, target in requests)


@pytest.mark.parametrize(
    "name", ["prompt_tuning", pytest.param("prefix_tuning", marks=pytest.mark.slow)]
)
def test_training_begins_at_a_real_prompt_and_resumes(name, pair, tmp_path, monkeypatch):
    """The loss of the first step is that of the prompt's first tokens in context."""
    edge, fields = load_model(pair[1]), {"settings": CASES[name], "steps": 8, "rate": 5e-2}
    config = experiment(pair, tmp_path / "whole", name, **fields)
    whole = train(config, progress=False)
    rest = interrupted(experiment(pair, tmp_path / "half", name, **fields), monkeypatch)
    assert rest.first_step == 2 and rest.losses == whole.losses[2:]
    assert rest.fingerprint == whole.fingerprint

    system = load_groups(config.data, config.seed)[0].system
    (begun,) = read_tokens(edge, [encode(edge.tokenizer, system, bos=False)[:6]])
    begun = dataclasses.replace(begun, tokens=())  # in front of rows that do not have them
    before = first_loss(config, edge, begun)
    assert whole.losses[0][1] == pytest.approx(before, rel=1e-4)
    assert first_loss(config, edge, get_method(name).load(edge, rest.folder).prefix) < before

    method = get_method(name).load(edge, rest.folder)
    conditionings = method.prepare(["Shout.", "Reverse."])
    assert [one.facts for one in conditionings] == [{"prefix_slots": 6}] * 2
    placed = method.place(edge, conditionings)
    assert placed.cards is None and not method.mergeable and len(placed.prefixes) == 1
    answered = Generation(4)("test", placed, [question("ab cd"), question("ef")])
    ids = [edge.template.ids(question(user)) for user in ("ab cd", "ef")]
    after = generate_tokens(edge, ids, max_new_tokens=4, prefixes=[method.prefix] * 2)
    assert list(answered.answers) == [edge.tokenizer.decode(row) for row in after]
    assert answered.edge_tokens == np.mean([len(row) for row in ids])
    assert answered.front_slots == 6
    with pytest.raises(WeightsError, match="was trained for the edge model"):
        get_method(name).load(load_model(pair[0]), rest.folder)


def test_a_prefix_from_an_mlp_keeps_only_the_prefix(pair, tmp_path):
    settings = PrefixTuningSettings(slots=3, projection=8)
    done = train(
        experiment(pair, tmp_path / "run", "prefix_tuning", settings=settings), progress=False
    )
    method = PrefixTuning.load(load_model(pair[1]), done.folder)
    assert method.prefix.slots == 3


def test_impossible_settings(pair, tmp_path):
    with pytest.raises(ConfigError, match="vectors is 0"):
        PromptTuningSettings(vectors=0)
    with pytest.raises(ConfigError, match="begins at random; leave text out"):
        PrefixTuningSettings(text="Shout.", projection=4)
    config = experiment(
        pair, tmp_path / "run", "prompt_tuning", settings=PromptTuningSettings(vectors=200)
    )
    with pytest.raises(ConfigError, match="200 slots of vectors and max_query_tokens 64 exceed"):
        train(config, progress=False)
    with pytest.raises(ConfigError, match="`prompt_tuning` folder of a run is needed"):
        PromptTuning.load(load_model(pair[1]))
