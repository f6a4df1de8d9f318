"""The table of tasks, one row per task.

Their order decides which task is the shuffled control of another (`evaluate/protocol.py`).
"""

from __future__ import annotations

from lorage_jax.data.task_rows import (
    arc_row,
    boolq_row,
    choice_example,
    gsm8k_example,
    gsm8k_row,
    hellaswag_row,
    openbookqa_row,
    piqa_row,
    social_iqa_row,
    winogrande_row,
)
from lorage_jax.data.tasks import Task
from lorage_jax.errors import DataError

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
            arc_row,
            "answerKey",
            "arc",
            subset="ARC-Challenge",
            shared_kind="science questions",
            column=1,
            short="ARC-c",
            seen=True,
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
            arc_row,
            "answerKey",
            "arc",
            subset="ARC-Easy",
            shared_kind="science questions",
            column=2,
            short="ARC-e",
            seen=True,
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
            openbookqa_row,
            "question_stem",
            "openbookqa",
            subset="main",
            shared_kind="science questions",
            column=3,
            short="OBQA",
            seen=True,
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
            boolq_row,
            "idx",
            "super_glue/boolq",
            column=4,
            short="BoolQ",
            seen=True,
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
            social_iqa_row,
            "answerA",
            "siqa",
            column=5,
            short="SIQA",
            seen=True,
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
            piqa_row,
            "sol1",
            "piqa",
            column=8,
            short="PIQA",
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
            winogrande_row,
            "option1",
            "winogrande",
            subset="winogrande_xl",
            column=7,
            short="WinoG",
        ),
        Task(
            "hellaswag",
            (
                "Continue the description of an activity with the most plausible next event.",
                "You get the start of a scene. Write the ending that would really follow.",
                "Use common sense about everyday actions to finish the text.",
            ),
            choice_example,
            hellaswag_row,
            "endings",
            "hellaswag",
            column=6,
            short="HellaS",
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
            gsm8k_row,
            "",
            "gsm8k",
            subset="main",
            free_text=True,
        ),
    )
}


def get_task(name: str) -> Task:
    """Looks up a task by name. Raises DataError, listing the known ones, if there is none."""
    if name not in TASKS:
        raise DataError(f"there is no task {name!r}; expected one of {', '.join(TASKS)}.")
    return TASKS[name]


def paper_tasks() -> tuple[Task, ...]:
    """The tasks of Table 2 of the paper (arXiv 2506.11638), in column order."""
    return tuple(sorted((t for t in TASKS.values() if t.column), key=lambda task: task.column))
