"""The roles of experts (`roles.explain_gates`) as text, in lines of less than 100 characters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

LAYERS = 4  # the layers with most information
SHARES = 6  # the experts with the largest shares
WIDTH = 99
VALUES = 40  # of a kind that are shown, those with most prompts
LABEL = 18


def to_text(found: Mapping[str, Any]) -> str:
    """Tables of experts by value, information by layer, shares, agreement and neighbours."""
    parts = (_prompts, _serves, _tells, _usage, _agreement, _unseen, _neighbours)
    return "\n".join(line[:WIDTH].rstrip() for part in parts for line in part(found))


def _prompts(found: Mapping[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{count} of {family}" for family, count in found["prompts"].items())
    yield f"Prompts: {counts}."
    for family, count in found.get("left_out", {}).items():
        if count:
            yield f"Left out, as they are longer than the cloud's context: {count} of {family}."


def _serves(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "Experts by value: layer/expert, mean gate (mean gate under the family's other prompts)."
    yield "chance: the largest difference between the two with values shuffled over the prompts."
    for kind, values in found["serves"].items():
        yield f"{kind:20}prompts  chance"
        shown = _most(values, values)
        for value, one in shown.items():
            experts = "  ".join(
                f"{e['layer']:>3}/{e['expert']:<3}{e['gate']:.2f} ({e['others']:.2f})"
                for e in one["experts"]
            )
            label = value[: LABEL - 1]
            yield f"  {label:{LABEL}}{one['prompts']:7}  {one['chance']:6.2f}  {experts}"
        yield from _rest(len(values) - len(shown))


def _tells(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "Information by layer: bits above chance, mean over layers of the maximum; best layers."
    for family, tells in found["tells"].items():
        yield f"{family} (by the {tells['symbol']})"
        for kind, bits in tells["bits"].items():
            best = np.argsort(np.negative(bits), kind="stable")[:LAYERS]
            layers = "  ".join(f"layer {layer} {_plain(bits[layer])}" for layer in best)
            yield f"  {kind:18}{_plain(np.mean(bits))} of {tells['most'][kind]:.2f}  {layers}"


def _usage(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "Mean share of the experts, by layer; for values, over all layers."
    for family, layers in found["usage"]["families"].items():
        yield family
        for layer, shares in enumerate(layers):
            yield f"  {f'layer {layer}':18}{_strongest(shares)}"
    for kind, values in found["usage"]["values"].items():
        yield kind
        shown = _most(values, found["serves"][kind])
        for value, shares in shown.items():
            yield f"  {value[: LABEL - 1]:{LABEL}}{_strongest(shares)}"
        yield from _rest(len(values) - len(shown))


def _agreement(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "Agreement with the prompt of nearest gates, with a random one, and the maximum:"
    for family, kinds in found["nearest"]["agreement"].items():
        yield f"{family:20}  share  chance  possible"
        for kind, one in kinds.items():
            figures = f"{one['share']:7.2f}{one['chance']:8.2f}{one['possible']:10.2f}"
            yield f"  {kind:18}{figures}"


def _unseen(found: Mapping[str, Any]) -> Iterator[str]:
    if kinds := found["nearest"].get("kinds"):
        yield ""
        yield "Unseen kinds, and the kinds of training with the most similar gates (cosine):"
        for kind, nearest in kinds.items():
            likes = ", ".join(f"{one['value']} ({one['cosine']:.2f})" for one in nearest[:2])
            yield f"  {kind[: LABEL - 1]:{LABEL}}{likes}"


def _neighbours(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"Nearest prompts, by cosine of the gates, to: {_line(found['nearest']['prompt'])}"
    for one in found["nearest"]["neighbours"]:
        parts = " ".join(",".join(values) for values in one["parts"].values())
        yield f"  {one['cosine']:.3f}  {one['from']:17} {parts}"
        yield f"         {_line(one['prompt'])}"


def _most(values: Mapping[str, Any], serves: Mapping[str, Any]) -> dict[str, Any]:
    """The values with most prompts, in their order; one that all prompts have is among them."""
    counts = {value: serves[value]["prompts"] if value in serves else math.inf for value in values}
    kept = sorted(counts, key=lambda value: -counts[value])[:VALUES]
    return {value: one for value, one in values.items() if value in kept}


def _rest(count: int) -> Iterator[str]:
    if count:
        yield f"  and {count} more (all with --json)"


def _strongest(shares: Sequence[float]) -> str:
    order = np.argsort(np.negative(shares), kind="stable")[:SHARES]
    return "  ".join(f"e{e} {shares[e]:.2f}" for e in order if shares[e] > 0)


def _plain(bits: float) -> str:
    """Two digits, without a sign before zero."""
    return f"{round(bits, 2) + 0.0:5.2f}"


def _line(text: str) -> str:
    return " ".join(text.split())
