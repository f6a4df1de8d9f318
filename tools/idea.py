"""Draws README's figure: one real run of the bundled pair, from the prompt to the answer.

    python tools/idea.py

Specialises the bundled edge by the prompt below, asks it one question with and without the card,
and writes docs/idea_light.svg and docs/idea_dark.svg. Takes about 20 s on one CPU core.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import lorage_jax as lg
from lorage_jax import libtpu, nano

PROMPT = (
    "Put bars on each side of words.\nWrite all the words in upper case.\n"
    "Move the last word to first place."
)
QUESTION = "city king frog star"
OUT = Path(__file__).resolve().parents[1] / "docs"
ACCENT = "#12a594"


@dataclass(frozen=True)
class Theme:
    """Colours of the figure on light or dark pages."""

    ink: str
    soft: str
    box: str
    line: str


THEMES = {
    "light": Theme("#1f2328", "#59636e", "#f3f6f8", "#9aa4ae"),
    "dark": Theme("#f0f3f6", "#a7b1bb", "#1d242c", "#6b7681"),
}


@dataclass(frozen=True)
class Drawing:
    """The axes of the figure, 100 units wide, in one theme."""

    axes: Axes
    theme: Theme

    def box(self, place: tuple[float, ...], title: str, text: str, strong: bool = False) -> None:
        """A box at (x, y, width, height) with a title and a text."""
        x, y, width, height = place
        line = ACCENT if strong else self.theme.line
        style = "round,pad=0,rounding_size=1"
        self.axes.add_patch(
            FancyBboxPatch((x, y), width, height, style, fc=self.theme.box, ec=line, lw=1.6)
        )
        self.bold(x + width / 2, y + height - 2.6, title)
        middle = y + (height - 4) / 2
        words = self.axes.text(x + width / 2, middle, text, size=10.5, color=self.theme.ink)
        words.set(ha="center", va="center", linespacing=1.5)

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """An arrow from start to end."""
        arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, lw=1.6)
        arrow.set_color(self.theme.soft)
        self.axes.add_patch(arrow)

    def bold(self, x: float, y: float, text: str) -> None:
        """A title."""
        words = self.axes.text(x, y, text, size=12.5, color=self.theme.ink)
        words.set(ha="center", weight="bold")

    def note(self, x: float, y: float, text: str) -> None:
        """A remark in a softer colour."""
        words = self.axes.text(x, y, text, size=10, color=self.theme.soft)
        words.set(ha="center", linespacing=1.4)

    def gates(self, gates: np.ndarray, place: tuple[float, ...]) -> None:
        """One cell per layer and expert, as opaque as its gate."""
        x, y, width, height = place
        w, h = width / gates.shape[1], height / gates.shape[0]
        for (layer, expert), gate in np.ndenumerate(gates):
            corner = (x + expert * w + 0.15, y + (gates.shape[0] - 1 - layer) * h + 0.12)
            for colour, alpha in ((self.theme.box, 1.0), (ACCENT, float(gate))):
                cell = Rectangle(corner, w - 0.3, h - 0.24, fc=colour, alpha=alpha)
                self.axes.add_patch(cell)


def main() -> None:
    """Runs the method once and draws the figure in both themes."""
    libtpu.keep_quiet()
    generator, edge = lg.load_generator("nano"), lg.load_model(nano.EDGE)
    card = lg.specialize(generator, PROMPT.replace("\n", " "))
    special = lg.merge(edge, generator.pool, card)
    bare = lg.chat(generator.speaking(edge), QUESTION, max_new_tokens=32)
    answer = lg.chat(special, QUESTION)
    print(f"without the card: {bare}\nwith it:          {answer}")
    mpl.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "lorage"})
    for name, theme in THEMES.items():
        figure = draw(theme, card.gates, str(bare), str(answer))
        figure.savefig(OUT / f"idea_{name}.svg", transparent=True, metadata={"Date": None})


def draw(theme: Theme, gates: np.ndarray, bare: str, answer: str) -> Figure:
    """The figure: prompt, cloud, card, merge, edge, answer."""
    figure = Figure(figsize=(9.4, 4.1))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(0, 43))
    axes.axis("off")
    out = Drawing(axes, theme)
    out.box((1, 26, 29, 15), "system prompt", PROMPT)
    cloud = "frozen; reads the\nprompt once, then a meta\ntoken per edge layer"
    out.box((36, 26, 22, 15), "cloud LM", cloud)
    out.box((1, 2, 20, 12), "user", QUESTION)
    out.box((36, 2, 22, 14), "edge LM", "small, frozen;\nnever sees the prompt", strong=True)
    out.box((70, 2, 29, 12), "answer", answer)
    for start, end in (
        ((30.5, 33.5), (35.5, 33.5)),
        ((58.5, 33.5), (66, 33.5)),
        ((21.5, 8), (35.5, 8)),
        ((58.5, 8), (69.5, 8)),
        ((75, 23.8), (58.6, 14)),
    ):
        out.arrow(start, end)
    out.note(62, 35, "router")
    out.bold(82, 39.2, "the card: gates")
    out.gates(gates, (68, 27.5, 28, 10.5))
    out.note(82, 25.2, f"{gates.shape[0]} layers x {gates.shape[1]} experts, some hundred bytes")
    out.note(85, 17.6, "mix the pool's LoRA experts\nand merge: W + A·B")
    out.note(19, 17.6, f"without the card it answers:\n{' '.join(bare.split())}")
    return figure


if __name__ == "__main__":
    main()
