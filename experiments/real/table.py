"""One table of the instruction suite, from the results of `lorage eval`.

    python experiments/real/table.py experiments/results/real

The folder holds `seen.json` and `unseen.json`; `instructions.md` is written beside them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ARMS = {
    "bare": "edge without prompt",
    "in_context": "edge with the instruction in its context",
    "few_shot": "the same in lm-eval's own text",
    "lora_gen": "**specialised, no prompt**",
    "shuffled": "control: another task's card",
    "random": "control: card of random text",
    "mean_gates": "control: mean gates of all prompts",
}
SETS = {"seen": "seen kinds of tasks, unseen inputs", "unseen": "unseen kinds of tasks"}


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown: exact match by arm, and what the edge reads."""
    lines = ["# Instructions: SmolLM2-135M-Instruct, specialised by the bundled generator", ""]
    lines.append("Exact match (SQuAD's normalisation), standard error over records.\n")
    head = [f"{SETS[name]} ({len(_tasks(found))} tasks)" for name, found in results.items()]
    lines.append("| | " + " | ".join([*head, "edge tokens per request"]) + " |")
    lines.append("|---|" + "---:|" * (len(head) + 1))
    for arm, meaning in ARMS.items():
        cells = []
        for found in results.values():
            score = found["arms"][arm]["summary"]
            cells.append(f"{score['exact_match']:.3f} ± {score['exact_match_stderr']:.3f}")
        tasks = _tasks(next(iter(results.values())), arm).values()
        cells.append(f"{sum(task['edge_tokens'] for task in tasks) / len(tasks):.0f}")
        lines.append(f"| {meaning} | " + " | ".join(cells) + " |")
    lines += ["", *_wordings(results["seen"]), "", "## By task", ""]
    for name, found in results.items():
        lines += [f"### {SETS[name][0].upper()}{SETS[name][1:]}", "", *_by_task(found), ""]
    return "\n".join(lines)


def _tasks(found: dict[str, Any], arm: str = "lora_gen") -> dict[str, Any]:
    return found["arms"][arm]["tasks"]


def _wordings(found: dict[str, Any]) -> list[str]:
    """The mean over the tasks whose wording training did not see either."""
    unseen = [name for name, task in _tasks(found).items() if task["wording_held_out"]]
    means = {
        arm: sum(_tasks(found, arm)[name]["exact_match"] for name in unseen) / len(unseen)
        for arm in ("lora_gen", "in_context", "shuffled", "mean_gates")
    }
    return [
        f"On the {len(unseen)} seen tasks that are asked in a wording that training did not have: "
        f"specialised {means['lora_gen']:.3f}, in context {means['in_context']:.3f}, another "
        f"task's card {means['shuffled']:.3f}, mean gates {means['mean_gates']:.3f}."
    ]


def _by_task(found: dict[str, Any]) -> list[str]:
    arms = ("bare", "in_context", "lora_gen", "shuffled", "mean_gates")
    lines = ["| task | " + " | ".join(arms) + " |", "|---|" + "---:|" * len(arms)]
    for name in _tasks(found):
        scores = [f"{_tasks(found, arm)[name]['exact_match']:.2f}" for arm in arms]
        lines.append(f"| {name} | " + " | ".join(scores) + " |")
    return lines


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    read = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in SETS}
    (folder / "instructions.md").write_text(table(read), encoding="utf-8")
    print(table(read))
