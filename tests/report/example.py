"""Made-up result files for tests of the report; all figures are different."""

import json
from html.parser import HTMLParser

import numpy as np

from lorage_jax.generator.card import Card
from lorage_jax.provenance import FORMAT
from lorage_jax.report.build import build
from lorage_jax.report.inputs import read_inputs
from lorage_jax.report.paper import TASKS, TOOL_SCORES
from lorage_jax.report.render import to_html, to_markdown

NAMES = [task.name for task in TASKS]
ARMS = ("lora_gen", "in_context", "shuffled", "mean_gates")


def origin(command="lorage eval --tasks piqa"):
    return {
        "format": FORMAT,
        "command": command,
        "date": "2026-11-22T08:00:00+00:00",
        "git": {"commit": "b26d5c7" + "0" * 33, "changed": True},
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
        "machine": {"device": "cpu", "devices": 1, "cpu_cores": 2},
    }


def acc(arm, task):
    """The accuracy of an arm on a task, by their numbers."""
    return 0.401 - 0.1 * ARMS.index(arm) + 0.051 * NAMES.index(task)


def make_card(open_gates, generator="sha256:gen", experts=4, **about):
    """A card, given as {expert: gate} for each layer."""
    gates = np.zeros((len(open_gates), experts), np.float32)
    for layer, row in enumerate(open_gates):
        for expert, gate in row.items():
            gates[layer, expert] = gate
    return Card(gates, generator, "sha256:edge", about)


def evaluation(tasks=tuple(NAMES), **changes):
    """What `lorage eval --json` writes, over these tasks."""
    whole = set(tasks) >= set(NAMES)
    arms = {}
    for number, arm in enumerate(ARMS):
        scores = {
            task: {
                "acc": acc(arm, task),
                "acc_stderr": 0.011 + 0.01 * number,
                "n": 100 + NAMES.index(task),
                "edge_tokens": 240.0 if arm == "in_context" else 60.0,
                "cloud_tokens": 190,
                "truncated": 3 if arm == "in_context" else 0,
                "seconds": 7.5,
            }
            for task in tasks
        }
        mean = {"mean": 0.7 - 0.1 * number, "mean_stderr": 0.006}
        summary = {"ave": 0.5 - 0.1 * number, "ave_stderr": 0.004, "har": 0.45, "seen": 0.48}
        arms[arm] = {
            "tasks": scores,
            "summary": mean | (summary if whole else dict.fromkeys((*summary, "unseen"))),
            "what": f"what {arm} means",
        }
    gap = {"gap": 0.031, "stderr": 0.009, "significant": True}
    noise = {"gap": 0.004, "stderr": 0.008, "significant": False}
    return {
        "kind": "eval",
        "model": {"edge": "edge-folder", "generator": "gen-folder", "parameters": 1_100_048_384},
        "main": "lora_gen",
        "arms": arms,
        "gaps": {
            "shuffled": dict.fromkeys((*tasks, "ave"), gap),
            "mean_gates": dict.fromkeys((*tasks, "ave"), noise),
        },
        "words": ["The prompt makes a difference."],
        "cards": {},
        "provenance": origin(),
    } | changes


def tools():
    """The gpt4tools part: scores .61, .62, ... officially, .51, .52, ... strictly."""
    keys = [key for key, _ in TOOL_SCORES]
    arm = {
        "official": {key: 0.61 + 0.01 * i for i, key in enumerate(keys)},
        "official_stderr": dict.fromkeys(keys, 0.02),
        "strict": {key: 0.51 + 0.01 * i for i, key in enumerate(keys)},
        "n": 261,
        "compression": 6.25,
        "edge_tokens": 80.0,
    }
    return {
        "arms": {"lora_gen": arm},
        "gaps": {},
        "words": ["Tools get through."],
        "source": "9 of them",
    }


def flops(**changes):
    return {
        "bench": "flops",
        "shape": "qwen2-1.5b",
        "layers": 28,
        "macs_with_prompt": 4.6e11,
        "macs_specialized": 2.3e11,
        "break_even_requests": 6,
        "provenance": origin("lorage bench flops"),
    } | changes


def rendered(folder, **files):
    """(HTML, Markdown) of a report on these values, written to `folder` as NAME.json."""
    paths = []
    for name, values in files.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(values))
    page = build(read_inputs(paths))
    return to_html(page), to_markdown(page)


class Html(HTMLParser):
    """Reads a page: its tags, what it refers to, its tables as {caption: rows of cell texts}."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.handlers, self.text = set(), [], [], ""
        self.tables, self._caption, self._rows, self._inside = {}, None, [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data"):
                self.references.append(value)
            if name.startswith("on"):
                self.handlers.append(name)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        self._inside = tag if tag not in ("small",) else self._inside

    def handle_data(self, data):
        if self._inside == "style":
            return
        self.text += data
        if self._inside == "caption":
            self._caption = data
        elif self._inside in ("td", "th"):
            self._rows[-1][-1] += data

    def handle_endtag(self, tag):
        if tag == "table":
            self.tables[self._caption] = self._rows
        if tag != "small":
            self._inside = None


def markdown_tables(text):
    """{caption: rows of cell texts}, with the escapes taken away."""
    tables = {}
    for block in text.split("\n\n**")[1:]:
        caption, _, rest = block.partition("**\n\n")
        lines = [line for line in rest.split("\n\n")[0].splitlines() if line.startswith("| ")]
        del lines[1:2]  # the alignment of columns
        rows = [[cell.strip(" *") for cell in line.strip("|").split(" | ")] for line in lines]
        tables[caption] = [[cell.replace("\\", "") for cell in row] for row in rows if row]
    return tables


def table(tables, beginning):
    """The table whose caption begins like this, as {first cell: {column: cell}}; first rows win."""
    (rows,) = [rows for caption, rows in tables.items() if caption.startswith(beginning)]
    header, found = rows[0], {}
    for row in rows[1:]:
        if len(row) == len(header):
            found.setdefault(row[0].strip(), dict(zip(header, map(str.strip, row), strict=True)))
    return found
