"""One LoRA for all tasks: trained on the batches of a generator, resumed, merged, refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods import lora as lora_module
from lorage_jax.methods import training
from lorage_jax.methods.lora import load_lora, read_lora
from lorage_jax.train import loop
from tests.tiny import padded_batch

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
    return lora_module.read_tensors(folder / "lora.safetensors")


def test_training_lowers_the_loss_and_resumes_bit_for_bit(experiment, pair, tmp_path, monkeypatch):
    """Each step sees the queries of a generator's batch; merged and unmerged logits agree."""
    seen, place = [], training.device_batch

    def spy(batch, *rest):
        seen.append(batch)
        assert batch.prompts == ()
        return place(batch, *rest)

    monkeypatch.setattr(training, "device_batch", spy)
    config = experiment(steps=24, optimizer={"weight_decay": 0.0}, save_every=12)
    whole = train_lora(config, progress=False)
    losses = [loss for _, loss in whole.losses]
    assert len(losses) == 24
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    edge, cloud = load_model(pair[1]), load_model(pair[0])
    batches = iter(make_dataset(config.data, cloud.tokenizer, edge.tokenizer, config.seed))
    for batch in seen[:3]:
        np.testing.assert_array_equal(batch.queries[0].tokens, next(batches).queries[0].tokens)

    # Killed after step 12, then resumed: the same losses and the same LoRA.
    again = dataclasses.replace(config, out=str(tmp_path / "again"))
    steps = loop.Watch.record

    def dies(self, step, *rest):
        if step == 15:
            raise KeyboardInterrupt
        steps(self, step, *rest)

    monkeypatch.setattr(loop.Watch, "record", dies)
    with pytest.raises(KeyboardInterrupt):
        train_lora(again, progress=False)
    monkeypatch.setattr(loop.Watch, "record", steps)
    with pytest.raises(OutputError, match="--resume"):
        train_lora(again, progress=False)
    rest = train_lora(again, resume=True, progress=False)
    assert rest.first_step == 12
    assert rest.losses == whole.losses[12:]
    for name, array in arrays(whole.folder).items():
        np.testing.assert_array_equal(array, arrays(rest.folder)[name])

    tokens, mask = padded_batch()
    pool, card = read_lora(whole.folder, edge)
    assert (pool.rank, pool.count, pool.scale) == (4, 1, 2.0)
    unmerged = forward(edge, tokens, mask, gates=card, pool=pool)
    merged = forward(load_lora(whole.folder, edge), tokens, mask)
    # 1e-5 of the size of the logits, which are large for these weights.
    np.testing.assert_allclose(
        np.where(mask[..., None], unmerged, 0),
        np.where(mask[..., None], merged, 0),
        atol=1e-5 * float(np.abs(merged).max()),
    )
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
    (found.folder / "lora.safetensors").write_bytes(
        (again.folder / "lora.safetensors").read_bytes()[:-8]
    )
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


def test_the_loss_is_that_of_the_saved_lora(experiment, pair, tmp_path, monkeypatch):
    """Holds for any LoRA, not only a fresh one: gate 1 and alpha / rank in training and after."""
    config = experiment(generator={"dropout": 0.0})
    job, edge = job_of(config, monkeypatch), load_model(pair[1])
    batch, rng = next(iter(job.batches)), np.random.default_rng(0)
    lora = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape), job.state.trained)
    lora = jax.device_put(lora, jax.tree.map(lambda x: x.sharding, job.state.trained))
    lora_module.save_lora(tmp_path / "lora", lora, config, edge)
    pool, card = read_lora(tmp_path / "lora", edge)
    tokens, mask, wanted = (getattr(batch.queries[0], name) for name in NAMES)
    targets, mask, wanted = tokens[:, 1:, None], mask[:, :-1], wanted[:, 1:]
    bare, ours = (
        -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets, axis=-1)[..., 0]
        for logits in (
            forward(edge, tokens[:, :-1], mask),
            forward(edge, tokens[:, :-1], mask, gates=card, pool=pool),
        )
    )
    _, metrics = job.step(job.state.replace(trained=lora), job.place(batch))
    assert float(metrics["loss"]) == pytest.approx(ours[wanted].mean(), rel=1e-4)
    assert abs(ours[wanted].mean() - bare[wanted].mean()) > 0.1


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
    with pytest.raises(ConfigError, match="lora cannot continue from a folder"):
        train_lora(experiment(init="a/generator"), progress=False)
