"""`lorage eval`: scores with their controls, tokens and times, and a file of every record."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from lorage_jax import distributed
from lorage_jax.commands.adapted import load_adapted
from lorage_jax.commands.finished import facts, find_runs
from lorage_jax.commands.places import RECORDS, check_place, write_result
from lorage_jax.data.records import ENDINGS
from lorage_jax.data.task_table import TASKS
from lorage_jax.data.templates import check_tokenizer
from lorage_jax.errors import ConfigError, did_you_mean
from lorage_jax.evaluate.answers import BATCH_TOKENS, room_for_input
from lorage_jax.evaluate.arms import CONTROLS, MAIN
from lorage_jax.evaluate.host_chat import HostChat
from lorage_jax.evaluate.host_settings import as_hf_adapts
from lorage_jax.evaluate.local_tasks import TaskData, check_installed, check_names
from lorage_jax.evaluate.results import EvalResult
from lorage_jax.evaluate.shared_journal import SharedJournal
from lorage_jax.evaluate.tool_calls import ANSWER_TOKENS, ToolOutcome, evaluate_tool_calls
from lorage_jax.evaluate.written import WrittenTasks, written_tasks
from lorage_jax.fields import at_home, home_path
from lorage_jax.files.journal import Journal
from lorage_jax.generator.generator import Generator
from lorage_jax.generator.store import (
    edge_path,
    generator_path,
    held_out,
    load_generator,
    read_values,
)
from lorage_jax.hf.load import load_model
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.method import Method
from lorage_jax.models.model import Model
from lorage_jax.world.tool_sets import ToolSet, benchmark_files, benchmark_set, generated_set

if TYPE_CHECKING:
    from lorage_jax.commands.options import Eval

_log = logging.getLogger(__name__)
AGENT = "gpt4tools"
TEMPLATE = "trained"
GENERATED_RECORDS = 100  # per set of our own, where GPT4Tools' files are not there


def run(options: Eval) -> dict[str, Any] | None:
    """Checks all inputs, then scores, prints and returns the result.

    Several processes share the requests; only the main one prints, writes and returns.
    """
    distributed.initialise(options.coordinator, options.num_processes, options.process_id)
    distributed.check_same(_settings(options), "Start all processes with the same options.")
    with distributed.only_main_prints():
        result = _evaluated(options)
    return result if distributed.is_main() else None


def _evaluated(options: Eval) -> dict[str, Any]:
    asked = [at_home(name.strip()) for name in options.tasks.split(",") if name.strip()]
    files = [name for name in asked if is_file(name)]
    names = [name for name in asked if name not in files]
    _check(options, names, files)
    if AGENT in names and _chat(options).used:
        raise ConfigError(
            f"{AGENT} is asked in turns of its own; score it without --apply-chat-template and "
            "--system-instruction."
        )
    if names or not files:
        check_names(names, others=(AGENT,))
    if options.samples is not None:
        check_place(options.samples, RECORDS, options)
    shots = _shots(options.shots)
    found = options
    if options.generator is not None:
        found = dataclasses.replace(options, generator=generator_path(options.generator))
    written = _written(found, files, shots)
    plain = [name for name in dict.fromkeys(names) if name != AGENT]
    if twice := [name for name in plain if name in written.tasks]:
        raise ConfigError(f"{', '.join(twice)} is a task of lm-eval and of a file; name one.")
    read = _read_by_controls(options, plain)
    plain += written.tasks
    _check_shots(shots, [*plain, *read])
    data = TaskData(options.data, written)
    sets = _tool_sets(options) if AGENT in names else []
    runs = find_runs(options.run)
    edge, generator = _models(found)
    others = {name: one.load(edge) for name, one in runs.items()}
    if sets:  # before the other tasks have been scored
        room_for_input(edge, options.max_new_tokens or ANSWER_TOKENS)
    journal = SharedJournal.open(progress_path(options.json))
    about = _about(edge, generator) | ({"runs": facts(runs)} if runs else {})
    cloud = f"; cloud {about['cloud']}, tokenizer {about['cloud_tokenizer']}" if generator else ""
    print(f"Edge {about['edge']}, tokenizer {about['tokenizer']}{cloud}.")
    if len(journal):
        print(f"Resuming: found {len(journal)} finished requests.")
    result, samples = _tasks(options, plain, data, edge, generator, others, journal)
    result = dataclasses.replace(
        result,
        model=about,
        config=_settings(options) | _plain({"json": options.json, "samples": options.samples}),
        seeds={"seed": options.seed},
        data=data.fingerprints | {f"{AGENT}/{one.name}": {"records": one.files} for one in sets},
    )
    for one in sets:
        outcome = _agent(options, one, edge, generator, others, journal)
        result.gpt4tools[one.name] = outcome.result
        samples += [{"task": AGENT, "set": one.name, **sample} for sample in outcome.samples]
    if options.samples is not None and distributed.is_main():
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        write_result(options.samples, lines, RECORDS)
    if written.note:
        result.words.append(written.note)
    for sentence in result.words:
        print(sentence)
    return result.to_json()


def _written(options: Eval, files: Sequence[str], shots: Mapping[str, int]) -> WrittenTasks:
    """The tasks of files, of which are asked the questions that the generator did not train on."""
    if not files:
        return WrittenTasks({}, {})
    check_installed()
    held = [] if options.generator is None else held_out(read_values(options.generator))
    written = written_tasks(files, shots, held, options.seed, options.max_new_tokens)
    print(f"{len(written.tasks)} tasks of {', '.join(files)}.")
    return written


def is_file(name: str) -> bool:
    """True if `name` of --tasks is a file of tasks, or a folder of such files."""
    return name.endswith(ENDINGS) or ("/" in name and Path(name).is_dir())


def progress_path(result: Path | None) -> Path | None:
    """The file that keeps finished requests until the result is written."""
    return None if result is None else result.with_name(result.name + ".progress")


def finish(options: Eval) -> None:
    """Removes the record of finished requests, once the result is on disk."""
    SharedJournal(progress_path(options.json)).remove()


def _check(options: Eval, names: Sequence[str], files: Sequence[str]) -> None:
    """Raises ConfigError for options that do not go together. `names` are those of tasks."""
    if (options.model is None) == (options.generator is None):
        raise ConfigError(
            "give either --model (a folder to score as it is) or --generator (and --edge, when it "
            "is not where the generator recorded it)."
        )
    if options.model is not None and (options.edge or options.cloud):
        raise ConfigError("--edge and --cloud go with --generator; --model is scored as it is.")
    if options.model is not None:
        _warn_of_idle(options, names)
    if options.generator is not None and options.adapter:
        raise ConfigError(
            "--adapter goes with --model; a generator specialises the edge it was trained with."
        )
    if options.model is not None and options.run:
        raise ConfigError("--run goes with --generator, whose edge the run was trained for.")
    if options.data != "hub" and files and not names:
        raise ConfigError(
            f"--data {options.data} holds records of lm-eval's tasks and gpt4tools, but --tasks "
            "names only files, which hold their own. Leave --data out."
        )
    chat = _chat(options)
    if options.generator is not None and chat.used:
        raise ConfigError(
            "--apply-chat-template and --system-instruction go with --model: the edge of a "
            "generator is asked in the turns of its training, and the system prompt is the task's "
            "(--template harness asks without turns)."
        )
    progress, samples = progress_path(options.json), options.samples
    if progress is not None and samples is not None and progress.resolve() == samples.resolve():
        raise ConfigError(f"--samples {samples} is the file in which --json keeps its progress.")
    for name, least in (("limit", 1), ("batch_tokens", 1), ("max_new_tokens", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is {value}; expected {least} or more.")


def _warn_of_idle(options: Eval, names: Sequence[str]) -> None:
    """Warns of options that the score of a model by itself does not depend on."""
    idle = {
        "--template": options.template is not None and AGENT not in names,
        "--no-controls": not options.controls,
        "--no-baseline": not options.baseline,
    }
    if found := [flag for flag, is_idle in idle.items() if is_idle]:
        _log.warning(
            "%s: the score of a --model does not depend on it; it is for a --generator%s.",
            " and ".join(found),
            " or gpt4tools" * ("--template" in found),
        )


def _chat(options: Eval) -> HostChat:
    return HostChat(
        options.apply_chat_template, options.system_instruction, options.fewshot_as_multiturn
    )


def _models(options: Eval) -> tuple[Model, Generator | None]:
    if options.model is not None:
        model = load_adapted(options.model, options.dtype, options.adapter)
        check_tokenizer(model.tokenizer, options.model)
        return as_hf_adapts(model) if options.adapter else model, None
    assert options.generator is not None, "checked before"
    values = read_values(options.generator)
    folder = edge_path(values, options.generator, options.edge)  # before anything large is loaded
    generator = load_generator(options.generator, options.cloud)
    edge = load_model(folder, options.dtype)
    for model in (edge, generator.cloud):
        check_tokenizer(model.tokenizer, model.source)
    return edge, generator


def _tasks(
    options: Eval,
    names: Sequence[str],
    data: TaskData,
    edge: Model,
    generator: Generator | None,
    others: Mapping[str, Method],
    journal: Journal,
) -> tuple[EvalResult, list[dict[str, Any]]]:
    """The result on lm-eval's tasks, and a row per record; empty without names."""
    if not names:
        return EvalResult(), []
    from lorage_jax.evaluate.harness import HARNESS_TOKENS, LorageLM  # need lm-eval
    from lorage_jax.evaluate.lm_eval_tasks import Run, evaluate_generator, evaluate_model

    lm = LorageLM(
        edge,
        batch_tokens=options.batch_tokens,
        max_gen_toks=options.max_new_tokens or HARNESS_TOKENS,
        journal=journal,
    )
    shots = _shots(options.shots)
    chat = _chat(options)
    scored = Run(lm, data, shots, options.limit, options.seed, options.template or TEMPLATE, chat)
    if generator is None:
        return evaluate_model(scored, edge, names), scored.samples
    method = LoraGen(generator, journal)
    found = evaluate_generator(
        scored,
        edge,
        method,
        names,
        controls=options.controls,
        baseline=options.baseline,
        others=others,
    )
    return found, scored.samples


