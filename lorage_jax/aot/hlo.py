"""Parser of a compiled program's text: instructions, trip counts of loops, groups of chips.

It exists because the TPU compiler's own cost analysis counts the body of a loop only once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
# End of a computation; attributes of kernels may have lines that begin like it.
END = re.compile(r'\}(, execution_thread="\w+")?')
NAME = re.compile(r"%([\w.\-]+)")
ONE_BYTE = ("pred", "s8", "u8")


@dataclass(frozen=True)
class Instruction:
    """One instruction: `name = shape opcode(arguments), attributes`."""

    name: str
    shape: str  # as written; for a tuple, with its parts
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # the operands as written: a constant's value, a parameter's number
    attributes: str  # everything after the operands

    def called(self, role: str) -> str | None:
        """The computation with this `role` (`calls`, `body`, `condition`), or None."""
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def callee(self, role: str) -> str:
        """Like `called`, but raises ValueError if there is none."""
        name = self.called(role)
        if name is None:
            raise ValueError(f"{self.opcode} {self.name} has no {role}")
        return name


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in order; `root` names the result."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    @property
    def result(self) -> Instruction:
        """The instruction that computes the result."""
        return self.instructions[self.root]

    def parameter(self, number: int) -> Instruction | None:
        """The `number`-th parameter, if the computation reads it."""
        for one in self.instructions.values():
            if one.opcode == "parameter" and one.arguments.strip() == str(number):
                return one
        return None

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read `name`, directly or through bitcasts."""
        found = []
        for one in self.instructions.values():
            if name in one.operands:
                found += self.users(one.name) if one.opcode == "bitcast" else [one]
        return found

    def source(self, name: str) -> Instruction | None:
        """The instruction that computed a value, looking through bitcasts and copies."""
        one = self.instructions.get(name)
        while one is not None and one.opcode in ("bitcast", "copy", "copy-done", "copy-start"):
            one = self.instructions.get(one.operands[0])
        return one


@dataclass(frozen=True)
class Module:
    """A whole program, for `chips` chips."""

    computations: dict[str, Computation]
    entry: str
    chips: int


def parse(text: str) -> Module:
    """Parses the text of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, name, root = "", None, ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if name is None:
            found = HEADER.match(line)
            if found:
                name, root, instructions = found[2], "", {}
                entry = name if found[1] else entry
        elif END.fullmatch(line.rstrip()):
            computations[name] = Computation(name, instructions, root)
            name = None
        elif " = " in line:
            one = _instruction(line.strip())
            instructions[one.name] = one
            root = one.name if line.lstrip().startswith("ROOT ") else root
    chips = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Module(computations, entry, int(chips[1]) if chips else 1)


def _instruction(line: str) -> Instruction:
    left, right = line.removeprefix("ROOT ").split(" = ", 1)
    end = _closing(right) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    opcode, rest = rest[: rest.index("(")], rest[rest.index("(") :]
    end = _closing(rest)
    arguments = rest[1:end]
    return Instruction(
        left.lstrip("%"), shape, opcode, tuple(NAME.findall(arguments)), arguments, rest[end + 1 :]
    )


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one at the start of `text`."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


def array_bytes(shape: str, *, hbm_only: bool = False) -> int:
    """Bytes of an array or of all arrays of a tuple, without padding."""
    return sum(size for size, in_hbm in arrays(shape) if in_hbm or not hbm_only)


def arrays(shape: str) -> list[tuple[int, bool]]:
    """(bytes, whether in HBM) of an array or of every array of a tuple.

    A layout with `S(n)`, n > 0, is in another memory.
    """
    found = []
    for kind, dims, layout in ARRAY.findall(shape):
        bits = 8 if kind in ONE_BYTE else int((re.search(r"\d+", kind) or ["0"])[0])
        space = re.search(r"S\((\d+)\)", layout)
        size = math.prod(map(int, filter(None, dims.split(",")))) * bits // 8
        found.append((size, space is None or space[1] == "0"))
    return found


def trip_count(module: Module, caller: Computation, loop: Instruction) -> int | None:
    """How often a `while` runs its body; None if the text does not show it.

    Uses the compiler's note, or else a condition `i < n` on a counter with constant start and step.
    """
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.callee("condition")]
    body = module.computations[loop.callee("body")]
    test = condition.result
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, limit = (condition.source(name) for name in test.operands)
    end = _constant(limit)
    if end is None or counter is None or counter.opcode != "get-tuple-element":
        return None
    found = re.search(r"index=(\d+)", counter.attributes)
    if found is None:
        return None
    index = int(found[1])
    start = _constant(_element(caller, loop.operands[0], index))
    step = _step(_element(body, body.root, index), body)
    if start is None or not step:
        return None
    return max(0, math.ceil((end - start) / step))


def _constant(one: Instruction | None) -> int | None:
    if one is None or one.opcode != "constant" or not re.fullmatch(r"-?\d+", one.arguments.strip()):
        return None
    return int(one.arguments)


def _element(computation: Computation, name: str, index: int) -> Instruction | None:
    """The instruction that computed element `index` of a tuple."""
    whole = computation.source(name)
    if whole is None or whole.opcode != "tuple":
        return None
    return computation.source(whole.operands[index])


def _step(one: Instruction | None, body: Computation) -> int | None:
    """The constant that each iteration adds to a counter."""
    if one is None or one.opcode != "add":
        return None
    return next((n for n in (_constant(body.source(x)) for x in one.operands) if n), None)


def replica_group(attributes: str, chips: int) -> list[int]:
    """The chips of a collective's first group, as indices into the `chips` chips of the program.

    Groups are written as lists `{{0,1},{2,3}}`, as `[4,2]<=[2,4]T(1,0)` or as axes of a mesh. If
    none are written, all chips form one group.
    """
    lists = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", attributes)
    if lists:
        return [int(i) for i in lists[1].split(",")]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, dims = _ints(iota[1]), _ints(iota[2])
        ids = np.arange(math.prod(dims)).reshape(dims)
        ids = ids.transpose(_ints(iota[3])) if iota[3] else ids
        return ids.reshape(shape)[0].tolist()
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if not mesh:
        return list(range(chips))
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    # Each axis is used as a whole, in part, `:(before)size`, or not at all.
    cut: list[slice] = [slice(0, 1)] * len(sizes)
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", mesh[2]):
        stride = sizes[name] // (int(before) * int(part)) if part else 1
        end = stride * int(part) if part else sizes[name]
        cut[list(sizes).index(name)] = slice(0, end, stride)
    return ids[tuple(cut)].reshape(-1).tolist()


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(i) for i in text.split(","))
