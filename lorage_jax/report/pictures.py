"""Pictures of gates, losses and accuracies (matplotlib), and gates as text.

The pictures are readable in print and safe for colour-blind readers.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.files.outputs import write_file

DPI = 150  # resolution of a PNG
SHADES = " ·░▒▓█"  # 0, then five steps up to 1


def gate_text(gates: np.ndarray) -> str:
    """Gates [L, E] as lines of shades and numbers, one line per layer."""
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
    """Writes gates [L, E] as a PNG: layers down, experts across, a number in each open gate."""
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
    """Writes (step, loss) pairs as a PNG: a thin line of all steps, and a running mean."""
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


def gate_panels(cards: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """A PNG of heatmaps side by side, on one scale, of (label, gates [L, E]) pairs of one shape.

    Closed gates are white: most gates are closed, which saves ink.
    """
    layers, experts = cards[0][1].shape
    rows = -(-len(cards) // 4)
    columns = -(-len(cards) // rows)
    width, height = max(1.7, 0.17 * experts), max(1.2, 0.11 * layers)
    figure = _blank(0.9 + (width + 0.15) * columns, 0.3 + (height + 0.65) * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for axes, (label, gates) in zip(grid.flat, cards, strict=False):
        image = axes.imshow(gates, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        axes.set_title(_short(label, 26), size=8)
        axes.set_xticks(range(0, experts, 1 + (experts - 1) // 8))
        axes.tick_params(labelsize=7)
        axes.set_xticks(np.arange(experts + 1) - 0.5, minor=True)
        axes.grid(which="minor", axis="x", color="0.85", linewidth=0.4)
        axes.tick_params(which="minor", length=0)
        axes.yaxis.get_major_locator().set_params(integer=True)
    for axes in grid.flat[len(cards) :]:
        axes.set_axis_off()
    figure.supxlabel("expert", size=9)
    figure.supylabel("edge layer", size=9)
    bar = figure.colorbar(image, ax=grid, shrink=0.9, aspect=30)
    bar.set_label("gate", size=9)
    bar.ax.tick_params(labelsize=7)
    return _png(figure)


def expert_heatmap(kinds: Mapping[str, Mapping[str, Any]], path: Path, overwrite: bool) -> None:
    """Writes mean gates [L, E] by kind and value as a PNG: values down, experts across."""
    values = [value for kind in kinds.values() for value in kind]
    gates = np.asarray([mean for kind in kinds.values() for mean in kind.values()])
    rows, layers, experts = gates.shape
    width = min(30.0, max(5.0, 0.14 * layers * experts))
    figure, axes = _figure(1.8 + width, 1.2 + 0.2 * rows)
    image = axes.imshow(gates.reshape(rows, -1), cmap="Blues", vmin=0.0, aspect="auto")
    for layer in range(1, layers):
        axes.axvline(layer * experts - 0.5, color="0.5", linewidth=0.6)
    end = 0
    for name, kind in kinds.items():
        axes.text(
            1.01,
            1 - (end + len(kind) / 2) / rows,
            name,
            rotation=270,
            va="center",
            transform=axes.transAxes,
        )
        end += len(kind)
        axes.axhline(end - 0.5, color="black", linewidth=0.8)
    axes.set_yticks(range(rows), [_short(value, 24) for value in values], size=8)
    axes.set_xticks(np.arange(layers) * experts + (experts - 1) / 2, range(layers))
    axes.tick_params(length=0)
    axes.set(xlabel=f"edge layer, with its experts 0 to {experts - 1}", title="mean gates")
    figure.colorbar(image, ax=axes, label="mean gate")
    _save(figure, path, overwrite)


@dataclass(frozen=True)
class Point:
    """A point of the scatter: its `group` decides the colour, its `kind` the marker."""

    label: str
    group: str
    kind: str
    milliseconds: float
    accuracy: float  # percent


# Okabe and Ito's colours, safe for colour-blind readers; in print, shapes show the method.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "*", "P", "X", "v", "<", ">")


def accuracy_against_latency(points: Sequence[Point], ours: Set[str]) -> bytes:
    """A scatter plot as PNG: colour by group, marker by kind, each point with its label.

    Groups in `ours` are filled, the others hollow.
    """
    return _png(_scatter(points, ours))


def _scatter(points: Sequence[Point], ours: Set[str]) -> Any:
    from matplotlib.ticker import LogLocator, NullLocator

    groups = {g: COLOURS[i % len(COLOURS)] for i, g in enumerate(_once(p.group for p in points))}
    kinds = {k: MARKERS[i % len(MARKERS)] for i, k in enumerate(_once(p.kind for p in points))}
    figure, axes = _figure(7.5, 5.0)
    times = [point.milliseconds for point in points]
    if max(times) > 10 * min(times):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(0.12)
    for point in points:
        colour = groups[point.group]
        axes.plot(
            point.milliseconds,
            point.accuracy,
            kinds[point.kind],
            markersize=11 if kinds[point.kind] == "*" else 7,
            markeredgecolor=colour,
            markerfacecolor=colour if point.group in ours else "white",
            markeredgewidth=1.4,
        )
    axes.set(
        xlabel="latency (ms; the paper's and ours on different devices)",
        ylabel="AVE, accuracy (percent)",
        title="Accuracy against latency",
    )
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    _label_points(figure, axes, points, groups)
    return figure


# Places for a label: offset from its point (in points) and alignment, nearest first.
SIDES = (
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
    (0, 8, "center", "bottom"),
    (0, -8, "center", "top"),
    (6, 6, "left", "bottom"),
    (6, -6, "left", "top"),
    (-6, 6, "right", "bottom"),
    (-6, -6, "right", "top"),
)
PLACES = tuple((x * far, y * far, ha, va) for far in (1, 2, 3.5) for x, y, ha, va in SIDES)


def _label_points(figure: Any, axes: Any, points: Sequence[Point], colours: dict[str, str]) -> None:
    """Puts each label at the nearest place where it covers the fewest other labels and points.

    There are two passes, since the first labels are placed without knowing the last.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles the layout, on which pixel positions depend
    frame, size = axes.get_window_extent(), 6 * figure.dpi / 72
    at = [axes.transData.transform((p.milliseconds, p.accuracy)) for p in points]
    markers = [Bbox.from_extents(x - size, y - size, x + size, y + size) for x, y in at]
    texts = [
        axes.annotate(
            _short(point.label, 40),
            (point.milliseconds, point.accuracy),
            xytext=(0, 0),
            textcoords="offset points",
            size=8,
            color=colours[point.group],
        )
        for point in points
    ]
    boxes: list[Any] = [None] * len(points)

    def put(index: int, place: tuple[float, float, str, str]) -> Any:
        x, y, across, along = place
        texts[index].set(position=(x, y), ha=across, va=along)
        with _any_script():
            return texts[index].get_window_extent()

    def cost(index: int, box: Any) -> int:
        """Number of boxes that this one covers; leaving the frame counts as two."""
        others = [b for i, b in enumerate(markers) if i != index]
        others += [b for i, b in enumerate(boxes) if i != index and b is not None]
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
        inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
        return sum(bool(box.overlaps(other)) for other in others) + (0 if inside else 2)

    for index in [*range(len(points))] * 2:
        # min keeps the first of equals, which is nearest.
        best = min(PLACES, key=lambda place: cost(index, put(index, place)))
        boxes[index] = put(index, best)


def _once(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _short(label: str, length: int) -> str:
    """A label for matplotlib, shortened, with dollar signs escaped (they start formulas)."""
    label = " ".join(label.split())
    label = label if len(label) <= length else label[: length - 1] + "…"
    return label.replace("$", r"\$")


def _blank(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = _blank(width, height)
    return figure, figure.add_subplot()


def _png(figure: Any) -> bytes:
    data = io.BytesIO()
    with _any_script():
        figure.savefig(data, format="png", dpi=DPI)
    return data.getvalue()


@contextmanager
def _any_script() -> Iterator[None]:
    """Silences warnings about characters that the font lacks; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def _save(figure: Any, path: Path, overwrite: bool) -> None:
    write_file(path, _png(figure), overwrite=overwrite)
