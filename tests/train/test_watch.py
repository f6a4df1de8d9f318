"""What curves and lines say: means over the steps since the last, tokens without padding."""

from types import SimpleNamespace

import numpy as np

from lorage_jax.train import watch
from lorage_jax.train.watch import Watch, read_logs


def batch(tokens, truncated):
    """Two chunks of prompts and one of queries, with `tokens` real tokens each."""
    mask = np.arange(8) < tokens
    return {
        "prompt_mask": (mask, mask),
        "query_mask": mask,
        "loss_mask": mask,
        "truncated": np.array(truncated),
    }


def metrics(step):
    usage = np.full((1, 2), step, np.float32)
    return {"loss": step / 8, "grad_norm": 7.0 + step, "learning_rate": 1.0 / step, "usage": usage}


def test_curves_and_lines(tmp_path, monkeypatch, capfd):
    clock = SimpleNamespace(now=100.0, time=lambda: clock.now)
    monkeypatch.setattr(watch, "time", clock)
    with Watch(tmp_path, steps=5, every=2, progress=True) as record:
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
        "usage/layer00/expert0": [(2, 1.5), (4, 3.5), (5, 5.0)],
        "usage/layer00/expert1": [(2, 1.5), (4, 3.5), (5, 5.0)],
    }
    assert capfd.readouterr().err.splitlines() == [
        "step 2/5  loss 0.1875  grad 8.500  9 tokens/s  2 s left",
        "step 4/5  loss 0.4375  grad 10.500  21 tokens/s  0 s left",
        "step 5/5  loss 0.6250  grad 12.000  30 tokens/s  0 s left",
    ]


def test_curves_of_a_resumed_run(tmp_path):
    """Killed in the middle of writing at step 3; begun again at step 2."""
    with Watch(tmp_path, steps=4, every=1, progress=False) as first:
        first.start(0)
        for step in (1, 2, 3):
            first.record(step, metrics(step), batch(step, 0))
    (torn,) = tmp_path.glob("events*")
    torn.rename(tmp_path / "events.0")
    torn = tmp_path / "events.0"
    torn.write_bytes(torn.read_bytes()[:-5])
    with Watch(tmp_path, steps=4, every=1, progress=False) as second:
        second.start(2)
        for step in (3, 4):
            second.record(step, metrics(2 * step), batch(step, 0))
    losses = read_logs(tmp_path)["train/loss"]
    assert losses == [(1, 0.125), (2, 0.25), (3, 0.75), (4, 1.0)]
