"""`remat="auto"`: by the memory of the longest step; a resumed run keeps its choice."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorage_jax.config import MeshConfig
from lorage_jax.hf.load import load_model
from lorage_jax.methods.lora import Lora
from lorage_jax.methods.loramoe import LoraMoe, LoraMoeSettings
from lorage_jax.methods.no_llm import NoLlm, NoLlmSettings
from lorage_jax.methods.training import train
from lorage_jax.sharding import Layout, local_memory, make_mesh
from lorage_jax.train import remat
from lorage_jax.train.experiment import build_step
from lorage_jax.train.remat import device_memory, longest_of, settled_remat, step_memory
from tests.tiny import make_encoder


@pytest.fixture
def layout():
    return Layout(make_mesh(MeshConfig()))


@pytest.mark.parametrize(
    ("limit", "needed", "chosen"),
    [(100, 91, "none"), (100, 93, "full"), (100, float("inf"), "full"), (None, 1, "full")],
)
def test_by_memory(experiment, layout, monkeypatch, limit, needed, chosen):
    asked = []
    monkeypatch.setattr(remat, "device_memory", lambda layout: limit)
    monkeypatch.setattr(remat, "step_memory", lambda *args: asked.append(args) or needed)
    config = experiment(remat="auto")
    assert settled_remat(Lora, config, {}, layout).remat == chosen
    assert [one.remat for _, one, *_ in asked] == ["none"] * (limit is not None)
    for recorded in ("none", "full"):
        assert settled_remat(Lora, config, {}, layout, recorded=recorded).remat == recorded
        fixed = dataclasses.replace(config, remat=recorded)
        assert settled_remat(Lora, fixed, {}, layout, recorded="other") is fixed


def test_the_smallest_device_of_this_process_counts(layout, monkeypatch):
    assert device_memory(layout) is None  # CPUs do not tell

    def memory(*limits):
        stats = [None if limit is None else {"bytes_limit": limit} for limit in limits]
        own = [SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
        others = SimpleNamespace(memory_stats=lambda: pytest.fail("of another process"))
        monkeypatch.setattr(remat.jax, "local_devices", lambda: own)
        return local_memory([*own, others])

    assert (memory(8, 5, 6), memory(8, None), memory(None)) == (5, None, None)


def test_activations_that_are_kept_need_more(experiment, pair, layout):
    """The step is that of the longest batch, with the prompt in front if the edge reads it."""
    models = {"edge": load_model(pair[1]).config}
    config = experiment(remat="none", data={"max_query_tokens": 96})
    kept = step_memory(Lora, config, models, layout)
    again = step_memory(Lora, dataclasses.replace(config, remat="full"), models, layout)
    assert 0 < again < kept
    longer = dataclasses.replace(config.data, max_query_tokens=144)
    assert step_memory(Lora, dataclasses.replace(config, data=longer), models, layout) > kept


def test_the_longest_batch_has_all_that_the_loss_reads(experiment, pair, layout, tmp_path):
    """A method may ask for sources or vectors, which the host adds to a batch."""
    models = {"edge": load_model(pair[1]).config}
    encoder = str(make_encoder(tmp_path / "encoder"))
    for method, settings, added, width in (
        (LoraMoe, LoraMoeSettings(balance=0.1, delta=0.1, dropout=0.0), "sources", 1),
        (NoLlm, NoLlmSettings("sentence", encoder), "vectors", 16),
    ):
        config = experiment(method=method.name, settings=settings)
        batch = longest_of(method, config, layout)
        assert [one.shape for one in getattr(batch, added)] == [(1, 8, width)]
        program = build_step(method, config, models, layout)
        program.step.lower(program.state, program.frozen, batch)


def test_a_step_is_not_built_before(experiment, layout):
    with pytest.raises(AssertionError, match="remat is settled before"):
        build_step(Lora, experiment(remat="auto"), {}, layout)


@pytest.mark.slow
def test_a_resumed_run_keeps_it(experiment, monkeypatch):
    config = experiment(method="lora", remat="auto", steps=3, save_every=2)
    monkeypatch.setattr(remat, "device_memory", lambda layout: 1 << 40)
    train(config, progress=False)
    record = Path(config.out) / "config.json"
    assert json.loads(record.read_text())["remat"] == "none"
    monkeypatch.setattr(remat, "device_memory", lambda layout: None)
    done = train(dataclasses.replace(config, steps=4), resume=True, progress=False)
    assert done.first_step == 3
    assert json.loads(record.read_text())["remat"] == "none"
