"""Draws the training curves of the nano pair and its generator, from the logs of their runs.

    python tools/nano/curves.py       # experiments/results/nano_curves.json and .png

A run without logs keeps its curve in the JSON file.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from lorage_jax.train.watch import read_logs

RUNS = {
    "edge": ("nano_edge", "nano_edge_tools"),
    "cloud": ("nano_cloud", "nano_cloud_tools", "nano_cloud_tools2", "nano_cloud_tools3"),
    "generator, tools first": ("nano/begin0", "nano/begin1", "nano/begin2"),
    "generator": ("nano/seed0", "nano/seed1", "nano/seed2"),
    "multitask LoRA": ("nano/lora0", "nano/lora1", "nano/lora2"),
}
TAGS = ("train/answer_loss", "train/loss")  # the first one found in a run's logs
CURVES = Path("experiments/results/nano_curves.json")


def curve(folder: Path) -> list[tuple[int, float]]:
    """Pairs of step and loss (nats per token, averaged over the preceding steps) of a run."""
    logs = read_logs(folder / "logs")
    return next((logs[tag] for tag in TAGS if tag in logs), [])


def main() -> None:
    curves = json.loads(CURVES.read_text("utf-8")) if CURVES.is_file() else {}
    for run in (run for runs in RUNS.values() for run in runs):
        if points := curve(Path("runs") / run):
            curves[run] = [[step, round(loss, 4)] for step, loss in points]
    CURVES.write_text(json.dumps(curves) + "\n", "utf-8")
    shown = {
        title: known for title, runs in RUNS.items() if (known := sorted(curves.keys() & runs))
    }
    figure, panels = pyplot.subplots(
        1, len(shown), figsize=(3.5 * len(shown), 3.2), layout="constrained", squeeze=False
    )
    for panel, (title, runs) in zip(panels[0], shown.items(), strict=True):
        for run in runs:
            steps, losses = zip(*curves[run], strict=True)
            panel.plot(steps, losses, label=run, linewidth=0.8)
        panel.set(title=title, xlabel="step", ylabel="nats per answer token", ylim=(0, None))
        panel.legend(fontsize=7)
    figure.savefig(CURVES.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
