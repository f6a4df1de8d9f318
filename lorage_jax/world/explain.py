"""What a generator's experts do in the built-in world, read from the gates of drawn prompts.

The prompts' parts are known (`world_prompts.Prompt.parts`: operation, format, verb, ...), so their
gates [P, L, E] say what an expert (layer, number) is for. `explain` returns JSON values:

    serves[kind][value]   `experts`: those whose mean gate under prompts with this value exceeds
                          that under the family's other prompts most, with both means. `chance`:
                          the largest excess when values are shuffled over prompts (a mean).
    tells[family]         `bits[kind]` [L]: mutual information of a layer's symbol and the value,
                          less its mean over shuffled values, which is what few prompts seem to
                          tell; so it can be a little below 0. `most[kind]`: the same of a symbol
                          that is the value itself.
                          `symbol`: the set of open experts, or the top expert if the sets are too
                          many for so few prompts, or all are open. Of a kind with several values a
                          prompt (verb, object): of whether a value is there, a mean over values.
    usage                 `families` [L, E] and `values[kind][value]` [E]: mean share of an expert.
    gates[kind][value]    [L, E]: mean gates, as `pictures.expert_heatmap` draws them.
    nearest               `neighbours` of one prompt by cosine of gates; `agreement[family][kind]`:
                          in which `share` of prompts the nearest other one has the same value, by
                          `chance` a random one, and what is `possible` among those drawn. With
                          several values: those in common, of those of either prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorage_jax.errors import DataError
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.methods.lora_gen import LoraGen, fit_cloud
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world.prompts import Prompt

FAMILIES = ("words", "tools")
SPLITS = ("train", "paraphrase")  # half of the prompts each
BATCH_PROMPTS = 16
FEWEST = 8  # prompts of a family of which anything is said
PER_SYMBOL = 8  # prompts there must be for each set of open experts
SHUFFLES = 20
EXPERTS = 3  # named for each value
NEIGHBOURS = 5
TIE = 1e-6  # cosines this near are equal: with one open expert of gate 1 many are


@dataclass(frozen=True, eq=False)
class Sample:
    """Drawn prompts of one family, the split of each, and their gates [P, L, E] float64."""

    family: str
    prompts: list[Prompt]
    splits: list[str]
    gates: np.ndarray

    def kinds(self) -> Iterator[tuple[str, list[str], np.ndarray]]:
        """(kind, its values, which prompt has which: 0 or 1 [P, V] float64)."""
        for kind in self.prompts[0].parts:
            values = sorted({value for prompt in self.prompts for value in prompt.parts[kind]})
            rows = [[value in prompt.parts[kind] for value in values] for prompt in self.prompts]
            yield kind, values, np.asarray(rows, np.float64)


def explain(
    generator: Generator, *, prompts_per_family: int, seed: int, prompt: str | None = None
) -> dict[str, Any]:
    """What the experts serve, and the prompts nearest to `prompt` (by default to a drawn one).

    Prompts longer than the cloud's context are left out and counted. DataError if those are all,
    or `prompt` is one.
    """
    query = None if prompt is None else (prompt, specialize(generator, prompt).gates)
    method = LoraGen(generator, batch_rows=BATCH_PROMPTS)
    samples, left_out = [], {}
    for family in FAMILIES:
        halves = (prompts_per_family // 2, prompts_per_family - prompts_per_family // 2)
        drawn = [
            (p, split)
            for split, n in zip(SPLITS, halves, strict=True)
            for p in world_prompts.draw_prompts(split, n, seed, family)
        ]
        kept = [(p, split) for p, split in drawn if not fit_cloud(generator, p.system)[1]]
        left_out[family] = len(drawn) - len(kept)
        if len(kept) < FEWEST:
            continue
        prompts = [p for p, _ in kept]
        rows = method.prepare([p.system for p in prompts])
        cards = [row.card for row in rows if row.card is not None]
        gates = np.asarray([card.gates for card in cards], np.float64)
        samples.append(Sample(family, prompts, [split for _, split in kept], gates))
    if not samples:
        raise DataError(
            f"of {prompts_per_family} prompts a family fewer than {FEWEST} fit into the cloud's "
            f"context of {generator.cloud.config.max_positions} tokens; nothing can be said."
        )
    return explain_gates(samples, seed=seed, query=query) | {"left_out": left_out, "seed": seed}


def explain_gates(
    samples: Sequence[Sample], *, seed: int, query: tuple[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """The same of known gates. `query`: a prompt and its gates [L, E], to find neighbours of."""
    found: dict[str, Any] = {
        "prompts": {sample.family: len(sample.prompts) for sample in samples},
        "serves": {},
        "tells": {},
        "usage": {"families": {}, "values": {}},
        "gates": {},
        "nearest": {"agreement": {}},
    }
    for sample in samples:
        rng = np.random.default_rng(seed)
        found["tells"][sample.family] = _tells(sample, rng)
        found["usage"]["families"][sample.family] = _json(sample.gates.mean(axis=0))
        found["nearest"]["agreement"][sample.family] = _agreement(sample)
        for kind, values, has in sample.kinds():
            means = np.einsum("pv,ple->vle", has, sample.gates) / has.sum(axis=0)[:, None, None]
            found["serves"][kind] = _serves(sample.gates, values, has, rng)
            found["gates"][kind] = dict(zip(values, map(_json, means), strict=True))
            shares = map(_json, means.mean(axis=1))
            found["usage"]["values"][kind] = dict(zip(values, shares, strict=True))
    found["nearest"] |= _neighbours(samples, query)
    return found


def _serves(
    gates: np.ndarray, values: Sequence[str], has: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """By value; one that all prompts have cannot be compared and is left out."""
    some = has.sum(axis=0) < len(has)
    values, has = [value for value, keep in zip(values, some, strict=True) if keep], has[:, some]
    flat, counts = gates.reshape(len(gates), -1), has.sum(axis=0)[:, None]

    def means(has: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of prompts with each value, and of the others: [V, L*E]."""
        inside = has.T @ flat
        return inside / counts, (flat.sum(axis=0) - inside) / (len(flat) - counts)

    shuffled = [np.subtract(*means(rng.permutation(has))).max(axis=1) for _ in range(SHUFFLES)]
    found, inside, outside = {}, *means(has)
    for v, (value, chance) in enumerate(zip(values, np.mean(shuffled, axis=0), strict=True)):
        best = np.argsort(outside[v] - inside[v], kind="stable")[:EXPERTS]
        experts = [
            {
                "layer": int(i // gates.shape[2]),
                "expert": int(i % gates.shape[2]),
                "gate": _json(inside[v, i]),
                "others": _json(outside[v, i]),
            }
            for i in best
        ]
        found[value] = {"prompts": int(counts[v, 0]), "chance": _json(chance), "experts": experts}
    return found


def _tells(sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
    name, symbols = _symbols(sample.gates)
    found: dict[str, Any] = {"symbol": name, "bits": {}, "most": {}}
    for kind, _, has in sample.kinds():
        # One variable of all values, or for each value one of two: there or not.
        single = (has.sum(axis=1) == 1).all()
        variables = [has] if single else [np.stack([1 - h, h], axis=1) for h in has.T]

        bits = [[_above_chance(symbol, one, rng) for one in variables] for symbol in symbols]
        found["bits"][kind] = _json(np.mean(bits, axis=1))
        found["most"][kind] = _json(np.mean([_above_chance(one, one, rng) for one in variables]))
    return found


def _above_chance(left: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> float:
    shuffled = [_information(left, rng.permutation(right)) for _ in range(SHUFFLES)]
    return _information(left, right) - float(np.mean(shuffled))


def _symbols(gates: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """What the symbols are, and of each layer which prompt shows which [P, S]: one kind of symbol
    for all layers, so that they can be compared."""
    sets = [np.unique(layer > 0, axis=0, return_inverse=True)[1] for layer in gates.swapaxes(0, 1)]
    sets = [np.eye(numbers.max() + 1)[numbers.reshape(-1)] for numbers in sets]
    few = max(one.shape[1] for one in sets) * PER_SYMBOL <= len(gates)
    if few and not (gates > 0).all():
        return "open experts", sets
    return "top expert", list(np.eye(gates.shape[2])[gates.argmax(axis=2)].swapaxes(0, 1))


def _information(left: np.ndarray, right: np.ndarray) -> float:
    """Mutual information in bits of two variables, each as rows with a single 1 [P, values]."""
    joint = left.T @ right / len(left)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / apart[seen])).sum())


def _agreement(sample: Sample) -> dict[str, Any]:
    cosines = _unit(sample.gates) @ _unit(sample.gates).T
    np.fill_diagonal(cosines, -np.inf)
    nearest = cosines >= cosines.max(axis=1, keepdims=True) - TIE
    same = {}
    for kind, _, has in sample.kinds():
        common, count = has @ has.T, has.sum(axis=1)
        same[kind] = common / (count[:, None] + count - common)
    same["all"] = np.all([one == 1 for one in same.values()], axis=0).astype(np.float64)
    other, found = ~np.eye(len(cosines), dtype=bool), {}
    for kind, one in same.items():
        found[kind] = {
            "share": _json(((one * nearest).sum(axis=1) / nearest.sum(axis=1)).mean()),
            "chance": _json(one[other].mean()),
            "possible": _json((one * other).max(axis=1).mean()),
        }
    return found


def _neighbours(samples: Sequence[Sample], query: tuple[str, np.ndarray] | None) -> dict[str, Any]:
    """Of all samples, those with another text."""
    # The last that was drawn is a paraphrase.
    text, gates = query or (samples[0].prompts[-1].system, samples[0].gates[-1])
    unit, others = _unit(gates[None].astype(np.float64))[0], []
    for sample in samples:
        cosines = _unit(sample.gates) @ unit
        others += [
            {
                "cosine": _json(cosine),
                "from": f"{sample.family}/{split}",
                "prompt": prompt.system,
                "parts": {kind: list(values) for kind, values in prompt.parts.items()},
            }
            for cosine, prompt, split in zip(cosines, sample.prompts, sample.splits, strict=True)
            if prompt.system != text
        ]
    others.sort(key=lambda one: -one["cosine"])
    return {"prompt": text, "neighbours": others[:NEIGHBOURS]}


def _unit(gates: np.ndarray) -> np.ndarray:
    """[P, L*E], of length 1."""
    flat = gates.reshape(len(gates), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _json(values: Any) -> Any:
    """Floats of four digits, which is more than so few prompts settle."""
    return np.round(np.asarray(values, np.float64), 4).tolist()
