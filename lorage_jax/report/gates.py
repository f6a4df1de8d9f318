"""The router's behaviour: heatmaps, expert usage per prompt, collapse, nearest prompts.

Only cards of the same generator are compared, since experts of different generators have nothing in
common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from lorage_jax.errors import listed
from lorage_jax.generator.card import COLLAPSED
from lorage_jax.report.inputs import Inputs, NamedCard
from lorage_jax.report.page import (
    Block,
    Cell,
    Paragraph,
    Picture,
    Section,
    Table,
    decimal,
    row,
)
from lorage_jax.report.pictures import gate_panels
from lorage_jax.report.render import plain

BLIND = 0.01  # cosine distance below which all prompts get practically the same gates
NEAREST = 3
PANELS = 8  # heatmaps in one picture: more would be too small on paper
EXCERPT = 90  # characters of a prompt in a table


def gates(inputs: Inputs) -> Section | None:
    """The section on cards, separately for each generator."""
    if not inputs.cards:
        return None
    groups: dict[tuple[str, tuple[int, ...]], list[NamedCard]] = defaultdict(list)
    for card in inputs.cards:
        groups[card.card.generator, card.card.gates.shape].append(card)
    blocks: list[Block] = []
    for number, ((generator, _), cards) in enumerate(groups.items(), 1):
        if len(groups) > 1:
            about = f"Generator {number} of {len(groups)}: {generator or '(no fingerprint)'}."
            blocks.append(Paragraph(f"{about} Gates of different generators are not comparable."))
        blocks += _of_one_generator(cards, f"gates-{number}")
    return Section("Layers and experts", tuple(blocks))


def usage(gates: np.ndarray) -> np.ndarray:
    """Share of layers [E] in which each expert is selected, from gates [L, E]. The sum is K."""
    return (gates > 0).mean(axis=0)


def collapsed(stack: np.ndarray) -> list[tuple[int, int, float]]:
    """The (layer, expert, share) triples in which one expert takes most of a layer's gates.

    `stack` has the gates [N, L, E] of N prompts. The share is over all prompts: one prompt that
    favours one expert is not a collapse.
    """
    shares = stack.mean(axis=0)
    best = shares.argmax(axis=1)
    return [
        (layer, int(expert), float(shares[layer, expert]))
        for layer, expert in enumerate(best)
        if shares[layer, expert] > COLLAPSED
    ]


def distances(stack: np.ndarray) -> np.ndarray:
    """Cosine distances [N, N] between the gates [N, L, E] of N prompts; 0 for equal directions."""
    flat = stack.reshape(len(stack), -1).astype(np.float64)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return np.clip(1 - flat @ flat.T, 0.0, 2.0)


def _of_one_generator(cards: Sequence[NamedCard], name: str) -> list[Block]:
    stack = np.stack([card.card.gates for card in cards])
    return [
        *_warnings(stack),
        *_heatmaps(cards, name),
        _usage_table(cards),
        *_nearest(cards, stack),
    ]


def _warnings(stack: np.ndarray) -> list[Block]:
    layers, over = stack.shape[1], f"over {len(stack)} prompt{'s' if len(stack) > 1 else ''}"
    found = collapsed(stack)
    blocks: list[Block] = []
    if found:
        named = listed([f"layer {la}: expert {e} with {s:.0%}" for la, e, s in found], 8)
        blocks.append(
            Paragraph(
                f"Warning, router collapse: in {len(found)} of {layers} layers one expert takes "
                f"more than {COLLAPSED:.0%} of the gates {over} ({named}).",
                "warning",
            )
        )
    else:
        blocks.append(
            Paragraph(
                f"No layer gives more than {COLLAPSED:.0%} of its gates to one expert {over}."
            )
        )
    largest = distances(stack).max()
    if len(stack) > 1 and largest < BLIND:
        blocks.append(
            Paragraph(
                f"Warning, the gates hardly depend on the prompt: the largest cosine distance "
                f"between any two of {len(stack)} prompts is {largest:.4f}.",
                "warning",
            )
        )
    return blocks


def _heatmaps(cards: Sequence[NamedCard], name: str) -> list[Block]:
    blocks: list[Block] = []
    pictures = -(-len(cards) // PANELS)
    size = -(-len(cards) // pictures)  # equal sizes: no last picture with a single panel
    for first in range(0, len(cards), size):
        part = cards[first : first + size]
        labels = ", ".join(card.label for card in part)
        blocks.append(
            Picture(
                f"{name}-{first // size + 1}",
                gate_panels([(plain(card.label), card.card.gates) for card in part]),
                f"Gates of each edge layer over the experts, one panel per prompt: {labels}.",
                f"Heatmaps of gates, layers by experts, for {labels}",
            )
        )
    return blocks


def _usage_table(cards: Sequence[NamedCard]) -> Table:
    experts = cards[0].card.gates.shape[1]
    rows = []
    for card in cards:
        share = usage(card.card.gates)
        cells = (decimal(float(value), ".2f") for value in share)
        rows.append(row(card.label, *cells, decimal(float(share.sum()), ".2f")))
    return Table(
        "Expert usage: the share of layers in which an expert is selected",
        ("prompt", *(f"e{e}" for e in range(experts)), "sum"),
        tuple(rows),
        ("The sum is K, the number of experts that the router keeps in a layer.",),
    )


def _nearest(cards: Sequence[NamedCard], stack: np.ndarray) -> list[Block]:
    if len(cards) < 2:
        return [Paragraph("There is only one card, so no nearest prompts.")]
    matrix, rows = distances(stack), []
    for index, card in enumerate(cards):
        others = [i for i in np.argsort(matrix[index], kind="stable") if i != index][:NEAREST]
        near = [Cell(cards[i].label, f"{matrix[index, i]:.3f}") for i in others]
        near += [Cell("")] * (min(NEAREST, len(cards) - 1) - len(near))
        rows.append(row(card.label, Cell(_excerpt(card)), *near))
    places = ("nearest", "second", "third")[: min(NEAREST, len(cards) - 1)]
    columns = ("prompt", "begins with", *places)
    return [
        Table(
            "Nearest known prompts by cosine distance of gates (0: equal, 1: no common expert)",
            columns,
            tuple(rows),
            text_columns=len(columns),
        )
    ]


def _excerpt(card: NamedCard) -> str:
    if card.prompt is None:
        return "(not in the card)"
    text = " ".join(card.prompt.split())
    return text if len(text) <= EXCERPT else text[:EXCERPT].rstrip() + "…"
