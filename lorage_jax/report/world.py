"""The table of the built-in tasks from several runs, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorage_jax.errors import DataError
from lorage_jax.evaluate.arms import MAIN
from lorage_jax.evaluate.gpt4tools import SCORES
from lorage_jax.evaluate.paired import mean_stderr
from lorage_jax.evaluate.results import by_arm
from lorage_jax.report.page import (
    DASH,
    Block,
    Cell,
    Page,
    Row,
    Section,
    Table,
    decimal,
    group,
    number,
    row,
)
from lorage_jax.report.render import to_markdown as render
from lorage_jax.world.scores import ArmScore, WorldResult

METHODS = (
    "bare",
    "lora",
    "lora_gen",
    "in_context",
    "cloud_in_context",
    "shuffled",
    "random",
    "mean_gates",
)


def combine(
    per_seed: Sequence[WorldResult],
    base: WorldResult,
    loras: Sequence[WorldResult] = (),
    seconds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Combines the results of several runs into one table.

    Args:
        per_seed: results of `generator_arms`, one per trained generator.
        base: the result of `base_arms`.
        loras: results of `lora_arm`, one per trained LoRA.
        seconds: the result of `request_seconds`; it may have old arm names.

    Returns {"splits": {split: {"methods", "blind_ceiling", "tokens"}}, "seconds_per_request"}. A
    method is {"mean", "stderr", "over", "stderr_prompts", "seeds", "n", "records"}. `stderr` is
    over the seeds of a method that was trained twice or more (with the same prompts, so it says
    nothing about other prompts), else over the `n` prompts; `over` says which. `stderr_prompts` is
    always over prompts, each averaged over the seeds. `seeds` is 0 for a method without training.

    Raises DataError unless all runs were evaluated on the same samples.
    """
    splits = {}
    for name, one in base.items():
        methods = {arm: _combined(name, arm, [found], 0) for arm, found in one.arms.items()}
        for runs in (loras, per_seed):
            for run in runs:
                if name not in run:
                    raise DataError(
                        f"a run has no results of {name}; expected those of "
                        f"{', '.join(base)}. Evaluate all runs on the same samples."
                    )
            for method in runs[0][name].arms if runs else ():
                found = [run[name].arms[method] for run in runs]
                methods[method] = _combined(name, method, found, len(runs))
        splits[name] = {
            "methods": {method: methods[method] for method in sorted(methods, key=_order)},
            "blind_ceiling": one.blind_ceiling,
            "tokens": one.tokens,
        }
    return {
        "splits": splits,
        "seconds_per_request": {name: _renamed(time) for name, time in (seconds or {}).items()},
    }


def _renamed(time: Mapping[str, Any]) -> dict[str, Any]:
    return {k: by_arm(v) if isinstance(v, dict) else v for k, v in time.items()}


def _order(method: str) -> int:
    return METHODS.index(method) if method in METHODS else len(METHODS)


def _combined(split: str, method: str, found: Sequence[ArmScore], seeds: int) -> dict[str, Any]:
    prompts = {len(one.by_prompt) for one in found}
    if len(prompts) > 1:
        raise DataError(
            f"{split}, {method}: the runs were evaluated on {sorted(prompts)} prompts; expected "
            "the same samples for all."
        )
    by_prompt = [
        sum(values) / len(found) for values in zip(*(one.by_prompt for one in found), strict=True)
    ]
    _, over_prompts = mean_stderr(by_prompt)
    mean, stderr = _over_seeds([one.exact_match for one in found], over_prompts)
    combined: dict[str, Any] = {
        "mean": mean,
        "stderr": stderr,
        "over": "seeds" if len(found) > 1 else "prompts",
        "stderr_prompts": over_prompts,
        "seeds": seeds,
        "n": len(by_prompt),
        "records": found[0].records,
    }
    scores = [one.scores for one in found if one.scores is not None]
    if scores:
        combined["scores"] = {
            mode: {name: _score([one[mode] for one in scores], name) for name in SCORES}
            for mode in scores[0]
        }
    return combined


def _over_seeds(values: Sequence[float], over_prompts: float | None) -> tuple[float, float | None]:
    mean, stderr = mean_stderr(values)
    return mean, stderr if len(values) > 1 else over_prompts


