"""Gates and losses as pictures (matplotlib) and as text: readable on paper, colour-blind safe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.hf.folder import write_file

SHADES = " ·░▒▓█"  # 0, and five steps to 1


def gate_text(gates: np.ndarray) -> str:
    """Gates [L, E] as lines of shades and numbers, one layer a line."""
    layers, experts = gates.shape
    lines = ["layer  " + " ".join(f"e{e:<3}" for e in range(experts)) + "  gates that are open"]
    for layer in range(layers):
        row = gates[layer]
        cells = [SHADES[0 if g == 0 else 1 + min(4, int(g * 5))] * 4 for g in row]
        strongest = sorted(np.flatnonzero(row), key=lambda e: -row[e])
        opened = "  ".join(f"e{e} {row[e]:.3f}" for e in strongest[:4])
        lines.append(f"{layer:5}  " + " ".join(cells) + f"  {opened}")
    return "\n".join(lines)


def gate_heatmap(gates: np.ndarray, path: Path, overwrite: bool) -> None:
    """Gates [L, E] as a PNG: layers down, experts across, each open gate with its number."""
    layers, experts = gates.shape
    figure, axes = _figure(1.2 + 0.62 * experts, 1.2 + 0.32 * layers)
    image = axes.imshow(gates, cmap="cividis", vmin=0.0, vmax=1.0, aspect="auto")
    for layer, expert in zip(*np.nonzero(gates), strict=True):
        value = gates[layer, expert]
        colour = "black" if value > 0.5 else "white"
        axes.text(expert, layer, f"{value:.2f}", ha="center", va="center", color=colour, size=8)
    axes.set_xticks(range(experts))
    axes.set_yticks(range(layers))
    axes.set(xlabel="expert", ylabel="edge layer", title="gates")
    figure.colorbar(image, ax=axes, label="gate")
    _save(figure, path, overwrite)


def loss_curve(losses: Sequence[tuple[int, float]], path: Path, overwrite: bool) -> None:
    """(step, loss) pairs as a PNG: every step thin, a running mean over them."""
    steps, values = np.asarray([s for s, _ in losses]), np.asarray([v for _, v in losses])
    window = max(1, len(values) // 20)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    figure, axes = _figure(6.0, 3.6)
    axes.plot(steps, values, color="0.7", linewidth=0.8, label="each step")
    axes.plot(steps[window - 1 :], smooth, color="#0072B2", label=f"mean of {window}")
    axes.set(xlabel="step", ylabel="cross entropy (nats per target token)", title="training loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    _save(figure, path, overwrite)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path, overwrite: bool) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    write_file(path, data.getvalue(), overwrite=overwrite)
