"""Table 2 on a real model: the paper's eight commonsense tasks, by lm-eval's protocol.

    python experiments/real/table2.py                        # results/real/table2.{json,md}
    python experiments/real/table2.py --limit 20 --json FILE
    python experiments/real/table2.py --run runs/real/suites/lora  # table2_methods.{json,md}

Hardware: two CPU cores. Wall time: about half an hour; the table in the repository, made with
`--limit 500 --dtype bfloat16`, took an hour and a half beside other work. The edge is
SmolLM2-135M-Instruct, specialised by the bundled generator, which was trained on five of the tasks
(`prepare.py`). All rows but `bare` have five samples (HellaSwag none); those of LoRA-Gen and of its
controls are read by the cloud, once a task. Records are in $LORAGE_DATA/commonsense. A finished
evaluation is kept in runs/real/tables.
"""

from __future__ import annotations

from typing import Any

import tables

from lorage_jax.data.task_table import paper_tasks
from lorage_jax.evaluate.arms import CONTROLS
from lorage_jax.evaluate.results import ArmResult, Gaps
from lorage_jax.report.paper import TABLE_2

SHOTS = "5,hellaswag=0"  # HellaSwag's training split, which has the samples, is large: not here
ROWS = ("few_shot", "in_context", "lora_gen", *CONTROLS)
TASKS = tuple(task.name for task in paper_tasks())


def main() -> None:
    """Asks what was not asked yet, and writes the table."""
    options = tables.options(__doc__ or "", "table2", limit=40)
    shared = ["--tasks", ",".join(TASKS), "--shots", SHOTS]
    shared += ["--data", str(tables.DATA / "commonsense")]
    found = tables.evaluated("table2", options, ["--generator", options.generator, *shared])
    arms = {name: found.arms[name] for name in options.rows(ROWS)}
    table = {
        "table": 2,
        "shots": SHOTS,
        "limit": options.limit,
        "dtype": options.dtype,
        "model": found.model,
        "methods": {name: _row(arm) for name, arm in arms.items() if name not in CONTROLS},
        "controls": {name: _row(arm) for name, arm in arms.items() if name in CONTROLS},
        "gaps": {name: _gap(found.gaps, name) for name in found.gaps},
        "words": found.words,
        "paper": {f"{row.model}, {row.method}": [*row.scores, row.average] for row in TABLE_2},
    }
    tables.write(options.json, table, _markdown(table, options.limit))


def _row(arm: ArmResult) -> dict[str, Any]:
    splits = {
        name: {"acc": score.metrics["acc"], "stderr": score.metrics["acc_stderr"], "n": score.n}
        for name, score in arm.tasks.items()
    }
    tokens = [score.edge_tokens for score in arm.tasks.values() if score.edge_tokens is not None]
    means = ("ave", "ave_stderr", "har", "seen", "unseen")
    return {
        "what": arm.what,
        "splits": splits,
        **{name: arm.summary[name] for name in means},
        "edge_tokens": sum(tokens) / len(tokens),
    }


def _gap(gaps: Gaps, name: str) -> dict[str, float | None]:
    mean = gaps[name]["ave"]
    return {"gap": mean.gap, "stderr": mean.stderr}


def _markdown(table: dict[str, Any], limit: int) -> str:
    lines = [
        f"# Table 2: {table['model']['edge']} on the paper's eight tasks",
        "",
        f"Accuracy in percent, the first {limit} records of each task, 5 samples (HellaSwag 0), "
        f"{table['dtype']}; "
        "AVE with its standard error over the records, HAR the harmonic mean. HellaSwag, "
        "WinoGrande and PIQA were not in the training. *Edge tokens*: what the edge reads per "
        "request (one answer).",
        "",
    ]
    rows = {}
    for name, row in (table["methods"] | table["controls"]).items():
        scores = [f"{100 * row['splits'][task]['acc']:.1f}" for task in TASKS]
        means = [
            f"{100 * row['ave']:.1f} ± {100 * row['ave_stderr']:.1f}",
            f"{100 * row['har']:.1f}",
        ]
        rows[tables.ARMS.get(name, name)] = [*scores, *means, f"{row['edge_tokens']:.0f}"]
    for row in TABLE_2:
        scores = [f"{score:.1f}" for score in (*row.scores, row.average, row.harmonic)]
        rows[f"the paper: {row.model}, {row.method}"] = [*scores, ""]
    lines += tables.grid([*TASKS, "AVE", "HAR", "edge tokens"], rows)
    return "\n".join([*lines, "", *(f"- {words}" for words in table["words"]), ""])


if __name__ == "__main__":
    main()
