"""Records of GPT4Tools, `{instruction, input, output, id}`, and the parts of their instructions.

Every record has its own system prompt with two to five tools. An instruction consists of

    preamble       a description of the assistant, up to the tools
    tools          `> name: description` lines
    rules          how to call and how to answer, with the list of tool names
    files          how to treat file names
    conversation   `Previous conversation:` and what was said
    request        `New input: ...`
    suffix         a line that ends in "step by step."
    trace          `Thought: ...` to `Observation: ...`, if the turn has begun

Joined, the parts give the instruction again. It is split at these markers, not by its wording.
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
    """The parts of an instruction in order; `suffix` and `trace` may be empty."""

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
        """The whole instruction."""
        return "".join(getattr(self, part.name) for part in fields(self))

    @property
    def static(self) -> str:
        """Everything but `dynamic`: the part that is the same in every turn, for the cloud."""
        return self.preamble + self.tools + self.rules + self.files + self.suffix

    @property
    def dynamic(self) -> str:
        """The part that is specific to this turn: conversation, request and trace.

        Over 261 records in the original format, `text` has 6.3 times as many tokens with Llama 2's
        tokenizer (8.1 without a trace), and 6.9 times (9.2) with Qwen 2's.
        """
        return self.conversation + self.request + self.trace

    @property
    def without_tools(self) -> str:
        """`text` without the tool lines; `text` is 1.6 times as long (Llama 2 1.58, Qwen 2 1.63).

        The list of names in the format rules stays: it shows how to write a call, whereas the tool
        lines explain what each tool is for. Without the list, the ratio would be 1.67 and 1.72, not
        the benchmark's 1.6. Use `dynamic` for an edge that is not shown its tools at all.
        """
        return self.preamble + self.text[len(self.preamble) + len(self.tools) :]

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The names of the tools on offer, in order."""
        return tuple(TOOL.findall(self.tools))


@dataclass(frozen=True)
class ToolRecord:
    """One turn of a dialogue with tools; `output` is the reference answer to `instruction`."""

    id: str
    instruction: Instruction
    output: str

    @property
    def called(self) -> tuple[str, ...]:
        """The names of the tools that the reference answer calls."""
        return tuple(name.strip() for name in CALLED.findall(self.output))


def read_tool_records(path: str | Path) -> list[ToolRecord]:
    """Reads the records of a .json array (the original files) or .jsonl file, plain or gzipped.

    Raises DataError, naming file, record and missing part, if one cannot be read.
    """
    rows = enumerate(read_rows(path), start=1)
    return [_to_tool_record(row, place, str(number)) for number, (place, row) in rows]


def to_tool_records(rows: Iterable[Row]) -> list[ToolRecord]:
    """Like `read_tool_records`, for rows in memory, such as those of `world.tools.draw`."""
    return [_to_tool_record(row, f"record {i}", str(i)) for i, row in enumerate(rows, start=1)]


def _to_tool_record(row: Row, where: str, number: str) -> ToolRecord:
    """Splits the instruction of a row. A row without an id is called by its number, from 1."""
    text = require_text(row, "instruction", where)
    name = number if row.get("id") is None else str(row["id"])
    where = where if row.get("id") is None else f"{where} (id {name})"
    if row.get("input"):
        # The benchmark's own code ignores this field; dropping its text silently would be wrong.
        raise DataError(
            f"{where}: the field input is not empty; in GPT4Tools the whole prompt is in the "
            "field instruction. Move the text there."
        )
    return ToolRecord(name, split_instruction(text, where), require_text(row, "output", where))


def split_instruction(text: str, where: str) -> Instruction:
    """Splits an instruction into its parts.

    Raises DataError, naming `where`, if a marker is missing.
    """
    tools = TOOLS.search(text)
    if tools is None:
        raise _unlike(where, "has no line `> tool name: description`")
    talk = _line(text, CONVERSATION, tools.end())
    if talk is None:
        raise _unlike(where, f"has no line `{CONVERSATION}` after its tools")
    fence = text.rfind(FENCE, tools.end(), talk)
    if fence < 0:
        raise _unlike(where, f"has no format rules in {FENCE} after its tools")
    request = _line(text, REQUEST, talk)
    if request is None:
        raise _unlike(where, f"has no line `{REQUEST}...` after its conversation")
    trace = _line(text, THOUGHT, request)
    trace = len(text) if trace is None else trace
    # The last line of the request, if it is the suffix; all other lines are the user's.
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
