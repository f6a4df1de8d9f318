"""Converts rows of tasks to examples, and local rows to the layouts of the Hub.

The edge sees the question, never the list of choices; the target is the text of the right choice.
Evaluation scores the text of every choice instead (`Example.choices`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lorage_jax.data.records import Row, require_text
from lorage_jax.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Example:
    """One item of a task. `choices` is empty if the answer is free text."""

    user: str
    target: str
    choices: tuple[str, ...] = ()
    label: int = 0


def choice_example(row: Row, where: str) -> Example:
    """Converts a multiple-choice row, {question, choices, label} or a Hub layout, to an Example.

    `context` or `passage` precedes the question. Raises DataError naming `where` if a field is
    missing, there are fewer than two choices or no answer, or the label is out of range.
    """
    row = _from_hub(row, where)
    lines = [require_text(row, name, where) for name in ("passage", "context") if name in row]
    question = require_text(row, "question", where)
    lines.append(f"Question: {question}" if "passage" in row else question)
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) < 2:
        raise DataError(
            f"{where}: choices is {choices!r}; expected a list of two or more texts "
            f"(found the fields {', '.join(row)})."
        )
    names = {f"choice {number}": choice for number, choice in enumerate(choices)}
    texts = tuple(require_text(names, name, where) for name in names)
    label = row.get("label")
    if label is None:
        raise DataError(f"{where}: the answer is missing; expected label, found {', '.join(row)}.")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(texts):
        raise DataError(
            f"{where}: label is {label!r}; expected 0 to {len(texts) - 1} ({len(texts)} choices)."
        )
    return Example("\n".join(lines), texts[label], texts, label)


def gsm8k_example(row: Row, where: str) -> Example:
    """Converts a {question, answer} row, dropping calculator marks `<<...>>`.

    Raises DataError, naming `where`, if a field is missing or the answer has no `#### number`.
    """
    question, answer = require_text(row, "question", where), require_text(row, "answer", where)
    if "####" not in answer:
        raise DataError(f"{where}: the answer has no final number after `####`.")
    first, *parts = answer.split("<<")
    return Example(question, first + "".join(part.split(">>", 1)[-1] for part in parts))


def _from_hub(row: Row, where: str) -> Row:
    """Converts a row of an official data set to {question, choices, label}; others are kept.

    Raises DataError, naming `where`, if what has to be a list or a text to do so is none.
    """
    if isinstance(row.get("choices"), dict):  # ARC, OpenBookQA
        texts = _list(row["choices"].get("text"), "choices.text", where)
        letters = _list(row["choices"].get("label"), "choices.label", where)
        key = row.get("answerKey")
        label = letters.index(key) if key in letters else None
        question = row.get("question", row.get("question_stem"))
        return {"question": question, "choices": texts, "label": label}
    if "sol1" in row:  # PIQA
        choices = [row["sol1"], row.get("sol2")]
        return {"question": row.get("goal"), "choices": choices, "label": row.get("label")}
    if "option1" in row:  # WinoGrande: "1" or "2"
        choices = [row["option1"], row.get("option2")]
        label = _number(row.get("answer"), -1)
        return {"question": row.get("sentence"), "choices": choices, "label": label}
    if "answerA" in row:  # Social IQa: "1" to "3"
        choices = [row.get(f"answer{letter}") for letter in "ABC"]
        rest = {name: row.get(name) for name in ("context", "question")}
        return {**rest, "choices": choices, "label": _number(row.get("label"), -1)}
    if "endings" in row:  # HellaSwag
        texts = {"activity_label": "", **row}
        activity, context = (
            require_text(texts, name, where, empty=True) for name in ("activity_label", "ctx")
        )
        choices = _list(row["endings"], "endings", where)
        question, label = f"{activity}: {context}".removeprefix(": "), _number(row.get("label"), 0)
        return {"question": question, "choices": choices, "label": label}
    if "passage" in row and "choices" not in row:  # BoolQ, alone or in SuperGLUE
        rest = {name: row[name] for name in ("passage", "question") if name in row}
        answer = row.get("answer")
        label = int(answer) if isinstance(answer, bool) else row.get("label")
        return {**rest, "choices": ["no", "yes"], "label": label}
    return row


def _list(value: object, name: str, where: str) -> list:
    """The list in the field `name`. Raises DataError, naming `where`, for anything else."""
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: {name} is {value!r}; expected a list.")
    return list(value)


def _number(text: object, shift: int) -> int | None:
    # Test splits with hidden labels have empty strings. "²" is a digit, but no number.
    return int(str(text)) + shift if str(text).isdecimal() else None


def arc_row(row: Row, where: str) -> Row:
    """Converts a row to the Hub's layout of ARC. Errors as in `choice_example`."""
    example = choice_example(row, where)
    letters = list(LETTERS[: len(example.choices)])
    choices = {"text": list(example.choices), "label": letters}
    question = require_text(row, "question", where)
    return {"question": question, "choices": choices, "answerKey": letters[example.label]}


