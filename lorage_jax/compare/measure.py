"""Methods side by side on the built-in world or written tasks: trained alike, asked the same.

A method is trained once per seed, as `CompareConfig.run` says; one without trained parts is asked
once. Beside the methods stand the controls of `lora_gen` and the bare edge. `kept` says what is not
measured again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

from lorage_jax.compare import kept
from lorage_jax.compare.costs import method_costs
from lorage_jax.compare.facts import follows_prompts, is_merged, trained_parameters
from lorage_jax.compare.parts import Part
from lorage_jax.compare.shots import WithSamples, solved_samples, texts_with_samples
from lorage_jax.compare.task_samples import TaskSample, draw_tasks, fewest_samples, first_prompts
from lorage_jax.config import CompareConfig, TaskQuestions
from lorage_jax.data.records import Record
from lorage_jax.distributed import on_main
from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.arms import BARE, MAIN, Answered, Arm, Unit, ask
from lorage_jax.evaluate.paired import (
    Gap,
    combined_errors,
    is_significant,
    mean_stderr,
    paired_gap,
)
from lorage_jax.evaluate.shared_journal import SharedJournal
from lorage_jax.hf.load import load_model
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.method import (
    FromSamples,
    Method,
    Placement,
    Solved,
    get_method,
)
from lorage_jax.methods.training import train
from lorage_jax.models.model import Model
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world.samples import WorldSample, draw_world
from lorage_jax.world.scores import Answering, control_methods, measure, tokens_read, unit_of
from lorage_jax.world.seconds import method_seconds


def measured(config: CompareConfig, part: Part, limit: int | None = None) -> dict[str, Any]:
    """The figures of one part: from its file, or trained and asked now.

    `limit` asks about the first prompts of each split only. Returns {"trained_parameters",
    "merged", "unseen_tasks", "frozen", "device", "splits", "controls"}; a split has {"exact_match",
    "stderr", "by_prompt", "edge_tokens", "context_tokens"}, a control is {split: the same}.

    Several processes train together and share the questions; the main one keeps the file. Raises
    OutputError if it was measured with other settings or data.
    """

    def measured_now() -> dict[str, Any]:
        edge = load_model(config.base.edge, config.base.dtype)
        return _figures(config, part, edge, questions(config, limit))

    return kept.figures(config, part, limit, measured_now)


def questions(config: CompareConfig, limit: int | None = None) -> list[WorldSample]:
    """The questions to every method; `limit` keeps the first prompts of each split."""
    asked = config.questions
    if isinstance(asked, TaskQuestions):
        drawn: list[WorldSample] = [*draw_tasks(asked)]
    else:
        drawn = draw_world(asked.prompts, asked.queries, asked.seed, families=asked.families)
    return drawn if limit is None else [first_prompts(one, limit) for one in drawn]


def load_method(config: CompareConfig, part: Part, edge: Model) -> Method:
    """The method of a part, trained first unless a finished run is there."""
    source = part.trained
    if part.experiment is not None:
        source = train(part.experiment, resume=True).folder
    method = get_method(part.method).load(edge, source)
    if not part.samples:
        return method
    known: dict[str, Any] = {}
    for one in questions(config):
        known |= _samples(config, one, part.samples)
    if isinstance(method, FromSamples):
        return method.given(known, part.seed, part.learning)
    return WithSamples(method, texts_with_samples(known))


def _samples(config: CompareConfig, sample: WorldSample, count: int) -> Solved:
    """`count` solved samples of each prompt of a sample; of a file's task, as many as it has."""
    asked = config.questions
    if isinstance(sample, TaskSample):
        return {prompt: pairs[:count] for prompt, pairs in sample.solved.items()}
    drawn = world_prompts.draw_prompts(sample.split, asked.prompts, asked.seed, sample.family)
    return solved_samples(sample, drawn, count)