def _score(found: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    mean, stderr = _over_seeds([one["mean"][name] for one in found], found[0]["stderr"][name])
    return {"mean": mean, "stderr": stderr}


# Markdown


def to_markdown(table: Mapping[str, Any], title: str = "The built-in world") -> str:
    """The table as Markdown, a section per family: exact match, tokens, time, tool scores."""
    families: dict[str, dict[str, Any]] = {}
    for name, split in table["splits"].items():
        families.setdefault(name.partition("/")[0], {})[name] = split
    sections = []
    for family, splits in families.items():
        blocks: list[Block] = [_exact_match(splits), _tokens(splits)]
        times = {n: t for n, t in table["seconds_per_request"].items() if n in splits}
        blocks += [_seconds(times)] if times else []
        for mode in ("official", "strict"):
            blocks += _tool_scores(splits, mode)
        sections.append(Section(family, tuple(blocks)))
    return render(Page(title, tuple(sections)))


def _exact_match(splits: Mapping[str, Any]) -> Table:
    methods = _methods(splits)
    rows = [
        row(
            _split(name),
            *(_figure(split["methods"].get(method)) for method in methods),
            decimal(split["blind_ceiling"], ".3f"),
        )
        for name, split in splits.items()
    ]
    sizes = {(m["n"], m["records"]) for s in splits.values() for m in s["methods"].values()}
    seeds = {m["seeds"] for s in splits.values() for m in s["methods"].values()} - {0}
    notes = [
        f"{_listed(n for n, _ in sizes)} prompts per split, "
        f"{_listed(n for _, n in sizes)} requests."
    ]
    if max(seeds, default=0) > 1:
        notes.append(
            f"± is one standard error: for trained methods over {_listed(seeds)} seeds (with the "
            "same prompts), for others over prompts."
        )
    else:
        notes.append("± is one standard error, over prompts.")
    notes.append("blind_ceiling: the best possible score without the prompt.")
    columns = ("split", *methods, "blind_ceiling")
    return Table("Exact match", columns, tuple(rows), tuple(notes))


def _tokens(splits: Mapping[str, Any]) -> Table:
    rows = [
        row(
            _split(name),
            *(decimal(split["tokens"][key]) for key in ("with_prompt", "without_prompt")),
            decimal(split["tokens"]["compression"], ".2f", "x"),
        )
        for name, split in splits.items()
    ]
    columns = ("split", "with prompt", "without", "compression")
    return Table("Mean tokens that the edge reads per request", columns, tuple(rows))


def _seconds(times: Mapping[str, Any]) -> Table:
    """Median milliseconds per request, by split and batch."""
    rows: list[Row] = []
    for name, time in times.items():
        for kind in ("batch", "single"):
            one = time[kind]
            count = f"{time['rows']} at once" if kind == "batch" else "one at a time"
            cells = [decimal(1e3 * one[way], ".2f") for way in ("in_context", "lora_gen")]
            rows.append(row(f"{_split(name)}, {count}", *cells, decimal(one["ratio"], ".2f", "x")))
    tokens = ", ".join(f"{_split(name)} {time['new_tokens']}" for name, time in times.items())
    note = f"By generate; new tokens, the same for both arms: {tokens}."
    columns = ("requests", "in_context", "lora_gen", "ratio")
    return Table("Median milliseconds per request", columns, tuple(rows), (note,))


def _tool_scores(splits: Mapping[str, Any], mode: str) -> list[Table]:
    rows: list[Row] = []
    for name, split in splits.items():
        scored = {m: one["scores"][mode] for m, one in split["methods"].items() if "scores" in one}
        rows += [group(_split(name))] if scored else []
        rows += [
            row(
                method,
                *(_figure(scores[score]) for score in SCORES),
                kind="ours" if method == MAIN else "plain",
            )
            for method, scores in scored.items()
        ]
    columns = ("method", *SCORES)
    return [Table(f"GPT4Tools scores, {mode}", columns, tuple(rows))] if rows else []


def _methods(splits: Mapping[str, Any]) -> list[str]:
    found = {method for split in splits.values() for method in split["methods"]}
    return sorted(found, key=lambda method: (_order(method), method))


def _figure(found: Mapping[str, Any] | None) -> Cell:
    """A cell like `0.873 ± 0.012`."""
    if found is None or number(found["mean"]) is None:
        return Cell(DASH)
    stderr = number(found["stderr"])
    return Cell(f"{found['mean']:.3f}", "" if stderr is None else f"± {stderr:.3f}")


def _split(name: str) -> str:
    return name.partition("/")[2]


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, sorted(set(numbers))))
