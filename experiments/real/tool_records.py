"""Tool calls in GPT4Tools' format over the tools of MetaTool.

Each prompt offers 2 to 10 tools by name and description and asks for one call; a share of the
questions fits none of them, and the reference answer then says that no tool is needed. A fixed
draw keeps 40 of the tools from training altogether.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

SEED = 40
UNSEEN_TOOLS, TESTED = 40, 0.2  # tools, and the share of a seen tool's questions, held out
TOOLS = (2, 10)  # fewest and most tools of a prompt
PROMPTS, QUERIES = 6000, 4  # prompts for training, and questions for each
RECORDS = 500  # per test file
NONE = 0.15  # share of the questions for which no tool fits
SORRY = "None of my tools can help with this."


def tool_files(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by file name: training triples, and records about seen and unseen tools.

    `folder` holds `metatool_tools.json`, `metatool_queries.jsonl.gz` and
    `gpt4tools_templates.json`.
    """
    described = json.loads((folder / "metatool_tools.json").read_text(encoding="utf-8"))
    template = json.loads((folder / "gpt4tools_templates.json").read_text(encoding="utf-8"))
    questions: dict[str, list[str]] = defaultdict(list)
    with gzip.open(folder / "metatool_queries.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["tool"] in described and row["query"].strip():
                questions[row["tool"]].append(row["query"].strip())
    names = sorted(questions)
    unseen = sorted(Random(SEED).sample(names, UNSEEN_TOOLS))
    seen = [name for name in names if name not in unseen]
    train, test = {}, {}
    for name in seen:
        asked = sorted(set(questions[name]))
        Random(f"{SEED}/{name}").shuffle(asked)
        cut = max(1, int(len(asked) * TESTED))
        test[name], train[name] = asked[:cut], asked[cut:] or asked
    draw = _Draw(described, template["PROMPT_FORMAT"])
    return {
        "tools.jsonl": [
            row for i in range(PROMPTS) for row in draw.triples(train, Random(f"train/{i}"))
        ],
        "gpt4tools/seen.json": [draw.record(test, Random(f"seen/{i}"), i) for i in range(RECORDS)],
        "gpt4tools/unseen.json": [
            draw.record({name: questions[name] for name in unseen}, Random(f"unseen/{i}"), i)
            for i in range(RECORDS)
        ],
    }


class _Draw:
    """Draws prompts and calls from one pool of tools."""

    def __init__(self, described: dict[str, str], template: str):
        self._described, self._template = described, template

    def record(self, asked: dict[str, list[str]], rng: Random, number: int) -> dict[str, Any]:
        """One record in GPT4Tools' format."""
        offered = self._offered(asked, rng)
        query, answer = self._call(asked, offered, rng)
        instruction = self._instruction(offered, query)
        return {"instruction": instruction, "input": "", "output": answer, "id": number}

    def triples(self, asked: dict[str, list[str]], rng: Random) -> list[dict[str, Any]]:
        """One prompt with several questions: {system, user, target} each."""
        from lorage_jax.data.gpt4tools import split_instruction

        offered, rows = self._offered(asked, rng), []
        for _ in range(QUERIES):
            query, answer = self._call(asked, offered, rng)
            parts = split_instruction(self._instruction(offered, query), "a drawn record")
            rows.append({"system": parts.static, "user": parts.dynamic, "target": answer})
        return rows

    def _offered(self, asked: dict[str, list[str]], rng: Random) -> list[str]:
        return rng.sample(sorted(asked), rng.randint(*TOOLS))

    def _call(
        self, asked: dict[str, list[str]], offered: list[str], rng: Random
    ) -> tuple[str, str]:
        """(question, reference answer)."""
        if rng.random() < NONE:
            other = rng.choice([name for name in sorted(asked) if name not in offered])
            query = rng.choice(asked[other])
            return query, f"Thought: Do I need to use a tool? No\nAI: {SORRY}"
        name = rng.choice(offered)
        query = rng.choice(asked[name])
        call = f"Thought: Do I need to use a tool? Yes\nAction: {name}\nAction Input: {query}"
        return query, f"{call}\nObservation:"

    def _instruction(self, offered: list[str], query: str) -> str:
        lines = "\n".join(f"> {name}: {_one_line(self._described[name])}" for name in offered)
        return self._template.format(
            tool_descriptions=lines,
            tool_names=", ".join(offered),
            chat_history="",
            input=query,
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())
