"""Table 3 on a real model: tool calls in GPT4Tools' format over MetaTool's tools.

    python experiments/real/table3.py                        # results/real/table3.{json,md}
    python experiments/real/table3.py --limit 20 --json FILE
    python experiments/real/table3.py --run runs/real/suites/lora  # table3_methods.{json,md}

Hardware: two CPU cores. Wall time: about 30 minutes at 40 records a set. The edge is
SmolLM2-135M-Instruct, specialised by the bundled generator. The tools of `seen` were in its
training, with other requests; those of `unseen` were not. Records are those of `prepare.py` in
$LORAGE_REAL_DATA/gpt4tools. A finished evaluation is kept in runs/real/tables.
"""

from __future__ import annotations

from typing import Any

import tables

from lorage_jax.evaluate.arms import CONTROLS
from lorage_jax.evaluate.results import MODES, ToolResult, ToolScore
from lorage_jax.report.paper import TABLE_3, TABLE_3_MODEL, TOOL_SCORES

ROWS = ("in_context", "no_tools", "lora_gen", "lora_gen_tools", *CONTROLS)


def main() -> None:
    """Asks what was not asked yet, and writes the table."""
    options = tables.options(__doc__ or "", "table3", limit=40)
    found = tables.evaluated(
        "table3",
        options,
        [
            *("--generator", options.generator, "--tasks", "gpt4tools"),
            *("--data", str(tables.REAL_DATA), "--max-new-tokens", "160"),
        ],
    )
    sets, names = found.gpt4tools, options.rows(ROWS)
    table = {
        "table": 3,
        "limit": options.limit,
        "model": found.model,
        "methods": _rows(sets, [name for name in names if name not in CONTROLS]),
        "controls": _rows(sets, CONTROLS),
        "gaps": {
            name: {arm: {key: vars(gap) for key, gap in by.items()} for arm, by in one.gaps.items()}
            for name, one in sets.items()
        },
        "words": {name: one.words for name, one in sets.items()},
        "paper": {row.method: row.scores for row in TABLE_3},
    }
    tables.write(options.json, table, _markdown(table, sets, names))


def _rows(sets: dict[str, ToolResult], names: Any) -> dict[str, Any]:
    """By arm, then by set of records: scores of both scorers with errors, tokens, compression."""
    return {
        name: {"splits": {key: one.arms[name].to_json() for key, one in sets.items()}}
        for name in names
        if all(name in one.arms for one in sets.values())
    }


def _markdown(table: dict[str, Any], sets: dict[str, ToolResult], names: list[str]) -> str:
    lines = [
        f"# Table 3: tool calls of {table['model']['edge']}",
        "",
        f"Percent of {table['limit']} records a set; SR (success) with its standard error. "
        "*Compression* is the whole instruction over what the edge reads, by its own tokenizer.",
    ]
    heads = [name for _, name in TOOL_SCORES]
    for key, one in sets.items():
        for mode in MODES:
            lines += ["", f"## Tools `{key}`, {mode} scorer", ""]
            rows = {
                tables.ARMS.get(name, name): _cells(one.arms[name], mode)
                for name in names
                if name in one.arms
            }
            if mode == "official":
                for row in TABLE_3:
                    scores = [f"{score:.1f}" for score in row.scores]
                    compression = "" if row.compression is None else f"{row.compression:.1f}x"
                    rows[f"the paper ({TABLE_3_MODEL}): {row.method}"] = [*scores, "", compression]
            lines += tables.grid([*heads, "edge tokens", "compression"], rows)
        lines += ["", *(f"- {words}" for words in one.words)]
    return "\n".join([*lines, ""])


def _cells(score: ToolScore, mode: str) -> list[str]:
    cells = []
    for key, _ in TOOL_SCORES:
        value, error = score.scores[mode].get(key), score.stderrs[mode].get(key)
        cell = "" if value is None else f"{100 * value:.1f}"
        if key == "success" and error is not None:
            cell += f" ± {100 * error:.1f}"
        cells.append(cell)
    tokens = "" if score.edge_tokens is None else f"{score.edge_tokens:.0f}"
    compression = "" if score.compression is None else f"{score.compression:.1f}x"
    return [*cells, tokens, compression]


if __name__ == "__main__":
    main()
