"""Distilling the context: the loss against numpy, its gradient, and whole runs with a teacher."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.config import GeneratorConfig, MeshConfig
from lorage_jax.data.pipeline import make_dataset
from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import ConfigError, TrainingError
from lorage_jax.files.safetensors import read_tensors
from lorage_jax.generator.generator import Parts, prompt_gates
from lorage_jax.generator.meta_tokens import CloudReader, Prompts
from lorage_jax.generator.pool import make_pool
from lorage_jax.hf.family import family_decoder
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods.lora import LoraSettings, load_lora
from lorage_jax.methods.lora_gen import LoraGenSettings
from lorage_jax.methods.training import _check_teacher as check_teacher
from lorage_jax.methods.training import train
from lorage_jax.models.decoder import head_logits
from lorage_jax.sharding import Layout, make_mesh
from lorage_jax.train import losses
from lorage_jax.train.generator import generator_loss
from lorage_jax.train.watch import read_logs
from tests.tiny import make_generator, make_tiny

SWITCHES = GeneratorConfig(rank=4, cloud_rank=4, dropout=0.0)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.fixture
def heads(monkeypatch):
    """A head, states of student and teacher, targets and masks, in chunks of three slots."""
    monkeypatch.setattr(losses, "CHUNK", 3)
    config = family_decoder(
        "llama", vocab_size=13, width=6, layers=1, heads=1, kv_heads=1, ffn_width=4, head_dim=6
    )
    rng = np.random.default_rng(0)
    params = {"head": jnp.asarray(rng.standard_normal((6, 13)), jnp.float32)}
    hidden, taught = jnp.asarray(3 * rng.standard_normal((2, 4, 10, 6)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 13, (4, 10)), jnp.int32)
    paired, mask = rng.random((2, 4, 10)) < 0.6
    mask[:, 3:6] = False  # a chunk without targets
    return config, params, hidden, taught, targets, jnp.asarray(paired), jnp.asarray(mask)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_divergence_against_numpy(heads, share):
    config, params, hidden, taught, targets, paired, mask = heads
    found = losses.frozen_head_kl(config, share, *heads[1:])
    ours, theirs = (softmax(np.asarray(x @ params["head"], np.float64)) for x in (hidden, taught))
    kl = (theirs * np.log(theirs / ours)).sum(-1)
    nll = -np.log(np.take_along_axis(ours, np.asarray(targets)[..., None], -1)[..., 0])
    both = np.asarray(paired & mask)
    np.testing.assert_allclose(found.kl, kl[both].sum(), rtol=1e-5)
    np.testing.assert_allclose(found.nll, nll[np.asarray(mask)].sum(), rtol=1e-5)
    alone = nll[np.asarray(mask & ~paired)].sum()
    wanted = alone + (1 - share) * nll[both].sum() + share * kl[both].sum()
    np.testing.assert_allclose(found.loss, wanted, rtol=1e-5)
    assert kl[both].sum() > 5 and alone > 5


def test_the_gradient_is_that_of_all_logits_at_once(heads):
    """The states of the student get it, nothing else does."""
    config, params, hidden, taught, targets, paired, mask = heads

    def plain(hidden):
        own = jax.nn.log_softmax(head_logits(config, params, hidden))
        told = jax.nn.log_softmax(head_logits(config, params, taught))
        nll = -jnp.take_along_axis(own, targets[..., None], -1)[..., 0]
        kl = jnp.sum(jnp.exp(told) * (told - own), -1)
        return 0.7 * jnp.sum(mask * jnp.where(paired, 0.6 * nll + 0.4 * kl, nll))

    def chunked(hidden, taught):
        return (
            0.7
            * losses.frozen_head_kl(config, 0.4, params, hidden, taught, targets, paired, mask).loss
        )

    (found, slopes), (wanted, other) = (
        jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(hidden, taught),
        jax.jit(jax.value_and_grad(plain))(hidden),
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.abs(other).max() > 0.1 and not np.any(slopes[1])
    np.testing.assert_allclose(slopes[0], other, atol=1e-6)


def test_no_share_is_the_cross_entropy(heads):
    config, params, hidden, _, targets, _, mask = heads
    found = losses.frozen_head_kl(config, 0.0, *heads[1:])
    plain = losses.frozen_head_nll(config, params, hidden, targets, mask)
    assert float(found.loss) == float(found.nll) == float(plain)


def test_the_loss_of_a_batch_against_forward(experiment, pair):
    """The student under its gates and the teacher with its prompt, one row after the other."""
    config = experiment(generator={"dropout": 0.0}, data={"prompts_per_batch": 4})
    cloud, edge = map(load_model, pair)
    data = make_dataset(config.data, cloud.tokenizer, edge.tokenizer, 0, shown=True)
    batch = next(iter(data))
    generator = make_generator(*pair, config.generator)
    layout = Layout(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    loss = generator_loss(config, cloud.config, edge.config, layout, 0.4)
    micro = batch.replace(group_ids=None, truncated=None, texts=())
    key, frozen = jax.random.key(0), {"cloud": cloud.params, "edge": edge.params}
    found = jax.jit(loss)(generator.trained, generator.statistics, frozen, micro, key)
    parts = Parts(generator.trained, generator.statistics)
    reader = CloudReader(config.generator, cloud.config)
    gate_key, prompts = jax.random.split(key)[0], Prompts(batch.prompts)
    gates, _ = prompt_gates(reader, cloud.params, parts, prompts, gate_key)
    (rows,), (shown,), (partners,) = batch.queries, batch.shown, batch.partners
    gates = np.repeat(np.asarray(gates), 2, axis=0)
    pool = make_pool(generator.trained["pool"], config.generator)
    ours = forward(edge, rows.tokens, rows.mask, gates=gates, pool=pool)
    theirs = forward(edge, shown.tokens, shown.mask).reshape(-1, ours.shape[-1])
    nll = kl = 0.0
    slots = np.argwhere(partners >= 0)
    for row, slot in slots:
        own, told = (
            softmax(np.float64(ours[row, slot])),
            softmax(np.float64(theirs[partners[row, slot]])),
        )
        nll -= np.log(own[rows.tokens[row, slot + 1]])
        kl += (told * np.log(told / own)).sum()
    assert len(slots) == rows.loss_mask.sum() and kl / len(slots) > 0.05
    np.testing.assert_allclose(found.nll, 0.6 * nll + 0.4 * kl, rtol=1e-4)
    np.testing.assert_allclose(found.metrics["kl"], kl / len(slots), rtol=1e-4)
    np.testing.assert_allclose(found.metrics["cross_entropy"], nll / len(slots), rtol=1e-4)
    assert float(found.metrics["paired"]) == 1


RUN = {
    "mesh": MeshConfig(data=2, tensor=4),
    "generator": {"dropout": 0.0},
    "data": {"min_bucket": 8},
    "settings": LoraGenSettings(distilled=0.5),
    "optimizer": {"warmup_steps": 1},
    "steps": 4,
    "log_every": 1,
}
SAME = {
    "packed": {"data": {"packed_rows": 2, "min_bucket": 8}},
    "chunks": {"data": {"prompt_chunks": 4, "min_bucket": 8}},
    "mesh": {"mesh": MeshConfig(8, 1, 1)},
}


@pytest.fixture(scope="module")
def whole(experiment_in, tmp_path_factory):
    return train(experiment_in(tmp_path_factory.mktemp("whole"), **RUN), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_it_is_the_same_step(experiment, whole, name):
    """Losses of four steps, so gradients, too: packed, in chunks, on other devices' shares."""
    found = train(experiment(**RUN | SAME[name]), progress=False)
    plain = [loss for _, loss in whole.losses]
    assert len(set(plain)) == 4
    np.testing.assert_allclose([loss for _, loss in found.losses], plain, rtol=2e-5)
    before, after = (read_tensors(x.folder / "generator.safetensors") for x in (whole, found))
    for part in ("trained.meta", "trained.pool.gate.a", "trained.adapters.q.a"):
        np.testing.assert_allclose(after[part], before[part], atol=2e-4, err_msg=part)