def costs(
    config: CompareConfig, parts: Sequence[Part], limit: int | None = None
) -> dict[str, dict[str, Any]]:
    """`Costs` of a request under every row, of its first seed, and `seconds_per_request`.

    Kept, or measured now: all methods take turns in one run. With several processes, the main one
    measures; the others get an empty result.
    """

    def measured_now() -> dict[str, dict[str, Any]]:
        print("Measuring the costs of all methods, in turn ...")
        edge = load_model(config.base.edge, config.base.dtype)
        methods = {part.row: load_method(config, part, edge) for part in parts if part.seed == 0}
        sample = questions(config, limit)[0]
        return on_main(lambda: _costs(methods, edge, sample)) or {}

    return kept.costs(config, parts, limit, measured_now)


def _costs(
    methods: Mapping[str, Method], edge: Model, sample: WorldSample
) -> dict[str, dict[str, Any]]:
    found, times = method_costs(methods, edge, sample), method_seconds(methods, edge, sample)
    return {name: {**one, "seconds_per_request": times[name]} for name, one in found.items()}


def _figures(
    config: CompareConfig, part: Part, edge: Model, samples: Sequence[WorldSample]
) -> dict[str, Any]:
    if part.experiment is not None:
        print(f"Training {part.name}, unless it is there ...")
    method = load_method(config, part, edge)
    print(f"Asking {part.name} ...")
    found = [asked(Arm(part.row, method), edge, sample) for sample in samples]
    result: dict[str, Any] = {
        "trained_parameters": trained_parameters(method, edge, part.experiment, part.trained),
        "merged": is_merged(method, edge, samples[0]),
        "unseen_tasks": follows_prompts(method, samples),
        "frozen": list(getattr(get_method(part.method), "frozen", ())),
        "device": jax.devices()[0].device_kind,
        "splits": {sample.name: one for sample, one in zip(samples, found, strict=True)},
        "controls": {},
    }
    if isinstance(method, LoraGen):
        made = {sample.name: control_methods(method, sample, part.seed) for sample in samples}
        for name in made[samples[0].name]:
            print(f"Asking {part.name}, control {name} ...")
            result["controls"][name] = {
                sample.name: asked(Arm(name, made[sample.name][name]()), edge, sample)
                for sample in samples
            }
    return result


def asked(arm: Arm, edge: Model, sample: WorldSample) -> dict[str, Any]:
    """The scores of one method on one split, and the lengths of its requests.

    `edge_tokens` counts everything in the edge's context, soft prompts and cached tokens, too;
    `context_tokens` is the length with the prompt as text, in the turns that the method speaks.
    """
    unit, way, spoken = unit_of(sample), Answering(journal=SharedJournal()), edge

    def answer(arm: Arm, unit: Unit[Record], placement: Placement, rows: Any) -> Answered[str]:
        nonlocal spoken
        spoken = placement.model
        return way(arm, unit, placement, rows)

    answered = ask([arm], edge, [unit], answer)[arm.name][unit.name].answered
    score = measure(sample, answered.answers)
    return {
        "exact_match": score.exact_match,
        "stderr": score.stderr,
        "by_prompt": score.by_prompt,
        "edge_tokens": answered.edge_tokens + answered.front_slots,
        "context_tokens": tokens_read(spoken, sample, shown=True),
    }


def combined(
    config: CompareConfig, found: Mapping[str, Sequence[Mapping[str, Any]]], bigger: Set[str]
) -> dict[str, Any]:
    """The comparison as JSON values; `found` has the figures of each row's seeds.

    A split's `stderr` is over seeds if there are two or more, else over prompts; `over` says which.
    `gap` is the method less `lora_gen` on the same prompts, each averaged over the seeds; its error
    is over prompts and, where a side has seeds, over these as well, seed by seed where both sides
    are of the same runs. `bigger` are the rows whose
    cloud has more parameters than the edge.
    """
    if not found:
        raise ConfigError("nothing was measured; expected at least one method.")
    ours = found.get(MAIN)
    methods = {
        name: _method(config, name, seeds, ours, name in bigger) for name, seeds in found.items()
    }
    controls: dict[str, Any] = {BARE: {"splits": methods[BARE]["splits"]}}
    for name in ours[0]["controls"] if ours is not None else ():
        each = [{"splits": one["controls"][name]} for one in ours or ()]
        controls[name] = {"splits": _splits(each, ours, same_runs=True)}
    return {"methods": methods, "controls": controls}


