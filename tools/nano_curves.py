"""Draws the training curves of the nano pair and its generator, from the logs of their runs.

python tools/nano_curves.py       # experiments/results/nano_curves.png
"""

from __future__ import annotations

import struct
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from tensorboardX.proto.event_pb2 import Event

RUNS = {
    "edge": ("runs/nano_edge", "runs/nano_edge_tools"),
    "cloud": ("runs/nano_cloud", "runs/nano_cloud_tools", "runs/nano_cloud_tools2"),
    "generator": ("runs/nano/seed0", "runs/nano/seed1", "runs/nano/seed2"),
}
TAGS = ("train/answer_loss", "train/loss")  # the first that a run has
PICTURE = Path("experiments/results/nano_curves.png")


def curve(folder: Path) -> list[tuple[int, float]]:
    """(step, loss in nats per token) of a run; what was done twice counts as it was done last."""
    found: dict[str, dict[int, float]] = {tag: {} for tag in TAGS}
    for path in sorted((folder / "logs").glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: length, checksum, event, checksum
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if value.tag in found:
                    found[value.tag][event.step] = value.simple_value
    return sorted(next((found[tag] for tag in TAGS if found[tag]), {}).items())


def main() -> None:
    figure, panels = pyplot.subplots(1, len(RUNS), figsize=(12, 3.2), layout="constrained")
    for panel, (title, folders) in zip(panels, RUNS.items(), strict=True):
        for folder in folders:
            if points := curve(Path(folder)):
                steps, losses = zip(*points, strict=True)
                panel.plot(steps, losses, label=Path(folder).name, linewidth=0.8)
        panel.set(title=title, xlabel="step", ylabel="nats per answer token", ylim=(0, None))
        panel.legend(fontsize=7)
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


if __name__ == "__main__":
    main()
