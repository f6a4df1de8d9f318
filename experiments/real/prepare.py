"""Writes the data of the three suites: instructions, commonsense questions, tool calls.

    python experiments/real/prepare.py --data DATA --out runs/real/data

DATA is a folder with `many_tasks/`, `alpaca/`, `commonsense/` and `tool_use/`. Everything is drawn
by fixed seeds; a minute on one CPU core. Written are

    instructions.jsonl       tasks {name, group, definition, instances}: Super-NaturalInstructions,
                             instruction induction, function vectors, classification
    seen.jsonl, unseen.jsonl    of these, what is asked: tasks with answers of a few words, every
                             third of the seen ones, and all that training holds out
    instructions_N.jsonl     N of the tasks in training, 10 or 30, drawn by a seed: for scaling
    t0.jsonl                 the shorter tasks of T0: prompted inputs, no definitions
    alpaca.jsonl             {system, user, target}: Alpaca's short rows with an input
    commonsense/TASK.jsonl   training rows of the five seen tasks of the paper
    tools.jsonl              {system, user, target}: calls of the seen tools
    gpt4tools/seen.json      records in GPT4Tools' format: unseen questions for seen tools
    gpt4tools/unseen.json    the same for tools that training never offers

Texts are kept short, so that a batch holds many of them. Tasks that ask for the same thing in
different collections (an antonym, say) share a group, and groups are held out as a whole.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from generator import HELD_OUT
from tool_records import tool_files
from wordings import WORDINGS

from lorage_jax.data.written_tasks import is_held_out

COLLECTIONS = {
    "superni": "superni",
    "instruction_induction": "induction",
    "function_vectors": "vectors",
    "cl_classification": "classes",
}
# Characters of an input and of an output, and instances per task.
INPUT, OUTPUT, MOST, FEWEST = 320, 160, 500, 25
FEW = (10, 30)  # tasks of the smaller files
ANSWER = 24  # characters of a median answer that is scored
T0_INPUT, T0_OUTPUT, T0_MOST = 400, 100, 100
ALPACA_INPUT, ALPACA_OUTPUT = 400, 240
COMMONSENSE = ("arc_challenge", "arc_easy", "openbookqa", "boolq", "social_iqa")
COMMONSENSE_ROWS, COMMONSENSE_LENGTH = 6000, 700
# Tasks of one kind in several collections: pattern of the name -> group.
GROUPS = (
    (r"antonym", "antonym"),
    (r"synonym", "synonym"),
    (r"singular.*plural", "plural"),
    (r"country.capital", "capital"),
    (r"country.currency", "currency"),
    (r"rhyme", "rhyme"),
    (r"sentiment|sst2|imdb|yelp|amazon|app_reviews", "sentiment"),
    (r"french|en-fr", "french"),
    (r"german|en-de", "german"),
    (r"spanish|en-es", "spanish"),
    (r"ag_?news", "news_topic"),
    (r"commonsense_?qa", "commonsense_qa"),
    (r"word_in_context|^wic$", "word_sense"),
    (r"^(cb|mnli|rte)$", "entailment"),
    (r"qqp|mrpc|paws", "paraphrase"),
    (r"sciq", "sciq"),
    (r"first_word_letter|lowercase_first_letter", "first_letter"),
    (r"second", "second_letter"),
    (r"_v_(adjective|verb)_|adjective_v|verb_v", "word_class"),
    (r"concept", "concept"),
    (r"first_i|except_first", "first_elements"),
    (r"subject_count|tense|present-past", "grammar"),
)


def main(data: Path, out: Path) -> None:
    """Writes all files into the folder `out`."""
    tasks = list(instructions(data / "many_tasks"))
    write(out / "instructions.jsonl", tasks)
    for name, part in (asked(tasks) | few(tasks)).items():
        write(out / f"{name}.jsonl", part)
    write(out / "t0.jsonl", list(t0(data / "many_tasks" / "t0.jsonl.gz")))
    write(out / "alpaca.jsonl", list(alpaca(data / "alpaca" / "alpaca.jsonl.gz")))
    for name in COMMONSENSE:
        rows = commonsense(data / "commonsense" / name / "train.jsonl.gz")
        write(out / "commonsense" / f"{name}.jsonl", rows)
    for name, rows in tool_files(data / "tool_use").items():
        write(out / name, rows)


def instructions(folder: Path) -> Iterator[dict[str, Any]]:
    """The tasks of four collections, with our wordings where the data have none."""
    for file, label in COLLECTIONS.items():
        for task in read(folder / f"{file}.jsonl.gz"):
            name = task["task"]
            definitions = [*(task.get("definition") or []), *WORDINGS.get(name, ())]
            instances = short(task["instances"], INPUT, OUTPUT, MOST)
            if definitions and len(instances) >= FEWEST:
                yield {
                    "name": f"{label}/{name}",
                    "group": group(name),
                    "source": file,
                    "definition": definitions,
                    "instances": instances,
                }


def few(tasks: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """`instructions_N`: the first N of the tasks in training, in a random order."""
    trained = [task for task in tasks if not is_unseen(task)]
    Random(HELD_OUT.seed).shuffle(trained)
    return {f"instructions_{count}": trained[:count] for count in FEW}


def is_unseen(task: dict[str, Any]) -> bool:
    """True if training holds out all tasks of this kind."""
    return is_held_out("task", task["group"], HELD_OUT.tasks, HELD_OUT.seed)


def asked(tasks: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The tasks to score, `seen` and `unseen`: those whose median answer is short."""
    brief = [task for task in tasks if median_answer(task) <= ANSWER]
    unseen = [task for task in brief if is_unseen(task)]
    return {"seen": [task for task in brief if task not in unseen][::3], "unseen": unseen}