def _method(
    config: CompareConfig,
    name: str,
    seeds: Sequence[Mapping[str, Any]],
    ours: Sequence[Mapping[str, Any]] | None,
    bigger_cloud: bool,
) -> dict[str, Any]:
    method, first, samples = get_method(config.method(name)), seeds[0], config.samples(name)
    fewest = samples
    if samples and isinstance(config.questions, TaskQuestions):
        fewest = min(samples, fewest_samples(config.questions))
    tokens = {
        kind: float(np.mean([split[kind] for one in seeds for split in one["splits"].values()]))
        for kind in ("edge_tokens", "context_tokens")
    }
    return {
        "what": method.what + _with_samples(method, samples, fewest),
        "samples": samples,
        "fewest_samples": fewest,
        "trained_parameters": first["trained_parameters"],
        "merged": first["merged"],
        "unseen_tasks": first["unseen_tasks"],
        "bigger_model": bigger_cloud and "cloud" in first["frozen"],
        "seeds": len(seeds) if first["trained_parameters"] else 0,
        "devices": sorted({one["device"] for one in seeds if "device" in one}),
        **tokens,
        "splits": _splits(seeds, None if name == MAIN else ours, _same_runs(config, name)),
    }


def _same_runs(config: CompareConfig, name: str) -> bool:
    """True if the seeds of a row are those of `lora_gen`: the same runs, asked in another way."""
    row, ours = (config.methods.get(one, {}) for one in (name, MAIN))
    results = config.has_seeds(name) and row["trained"] == ours.get("trained")
    return results or row.get("after") == MAIN


def _with_samples(method: type[Method], samples: int, fewest: int) -> str:
    """The samples of a row, in words."""
    if not samples:
        return ""
    where = "per prompt" if issubclass(method, FromSamples) else "after every prompt"
    less = f" (fewer where a task has fewer, at least {fewest})" if fewest < samples else ""
    return f"; {samples} solved samples {where}{less}"


def _splits(
    seeds: Sequence[Mapping[str, Any]],
    ours: Sequence[Mapping[str, Any]] | None,
    same_runs: bool = False,
) -> dict[str, Any]:
    result = {}
    for split, first in seeds[0]["splits"].items():
        mean, stderr = mean_stderr([one["splits"][split]["exact_match"] for one in seeds])
        one = {
            "exact_match": mean,
            "stderr": stderr if len(seeds) > 1 else first["stderr"],
            "over": "seeds" if len(seeds) > 1 else "prompts",
            "prompts": len(first["by_prompt"]),
        }
        if ours is not None:
            one["gap"] = dataclasses.asdict(_gap(seeds, ours, split, same_runs))
        result[split] = one
    return result


def _gap(
    seeds: Sequence[Mapping[str, Any]],
    ours: Sequence[Mapping[str, Any]],
    split: str,
    same_runs: bool,
) -> Gap:
    """The paired gap, with the squared errors over prompts and over the seeds of both sides added.

    An error over prompts alone would compare these trained models, not the methods. Where both
    sides are of the same runs, their seeds are paired as well.
    """
    over_prompts = paired_gap(_by_prompt(seeds, split), _by_prompt(ours, split))
    if over_prompts.gap is None or over_prompts.stderr is None:
        return over_prompts
    sides = [[one["splits"][split]["exact_match"] for one in side] for side in (seeds, ours)]
    if same_runs and len(seeds) == len(ours):
        sides = [[x - y for x, y in zip(*sides, strict=True)]]
    errors = [(over_prompts.stderr, math.inf)]
    errors += [(mean_stderr(one)[1] or 0.0, len(one) - 1) for one in sides if len(one) > 1]
    stderr, freedom = combined_errors(errors)
    gap, prompts = over_prompts.gap, len(seeds[0]["splits"][split]["by_prompt"])
    return Gap(gap, stderr, is_significant(gap, stderr, prompts, freedom))


def _by_prompt(seeds: Sequence[Mapping[str, Any]], split: str) -> list[float]:
    return np.mean([one["splits"][split]["by_prompt"] for one in seeds], axis=0).tolist()