def _agent(
    options: Eval,
    tools: ToolSet,
    edge: Model,
    generator: Generator | None,
    others: Mapping[str, Method],
    journal: Journal,
) -> ToolOutcome:
    """The outcome on one set of GPT4Tools records; prints a line per arm and the verdicts."""
    print(f"GPT4Tools: {tools.source}")
    arms = None
    if generator is not None:
        arms = [MAIN]
        arms += ["in_context", "no_tools", "lora_gen_tools"] * options.baseline
        arms += [*CONTROLS * options.controls]
    found = evaluate_tool_calls(
        tools.records,
        edge,
        generator,
        arms=arms,
        template=options.template or TEMPLATE,
        max_new_tokens=options.max_new_tokens or ANSWER_TOKENS,
        batch_tokens=options.batch_tokens or BATCH_TOKENS,
        limit=options.limit,
        seed=options.seed,
        journal=journal,
        others=others,
    )
    for arm, score in found.result.arms.items():
        official = "  ".join(f"{k} {v:.3f}" for k, v in score.scores["official"].items())
        cut = f", {score.truncated} truncated" if score.truncated else ""
        print(
            f"{arm:18}{official}  (n {score.n}, {score.edge_tokens:.0f} tokens at the "
            f"edge{cut}, compression {score.compression:.1f}x, {score.seconds:.1f} s)"
        )
    for sentence in found.result.words:
        print(sentence)
    return dataclasses.replace(found, result=dataclasses.replace(found.result, source=tools.source))


