"""What a person sees of a run: a progress bar on the terminal, curves in tensorboardX."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

TOKENS = ("prompt_mask", "query_mask", "mask")  # a batch's arrays that mark real tokens


class Watch:
    """Records the metrics of every step; every `every` steps writes and prints their means.

    Means, as the batches of a mixture differ: a curve of every n-th batch could show one source.
    """

    def __init__(self, folder: Path, steps: int, every: int, progress: bool):
        from tensorboardX import SummaryWriter

        self.steps, self.every = steps, every
        self.losses: list[tuple[int, float]] = []
        self.console = Console(stderr=True)
        # A bar needs a terminal; a log file gets a line now and then.
        self.lines = progress and not self.console.is_terminal
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not progress or self.lines,
        )
        self.writer = SummaryWriter(str(folder), write_to_disk=True)
        self._tokens = self._truncated = 0
        self._window: list[dict[str, Any]] = []  # metrics of the steps that are not written yet
        self._since = time.time()

    def __enter__(self) -> Watch:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()
        self.writer.close()

    def start(self, step: int) -> None:
        """Begins at `step` (0, or that of the checkpoint)."""
        self._first, self._began, self._since = step, time.time(), time.time()
        self._task = self.bar.add_task(
            "training", total=self.steps, completed=step, loss=float("nan")
        )

    def record(self, step: int, metrics: dict[str, Any], batch: dict[str, Any]) -> None:
        """One finished step. Tokens are real ones, without padding."""
        loss = float(metrics["loss"])
        self.losses.append((step, loss))
        self._tokens += sum(
            int(x.sum()) for name in TOKENS for x in jax.tree.leaves(batch.get(name))
        )
        self._truncated += int(batch["truncated"])
        self._window.append(metrics)
        self.bar.update(self._task, completed=step, loss=loss)
        if step % self.every and step != self.steps:
            return
        now = time.time()
        speed = self._tokens / max(now - self._since, 1e-9)
        self._tokens, self._since = 0, now
        scalars = {
            name: float(np.mean([one[name] for one in self._window]))
            for name, x in metrics.items()
            if np.ndim(x) == 0
        } | {
            "learning_rate": float(metrics["learning_rate"]),  # of this step
            "tokens_per_second": speed,
            "truncated": self._truncated,  # since the start
        }
        usage = np.mean([one["usage"] for one in self._window], 0) if "usage" in metrics else ()
        self._window = []
        for name, value in scalars.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        for layer, row in enumerate(usage):
            for expert, share in enumerate(row):
                self.writer.add_scalar(f"usage/layer{layer:02d}/expert{expert}", share, step)
        self.writer.flush()
        if self.lines:
            done = step - self._first
            left = (now - self._began) / max(done, 1) * (self.steps - step)
            cv = f"  cv {scalars['cv']:.3f}" if "cv" in scalars else ""
            self.console.print(
                f"step {step}/{self.steps}  loss {scalars['loss']:.4f}{cv}  "
                f"grad {scalars['grad_norm']:.3f}  {speed:,.0f} tokens/s  {left:,.0f} s left",
                highlight=False,
                soft_wrap=True,
            )


def read_logs(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value)]} of all that a run wrote; what was done twice counts as done last."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events*")):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):  # length, checksum, event, checksum
            (length,) = struct.unpack_from("<Q", data, at)
            if at + 12 + length > len(data):
                break  # the run was killed in the middle of it
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: sorted(points.items()) for tag, points in found.items()}
