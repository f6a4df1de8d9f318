"""`lorage quickstart`: the whole method on the bundled pair, or a real model, in a minute.

A system prompt in a wording that was not in training becomes a card, an adapter and a merged
checkpoint. The same questions go to the edge without the prompt, with the prompt in its context,
specialised, and, as a control, specialised by another prompt.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from textwrap import indent
from typing import Any

import jax
import numpy as np
from rich.console import Console

from lorage_jax import nano, smollm2
from lorage_jax.bench.timing import in_turn
from lorage_jax.bundled import MODELS, kept_models
from lorage_jax.commands.options import Quickstart
from lorage_jax.commands.specialize import describe
from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    OptimizerConfig,
    Source,
)
from lorage_jax.data.templates import Message, question
from lorage_jax.errors import ConfigError, DataError, WeightsError
from lorage_jax.evaluate.answers import Generation, turns
from lorage_jax.evaluate.arms import Answered, Arm, Unit, ask
from lorage_jax.evaluate.controls import Ready, Shuffled
from lorage_jax.files.manifest import write_manifest
from lorage_jax.files.outputs import check_target, new_folder
from lorage_jax.generator.card import load_card
from lorage_jax.generator.deploy import Outputs, deploy
from lorage_jax.generator.generator import Generator, prompt_tokens
from lorage_jax.generator.store import (
    generator_path,
    load_generator,
    read_values,
    recorded_path,
)
from lorage_jax.hf.load import load_model
from lorage_jax.infer.generate import generate, generate_tokens
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.in_context import InContext
from lorage_jax.methods.in_context_cached import InContextCached
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.method import Conditioning, Placement
from lorage_jax.models.model import Model
from lorage_jax.report.pictures import gate_heatmap, gate_text, loss_curve
from lorage_jax.world import everyday
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world.seconds import endless

QUESTIONS = 24  # on which the arms are compared
LONGEST = 48  # tokens of an answer at most
REPEATS = 3  # of the timing
TRAIN_STEPS = 60  # of `--train`
ARMS = ("bare", "in_context", "lora_gen", "shuffled")
CACHED = InContextCached.name  # timed alone: its answers are those of in_context


def run(options: Quickstart) -> dict[str, Any]:
    """Writes all results below `--out`, prints a summary and returns the report."""
    out, seed, prompt = options.out, options.seed, options.prompt
    began, say = time.monotonic(), Console(stderr=True, highlight=False).print
    task = _task(seed, prompt, everyday.FAMILY if options.real else options.family)
    if options.train and task.family != "words":
        raise DataError(
            "--train trains the bundled pair on word tasks alone, as it is too short for more. "
            "Leave it out, or use --family words without --real."
        )
    if options.generator is not None and not options.real:
        raise ConfigError("--generator needs --real: the other one is for the bundled pair.")
    check_target(out, options.overwrite)
    source, edge = _real(options.generator) if options.real else (nano.GENERATOR, nano.EDGE)
    records = _questions(task, seed, tuple(chain.from_iterable(options.ask)))
    with new_folder(out, overwrite=options.overwrite) as folder:
        report: dict[str, Any] = {"prompt": task.system, "task": task.task, "seed": seed}
        unseen = "" if prompt else " whose wording was not in training"
        generator = load_generator(source, dtype="float32")
        _check_fits(generator, edge, task.system, records)
        if options.train:
            say(f"Training a generator for the bundled pair, {TRAIN_STEPS} steps ...")
            generator, report["generator_loss"] = _train(folder, seed)
        say(f"Specialising the edge for a prompt{unseen} ...")
        (folder / "prompt.txt").write_text(task.system + "\n", "utf-8")
        deployed = deploy(generator, task.system, folder, edge, Outputs(dtype="float32"))
        report |= deployed.to_json()
        card = load_card(folder / "card.json")
        gate_heatmap(card.gates, folder / "gates.png", overwrite=False)
        say("Asking without the prompt, with it, specialised, and with another prompt's card ...")
        report |= _ask(folder, records, generator, edge, _other(task, records, seed).system)
        counted = task.task and task.family in world_prompts.FAMILIES and not options.ask
        blind = world_prompts.blind_ceiling("paraphrase", task.family) if counted else None
        report["blind_ceiling"] = blind
        report |= {"questions": len(records), "seconds": time.monotonic() - began}
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        write_manifest(folder, {"format": "lorage-quickstart/1"})
    title = "Your system prompt" if prompt else "System prompt (unseen in training)"
    print(f"{describe(deployed, out)}\n{_story(report, title, gate_text(card.gates), out)}")
    return report


def _real(given: Path | None) -> tuple[Path, Path]:
    """The generator of `--real` and its edge. Raises ConfigError if the bundled one has none."""
    source = smollm2.GENERATOR if given is None else generator_path(given)
    try:
        return source, recorded_path(read_values(source), "edge", source)
    except WeightsError:
        if given is not None:
            raise
        raise ConfigError(
            f"--real needs the model {smollm2.MODEL}, but {kept_models()} (named by {MODELS}) has "
            f"no folder of that name. {smollm2.README} has the commands that make it."
        ) from None


def _task(seed: int, prompt: str | None, family: str) -> world_prompts.Prompt:
    """A prompt in an unseen wording, or the user's own, with its task if that is a built-in one."""
    if prompt is not None and not prompt.strip():
        raise DataError("--prompt is empty; expected a system prompt.")
    real, rng = family == everyday.FAMILY, Random(f"quickstart/{seed}")
    find = everyday.find_everyday if real else world_prompts.find
    if prompt is not None and (known := find(prompt)) is not None:
        return known
    if real:
        drawn = everyday.draw_everyday(rng)
    else:
        drawn = world_prompts.draw_prompt("paraphrase", rng, family)
    if prompt is None:
        return drawn

    def draw(rng: Random) -> tuple[str, str]:  # a built-in question whose answer is unknown
        return drawn.draw(rng)[0], ""

    return world_prompts.Prompt(prompt.strip(), "", family, draw)


