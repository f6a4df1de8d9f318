"""Bytes that one run of a compiled program moves over HBM and, by collectives, between chips."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from lorage_jax.aot.hlo import (
    Computation,
    Instruction,
    Module,
    array_bytes,
    arrays,
    replica_group,
    trip_count,
)

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Between slices, hosts carry the data: chips send and receive, and attributes name the collective.
TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
SLICES = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}')
# These only name or view values, or are counted where their data move.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast partition-id replica-id after-all "
    "while conditional call domain optimization-barrier".split()
)


@dataclass(frozen=True)
class Collective:
    """One collective of `group` chips on arrays of `shape`.

    Each chip sends `bytes` bytes in a ring algorithm. `dcn` is True if the group spans slices.
    """

    kind: str
    shape: str
    group: int
    bytes: int
    dcn: bool


@dataclass(frozen=True)
class Traffic:
    """Bytes over HBM per chip, and the collectives with how often each runs."""

    hbm: int = 0
    collectives: Counter[Collective] = field(default_factory=Counter)
    unknown: int = 0  # loops of unknown trip count, which are counted once

    def plus(self, other: Traffic, times: int = 1) -> Traffic:
        """The sum of this and `times` times `other`."""
        sent = Counter(self.collectives)
        for one, count in other.collectives.items():
            sent[one] += count * times
        return Traffic(self.hbm + other.hbm * times, sent, self.unknown + other.unknown)


def traffic(module: Module, chips_per_slice: int) -> Traffic:
    """Traffic of a whole program, with repeated loops and the largest branch of conditionals."""
    found = _traffic(module, module.computations[module.entry], chips_per_slice)
    sent = Counter({one: count for one, count in found.collectives.items() if one.bytes})
    return Traffic(found.hbm, sent, found.unknown)


def turn_traffic(module: Module, chips_per_slice: int) -> Traffic:
    """Traffic of one turn of the program's loops of unknown length, without what is around them.

    Raises ValueError if there is no such loop.
    """
    entry, total = module.computations[module.entry], None
    for one in entry.instructions.values():
        if one.opcode == "while" and trip_count(module, entry, one) is None:
            turn = _traffic(module, module.computations[one.callee("body")], chips_per_slice)
            total = turn if total is None else total.plus(turn)
    if total is None:
        raise ValueError("the program has no loop of unknown length")
    return total


def sent_bytes(collectives: Counter[Collective]) -> dict[str, int]:
    """The bytes that each chip sends in total, by kind of collective."""
    totals: dict[str, int] = {}
    for one, count in collectives.items():
        totals[one.kind] = totals.get(one.kind, 0) + one.bytes * count
    return totals


def _traffic(module: Module, computation: Computation, chips_per_slice: int) -> Traffic:
    total, chains = Traffic(), set()

    def inner(name: str) -> Traffic:
        return _traffic(module, module.computations[name], chips_per_slice)

    for one in computation.instructions.values():
        if one.opcode == "while":
            times = trip_count(module, computation, one)
            loop = inner(one.callee("body"))
            total = total.plus(loop, 1 if times is None else times)
            total = total.plus(Traffic(unknown=times is None))
        elif one.opcode == "conditional":
            branches = [inner(name) for name in _branches(one)]
            total = total.plus(max(branches, key=lambda branch: branch.hbm))
        elif one.opcode == "call":
            total = total.plus(inner(one.callee("to_apply")))
        else:
            total = total.plus(Traffic(_hbm_bytes(module, computation, one)))
            for sent in _collectives(module, computation, one, chips_per_slice, chains):
                total = total.plus(Traffic(0, Counter([sent])))
    return total


def _branches(one: Instruction) -> list[str]:
    lists = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    if lists:
        return [name.strip().lstrip("%") for name in lists[1].split(",")]
    return [one.callee("true_computation"), one.callee("false_computation")]


def _collectives(
    module: Module,
    computation: Computation,
    one: Instruction,
    chips_per_slice: int,
    chains: set[str],
) -> list[Collective]:
    """The collectives that an instruction runs, itself or inside a fusion.

    An asynchronous collective appears, with one chain_id, in every fusion it overlaps with.
    `chains` holds the ids that have been counted.
    """
    if one.opcode.removesuffix("-start") in KINDS:
        return [_collective(module, computation, one, chips_per_slice)]
    if one.opcode == "send" and (kind := TRANSFER.search(one.attributes)):
        return [_between_slices(computation, one, kind[1].lower().replace("_", "-"))]
    name = one.called("calls") if one.opcode in ("fusion", "async-start") else None
    if name is None:
        return []
    found, called = [], module.computations[name]
    for part in called.instructions.values():
        if part.opcode.removesuffix("-start") not in KINDS:
            continue
        chain = re.search(r'chain_id="(\d+)"', part.attributes)
        if chain and chain[1] in chains:
            continue
        chains |= {chain[1]} if chain else set()
        found.append(_collective(module, called, part, chips_per_slice))
    return found


def _between_slices(computation: Computation, one: Instruction, kind: str) -> Collective:
    """A collective of corresponding chips of several slices, which their hosts carry out."""
    shape = computation.instructions[one.operands[0]].shape
    found = SLICES.search(one.attributes)
    assert found is not None  # sends with a transfer type have it
    slices = found[1]
    first, _, last = slices.partition(":")
    group = int(last) - int(first) + 1 if last else slices.count(",") + 1
    sent = round(array_bytes(shape) * _share(kind, group))
    return Collective(kind, re.sub(r"\{[^}]*\}", "", shape), group, sent, dcn=True)


def _share(kind: str, size: int) -> float:
    """Share of its operands that each of `size` chips sends in a ring algorithm."""
    shares = {
        "all-gather": size - 1,
        "all-reduce": 2 * (size - 1) / size,
        "collective-permute": 1,
    }
    return shares.get(kind, (size - 1) / size)


def _collective(
    module: Module, computation: Computation, one: Instruction, chips_per_slice: int
) -> Collective:
    kind = one.opcode.removesuffix("-start")
    if computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # written as an all-reduce of which each chip keeps its shard
    group = replica_group(one.attributes, module.chips)
    size, count = len(group), sum(_size(computation, name) for name in one.operands)
    dcn = len({chip // chips_per_slice for chip in group}) > 1
    shape = re.sub(r"\{[^}]*\}", "", one.shape)
    return Collective(kind, shape, size, round(count * _share(kind, size)), dcn)


def _size(computation: Computation, name: str) -> int:
    return array_bytes(computation.instructions[name].shape)


def _hbm_bytes(module: Module, computation: Computation, one: Instruction) -> int:
    """Bytes that an instruction reads from and writes to HBM; for a slice, only the slice."""

    def shape(name: str) -> str:
        return computation.instructions[name].shape

    def size(text: str) -> int:
        return array_bytes(text, hbm_only=True)

    def moved(text: str, whole: str) -> int:
        """The bytes of a slice of shape `text`, if its array, of shape `whole`, is in HBM."""
        return array_bytes(text) if size(whole) else 0

    opcode = one.opcode
    if opcode in FREE or opcode.endswith(("-done", "-update")):
        return 0
    if 'custom_call_target="AllocateBuffer"' in one.attributes:
        return 0
    written = arrays(one.shape)
    if opcode == "copy-start":  # result: (the copy, the original, a context)
        return size(shape(one.operands[0])) + written[0][0] * written[0][1]
    if opcode in ("dynamic-slice", "slice", "gather"):
        return moved(one.shape, shape(one.operands[0])) + size(one.shape)
    if opcode == "slice-start":  # result: (the whole, the slice, a context)
        part, in_hbm = written[1]
        return part * (bool(size(shape(one.operands[0]))) + in_hbm)
    if opcode == "dynamic-update-slice":
        part = shape(one.operands[1])
        return moved(part, one.shape) + size(part)
    if opcode == "fusion":
        return _fusion_bytes(module, computation, one)
    return sum(size(shape(name)) for name in one.operands) + size(one.shape)


def _fusion_bytes(module: Module, computation: Computation, one: Instruction) -> int:
    """Bytes of a fusion: of sliced operands, the slices; of in-place updates, the update."""
    called, total = module.computations[one.callee("calls")], 0
    for number, name in enumerate(one.operands):
        whole = array_bytes(computation.instructions[name].shape, hbm_only=True)
        inside = called.parameter(number) if whole else None
        if inside is not None:
            total += _bytes_read(module, called, inside, whole)
    result = called.result
    parts = result.operands if result.opcode == "tuple" else (called.root,)
    for name, (size, in_hbm) in zip(parts, arrays(one.shape), strict=False):
        part = called.source(name)
        if part is not None and part.opcode == "dynamic-update-slice":
            size = _size(called, part.operands[1])
        total += in_hbm * size
    return total


def _bytes_read(module: Module, called: Computation, parameter: Instruction, whole: int) -> int:
    """Bytes that a fusion, and the fusions inside it, read of a parameter of `whole` bytes."""
    if called.source(called.root) is parameter:
        return whole  # its result, which the fusion around it reads
    names = {parameter.name} | {
        one.name
        for one in called.instructions.values()
        if one.opcode == "bitcast" and parameter.name in one.operands
    }
    total = 0
    for use in called.users(parameter.name):
        if use.opcode != "fusion":
            total += _read(use, use.operands[0] in names, whole)
            continue
        inner = module.computations[use.callee("calls")]
        for number, operand in enumerate(use.operands):
            inside = inner.parameter(number) if operand in names else None
            if inside is not None:
                total += _bytes_read(module, inner, inside, whole)
    return min(total, whole)


def _read(one: Instruction, first: bool, whole: int) -> int:
    if first and one.opcode in ("dynamic-slice", "slice", "gather"):
        return array_bytes(one.shape)
    if first and one.opcode == "dynamic-update-slice":
        return 0
    return whole
