"""The paper's tasks: a description to become the system prompt, and rows to become examples.

The edge sees the question, never the list of choices; the answer is the text of the right
choice. Evaluation scores the text of every choice instead (`Example.choices`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from lorage_jax.data.records import Row, require_text
from lorage_jax.data.templates import few_shot_prompt
from lorage_jax.errors import DataError


@dataclass(frozen=True)
class Example:
    """One item of a task. `choices` is empty where the answer is free text."""

    user: str
    target: str
    choices: tuple[str, ...] = ()
    label: int = 0


@dataclass(frozen=True)
class Task:
    """`descriptions`: paraphrases of one system prompt. `subset`: the Hub's configuration."""

    name: str
    descriptions: tuple[str, ...]
    to_example: Callable[[Row, str], Example]
    subset: str | None = None


def choice_example(row: Row, where: str) -> Example:
    """A multiple-choice row, {question, choices, label} or a layout of the Hub, as an Example.

    In front of the question: `context` or `passage`. DataError names `where`: field missing,
    fewer than two choices, no answer, or a label out of range.
    """
    row = _from_hub(row)
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
    """A {question, answer} row; the calculator marks `<<...>>` go, `#### number` stays."""
    question, answer = require_text(row, "question", where), require_text(row, "answer", where)
    if "####" not in answer:
        raise DataError(f"{where}: the answer has no final number behind `####`.")
    first, *parts = answer.split("<<")
    return Example(question, first + "".join(part.split(">>", 1)[-1] for part in parts))


def _from_hub(row: Row) -> Row:
    """The official data sets' own layouts as {question, choices, label}; other rows unchanged."""
    if isinstance(row.get("choices"), dict):  # ARC, OpenBookQA
        texts, letters = row["choices"].get("text", []), row["choices"].get("label", [])
        key = row.get("answerKey")
        label = letters.index(key) if key in letters else None
        question = row.get("question", row.get("question_stem"))
        return {"question": question, "choices": list(texts), "label": label}
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
        question = f"{row.get('activity_label', '')}: {row.get('ctx', '')}".removeprefix(": ")
        label = _number(row.get("label"), 0)
        return {"question": question, "choices": list(row["endings"]), "label": label}
    if "passage" in row and "choices" not in row:  # BoolQ, alone or in SuperGLUE
        rest = {name: row[name] for name in ("passage", "question") if name in row}
        answer = row.get("answer")
        label = int(answer) if isinstance(answer, bool) else row.get("label")
        return {**rest, "choices": ["no", "yes"], "label": label}
    return row


def _number(text: object, shift: int) -> int | None:
    # An empty string marks the hidden labels of a test split.
    return int(str(text)) + shift if str(text).isdigit() else None


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "arc_challenge",
            (
                "You answer difficult grade-school science questions. Give only the answer.",
                "Here come hard questions from school science exams. Reply with the phrase that "
                "answers each one correctly.",
                "Use scientific knowledge and reasoning to answer a tricky science question in "
                "a few words.",
            ),
            choice_example,
            "ARC-Challenge",
        ),
        Task(
            "arc_easy",
            (
                "You answer easy grade-school science questions. Give only the answer.",
                "Each message is a simple question from a science class. Reply with the short "
                "answer and nothing else.",
                "Answer basic questions about nature, matter and living things in a few words.",
            ),
            choice_example,
            "ARC-Easy",
        ),
        Task(
            "openbookqa",
            (
                "Answer elementary science questions by joining a known fact with common sense. "
                "Some questions are the beginning of a sentence: complete it.",
                "You get a question or an unfinished statement about everyday science. Give the "
                "words that answer or finish it correctly.",
                "Apply simple science facts to a new situation and state the best answer.",
            ),
            choice_example,
            "main",
        ),
        Task(
            "boolq",
            (
                "Read the passage and answer the question about it with yes or no.",
                "You are given a text and a question. Say yes if the text supports it, "
                "otherwise no.",
                "Decide from the passage alone whether the answer is yes or no. Reply with that "
                "one word.",
            ),
            choice_example,
        ),
        Task(
            "social_iqa",
            (
                "A short scene with people is described. Answer the question about what they "
                "feel, want or do.",
                "Use social common sense: say how people react, why they act, or what comes next.",
                "You understand people. Read the situation and answer the question about "
                "motives, feelings or results.",
            ),
            choice_example,
        ),
        Task(
            "piqa",
            (
                "Given a goal in everyday life, say how to reach it in the physical world.",
                "Use physical common sense: describe the way that works to do what is asked.",
                "You know how objects and materials behave. Give the practical solution for the "
                "stated aim.",
            ),
            choice_example,
        ),
        Task(
            "winogrande",
            (
                "A sentence has a blank marked _. Say which of the names or things in it belongs "
                "in the blank.",
                "Fill the gap _ with the person or object that makes the sentence sensible.",
                "Work out whom or what the underscore stands for and reply with that word.",
            ),
            choice_example,
            "winogrande_xl",
        ),
        Task(
            "hellaswag",
            (
                "Continue the description of an activity with the most plausible next event.",
                "You get the start of a scene. Write the ending that would really follow.",
                "Use common sense about everyday actions to finish the text.",
            ),
            choice_example,
        ),
        Task(
            "gsm8k",
            (
                "Solve the maths word problem step by step. Write the final number behind ####.",
                "You are good at arithmetic. Show each step of the calculation, then end with "
                "#### and the result.",
                "Reason through the grade-school maths question and close with a line that has "
                "#### and the answer.",
            ),
            gsm8k_example,
            "main",
        ),
    )
}


def get_task(name: str) -> Task:
    """The task called `name`; DataError lists the known ones."""
    if name not in TASKS:
        raise DataError(f"there is no task {name!r}; expected one of {', '.join(TASKS)}.")
    return TASKS[name]


def task_prompt(
    task: Task, bank: Sequence[Example], asked: Sequence[Example], shots: int, rng: Random
) -> str:
    """A few-shot system prompt: a description and `shots` random samples out of `bank`.

    No sample has the user text of an item in `asked`. `bank` holds every user text once (see
    `sample_bank`); where it is too small, all that is left of it is used. Paper: "multi-shot
    samples drawn at random go into the system prompt".
    """
    taken = {item.user for item in asked}
    drawn = rng.sample(bank, min(len(bank), shots + len(taken)))
    samples = [(item.user, item.target) for item in drawn if item.user not in taken]
    return few_shot_prompt(rng.choice(task.descriptions), samples[:shots])


def sample_bank(items: Sequence[Example]) -> list[Example]:
    """`items` with every user text once."""
    return list({item.user: item for item in items}.values())
