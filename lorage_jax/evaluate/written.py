"""Files of tasks for `lorage eval`: which questions are asked, and lm-eval's definition of each.

If the generator recorded what its training held out, only that is asked: instances that it never
saw, in wordings that it never saw. Otherwise everything in the file is.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

from lorage_jax.buckets import bucket
from lorage_jax.config import HeldOut
from lorage_jax.data.records import Row, file_digest
from lorage_jax.data.task_rows import Example
from lorage_jax.data.tasks import Task
from lorage_jax.data.written_tasks import (
    TEST,
    VALIDATION,
    Instance,
    WrittenTask,
    is_held_out,
    read_tasks,
    task_files,
    task_held_out,
)
from lorage_jax.errors import DataError, listed
from lorage_jax.evaluate.protocol import verbatim

SHOTS = 5  # in the prompt of a task without a definition
RESERVED = 16  # instances that are kept for samples where nothing else is
TOKENS = 256  # the most tokens of an answer
STOPS = ("\n\n", "\nUser:")


@dataclass(frozen=True)
class Written:
    """One task of a file, ready to be asked.

    Attributes:
        task: its description as for all tasks; the first wording is the one to ask in.
        asked: the questions.
        samples: solved questions for the prompt, none of which is asked.
        shots: samples in the prompt.
        tokens: the most tokens of an answer.
        facts: what a result says of it.
    """

    task: Task
    asked: tuple[Instance, ...]
    samples: tuple[Instance, ...]
    shots: int
    tokens: int
    facts: dict[str, Any]

    def definition(self, shots: int) -> dict[str, Any]:
        """lm-eval's definition of the task, with the records themselves."""
        from datasets import Dataset, DatasetDict

        asked, samples = self.asked, self.samples
        if shots > len(samples):
            raise DataError(
                f"{self.task.name} has {len(samples)} samples besides its questions; {shots} are "
                f"asked for. Use fewer for this task: --shots {shots},{self.task.name}=0."
            )
        parts = {"test": asked} | ({"samples": samples} if samples else {})
        splits = DatasetDict({k: Dataset.from_list([_row(i) for i in v]) for k, v in parts.items()})
        common = {
            "task": self.task.name,
            "custom_dataset": lambda **_: splits,
            "test_split": "test",
            "fewshot_split": "samples" if samples else None,
            "num_fewshot": shots,
            "doc_to_text": _text,
            "target_delimiter": " ",
            "metadata": {"version": 1.0},
        }
        if not self.task.free_text:
            return common | {
                "output_type": "multiple_choice",
                "doc_to_choice": "choices",
                "doc_to_target": "label",
                "metric_list": [_mean("acc"), _mean("acc_norm")],
            }
        answers = [output for one in asked for output in one.outputs]
        stops = [stop for stop in STOPS if not any(stop in answer for answer in answers)]
        return common | {
            "output_type": "generate_until",
            "doc_to_target": lambda row: row["outputs"][0],
            "process_results": _scores,
            "metric_list": [_mean("exact_match"), _mean("f1")],
            "generation_kwargs": {
                "until": stops,
                "do_sample": False,
                "max_gen_toks": self.tokens,
            },
        }

    def few_shot(self) -> dict[str, str]:
        """Fields for lm-eval's own few-shot prompt: the wording in front, as a description."""
        text = self.task.descriptions[0]
        return {"description": verbatim(f"{text}\n\n")} if text else {}


@dataclass(frozen=True)
class WrittenTasks:
    """The tasks of the files of an evaluation, by name, in order.

    Attributes:
        tasks: by name.
        files: name of each task's file and a digest of its content.
        note: what was left out, in words; empty if nothing was.
    """

    tasks: dict[str, Written]
    files: dict[str, dict[str, str]]
    note: str = ""


def written_tasks(
    paths: Sequence[str | Path],
    shots: Mapping[str, int] = MappingProxyType({}),
    held: Sequence[HeldOut] = (),
    seed: int = 0,
    max_new_tokens: int | None = None,
) -> WrittenTasks:
    """Reads files of tasks for an evaluation.

    Args:
        paths: files, and folders of files.
        shots: samples in the prompt by task; "*": all others. By default 0, and 5 for a task
            without a definition. Where a file has no samples besides the questions, some of these
            become samples, so that none is asked.
        held: what the training of the generator held out; all of it has to agree.
        seed: draws the wording of each task.
        max_new_tokens: the most tokens of an answer; by default enough for the accepted ones.

    Raises DataError for files that are missing or malformed, and if no question is left.
    """
    tasks = read_tasks(paths)
    digests = {str(file): file_digest(file) for path in paths for file in task_files(path)}
    grouped = len(Counter(task.group for task in tasks)) > 1
    made = {
        task.name: _written(
            task, shots.get(task.name, shots.get("*")), held, seed, max_new_tokens, grouped
        )
        for task in tasks
        if task.instances
    }
    ready = {name: one for name, one in made.items() if one.asked}
    if not ready:
        raise DataError(
            f"{', '.join(map(str, paths))}: no task has an instance that training held out."
            if held
            else f"{', '.join(map(str, paths))}: no task has an instance."
        )
    left = [task.name for task in tasks if task.name not in ready]
    note = ""
    if left:
        note = f"{len(left)} tasks have no instances to ask and are left out: {listed(left, 5)}."
    places = {task.name: task.place for task in tasks}
    files = {
        name: {
            Path(file).name: digest
            for file, digest in digests.items()
            if places[name].rpartition(":")[0] == file
        }
        for name in ready
    }
    return WrittenTasks(ready, files, note)