@pytest.mark.slow
def test_accumulation_is_the_same_step(experiment, tmp_path):
    """A micro-batch finds its own teacher's rows."""
    plain, found = {"batch_norm": False, "cv_weight": 0.0, "dropout": 0.0}, []
    for accumulate in (1, 2):
        changes = {
            "out": str(tmp_path / str(accumulate)),
            "generator": plain,
            "optimizer": {"accumulate": accumulate},
        }
        found.append(train(experiment(**RUN | changes), progress=False))
    np.testing.assert_allclose(*[[loss for _, loss in x.losses] for x in found], rtol=1e-5)


def test_the_divergence_falls(experiment):
    settings = LoraGenSettings(distilled=1.0)
    changes = {"optimizer": {"learning_rate": 1e-2}, "steps": 16, "settings": settings}
    config = experiment(**RUN | changes)
    result = train(config, progress=False)
    logs = read_logs(result.folder.parent / "logs")
    kl = [value for _, value in logs["train/kl"]]
    np.testing.assert_allclose(kl, [loss for _, loss in result.losses], rtol=1e-5)
    assert np.mean(kl[-3:]) < 0.8 * np.mean(kl[:2])
    about = json.loads((result.folder / "lorage.json").read_text())["about"]
    assert about["distilled"] == 1.0