def openbookqa_row(row: Row, where: str) -> Row:
    """Converts a row to the Hub's layout of OpenBookQA. Errors as in `choice_example`."""
    values = arc_row(row, where)
    return {"question_stem": values.pop("question"), **values}


def _exactly(row: Row, where: str, count: int) -> Example:
    """Converts a row to an Example; raises DataError if it does not have `count` choices."""
    example = choice_example(row, where)
    if len(example.choices) != count:
        raise DataError(f"{where}: {len(example.choices)} choices; this task has {count}.")
    return example


def boolq_row(row: Row, where: str) -> Row:
    """Converts a row to the layout of BoolQ in SuperGLUE.

    Errors as in `choice_example`; also raises DataError if the answer is neither yes nor no.
    """
    example = _exactly(row, where, 2)
    answer = example.target.strip().lower()
    if answer not in ("no", "yes"):
        raise DataError(f"{where}: the answer is {example.target!r}; expected no or yes.")
    label = int(answer == "yes")
    # The definition adds the question mark, which the Hub's questions lack.
    question = require_text(row, "question", where).removesuffix("?")
    return {"passage": require_text(row, "passage", where), "question": question, "label": label}


def social_iqa_row(row: Row, where: str) -> Row:
    """Converts a row to the Hub's layout of Social IQa. Errors as in `choice_example`."""
    example = _exactly(row, where, 3)
    answers = {f"answer{c}": text for c, text in zip("ABC", example.choices, strict=True)}
    texts = {name: require_text(row, name, where) for name in ("context", "question")}
    return {**texts, **answers, "label": str(example.label + 1)}


def piqa_row(row: Row, where: str) -> Row:
    """Converts a row to the Hub's layout of PIQA. Errors as in `choice_example`."""
    example = _exactly(row, where, 2)
    goal = require_text(row, "question", where)
    return {"goal": goal, "sol1": example.choices[0], "sol2": example.choices[1],
            "label": example.label}  # fmt: skip


def winogrande_row(row: Row, where: str) -> Row:
    """Converts a row to the Hub's layout of WinoGrande.

    Errors as in `choice_example`; also raises DataError if the sentence has no blank.
    """
    example = _exactly(row, where, 2)
    sentence = require_text(row, "question", where)
    if "_" not in sentence:
        raise DataError(f"{where}: the sentence has no blank; expected a _ in {sentence[:60]!r}.")
    return {"sentence": sentence, "option1": example.choices[0], "option2": example.choices[1],
            "answer": str(example.label + 1)}  # fmt: skip


def hellaswag_row(row: Row, where: str) -> Row:
    """Converts a row, whose question is `activity: context`, to the Hub's layout of HellaSwag.

    Like the Hub, splits off the context's last, unfinished sentence. Errors as in `choice_example`.
    """
    example = choice_example(row, where)
    activity, colon, context = require_text(row, "question", where).partition(": ")
    if not colon:
        activity, context = "", activity
    whole, rest = _last_sentence(context)
    return {
        "activity_label": activity,
        "ctx_a": whole,
        "ctx_b": rest,
        "ctx": context,
        "endings": list(example.choices),
        "label": str(example.label),
    }


def gsm8k_row(row: Row, where: str) -> Row:
    """Converts a row to the Hub's layout of GSM8K. Errors as in `gsm8k_example`."""
    gsm8k_example(row, where)  # raises if the final number is missing
    return {"question": row["question"], "answer": row["answer"]}


def _last_sentence(text: str) -> tuple[str, str]:
    text = text.strip()
    if text.endswith((".", "!", "?")):
        return text, ""
    parts = re.split(r"(?<=[.!?]) ", text)
    return " ".join(parts[:-1]), parts[-1]