def median_answer(task: dict[str, Any]) -> int:
    """Characters of the median first answer."""
    outputs = [one["output"] for one in task["instances"]]
    lengths = sorted(len(str(o[0] if isinstance(o, list) else o)) for o in outputs)
    return lengths[len(lengths) // 2]


def t0(path: Path) -> Iterator[dict[str, Any]]:
    """T0's tasks whose inputs are short; their inputs contain the instruction."""
    for task in read(path):
        instances = short(task["instances"], T0_INPUT, T0_OUTPUT, T0_MOST)
        if len(instances) >= FEWEST:
            rest = {"source": "t0", "definition": [], "instances": instances}
            yield {"name": f"t0/{task['task']}", "group": group(task["group"]), **rest}


def group(name: str) -> str:
    """What a task asks for, the same for all its forms: `antonym`, `choose_first_of`."""
    for pattern, found in GROUPS:
        if re.search(pattern, name):
            return found
    return re.sub(r"_[35]$", "", name)


def short(
    instances: list[dict[str, Any]], most_in: int, most_out: int, count: int
) -> list[dict[str, Any]]:
    """At most `count` instances with short texts, in their order."""

    def fits(one: dict[str, Any]) -> bool:
        answers = one["output"] if isinstance(one["output"], list) else [one["output"]]
        texts = [str(answer) for answer in answers]
        return (
            0 < len(str(one["input"]).strip()) <= most_in
            and bool(texts)
            and 0 < min(map(len, texts)) <= max(map(len, texts)) <= most_out
        )

    kept = [one for one in instances if fits(one)]
    return kept[:count]


def alpaca(path: Path) -> Iterator[dict[str, Any]]:
    """Alpaca's rows with an input, whose instruction becomes the system prompt."""
    for row in read(path):
        user, target = row["input"].strip(), row["output"].strip()
        if 0 < len(user) <= ALPACA_INPUT and 0 < len(target) <= ALPACA_OUTPUT:
            yield {"system": row["instruction"].strip(), "user": user, "target": target}


def commonsense(path: Path) -> list[dict[str, Any]]:
    """A sample of a task's training rows without the longest."""
    rows = [row for row in read(path) if len(json.dumps(row)) <= COMMONSENSE_LENGTH]
    return Random(path.parent.name).sample(rows, min(COMMONSENSE_ROWS, len(rows)))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a gzipped file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes JSON lines, or one array for a name that ends in .json, and says how much."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        if path.suffix == ".json":
            json.dump(rows, file, ensure_ascii=False)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.rename(path)
    print(f"{path}: {len(rows)} rows, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the data of the three suites.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw data")
    parser.add_argument("--out", type=Path, default=Path("runs/real/data"))
    options = parser.parse_args()
    main(options.data, options.out)
