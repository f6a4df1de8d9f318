"""One LoRA for all tasks in its forms: trained on a generator's batches, resumed, merged, refused.

The oracle is peft, which loads the folder of a run.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers

from lorage_jax import nano
from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    MeshConfig,
    OptimizerConfig,
    Source,
)
from lorage_jax.data.pipeline import make_dataset
from lorage_jax.errors import ConfigError, OutputError, TrainingError, WeightsError
from lorage_jax.files.safetensors import read_tensors
from lorage_jax.generator import loras
from lorage_jax.generator.lora_folder import check_form, write_lora
from lorage_jax.generator.peft import load_adapter, merge_loras
from lorage_jax.hf import peft_weights
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.family import family_decoder
from lorage_jax.hf.folder import open_folder
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods import training
from lorage_jax.methods.lora import Lora, LoraSettings, load_lora
from lorage_jax.train import experiment as experiments
from lorage_jax.train import loop
from tests.tiny import padded_batch, torch_logits

# peft asks transformers in a way that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ASKED = {"role": "user", "content": "hi"}
NAMES = ("tokens", "mask", "loss_mask")


def train_lora(config, **options):
    return training.train(dataclasses.replace(config, method="lora"), **options)


@pytest.fixture
def experiment(pair, tmp_path):
    """experiment(**changes): a few steps on the words of the built-in world."""

    def make(**changes):
        config = ExperimentConfig(
            cloud=str(pair[0]),
            edge=str(pair[1]),
            out=str(tmp_path / "run"),
            data=DataConfig(
                (Source("synthetic", "synthetic", name="words"),),
                prompts_per_batch=8,
                queries_per_prompt=2,
                max_prompt_tokens=64,
                max_query_tokens=64,
                min_bucket=64,
            ),
            generator=GeneratorConfig(rank=4, alpha=8.0, dropout=0.1),
            optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=2),
            steps=6,
            dtype="float32",
            remat="none",
            save_every=3,
            log_every=2,
        )
        for name, value in changes.items():
            if isinstance(value, dict):
                changes[name] = dataclasses.replace(getattr(config, name), **value)
        return dataclasses.replace(config, **changes)

    return make


def arrays(folder):
    return read_tensors(folder / "adapter_model.safetensors")


def test_training_lowers_the_loss_and_resumes_bit_for_bit(experiment, pair, tmp_path, monkeypatch):
    """Each step sees the queries of a generator's batch."""
    seen, place = [], training.device_batch

    def spy(batch, *rest):
        seen.append(batch)
        assert batch.prompts == ()
        return place(batch, *rest)

    monkeypatch.setattr(training, "device_batch", spy)
    config = experiment(steps=12, optimizer={"weight_decay": 0.0}, save_every=6)
    experiments._shared_step.cache_clear()  # of other tests
    whole = train_lora(config, progress=False)
    losses = [loss for _, loss in whole.losses]
    assert len(losses) == 12
    shapes = {batch.queries[0].tokens.shape for batch in seen}
    assert whole.programs == len(shapes) <= whole.most_programs == 1  # min_bucket is the longest
    assert 0 < whole.compile_seconds < whole.seconds
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    edge, cloud = load_model(pair[1]), load_model(pair[0])
    batches = iter(make_dataset(config.data, cloud.tokenizer, edge.tokenizer, config.seed))
    for batch in seen[:3]:
        np.testing.assert_array_equal(batch.queries[0].tokens, next(batches).queries[0].tokens)

    # Killed at step 8, then resumed: the same losses and the same LoRA.
    again = dataclasses.replace(config, out=str(tmp_path / "again"))
    steps = loop.Watch.record

    def dies(self, step, *rest):
        if step == 8:
            raise KeyboardInterrupt
        steps(self, step, *rest)

    monkeypatch.setattr(loop.Watch, "record", dies)
    with pytest.raises(KeyboardInterrupt):
        train_lora(again, progress=False)
    monkeypatch.setattr(loop.Watch, "record", steps)
    with pytest.raises(OutputError, match="--resume"):
        train_lora(again, progress=False)
    rest = train_lora(again, resume=True, progress=False)
    assert rest.first_step == 6
    assert rest.losses == whole.losses[6:]
    for name, array in arrays(whole.folder).items():
        np.testing.assert_array_equal(array, arrays(rest.folder)[name])

    tokens, mask = padded_batch()
    merged = forward(load_lora(whole.folder, edge), tokens, mask)
    assert np.abs(np.asarray(merged - forward(edge, tokens, mask)))[mask].max() > 0.1