def _other(
    task: world_prompts.Prompt, questions: Sequence[tuple[str, str]], seed: int
) -> world_prompts.Prompt:
    """A prompt under which every answer (for tools, every call) would be different."""
    rng = Random(f"other/{seed}")
    if task.family == everyday.FAMILY:
        return everyday.draw_everyday(rng, besides=task.task)
    for _ in range(world_prompts.TRIES):
        other = world_prompts.draw_prompt("paraphrase", rng, task.family)
        if other.answer is None:
            dialect = ("word", "pattern", "input")
            if not task.parts or all(other.parts[kind] != task.parts[kind] for kind in dialect):
                return other
        elif all(other.answer(user) != target for user, target in questions if target):
            return other
    raise DataError("no other task answers --ask otherwise. Ask longer questions, or more of them.")


def _questions(
    task: world_prompts.Prompt, seed: int, asked: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """(user, right answer) pairs without repetition; an unknown answer is empty.

    `asked`: the user's own questions, instead of drawn ones. Some tasks know their answers.
    """
    if asked:
        known = task.answer if task.task and task.answer is not None else None
        return [
            (user, "" if known is None or not user.strip() else known(user).strip())
            for user in dict.fromkeys(asked)
        ]
    rng, found = Random(f"questions/{seed}"), {}
    while len(found) < QUESTIONS:
        user, target = task.draw(rng)
        found[user] = target.strip()
    return list(found.items())


def _check_fits(
    generator: Generator, folder: Path, system: str, questions: Sequence[tuple[str, str]]
) -> None:
    """Raises DataError if cloud or edge (`folder`) cannot read the prompt, before long work."""
    prompt_tokens(generator, system)
    edge = generator.speaking(load_model(folder, "float32"))
    longest = max(len(edge.template.prompt(user, system)) for user, _ in questions)
    room = edge.config.max_positions - LONGEST
    if longest > room:
        raise DataError(
            f"--prompt and a question are {longest} tokens; the edge, which reads both for "
            f"comparison, has room for {room}. Shorten the prompt."
        )


def _train(folder: Path, seed: int) -> tuple[Generator, dict[str, float]]:
    """A generator trained for a short while on word tasks, with its first and last loss."""
    from lorage_jax.methods.training import train

    devices = jax.device_count()
    result = train(
        ExperimentConfig(
            cloud=str(nano.CLOUD),
            edge=str(nano.EDGE),
            out=str(folder / "training"),
            data=DataConfig(
                sources=(Source("synthetic", "synthetic", name="words"),),
                prompts_per_batch=-(-16 // devices) * devices,
                queries_per_prompt=4,
                max_prompt_tokens=192,
                max_query_tokens=64,
                min_bucket=64,
            ),
            generator=GeneratorConfig(top_k=4, dropout=0.0),
            optimizer=OptimizerConfig(
                4e-3, "muon", betas=(0.9, 0.95), warmup_steps=TRAIN_STEPS // 10
            ),
            steps=TRAIN_STEPS,
            dtype="float32",
            remat="none",
            seed=seed,
            save_every=TRAIN_STEPS,
            log_every=10,
        )
    )
    loss_curve(result.losses, folder / "loss.png", overwrite=False)
    first, last = result.losses[0][1], result.losses[-1][1]
    return load_generator(result.folder), {"first": first, "last": last}


def _ask(
    folder: Path,
    questions: Sequence[tuple[str, str]],
    generator: Generator,
    unspecialised: Path,
    other: str,
) -> dict[str, Any]:
    """Answers, exact matches, tokens and seconds per request of every arm on the same questions.

    The specialised edge is loaded from the exported folder.
    """
    edge = generator.speaking(load_model(unspecialised, "float32"))
    special = load_model(folder / "merged", "float32")
    system = (folder / "prompt.txt").read_text("utf-8").strip()
    users, rights = [user for user, _ in questions], [target for _, target in questions]
    methods = (Bare(), InContext(), Ready(special), Shuffled(LoraGen(generator), [other]))
    arms = [Arm(name, method) for name, method in zip(ARMS, methods, strict=True)]
    unit = Unit("quickstart", [system], users, [0] * len(users))
    found = {arm: one[unit.name].answered for arm, one in ask(arms, edge, [unit], _answer).items()}
    texts = {arm: [text.strip() for text in one.answers] for arm, one in found.items()}
    known = all(rights)
    written = rights if known else texts["lora_gen"]
    new = max(len(edge.template.answer(text)) for text in written)
    match = {
        arm: float(np.mean([a == b for a, b in zip(texts[arm], rights, strict=True)]))
        for arm in ARMS
    }
    timed = {
        "bare": (edge, [question(user) for user in users]),
        "in_context": (edge, [question(user, system) for user in users]),
        "lora_gen": (special, [question(user) for user in users]),
    }
    return {
        "answers": [
            {"user": user, "expected": target or None, **{arm: texts[arm][i] for arm in ARMS}}
            for i, (user, target) in enumerate(questions)
        ],
        "exact_match": match if known else None,
        "control": {"prompt": other, "exact_match": match["shuffled"] if known else None},
        "tokens_per_request": {arm: found[arm].edge_tokens for arm in timed},
        "seconds_per_request": _seconds(timed, system, new),
    }


def _answer(
    arm: Arm, unit: Unit[str], placement: Placement, rows: list[Conditioning]
) -> Answered[str]:
    texts = [turns(user, row) for user, row in zip(unit.questions, rows, strict=True)]
    return Generation(LONGEST, batch_rows=len(texts))(arm.name, placement, texts)


def _seconds(
    asked: Mapping[str, tuple[Model, Sequence[Sequence[Message]]]], system: str, new: int
) -> dict[str, float]:
    """Median seconds per request by arm, in one batch; all arms generate `new` tokens.

    The arm CACHED is `in_context` with the prompt's keys and values, which were read before.
    """
    calls: dict[str, Callable[[], Any]] = {
        arm: partial(generate, endless(model), texts, max_new_tokens=new)
        for arm, (model, texts) in asked.items()
    }
    edge, texts = asked["in_context"]
    prefix = InContextCached(edge).prepare([system])[0].prefix
    assert prefix is not None
    rows = [edge.template.ids(messages) for messages in texts]
    calls[CACHED] = partial(
        generate_tokens, endless(edge), rows, max_new_tokens=new, prefixes=[prefix] * len(rows)
    )
    times = in_turn(calls, REPEATS)
    return {arm: statistics.median(times[arm]) / len(texts) for arm in calls}


def _unscored(report: dict[str, Any]) -> str:
    """The reason why the right answers are not known."""
    if not report["task"]:
        return "This is not the wording of a built-in task"
    return "The task does not know the answers to all of your own questions"


def _story(report: dict[str, Any], title: str, gates: str, out: Path) -> str:
    """The summary for the terminal."""
    tokens, seconds = report["tokens_per_request"], report["seconds_per_request"]
    gap = "\n\n" if "\n" in report["prompt"].strip() else " "
    lines = [f"\n{title}:{gap}{report['prompt'].strip()}"]
    if "generator_loss" in report:
        loss = report["generator_loss"]
        lines.append(f"Generator loss {loss['first']:.2f} -> {loss['last']:.2f} nats per token")
    columns: list[tuple[str, Callable[[str], str]]] = [
        ("edge tokens per request", lambda arm: f"{tokens[arm]:.0f}"),
        ("ms per request (batch)", lambda arm: f"{1e3 * seconds[arm]:.1f}"),
    ]
    if report["exact_match"] is not None:
        match = report["exact_match"]
        correct = f"correct of {report['questions']}"
        columns.insert(0, (correct, lambda arm: f"{match[arm] * report['questions']:.0f}"))
    lines.append(f"\n{'':32}" + "".join(f"{name:>25}" for name, _ in columns))
    names = ("edge without prompt", "edge with prompt in context", "edge specialised, no prompt")
    for arm, name in zip(ARMS, names, strict=False):
        lines.append(f"{name:32}" + "".join(f"{show(arm):>25}" for _, show in columns))
        if arm == "in_context":
            cached = f"{1e3 * seconds[CACHED]:.1f}"
            lines.append(f"{'  the same, prompt cached':32}{cached:>{25 * len(columns)}}")
    if report["exact_match"] is not None:
        right = report["exact_match"]["shuffled"] * report["questions"]
        lines.append(f"{'control: card of another prompt':32}{right:>25.0f}")
        if report["blind_ceiling"] is not None:
            blind = report["blind_ceiling"] * report["questions"]
            lines.append(f"{'upper bound without the prompt':32}{blind:>25.1f}")
    else:
        lines.append(f"{_unscored(report)}, so answers are not scored.")
    shown = {
        "user": "user",
        "expected": "expected",
        "bare": "no prompt",
        "in_context": "in context",
        "lora_gen": "specialised",
    }
    for example in report["answers"][:3]:
        lines.append("")
        lines += [
            f"  {name:13}" + indent(example[key].strip(), " " * 15).lstrip()
            for key, name in shown.items()
            if example[key]
        ]
    lines += [
        f"\n{gates}",
        f"\nAll results, gates.png among them: {out}",
        f"{report['seconds']:.0f} s. Next: lorage generate --model {out}/merged --input ...",
    ]
    return "\n".join(lines)
