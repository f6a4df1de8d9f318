"""Times of requests, and accuracy against latency: the paper's Fig. 1 with our points."""

from __future__ import annotations

from typing import Any

from lorage_jax.evaluate.results import ArmResult
from lorage_jax.hf.presets import SHAPES
from lorage_jax.models.presets import parameter_count, with_layers
from lorage_jax.report.inputs import Inputs, Result
from lorage_jax.report.page import DASH, Picture, Row, Section, Table, decimal, group, number, row
from lorage_jax.report.paper import BASE, OURS, SOURCE, TABLE_2
from lorage_jax.report.pictures import Point, accuracy_against_latency
from lorage_jax.report.render import plain
from lorage_jax.report.scores import ARMS, arm_title, subject

WITH_PROMPT = ("model", "in_context", "few_shot")  # arms whose every request carries the prompt
CACHED = "in_context_cached"
# The ways of `lorage bench latency`, and their rows.
WAYS = {
    "with_prompt": "prompt in the context, read anew",
    "prompt_cached": "prompt in the context, its keys kept",
    "specialized": "specialised, no prompt",
}
ROUTED = {  # rows only where they were measured
    "loramoe": "LoRAMoE's experts beside the edge, prompt in the context",
    "mixlora": "MixLoRA's experts beside the edge, prompt in the context",
}
# Arms in the picture, and the paper's method that gives each its marker.
DRAWN = {"model": BASE, "in_context": BASE, "few_shot": BASE, "lora_gen": OURS}


def milliseconds(inputs: Inputs) -> dict[tuple[str, str], float]:
    """Milliseconds of a prefill by (result's name, arm).

    A latency is measured on random weights; it belongs to an evaluation whose model has the same
    number of parameters.
    """
    found = {}
    for latency in inputs.bench("latency"):
        size = _parameters(latency)
        for one in inputs.evaluations:
            if size is None or one.result.model.get("parameters") != size:
                continue
            for name, arm in one.result.arms.items():
                way = _way(name, arm)
                time = None if way is None else number(latency.values.get(f"prefill_ms_{way}"))
                if time is not None and time > 0:
                    found[one.name, name] = time
    return found


def _way(name: str, arm: ArmResult) -> str | None:
    """An arm's way of `bench latency`; lm-eval's few-shot prompt with 0 samples is no prompt.

    None for the run of another method, which may read the prompt or have experts of its own.
    """
    if name == CACHED:
        return "prompt_cached"
    bare = name != "in_context" and all(score.shots == 0 for score in arm.tasks.values())
    if name not in ARMS or (name == "lora" and not bare):
        return None
    return "with_prompt" if name in WITH_PROMPT and not bare else "specialized"


def _parameters(latency: Result) -> int | None:
    shape, layers = latency.values.get("shape"), latency.values.get("layers")
    if not isinstance(shape, str) or shape not in SHAPES or not isinstance(layers, int):
        return None
    return parameter_count(with_layers(SHAPES[shape], layers)) if layers > 0 else None


def trade_off(inputs: Inputs, times: dict[tuple[str, str], float]) -> Section:
    """Fig. 1: the paper's points, and ours if both AVE and latency are known."""
    points = [
        Point(f"{p.model.split('-')[0]} {p.method}", p.model, p.method, p.milliseconds, p.average)
        for p in TABLE_2
    ]
    ours: list[Point] = []
    for one in inputs.evaluations:
        for name, arm in one.result.arms.items():
            average = number(arm.summary.get("ave"))
            if name not in DRAWN or average is None or (one.name, name) not in times:
                continue
            label, time = plain(f"ours: {arm_title(name)}"), times[one.name, name]
            title = f"Ours: {subject(one)}"
            ours.append(Point(label, title, DRAWN[name], time, 100 * average))
    png = accuracy_against_latency(points + ours, {point.group for point in ours})
    said = (
        f"Filled: {len(ours)} of ours, on our device."
        if ours
        else "There is no point of ours: one needs an evaluation on all eight tasks, and a latency "
        "of a model with the same number of parameters."
    )
    caption = (
        "Accuracy against latency, like the paper's Fig. 1. Hollow: the paper's points, on the "
        f"authors' device ({SOURCE}, Table 2). {said} "
        "Latencies of different devices are not comparable."
    )
    alt = "Scatter of average accuracy against latency; the figures are those of Table 2"
    return Section(
        "Accuracy against latency (Fig. 1)", (Picture("accuracy-latency", png, caption, alt),)
    )


def times(inputs: Inputs) -> Section | None:
    """The time of a request with the prompt read anew, with its keys kept, and without it."""
    rows: list[Row] = []
    for one in inputs.bench("latency"):
        values = one.values
        about = (values.get(key) for key in ("shape", "depth", "dtype"))
        rows.append(group(f"{', '.join(str(each) for each in about if each)} ({one.name})"))
        routed = {way: title for way, title in ROUTED.items() if f"tokens_{way}" in values}
        rows += [_time_row(values, *way) for way in (WAYS | routed).items()]
    if not rows:
        return None
    columns = (
        "",
        "tokens read",
        "first token, ms",
        "each further token, ms",
        "request, ms",
        "against specialised",
    )
    notes = (
        "The edge reads the prompt with every request, or once: then a request starts after a "
        "copy of the prompt's keys and values, which every step still reads. The specialised edge "
        "has neither. The cloud's reading of the prompt, once, is not included.",
        f"One request at a time, medians. {DASH}: not measured.",
    )
    caption = "Time of a request with and without the system prompt"
    return Section("Time of a request", (Table(caption, columns, tuple(rows), notes),))


def _time_row(values: dict[str, Any], way: str, title: str) -> Row:
    own, other = (number(values.get(f"request_ms_{each}")) for each in (way, "specialized"))
    ratio = own / other if own is not None and other else None
    parts = ("prefill", "decode_per_token", "request")
    return row(
        title,
        decimal(values.get(f"tokens_{way}"), ".0f"),
        *(decimal(values.get(f"{part}_ms_{way}")) for part in parts),
        decimal(ratio, ".2f", "x"),
        kind="ours" if way == "specialized" else "plain",
    )