def test_the_loss_is_that_of_the_edge_and_no_batching_changes_it(experiment, pair, tmp_path):
    """A fresh LoRA changes nothing, so the first loss is the bare edge's; b moves first.

    Micro-batches and packed rows do not change it.
    """
    config = experiment(steps=3, generator={"dropout": 0.0})
    found = train_lora(config, progress=False)
    edge, cloud = load_model(pair[1]), load_model(pair[0])
    batch = next(iter(make_dataset(config.data, cloud.tokenizer, edge.tokenizer, config.seed)))
    tokens, mask, wanted = (getattr(batch.queries[0], name) for name in NAMES)
    logits = forward(edge, tokens[:, :-1], mask[:, :-1])
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    picked = np.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    expected = -picked[wanted[:, 1:]].mean()
    assert found.losses[0][1] == pytest.approx(expected, rel=1e-5)
    for name, changes in {
        "parts": {"optimizer": {"accumulate": 2}},
        "packed": {"data": {"packed_rows": 8, "min_bucket": 16}},
    }.items():
        other = experiment(steps=3, generator={"dropout": 0.0}, out=str(tmp_path / name), **changes)
        again = train_lora(other, progress=False)
        np.testing.assert_allclose(again.losses, found.losses, rtol=1e-4)
        for leaf, array in arrays(found.folder).items():
            np.testing.assert_allclose(array, arrays(again.folder)[leaf], atol=2e-4, err_msg=leaf)
    with pytest.raises(TrainingError):  # another rank means another run
        train_lora(experiment(steps=3, generator={"rank": 8}), resume=True, progress=False)
    with pytest.raises(WeightsError, match="Load the edge it was trained on"):
        load_lora(found.folder, cloud)
    other = edge.replace(params=edge.params | {"embed": edge.params["embed"] + 1}, source=None)
    with pytest.raises(WeightsError, match="Load the edge it was trained on"):
        load_lora(found.folder, other)
    adapted = load_adapter(found.folder, edge)
    assert adapted.answers and adapted.template.ids([ASKED]) == edge.template.ids([ASKED])
    assert (found.folder / "chat_template.jinja").read_text() == edge.template.jinja()
    turned = edge.replace(config=dataclasses.replace(edge.config, rope_theta=5.0))
    for load in (load_lora, load_adapter):
        with pytest.raises(WeightsError, match=r"config.json differs:\n.*rope_theta is 5.0"):
            load(found.folder, turned)
    file = found.folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(WeightsError):
        load_lora(found.folder, edge)
    with pytest.raises(WeightsError, match="expected the `lora` folder of a run"):
        load_lora(tmp_path, edge)


class Stop(Exception):
    pass


def job_of(config, monkeypatch):
    """The job that `train_lora` would run."""

    def stop(job, **_):
        raise Stop(job)

    monkeypatch.setattr(loop, "run", stop)
    with pytest.raises(Stop) as stopped:
        train_lora(config, progress=False)
    return stopped.value.args[0]


ALL = ("q", "k", "v", "o", "gate", "up", "down")
FORMS = {
    "lora": LoraSettings(dropout=0.0),
    "attention": LoraSettings(targets=("q", "o"), prompt="in_context", rank=3, dropout=0.0),
    "dora": LoraSettings("dora", ALL, dropout=0.0),
    "vera": LoraSettings("vera", ALL, rank=12, dropout=0.0),
}


