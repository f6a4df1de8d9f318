import gzip
import json
import re
from random import Random

import pytest

from lorage_jax.data.records import read_rows
from lorage_jax.data.task_rows import Example
from lorage_jax.data.task_table import TASKS, get_task
from lorage_jax.data.tasks import sample_bank, task_prompt
from lorage_jax.errors import DataError

ARC = {"id": "1", "question": "Why?", "choices": ["a", "b", "c"], "label": 1}


def _read(task, row):
    return get_task(task).to_example(row, "f.jsonl:4")


def test_row_formats():
    assert _read("arc_easy", ARC) == Example("Why?", "b", ("a", "b", "c"), 1)
    passage = {"passage": "P.", "question": "is it", "choices": ["no", "yes"], "label": 0}
    assert _read("boolq", passage) == Example("P.\nQuestion: is it", "no", ("no", "yes"), 0)
    context = {**ARC, "context": "C."}
    assert _read("social_iqa", context).user == "C.\nWhy?"


def test_gsm8k_drops_calculator_marks():
    row = {"question": "How many?", "answer": "It is 2+2 = <<2+2=4>>4, then <<4*2=8>>8.\n#### 8"}
    assert _read("gsm8k", row) == Example("How many?", "It is 2+2 = 4, then 8.\n#### 8")
    with pytest.raises(DataError, match=r"f\.jsonl:4.*####"):
        _read("gsm8k", {**row, "answer": "8"})


HUB = {
    "arc_challenge": (
        {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}
    ),
    "openbookqa": {
        "question_stem": "Why?",
        "choices": {"text": ["a", "b"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "piqa": {"goal": "Why?", "sol1": "a", "sol2": "b", "label": 1},
    "winogrande": {"sentence": "Why?", "option1": "a", "option2": "b", "answer": "2"},
    "social_iqa": {
        "context": "C",
        "question": "Why?",
        "label": "2",
        "answerA": "a",
        "answerB": "b",
        "answerC": "c",
    },
    "hellaswag": {"ctx": "Why?", "endings": ["a", "b"], "label": "1"},
}


def _arc_of_the_hub(**choices):
    row = HUB["arc_challenge"]
    return {**row, "choices": {**row["choices"], **choices}}


@pytest.mark.parametrize("name", HUB)
def test_layouts_of_the_hub(name):
    example = _read(name, HUB[name])
    assert (example.target, example.label) == ("b", 1)
    assert example.user == ("C\nWhy?" if name == "social_iqa" else "Why?")


def test_boolq_of_the_hub():
    row = {"question": "is it", "passage": "P.", "answer": True}
    assert _read("boolq", row) == Example("P.\nQuestion: is it", "yes", ("no", "yes"), 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ARC, "label": 3}, "label is 3; expected 0 to 2"),
        ({**ARC, "label": -1}, "label is -1; expected 0 to 2"),
        ({**ARC, "label": "b"}, "label is 'b'"),
        ({**ARC, "label": True}, "label is True"),
        ({**ARC, "label": None}, "the answer is missing"),
        ({"question": "q", "choices": ["a", "b"]}, "the answer is missing"),
        ({"question": "q", "label": 0}, "choices is None.*found the fields question, label"),
        ({**ARC, "choices": ["a"]}, "expected a list of two or more"),
        ({**ARC, "choices": ["a", None]}, "choice 1 is null"),
        ({"choices": ["a", "b"], "label": 0}, "question is missing"),
        ({**HUB["arc_challenge"], "answerKey": "9"}, "the answer is missing"),
        ({**HUB["hellaswag"], "label": ""}, "the answer is missing"),
        ({**HUB["hellaswag"], "label": "²"}, "the answer is missing"),
        ({**HUB["hellaswag"], "endings": None}, "endings is None; expected a list"),
        ({**HUB["hellaswag"], "endings": "abcd"}, "endings is 'abcd'; expected a list"),
        ({**HUB["hellaswag"], "ctx": None}, "the field ctx is null"),
        ({**HUB["hellaswag"], "activity_label": 3}, "the field activity_label is"),
        ({"endings": ["a", "b"], "label": "1"}, "the field ctx is missing"),
        (_arc_of_the_hub(label=None), "choices.label is None; expected a list"),
        (_arc_of_the_hub(text=None), "choices.text is None; expected a list"),
        (_arc_of_the_hub(text="ab"), "choices.text is 'ab'; expected a list"),
    ],
)
def test_bad_rows_name_file_and_line(row, message):
    with pytest.raises(DataError, match=rf"^f\.jsonl:4: .*{message}"):
        _read("arc_challenge", row)


def test_unknown_task():
    with pytest.raises(DataError, match=r"no task 'arc'; expected one of arc_challenge, arc_easy"):
        get_task("arc")


def test_descriptions_are_distinct():
    texts = [text for task in TASKS.values() for text in task.descriptions]
    assert len(set(texts)) == len(texts) == 3 * len(TASKS)


def _users(prompt):
    return re.findall(r"User: (\w+)\n", prompt)


def test_samples_are_never_the_queried_items():
    task = TASKS["piqa"]
    # Every text occurs twice, as in PIQA: the copy of a queried item must not be shown.
    bank = sample_bank([Example(f"q{i % 12}", f"t{i}") for i in range(24)])
    asked = [bank[3], bank[7]]
    seen, counts = set(), set()
    for seed in range(60):
        users = _users(task_prompt(task, bank, asked, 5, Random(seed)))
        assert len(set(users)) == 5 and not {"q3", "q7"} & set(users)
        seen.update(users)
    assert seen == {e.user for e in bank} - {"q3", "q7"}
    counts = [len(_users(task_prompt(task, bank, asked, n, Random(1)))) for n in (0, 1, 10, 99)]
    assert counts == [0, 1, 10, 10]


def test_prompt_draws_description_and_samples_by_seed():
    task, bank = TASKS["piqa"], [Example(f"q{i}", "t") for i in range(9)]
    prompts = {task_prompt(task, bank, bank[:1], 2, Random(seed)) for seed in range(30)}
    assert len(prompts) > 20
    assert {p.split("\n")[0] for p in prompts} == set(task.descriptions)
    once, again = (task_prompt(task, bank, bank[:1], 2, Random(5)) for _ in range(2))
    assert once == again


SIZES = {
    "arc_challenge": ("train", 1119),
    "arc_easy": ("train", 2251),
    "openbookqa": ("train", 4957),
    "boolq": ("validation", 3270),
    "social_iqa": ("validation", 1954),
    "piqa": ("validation", 1838),
    "winogrande": ("validation", 1267),
    "hellaswag": ("validation", 10042),
}


@pytest.mark.parametrize("name", SIZES)
def test_real_rows(shared, name):
    split, size = SIZES[name]
    path = shared / f"data/commonsense/{name}/{split}.jsonl.gz"
    with gzip.open(path) as file:
        first = json.loads(file.readline())
    examples = [TASKS[name].to_example(row, place) for place, row in read_rows(path)]
    assert len(examples) == size
    assert first["question"] in examples[0].user
    assert examples[0].target == first["choices"][first["label"]]


def test_real_gsm8k(shared):
    rows = read_rows(shared / "data/gsm8k/test.jsonl.gz")
    examples = [TASKS["gsm8k"].to_example(row, place) for place, row in rows]
    assert len(examples) == 1319
    assert examples[0].target.endswith("#### 18")
    assert not any("<<" in e.target or ">>" in e.target for e in examples)