def _tool_sets(options: Eval) -> list[ToolSet]:
    """The benchmark's files in the data folder, or generated records where there are none."""
    folder = None if options.data == "hub" else home_path(options.data) / AGENT
    if folder is None or not folder.is_dir():
        count = options.limit or GENERATED_RECORDS
        hint = f"not the benchmark, whose files are read from {AGENT}/ in the data folder"
        sets = [generated_set(split, count, options.seed) for split in ("seen", "unseen")]
        return [dataclasses.replace(one, source=f"{one.source}, {hint}") for one in sets]
    files, training = benchmark_files(folder)
    if training:
        print(f"Left out, as it is for training: {', '.join(path.name for path in training)}.")
    return [benchmark_set(path) for path in files]


def _shots(text: str | None) -> dict[str, int]:
    """`5` or `5,hellaswag=0` by task; "*" is for all others."""
    shots = {}
    for part in (text or "").split(","):
        name, _, number = part.rpartition("=")
        if part.strip() and not number.strip().isdecimal():
            raise ConfigError(
                f"--shots is {text!r}; expected a number of 0 or more, or numbers by task as in "
                "5,hellaswag=0."
            )
        if not part.strip():
            continue
        if (name := name.strip() or "*") in shots:
            whose = "all tasks" if name == "*" else name
            raise ConfigError(f"--shots is {text!r}, with two numbers for {whose}; give one.")
        shots[name] = int(number)
    return shots


def _read_by_controls(options: Eval, names: Sequence[str]) -> Sequence[str]:
    """Tasks whose prompt, with samples, a control may read instead of that of one of lm-eval's."""
    return [*TASKS] if options.generator is not None and options.controls and names else []


def _check_shots(shots: Mapping[str, int], known: Sequence[str]) -> None:
    """Raises ConfigError for a number of samples for a task that no arm asks or reads."""
    for name in shots:
        if name != "*" and name not in known:
            raise ConfigError(
                f"--shots has a number for {name!r}, which is not among --tasks"
                f"{did_you_mean(name, known) or '.'}"
            )


def _about(edge: Model, generator: Generator | None) -> dict[str, Any]:
    def name(folder: Path | None) -> str | None:
        return None if folder is None else Path(folder).resolve().name

    def tokenizer(model: Model) -> str:
        return f"of {name(model.source)} ({len(model.tokenizer)} tokens)"

    return {
        "edge": name(edge.source),
        "edge_fingerprint": edge.fingerprint,
        "generator": None if generator is None else name(generator.source),
        "generator_fingerprint": None if generator is None else generator.fingerprint,
        "cloud": None if generator is None else name(generator.cloud.source),
        "family": edge.config.family,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(edge.params)),
        "tokenizer": tokenizer(edge),
        "cloud_tokenizer": None if generator is None else tokenizer(generator.cloud),
        "dtype": str(edge.dtype),
        "context": edge.config.max_positions,
    }


def _settings(options: Eval) -> dict[str, Any]:
    """The options that decide the result, and that are the same in all processes."""
    values = dataclasses.asdict(options)
    for name in ("json", "samples", "coordinator", "num_processes", "process_id"):
        del values[name]
    return _plain(values | {"template": options.template or TEMPLATE})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values: paths become texts, also those of a repeated option."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        return str(value) if isinstance(value, Path) else value

    return {key: plain(value) for key, value in values.items()}