@pytest.mark.parametrize(
    "form",
    ["lora", "attention", *(pytest.param(f, marks=pytest.mark.slow) for f in ("dora", "vera"))],
)
def test_the_loss_is_that_of_the_saved_lora(form, experiment, pair, tmp_path, monkeypatch):
    """For any trained values: in training, merged by us, and unmerged by peft."""
    config = experiment(settings=FORMS[form])
    job, edge = job_of(config, monkeypatch), load_model(pair[1])
    batch, rng = next(iter(job.batches)), np.random.default_rng(0)
    trained = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), job.state.trained)
    trained = jax.device_put(trained, jax.tree.map(lambda x: x.sharding, job.state.trained))
    host = jax.tree.map(np.asarray, (trained, job.state.statistics))
    Lora.finish(config, {"edge": edge}, *host).write(tmp_path / "lora")
    _, metrics = job.step(job.state.replace(trained=trained), job.place(batch))

    tokens, mask, wanted = (getattr(batch.queries[0], name) for name in NAMES)
    assert (tokens.shape[1] > 64) == (form == "attention")  # only then, the prompt is there
    merged = load_lora(tmp_path / "lora", edge)
    ours = np.asarray(forward(merged, tokens[:, :-1], mask[:, :-1]))
    bare = np.asarray(forward(edge, tokens[:, :-1], mask[:, :-1]))

    def loss(logits):
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        picked = np.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
        return -picked[wanted[:, 1:]].mean()

    assert float(metrics["loss"]) == pytest.approx(loss(ours), rel=1e-4)
    assert abs(loss(ours) - loss(bare)) > 0.01
    theirs = peft.PeftModel.from_pretrained(torch_folder(pair[1]), str(tmp_path / "lora")).eval()
    one = tokens[:1, : mask[0].sum()]
    ours = ours[0, : one.shape[1] - 1]
    atol = 1e-5 * np.abs(ours).max()
    np.testing.assert_allclose(ours, torch_logits(theirs, one)[0, :-1], atol=atol)
    export_merged(merged, tmp_path / "merged", base=pair[1])
    again = torch_logits(torch_folder(tmp_path / "merged"), one)[0, :-1]
    np.testing.assert_allclose(ours, again, atol=atol)


def torch_folder(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), attn_implementation="eager", dtype=torch.float32
    ).eval()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dora", "vera"])
def test_other_forms_begin_as_the_bare_edge_and_learn(form, experiment, pair, tmp_path):
    """A LoRA that does not move is the bare edge; VeRA's projections stay as they were drawn."""
    settings = dataclasses.replace(FORMS[form], targets=None, dropout=0.1)
    rate = {"learning_rate": 0.3 if form == "vera" else 2e-2}
    found = train_lora(experiment(settings=settings, steps=5, optimizer=rate), progress=False)
    rate, out = {"learning_rate": 1e-12}, str(tmp_path / "still")
    still = train_lora(experiment(steps=5, out=out, optimizer=rate), progress=False)
    assert found.losses[0][1] == pytest.approx(still.losses[0][1], rel=1e-5)
    assert found.losses[-1][1] < still.losses[-1][1] - 0.05
    if form == "vera":
        kind = (load_model(pair[1]).config, ("gate", "up", "down"), 12)
        first, _ = jax.random.split(jax.random.PRNGKey(0))
        expected = loras.new_vera(*kind, first)[1]
        np.testing.assert_allclose(arrays(found.folder)["base_model.vera_A"], expected["a"].T)