@pytest.fixture(scope="module")
def teachers(experiment_in, tmp_path_factory):
    """Folders of LoRAs by what the edge reads in front of the query."""
    made = {}
    for prompt in ("in_context", "none"):
        settings = LoraSettings(prompt=prompt, targets=("q", "down"))
        changes = {"method": "lora", "settings": settings, "optimizer": {"learning_rate": 3e-2}}
        config = experiment_in(tmp_path_factory.mktemp(prompt), steps=3, **changes)
        made[prompt] = train(config, progress=False).folder
    return made


@pytest.mark.slow
def test_a_trained_teacher(experiment, teachers, whole, pair, tmp_path):
    """Its weights count, are recorded, and may move; the generator is no larger for it."""
    settings = LoraGenSettings(0.5, str(teachers["in_context"]))
    config = experiment(**RUN | {"settings": settings, "steps": 2})
    result = train(config, progress=False)
    assert result.losses[0][1] != whole.losses[0][1]
    logs = read_logs(result.folder.parent / "logs")
    plain = read_logs(whole.folder.parent / "logs")
    assert logs["train/cross_entropy"][0] == plain["train/cross_entropy"][0]
    assert logs["train/kl"][0] != plain["train/kl"][0]
    kept = json.loads((result.folder.parent / "config.json").read_text())
    assert (
        kept["teacher_weights"]
        == load_lora(teachers["in_context"], load_model(pair[1])).fingerprint
    )
    assert '"teacher"' not in (result.folder / "lorage.json").read_text()
    moved = tmp_path / "moved"
    teachers["in_context"].rename(moved)
    settings = dataclasses.replace(settings, teacher=str(moved))
    more = train(
        dataclasses.replace(config, settings=settings, steps=3), resume=True, progress=False
    )
    assert more.first_step == 2
    moved.rename(teachers["in_context"])
    plain = dataclasses.replace(config, settings=LoraGenSettings(0.5), steps=3)
    with pytest.raises(TrainingError, match="teacher_weights"):
        train(plain, resume=True, progress=False)


def test_no_share_is_the_run_of_before(experiment, tmp_path):
    """Settings at their defaults are recorded as none."""
    found = []
    for name, settings in (("none", None), ("default", LoraGenSettings())):
        changes = {"settings": settings, "out": str(tmp_path / name), "steps": 2}
        result = train(experiment(**RUN | changes), progress=False)
        config = json.loads((result.folder.parent / "config.json").read_text())
        assert config["settings"] is None and "teacher_weights" not in config
        found.append((result.fingerprint, result.losses))
    assert found[0] == found[1]


def test_bad_settings_are_told(experiment, teachers, tmp_path, pair):
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="expected 0 to 1"):
            LoraGenSettings(share)
    with pytest.raises(ConfigError, match="distilled is 0, so that nothing is learnt from it"):
        LoraGenSettings(teacher="runs/lora")

    def refused(match, teacher="", **changes):
        config = experiment(settings=LoraGenSettings(0.5, str(teacher)), **changes)
        with pytest.raises(ConfigError, match=match):
            train(config, progress=False)

    refused("exceed the edge's context of 256", data={"max_prompt_tokens": 240})
    refused("was trained without the prompt", teachers["none"])
    refused("teacher cannot be used: .*nowhere", tmp_path / "nowhere")
    make_tiny("qwen2", tmp_path / "other", seed=9)
    refused(
        "teacher cannot be used: .* was trained for the edge",
        teachers["in_context"],
        edge=str(tmp_path / "other"),
    )


def test_a_teacher_of_other_turns_is_refused(pair):
    edge, turns = load_model(pair[1]), TemplateKind()
    own = turns.on(edge.tokenizer)
    other = SimpleNamespace(identity=lambda: {"template": "another"})
    check_teacher(dataclasses.replace(edge, template=own), turns)
    with pytest.raises(ConfigError, match="trained in other turns than this run's"):
        check_teacher(SimpleNamespace(template=other, tokenizer=edge.tokenizer), turns)
