"""The roles of a generator's experts, read from the gates of prompts of which something is known.

With what is known of each prompt (its kind of task, or in the built-in world its operation, format,
verb, ...) the gates [P, L, E] show the purpose of an expert (layer, number). `explain_gates`
returns JSON values:

    serves[kind][value]   `experts`: the experts whose mean gate under prompts with this value
                          exceeds their mean gate under the family's other prompts the most, with
                          both means. `chance`: the largest excess with values shuffled over
                          prompts, a mean over shuffles.
    tells[family]         `bits[kind]` [L]: mutual information of a layer's symbol and the value,
                          less its mean over shuffled values, which corrects for the number of
                          prompts; it can be slightly negative. `most[kind]`: the same for a symbol
                          that is the value itself.
                          `symbol`: the set of open experts, or the top expert if there are too many
                          sets for the number of prompts, or all experts are open. For kinds with
                          several values per prompt (verb, object): information on the presence of
                          a value, a mean over values.
    usage                 `families` [L, E] and `values[kind][value]` [E]: mean share of an expert.
    gates[kind][value]    [L, E]: mean gates, as `pictures.expert_heatmap` draws them.
    nearest               `neighbours` of one prompt by cosine of gates; `agreement[family][kind]`:
                          the `share` of prompts whose nearest neighbour has the same value, by
                          `chance` that of a random other prompt, and the largest `possible` share
                          among the drawn prompts. With several values per prompt: the number in
                          common over the number in either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

PER_SYMBOL = 8  # prompts needed for each set of open experts
SHUFFLES = 20
EXPERTS = 3  # experts named for each value
NEIGHBOURS = 5
TIE = 1e-6  # cosines within this count as equal; with a single open expert many are


class Described(Protocol):
    """A system prompt with its `parts`: of every kind the values that it has."""

    @property
    def system(self) -> str: ...
    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]: ...


@dataclass(frozen=True, eq=False)
class Sample:
    """Prompts of one family, with their splits and gates [P, L, E] in float64.

    All have parts of the same kinds, and no two families share a kind.
    """

    family: str
    prompts: Sequence[Described]
    splits: Sequence[str]
    gates: np.ndarray

    def kinds(self) -> Iterator[tuple[str, list[str], np.ndarray]]:
        """Yields (kind, its values, an indicator [P, V] of the values that each prompt has)."""
        for kind in self.prompts[0].parts:
            values = sorted({value for prompt in self.prompts for value in prompt.parts[kind]})
            rows = [[value in prompt.parts[kind] for value in values] for prompt in self.prompts]
            yield kind, values, np.asarray(rows, np.float64)


def explain_gates(
    samples: Sequence[Sample], *, seed: int, query: tuple[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """The roles of all experts, as the head of this file says.

    Args:
        samples: the prompts with their gates, by family.
        seed: seed for the shuffles.
        query: a prompt and its gates [L, E], to find neighbours of; by default the last of the
            first family.
    """
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
    """The experts that serve each value; a value that all prompts have is left out."""
    some = has.sum(axis=0) < len(has)
    values, has = [value for value, keep in zip(values, some, strict=True) if keep], has[:, some]
    flat, counts = gates.reshape(len(gates), -1), has.sum(axis=0)[:, None]

    def means(has: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean gates of the prompts with each value, and of the others, each [V, L*E]."""
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
    """The name of the symbol, and per layer an indicator [P, S] of the symbol of each prompt.

    All layers have the same kind of symbol, so that they can be compared.
    """
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


def nearest_values(of: Mapping[str, Any], among: Mapping[str, Any]) -> dict[str, list[Any]]:
    """For each value of one kind, the values of another with the most similar mean gates.

    Args:
        of: mean gates [L, E] by value, as `explain_gates` returns them.
        among: the same of the other kind.

    Returns [{"value", "cosine"}, ...] for each value of `of`, the nearest first. The cosines are
    those of the differences from the mean over `among`, since all gates have much in common.
    """
    centre = np.mean([np.ravel(gates) for gates in among.values()], axis=0)

    def rows(kind: Mapping[str, Any]) -> np.ndarray:
        return _unit(np.asarray([np.ravel(gates) - centre for gates in kind.values()]))

    cosines, names = rows(of) @ rows(among).T, list(among)
    return {
        value: [
            {"value": names[i], "cosine": _json(row[i])}
            for i in np.argsort(-row, kind="stable")[:NEIGHBOURS]
        ]
        for value, row in zip(of, cosines, strict=True)
    }


def _neighbours(samples: Sequence[Sample], query: tuple[str, np.ndarray] | None) -> dict[str, Any]:
    """The nearest prompts of all samples whose text differs."""
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
    """Gates as rows [P, L*E] of length 1."""
    flat = gates.reshape(len(gates), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _json(values: Any) -> Any:
    """Floats of four digits, which is more than so few prompts settle."""
    return np.round(np.asarray(values, np.float64), 4).tolist()