def test_trained_parameters_are_as_many_as_the_formulas_say():
    """For the bundled edge and for TinyLlama: LoRA on the FFN, on all; DoRA; VeRA of rank 256."""
    sizes = {"width": 2048, "ffn_width": 5632, "layers": 22, "heads": 32, "kv_heads": 4}
    tinyllama = family_decoder("llama", vocab_size=32000, **sizes)
    ffn = ("gate", "up", "down")
    for edge, expected in (
        (open_folder(nano.EDGE).config, (110_592, 196_608, 114_432, 8_448)),
        (tinyllama, (8_110_080, 12_615_680, 8_402_944, 309_760)),
    ):
        trees = (
            loras.lora_leaves(edge, ffn, 16),
            loras.lora_leaves(edge, ALL, 16),
            loras.dora_leaves(edge, ffn, 16),
            loras.vera_leaves(edge, ffn, 256),
        )
        found = [sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in trees]
        assert tuple(found) == expected


def test_a_family_with_fused_projections(tiny, tmp_path):
    """PEFT has one A and B for q, k and v: those that are not targets get nothing."""
    folder = tiny("phi3")[0]
    edge, rng = load_model(folder), np.random.default_rng(0)
    leaves = loras.lora_leaves(edge.config, ("q", "v", "up", "down"), 2)
    drawn = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape), leaves)
    updates = loras.without_expert_axis(drawn)
    write_lora(tmp_path, edge, updates, 2, 6.0)
    theirs = peft.PeftModel.from_pretrained(torch_folder(folder), str(tmp_path)).eval()
    lora = peft_weights.Lora(loras.layer_updates(edge.config, updates, 3.0), [], "")
    tokens = np.arange(5, 25)[None]
    ours = np.asarray(forward(merge_loras(edge, [lora], [1.0]), tokens))
    atol = 1e-5 * np.abs(ours).max()
    np.testing.assert_allclose(ours, torch_logits(theirs, tokens), atol=atol)
    read = np.asarray(forward(load_adapter(tmp_path, edge), tokens))
    np.testing.assert_allclose(ours, read, atol=atol)
    with pytest.raises(ConfigError, match="phi3 keeps q, k, v in one matrix, qkv_proj: name all"):
        check_form(edge.config, "dora", ("q", "v"))
    with pytest.raises(ConfigError, match="a single vector"):
        check_form(edge.config, "vera", ("q", "k", "v"))
    with pytest.raises(ConfigError, match="targets are q, q; expected any of q, k, v, o, gate"):
        loras.linears(edge.config, ("q", "q"))


def test_dropout_and_where_moments_lie(experiment, monkeypatch):
    config = experiment(generator={"dropout": 0.5}, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    job = job_of(config, monkeypatch)
    place = jax.tree.map(lambda x: x.sharding, job.state)
    assert not place.trained["up"]["a"].is_fully_replicated
    for name in ("mu", "nu"):
        assert optax.tree.get(place.optimizer, name) == place.trained
    batch, losses = job.place(next(iter(job.batches))), []
    for step in (0, 0, 1):
        lora = jax.tree.map(lambda x: jnp.full_like(x, 0.05), job.state.trained)
        state = job.state.replace(step=jnp.full_like(job.state.step, step), trained=lora)
        state = jax.device_put(jax.tree.map(jnp.copy, state), place)
        losses.append(float(job.step(state, batch)[1]["loss"]))
    assert losses[0] == losses[1] != losses[2]


def test_rows_that_do_not_divide_over_devices(experiment):
    config = experiment(data={"prompts_per_batch": 3, "queries_per_prompt": 1})
    with pytest.raises(ConfigError, match="3 rows does not divide over 8 devices"):
        train_lora(config, progress=False)
    settings = LoraSettings(prompt="in_context")
    with pytest.raises(ConfigError, match="exceed the edge's context of 256"):
        train_lora(experiment(settings=settings, data={"max_prompt_tokens": 200}), progress=False)
    with pytest.raises(ConfigError, match="lora cannot continue from a folder"):
        train_lora(experiment(init="a/generator"), progress=False)
