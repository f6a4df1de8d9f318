"""Progress bar and TensorBoard curves of a run."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lorage_jax.chips import GIB
from lorage_jax.compilation import Compilations, compilation_text
from lorage_jax.data.batches import Batch
from lorage_jax.generator.card import COLLAPSED
from lorage_jax.train.flops import peak_flops


class Watch:
    """Records the metrics of all steps, and writes and prints their means every `every` steps.

    Means, because every n-th batch of a mixture might come from the same source. Only the `main`
    process writes and prints. `flops(batch)` is the FLOPs of a step, for the MFU. Rates leave out
    the time in which programs are compiled.

    Attributes:
        losses: (step, loss) of every step.
        programs: number of programs that were compiled.
        compile_seconds: the time that took.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        every: int,
        progress: bool,
        main: bool,
        flops: Callable[[Batch], int] | None = None,
    ):
        from tensorboardX import SummaryWriter

        self.steps, self.every, self.main, self.flops = steps, every, main, flops
        self.losses: list[tuple[int, float]] = []
        self.programs, self.compile_seconds = 0, 0.0
        self.console = Console(stderr=True)
        progress &= main
        # A terminal gets a bar, a log file gets a line every `every` steps.
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
        self.writer = SummaryWriter(str(folder), write_to_disk=main)
        self._truncated = 0
        self._collapsed: set[int] = set()  # layers with a warning already
        self._begin_window()

    def __enter__(self) -> Watch:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()
        self.writer.close()

    def start(self, step: int) -> None:
        """Starts the clock and the bar at `step`: 0, or that of the checkpoint."""
        self._first, self._began, self._since = step, time.monotonic(), time.monotonic()
        self._task = self.bar.add_task(
            "training", total=self.steps, completed=step, loss=float("nan")
        )

    def compiled(self, found: Compilations) -> None:
        """Takes in what was compiled for a step, which may be nothing."""
        if found.programs:
            self.programs += 1  # small ones, of constants, belong to it
            self.compile_seconds += found.seconds

    def record(self, step: int, metrics: dict[str, Any], batch: Batch) -> None:
        """Records a finished step. Tokens are counted without padding."""
        loss = float(metrics["loss"])
        self.losses.append((step, loss))
        masks = [rows.mask for rows in batch.rows]
        self._tokens += sum(int(x.sum()) for x in masks)
        self._slots += sum(x.size for x in masks)
        self._flops += self.flops(batch) if self.flops else 0
        self._truncated += int(batch.truncated or 0)
        self._window.append(metrics)
        self.bar.update(self._task, completed=step, loss=loss)
        if step % self.every and step != self.steps:
            return
        means = {name: np.mean([one[name] for one in self._window], 0) for name in metrics}
        scalars = {name: float(x) for name, x in means.items() if np.ndim(x) == 0}
        scalars |= {
            "learning_rate": float(metrics["learning_rate"]),  # of this step
            "truncated": self._truncated,  # since the start
            **self._costs(),
        }
        compiled = self.programs - self._programs  # since the last line
        text = ""
        if compiled:  # both since the start
            text = f"  {compilation_text(compiled, self.compile_seconds - self._compiling)}"
            scalars |= {"programs": self.programs, "compile_seconds": self.compile_seconds}
        for name, value in scalars.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        for name, table in (("usage", "usage"), ("gates", "gate_mass")):
            for layer, row in enumerate(means.get(table, ())):
                for expert, share in enumerate(row):
                    self.writer.add_scalar(f"{name}/layer{layer:02d}/expert{expert}", share, step)
        self._check_router(step, means.get("gate_mass", ()))
        self._begin_window()
        self.writer.flush()
        if self.lines:
            self._print(step, scalars, text)

    def warn(self, step: int, message: str) -> None:
        """Prints a warning and writes it to TensorBoard."""
        self.writer.add_text("warnings", message, step)
        if self.main:
            self.console.print(f"warning: {message}", highlight=False, soft_wrap=True, markup=False)

    def _begin_window(self) -> None:
        self._tokens = self._slots = self._flops = 0  # since the last line
        self._window: list[dict[str, Any]] = []  # metrics of steps not yet written
        self._since = time.monotonic()
        self._programs, self._compiling = self.programs, self.compile_seconds

    def _costs(self) -> dict[str, float]:
        """Time, padding and memory of the steps since the last line."""
        compiling = self.compile_seconds - self._compiling
        seconds = max(time.monotonic() - self._since - compiling, 1e-9)
        costs = {
            "tokens_per_second": self._tokens / seconds,
            "tokens_per_second_per_device": self._tokens / seconds / jax.device_count(),
            "padding_share": 1 - self._tokens / self._slots,
            "step_seconds": seconds / len(self._window),
        }
        if self._flops and (peak := peak_flops()):
            costs["mfu"] = self._flops / seconds / peak
        memory = [device.memory_stats() for device in jax.local_devices()]
        if all(memory):  # CPUs report nothing
            costs["memory_gib"] = max(one["bytes_in_use"] for one in memory) / GIB
            costs["memory_peak_gib"] = max(one["peak_bytes_in_use"] for one in memory) / GIB
        return costs

    def _check_router(self, step: int, gates: Any) -> None:
        for layer, row in enumerate(gates):
            if np.max(row) > COLLAPSED and layer not in self._collapsed:
                self._collapsed.add(layer)
                self.warn(
                    step,
                    f"step {step}: in layer {layer}, expert {np.argmax(row)} has "
                    f"{np.max(row):.0%} of the gates: the router has collapsed. A larger "
                    "cv_weight or a smaller learning rate may prevent this.",
                )

    def _print(self, step: int, scalars: dict[str, float], compiled: str) -> None:
        stepping = time.monotonic() - self._began - self.compile_seconds
        left = stepping / max(step - self._first, 1) * (self.steps - step)
        cv = f"  cv {scalars['cv']:.3f}" if "cv" in scalars else ""
        kl = f"  kl {scalars['kl']:.3f}" if "kl" in scalars else ""
        mfu = f"  mfu {scalars['mfu']:.1%}" if "mfu" in scalars else ""
        self.console.print(
            f"step {step}/{self.steps}  loss {scalars['loss']:.4f}{cv}{kl}  "
            f"grad {scalars['grad_norm']:.3f}  {scalars['tokens_per_second']:,.0f} tokens/s{mfu}  "
            f"padding {scalars['padding_share']:.0%}  {left:,.0f} s left{compiled}",
            highlight=False,
            soft_wrap=True,
        )


def read_logs(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads the curves of a run as {tag: [(step, value)]}; of repeated steps, the last value."""
    from tensorboardX.proto import event_pb2

    messages: Any = event_pb2  # its classes are created on import
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events*")):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):  # length, checksum, event, checksum
            (length,) = struct.unpack_from("<Q", data, at)
            if at + 12 + length > len(data):
                break  # the run was killed while writing it
            event = messages.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if not value.HasField("simple_value"):
                    continue  # the text of a warning
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: sorted(points.items()) for tag, points in found.items()}
