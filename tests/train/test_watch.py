"""Curves and lines: means over the steps since the last, tokens without padding."""

from types import SimpleNamespace

import numpy as np
import pytest

from lorage_jax.compilation import Compilations
from lorage_jax.data.batches import Batch, host_rows
from lorage_jax.train import watch
from lorage_jax.train.watch import Watch, read_logs


def batch(tokens, truncated):
    """Two chunks of prompts and one of queries, with `tokens` real tokens each."""
    mask = np.arange(8) < tokens
    rows = host_rows(tokens=mask, mask=mask, loss_mask=mask)
    return Batch((rows, rows), (rows,), truncated=truncated)


def metrics(step):
    usage = np.full((1, 2), step, np.float32)
    return {"loss": step / 8, "grad_norm": 7.0 + step, "learning_rate": 1.0 / step, "usage": usage}


def test_curves_and_lines(tmp_path, monkeypatch, capfd):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(watch, "time", clock)
    with Watch(tmp_path, steps=5, every=2, progress=True, main=True) as record:
        record.start(0)
        for step in range(1, 6):
            clock.now += 0.5
            record.record(step, metrics(step), batch(step, step % 2))
    assert record.losses == [(step, step / 8) for step in range(1, 6)]
    assert read_logs(tmp_path) == {
        "train/loss": [(2, 0.1875), (4, 0.4375), (5, 0.625)],
        "train/grad_norm": [(2, 8.5), (4, 10.5), (5, 12.0)],
        "train/learning_rate": [(2, 0.5), (4, 0.25), (5, np.float32(0.2))],
        "train/truncated": [(2, 1.0), (4, 2.0), (5, 3.0)],  # since the run began
        "train/tokens_per_second": [(2, 9.0), (4, 21.0), (5, 30.0)],
        "train/tokens_per_second_per_device": [(2, 1.125), (4, 2.625), (5, 3.75)],  # of 8
        "train/padding_share": [(2, 1 - 9 / 48), (4, 1 - 21 / 48), (5, 1 - 15 / 24)],
        "train/step_seconds": [(2, 0.5), (4, 0.5), (5, 0.5)],
        "usage/layer00/expert0": [(2, 1.5), (4, 3.5), (5, 5.0)],
        "usage/layer00/expert1": [(2, 1.5), (4, 3.5), (5, 5.0)],
    }
    assert capfd.readouterr().err.splitlines() == [
        "step 2/5  loss 0.1875  grad 8.500  9 tokens/s  padding 81%  2 s left",
        "step 4/5  loss 0.4375  grad 10.500  21 tokens/s  padding 56%  0 s left",
        "step 5/5  loss 0.6250  grad 12.000  30 tokens/s  padding 38%  0 s left",
    ]


def test_flops_over_what_the_devices_could_do(tmp_path, monkeypatch, capfd):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(watch, "peak_flops", lambda: 1000.0)
    stats = {"bytes_in_use": 1 << 30, "peak_bytes_in_use": 3 << 29}
    device = SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(watch.jax, "local_devices", lambda: [device])
    with Watch(tmp_path, 2, 2, progress=True, main=True, flops=lambda batch: 40 + 20) as record:
        record.start(0)
        for step in (1, 2):
            clock.now += 0.25
            record.record(step, metrics(step), batch(step, 0))
    found = read_logs(tmp_path)
    assert found["train/mfu"] == [(2, pytest.approx(0.24))]
    assert found["train/memory_gib"] == [(2, 1.0)] and found["train/memory_peak_gib"] == [(2, 1.5)]
    assert "18 tokens/s  mfu 24.0%  padding 81%  0 s left" in capfd.readouterr().err


def test_compilation_is_told_and_left_out_of_the_rates(tmp_path, monkeypatch, capfd):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(watch, "time", clock)
    with Watch(tmp_path, steps=6, every=2, progress=True, main=True) as record:
        record.start(0)
        for step, compiling in enumerate((30.0, 0.0, 0.0, 7.0, 0.0, 0.0), 1):
            compiled = Compilations()
            compiled.programs, compiled._spans = 2 * (compiling > 0), [(10.0, 10.0 + compiling)]
            record.compiled(compiled)
            clock.now += 0.5 + compiling
            record.record(step, metrics(step), batch(step, 0))
    assert (record.programs, record.compile_seconds) == (2, 37.0)  # steps that compiled
    found = read_logs(tmp_path)
    assert found["train/tokens_per_second"] == [(2, 9.0), (4, 21.0), (6, 33.0)]
    assert found["train/step_seconds"] == [(2, 0.5), (4, 0.5), (6, 0.5)]
    assert found["train/programs"] == [(2, 1), (4, 2)]
    assert found["train/compile_seconds"] == [(2, 30.0), (4, 37.0)]
    ends = [line.partition("s left")[2] for line in capfd.readouterr().err.splitlines()]
    assert ends == ["  compiled 1 program in 30.0 s", "  compiled 1 program in 7.0 s", ""]


def test_a_collapsed_router_is_told_once_a_layer(tmp_path, capfd):
    """Judged by the gates, not by how often an expert is chosen; a single step does not count."""
    tables = [np.array([[0.95, 0.05], [0.5, 0.5]]), np.array([[0.83, 0.17], [0.5, 0.5]])]
    tables += [np.array([[0.96, 0.04], [0.92, 0.08]])] * 4
    with Watch(tmp_path, 6, 2, progress=False, main=True) as record:
        record.start(0)
        for step, gates in enumerate(tables, 1):
            record.record(step, metrics(1) | {"gate_mass": gates}, batch(1, 0))
    assert capfd.readouterr().err.splitlines() == [
        f"warning: step 4: in layer {layer}, expert 0 has {share}% of the gates: the router has "
        "collapsed. A larger cv_weight or a smaller learning rate may prevent this."
        for layer, share in ((0, 96), (1, 92))
    ]
    (log,) = tmp_path.glob("events*")
    assert log.read_bytes().count(b"the router has collapsed") == 2
    assert read_logs(tmp_path)["gates/layer00/expert0"][0] == (2, pytest.approx(0.89))
    assert "warnings/text_summary" not in read_logs(tmp_path)


def test_only_the_main_process_writes_and_prints(tmp_path, capfd):
    with Watch(tmp_path / "logs", 2, 1, progress=True, main=False) as record:
        record.start(0)
        for step in (1, 2):
            gates = np.array([[0.95, 0.05]])
            record.record(step, metrics(step) | {"gate_mass": gates}, batch(1, 0))
    assert record.losses == [(1, 0.125), (2, 0.25)]
    assert capfd.readouterr() == ("", "") and not (tmp_path / "logs").exists()


def test_curves_of_a_resumed_run(tmp_path):
    """Killed while writing step 3, resumed at step 2."""
    with Watch(tmp_path, steps=4, every=1, progress=False, main=True) as first:
        first.start(0)
        for step in (1, 2, 3):
            first.record(step, metrics(step), batch(step, 0))
    (torn,) = tmp_path.glob("events*")
    torn.rename(tmp_path / "events.0")
    torn = tmp_path / "events.0"
    torn.write_bytes(torn.read_bytes()[:-5])
    with Watch(tmp_path, steps=4, every=1, progress=False, main=True) as second:
        second.start(2)
        for step in (3, 4):
            second.record(step, metrics(2 * step), batch(step, 0))
    losses = read_logs(tmp_path)["train/loss"]
    assert losses == [(1, 0.125), (2, 0.25), (3, 0.75), (4, 1.0)]
