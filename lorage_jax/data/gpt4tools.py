"""Records of GPT4Tools, `{instruction, input, output, id}`, and their instruction in parts.

Every record has its own system prompt: two to five tools, drawn for it. An instruction reads

    preamble       what the assistant is, up to the tools
    tools          `> name: description` lines
    rules          how to call and how to answer, with the list of tool names
    files          how to treat file names
    conversation   `Previous conversation:` and what was said
    request        `New input: ...`
    suffix         a line that ends in "step by step."
    trace          of a turn under way: `Thought: ...` to `Observation: ...`

and the parts, joined, are the text again. The splitter goes by these markers, not by wording.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

from lorage_jax.data.records import Row, read_rows, require_text
from lorage_jax.errors import DataError

TOOL = re.compile(r"^> ([^:\n]+): .*$", re.MULTILINE)
TOOLS = re.compile(r"(?:^> [^:\n]+: .*(?:\n|\Z))+", re.MULTILINE)
FENCE = "```"
CONVERSATION = "Previous conversation:"
REQUEST = "New input: "
THOUGHT = "Thought: Do I need to use a tool?"
SUFFIX = "step by step."
CALLED = re.compile(r"^Action: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Instruction:
    """The parts of an instruction, in order; `suffix` and `trace` may be empty."""

    preamble: str
    tools: str
    rules: str
    files: str
    conversation: str
    request: str
    suffix: str
    trace: str

    @property
    def text(self) -> str:
        """The instruction as it was."""
        return "".join(getattr(self, part.name) for part in fields(self))

    @property
    def static(self) -> str:
        """The part that holds for every turn, which the cloud reads: everything but `dynamic`."""
        return self.preamble + self.tools + self.rules + self.files + self.suffix

    @property
    def dynamic(self) -> str:
        """The part of this turn alone: conversation, request and trace.

        Over 261 records in the original format, `text` is 6.3 times as long in tokens of Llama 2
        (8.1 without a trace), and 6.9 times (9.2) in tokens of Qwen 2.
        """
        return self.conversation + self.request + self.trace

    @property
    def without_tools(self) -> str:
        """`text` without the tool lines, which is 1.6 times as long (1.58 Llama 2, 1.63 Qwen 2).

        The list of names in the format rules stays: it says how a call is written, the lines say
        what the tools are for. Without it the ratio would be 1.67 and 1.72, not the benchmark's
        1.6; who wants an edge that does not know its tools at all takes `dynamic`.
        """
        return self.preamble + self.text[len(self.preamble) + len(self.tools) :]

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The tools on offer, in order."""
        return tuple(TOOL.findall(self.tools))


@dataclass(frozen=True)
class ToolRecord:
    """One turn of a dialogue with tools; `output` is the gold completion of `instruction`."""

    id: str
    instruction: Instruction
    output: str

    @property
    def called(self) -> tuple[str, ...]:
        """The tools that the gold output calls."""
        return tuple(name.strip() for name in CALLED.findall(self.output))


def read_tool_records(path: str | Path) -> list[ToolRecord]:
    """The records of a .json array (the original files) or .jsonl file, plain or gzipped.

    DataError names the file, the record and what is missing.
    """
    rows = enumerate(read_rows(path), start=1)
    return [_to_tool_record(row, place, str(number)) for number, (place, row) in rows]


def to_tool_records(rows: Iterable[Row]) -> list[ToolRecord]:
    """The same for rows in memory, as `world.tools.draw` makes them."""
    return [_to_tool_record(row, f"record {i}", str(i)) for i, row in enumerate(rows, start=1)]


def _to_tool_record(row: Row, where: str, number: str) -> ToolRecord:
    """A row with its instruction split. Without an id it is known by its number, from 1."""
    text = require_text(row, "instruction", where)
    name = number if row.get("id") is None else str(row["id"])
    where = where if row.get("id") is None else f"{where} (id {name})"
    if row.get("input"):
        # The benchmark's own code reads the instruction alone; nothing may get lost in silence.
        raise DataError(
            f"{where}: the field input is not empty; in GPT4Tools the whole prompt is in the "
            "field instruction. Move the text there."
        )
    return ToolRecord(name, split_instruction(text, where), require_text(row, "output", where))


def split_instruction(text: str, where: str) -> Instruction:
    """The parts of an instruction. DataError says which marker `where` lacks."""
    tools = TOOLS.search(text)
    if tools is None:
        raise _unlike(where, "has no line `> tool name: description`")
    talk = _line(text, CONVERSATION, tools.end())
    if talk is None:
        raise _unlike(where, f"has no line `{CONVERSATION}` behind its tools")
    fence = text.rfind(FENCE, tools.end(), talk)
    if fence < 0:
        raise _unlike(where, f"has no format rules in {FENCE} behind its tools")
    request = _line(text, REQUEST, talk)
    if request is None:
        raise _unlike(where, f"has no line `{REQUEST}...` behind its conversation")
    trace = _line(text, THOUGHT, request)
    trace = len(text) if trace is None else trace
    # The last line of the request, if it is the suffix. Any other line is the user's.
    suffix = text.rfind("\n", request, len(text[:trace].rstrip())) + 1
    if suffix == 0 or not text[suffix:trace].rstrip().endswith(SUFFIX):
        suffix = trace
    rules = fence + len(FENCE)
    edges = [0, tools.start(), tools.end(), rules, talk, request, suffix, trace, len(text)]
    return Instruction(*(text[a:b] for a, b in pairwise(edges)))


def _line(text: str, start: str, after: int) -> int | None:
    """Index of the first line that starts with `start`, from `after` on."""
    found = re.compile("^" + re.escape(start), re.MULTILINE).search(text, after)
    return found and found.start()


def _unlike(where: str, what: str) -> DataError:
    return DataError(
        f"{where}: the instruction {what}; expected the format of GPT4Tools: a preamble, "
        f"`> tool name: description` lines, format rules in {FENCE}, `{CONVERSATION}`, "
        f"`{REQUEST}...`."
    )