def _written(
    task: WrittenTask,
    shots: int | None,
    held: Sequence[HeldOut],
    seed: int,
    max_new_tokens: int | None,
    grouped: bool,
) -> Written:
    asked, definitions, facts = _held_out_part(task, held)
    wording = Random(f"{task.name}/{seed}").choice(definitions) if definitions else ""
    shots = (0 if wording else SHOTS) if shots is None else shots
    asked, samples = _divided(task, asked, shots)
    longest = max((len(o.encode()) for i in asked for o in i.outputs), default=1)
    described = Task(
        name=task.name,
        descriptions=(wording,),
        to_example=_example,
        to_hub=lambda row, where: row,
        hub_field="",
        folder="",
        shared_kind=task.group if grouped and task.group else None,
        free_text=not all(i.choices for i in (*asked, *samples)),
    )
    # A token has at least a byte, so an accepted answer always has room.
    tokens = max_new_tokens or min(TOKENS, bucket(longest + 1))
    return Written(described, tuple(asked), tuple(samples), shots, tokens, facts)


def _held_out_part(
    task: WrittenTask, held: Sequence[HeldOut]
) -> tuple[list[Instance], list[str], dict[str, Any]]:
    """(questions to ask, wordings to choose from, facts)."""
    asked, definitions = list(task.instances), list(task.definitions)
    marked = next(
        (own for names in (TEST, VALIDATION) if (own := [i for i in asked if i.split in names])), []
    )
    if not held:
        return marked or asked, definitions, {}
    if all(task_held_out(task, one) for one in held):
        return marked or asked, definitions, {"task_held_out": True}
    # What the data mark as test or validation was no training data either.
    asked = marked or [i for i in asked if _all_held("instance", i.input, held)]
    unseen = [d for d in definitions if _all_held("definition", d, held)]
    facts = {"task_held_out": False, "wording_held_out": bool(unseen)}
    return asked, unseen or definitions, facts


def _divided(
    task: WrittenTask, asked: list[Instance], shots: int
) -> tuple[list[Instance], list[Instance]]:
    """(questions, samples), which share no input; too few samples are made of questions."""
    keys = {one.key for one in asked}
    samples = {i.key: i for i in (*task.examples, *task.instances) if i.key not in keys}
    if len(samples) < shots and len(keys) > 1:
        order = sorted(keys, key=lambda key: Random(f"samples/{key}").random())
        taken = set(order[: max(1, min(RESERVED, len(keys) // 3))])
        samples |= {one.key: one for one in asked if one.key in taken}
        asked = [one for one in asked if one.key not in taken]
    return asked, list(samples.values())


def _all_held(kind: str, text: str, held: Sequence[HeldOut]) -> bool:
    shares = {"instance": "instances", "definition": "paraphrases"}
    return all(is_held_out(kind, text, getattr(one, shares[kind]), one.seed) for one in held)


def _row(one: Instance) -> Row:
    labels = [n for n, choice in enumerate(one.choices) if choice in one.outputs]
    return {
        "input": one.input,
        "outputs": list(one.outputs),
        "choices": list(one.choices),
        "label": labels[0] if labels else -1,
    }


def _text(row: Row) -> str:
    """The question as lm-eval's few-shot prompt has it."""
    return f"Input: {row['input'].strip()}\nOutput:" if row["input"].strip() else "Output:"


def _example(row: Row, where: str) -> Example:
    return Example(row["input"], row["outputs"][0], tuple(row["choices"]), row["label"])


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _scores(row: Row, results: Sequence[str]) -> dict[str, float]:
    """The best exact match and token F1 over the accepted answers."""
    return {
        "exact_match": max(exact_match(results[0], output) for output in row["outputs"]),
        "f1": max(token_f1(results[0], output) for output in row["outputs"]),
    }


def exact_match(answer: str, accepted: str) -> float:
    """1 if the answers are equal after SQuAD's normalisation, else 0."""
    return float(_normalised(answer, accepted) == _normalised(accepted, accepted))


def token_f1(answer: str, accepted: str) -> float:
    """SQuAD's F1 of the words that both answers have, as often as both have them."""
    said, gold = (_normalised(text, accepted).split() for text in (answer, accepted))
    if not said or not gold:
        return float(said == gold)
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold))


def _normalised(text: str, accepted: str) -> str:
    """Lower case without punctuation, articles and superfluous white space.

    If that leaves nothing of the accepted answer ("A", "+"), case and white space only.
    """

    def bare(text: str) -> str:
        letters = "".join(c for c in text.lower() if c not in string.punctuation)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())

    return bare(text) if bare(accepted) else " ".join(text.lower().split())
