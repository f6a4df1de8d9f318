"""Files of tasks: layouts, what is held out, and the prompts that are drawn from them."""

import gzip
import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorage_jax.config import HeldOut, PromptForms, Source
from lorage_jax.data.pipeline import mix
from lorage_jax.data.sources import data_fingerprint, load_source
from lorage_jax.data.task_prompts import TaskPrompts
from lorage_jax.data.written_tasks import SPLITS, Instance, divide, normal, read_tasks, to_tasks
from lorage_jax.errors import DataError


def a_row(name, instances=10, definitions=4, **more):
    return {
        "name": name,
        "definition": [f"Definition {i} of {name}." for i in range(definitions)],
        "instances": [
            {"input": f"{name} question {i}", "output": f"answer {i}"} for i in range(instances)
        ],
        **more,
    }


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.name.endswith("gz") else text)
    return path


ROWS = [a_row(f"task{i}") for i in range(30)]
EVEN = PromptForms()
TASKS = to_tasks([(f"f.jsonl:{i}", row) for i, row in enumerate(ROWS, 1)])


def one(row):
    return to_tasks([("f.jsonl:1", row)])[0]


@pytest.mark.parametrize(
    "row",
    [
        {"name": "n", "definition": ["d"], "instances": [{"input": "i", "output": "o"}]},
        {"task": "n", "definition": "d", "instances": [{"input": "i", "output": ["o", "o"]}]},
        {
            "Name": "n",
            "Definition": ["d", "d", " "],
            "Positive Examples": [],
            "Instances": [{"id": "x", "input": "i", "output": [" o "]}],
        },
        {"name": "n", "definition": ["d"], "instances": [{"input": "i", "output": "o</s>"}]},
    ],
)
def test_layouts(row):
    task = one(row)
    assert (task.name, task.definitions, task.instances) == ("n", ("d",), (Instance("i", ("o",)),))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "n"}, "found the fields name; expected"),
        ({"instances": 3, "name": "n"}, r"\(task n\): instances: are not a list"),
        ({"name": "n", "definition": 3, "instances": []}, "definition is neither"),
        ({"name": "n", "instances": [{"input": "i", "output": ""}]}, "instance 1: .*is empty"),
        ({"name": "n", "instances": [{"input": "i", "output": []}]}, "is an empty list"),
        ({"name": "n", "instances": [{"input": "i"}]}, "the field output is missing; found input"),
        ({"name": "n", "instances": [{"output": None}]}, "output is null"),
        (
            {"name": "n", "instances": [{"input": "i", "output": "x", "choices": ["a", "b"]}]},
            r"the output 'x' is none of the 2 choices\.$",
        ),
    ],
)
def test_bad_tasks_are_named(row, message):
    with pytest.raises(DataError, match=rf"^f\.jsonl:1.*{message}"):
        one(row)


def test_files_folders_and_equal_names(tmp_path):
    write(tmp_path / "a.jsonl", [a_row("x"), a_row("y")])
    write(tmp_path / "b.jsonl.gz", [a_row("x")])
    unnamed = {"Definition": ["d"], "Instances": [{"input": "i", "output": ["o"]}]}
    (tmp_path / "task1.json").write_text(json.dumps(unnamed, indent=1))
    names = [task.name for task in read_tasks([tmp_path])]
    assert names == ["a/x", "y", "b/x", "task1"]
    write(tmp_path / "b.jsonl.gz", [a_row("x"), a_row("x")])
    with pytest.raises(DataError, match="another task is called b/x"):
        read_tasks([tmp_path])
    with pytest.raises(DataError, match="holds no files of tasks"):
        (tmp_path / "empty").mkdir()
        read_tasks([tmp_path / "empty"])


def contents(tasks):
    pairs = {(task.name, normal(text)) for task in tasks for text in task.definitions}
    asked = {(task.name, i.key) for task in tasks for i in (*task.instances, *task.examples)}
    return {task.name for task in tasks}, pairs, asked


def parts_of(tasks, held):
    parts = {}
    for split in SPLITS:
        try:
            parts[split] = divide(tasks, held, split)
        except DataError:
            parts[split] = []
    return parts


words = st.text("abC d", min_size=1, max_size=4).filter(str.strip)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "name": words.map(str.strip),
            "group": st.sampled_from(["", "g", "h"]),
            "definition": st.lists(words, max_size=4),
            "instances": st.lists(
                st.fixed_dictionaries(
                    {
                        "input": words,
                        "output": st.just("o"),
                        "split": st.sampled_from(["train", "test", "dev", ""]),
                    }
                ),
                max_size=6,
            ),
        }
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda row: str(row["name"]),
)
shares = st.sampled_from([0.0, 0.1, 0.5, 0.9])


@settings(max_examples=150, deadline=None)
@given(rows, st.builds(HeldOut, shares, shares, shares, st.integers(0, 3), st.just("group")))
def test_what_is_held_out_is_never_in_training(rows, held):
    tasks = to_tasks([(f"f:{i}", row) for i, row in enumerate(rows)])
    parts = parts_of(tasks, held)
    names, wordings, asked = contents(parts["train"])
    for split in SPLITS[1:]:
        _, others, questions = contents(parts[split])
        assert not asked & questions
        if split != "instances":
            assert not wordings & others
    unseen, their_wordings, _ = contents(parts["tasks"])
    assert not names & unseen
    assert not {text for _, text in wordings} & {text for _, text in their_wordings}


@settings(max_examples=50, deadline=None)
@given(rows, st.integers(0, 3), st.integers(1, 8))
def test_part_of_a_file_is_divided_as_the_whole(rows, seed, size):
    held = HeldOut(0.5, 0.5, 0.5, seed)
    tasks = to_tasks([(f"f:{i}", row) for i, row in enumerate(rows)])
    whole, part = parts_of(tasks, held), parts_of(tasks[:size], held)
    known = contents(tasks[:size])[0]
    for split in SPLITS[1:]:
        of_part = [task for task in whole[split] if task.name in known]
        assert contents(part[split])[2] == contents(of_part)[2]
        if split != "instances":  # a definition of a task that is held out serves no other
            assert contents(part[split])[1] == contents(of_part)[1]


def test_tasks_of_one_name_in_two_files_are_held_out_together_as_each_alone(tmp_path):
    names = [f"task{i}" for i in range(40)]
    files = [write(tmp_path / f"{x}.jsonl", [a_row(n, group=x) for n in names]) for x in "ab"]
    held = HeldOut(tasks=0.5)
    alone = [{t.place for t in divide(read_tasks([file]), held, "train")} for file in files]
    together = {task.place for task in divide(read_tasks(files), held, "train")}
    assert alone[0] | alone[1] == together and len(alone[0]) == len(alone[1])
    assert {task.name for task in read_tasks(files)} == {f"{x}/{n}" for n in names for x in "ab"}


def test_shares_are_about_those_asked_for():
    held = HeldOut(tasks=0.2, paraphrases=0.3, instances=0.4)
    sizes = {split: contents(part) for split, part in parts_of(TASKS, held).items()}
    assert 2 <= len(sizes["tasks"][0]) <= 10
    seen, unseen = len(sizes["train"][2]), len(sizes["instances"][2])
    assert 0.3 < unseen / (seen + unseen) < 0.5
    assert parts_of(TASKS, HeldOut(seed=1)) != parts_of(TASKS, HeldOut(seed=2))


def test_test_instances_of_the_data_stay_out():
    row = a_row("t", 6)
    for i, split in enumerate(["train", "train", "test", "dev", "execute", ""]):
        row["instances"][i]["split"] = split
    row["instances"].append({"input": " T  question 2", "output": "o", "split": "train"})
    none = HeldOut(0, 0, 0)
    assert [i.key[-1] for i in divide([one(row)], none, "train")[0].instances] == ["0", "1", "5"]
    with pytest.raises(DataError, match="has anything in the split paraphrases"):
        divide([one(row)], none, "paraphrases")
    with pytest.raises(DataError, match="has no split 'test'; expected train, instances"):
        divide([one(row)], none, "test")


def drawn(tasks, forms=EVEN, shots=(1, 3), queries=2):
    prompts = TaskPrompts(tasks, forms, shots, queries)
    return prompts, [prompts.draw(i, Random(i)) for i in range(len(prompts.chunks))]


def test_forms_of_prompts_have_their_shares():
    _, found = drawn(TASKS, PromptForms(definition=2, samples=1, both=1))
    kinds = [(prompt.startswith("Definition"), "User:" in prompt) for prompt, _ in found]
    assert 0.35 < kinds.count((True, False)) / len(kinds) < 0.65
    assert 0.1 < kinds.count((False, True)) / len(kinds) < 0.4
    assert 0.1 < kinds.count((True, True)) / len(kinds) < 0.4
    for prompt, pairs in found:
        assert len(pairs) == 2 and prompt == prompt.strip()
        assert not any(f"{user}\n" in prompt for user, _ in pairs)
    assert len({prompt.split(".")[0] for prompt, _ in found}) > 30  # paraphrases are drawn


def test_tasks_without_definitions_have_samples():
    prompts, found = drawn(
        [one(a_row("t", 3, 0)), one(a_row("single", 1, 0))], PromptForms(1, 0, 0), queries=8
    )
    assert all(prompt.startswith("User: t question") for prompt, _ in found)
    assert [len(pairs) for _, pairs in found] == [2, 1]
    assert "1 tasks cannot be asked" in prompts.note and "single" in prompts.note
    example = {"input": "shown", "output": ["yes"], "explanation": "e"}
    _, found = drawn([one(a_row("single", 1, 0, positive_examples=[example]))])
    assert found == [("User: shown\nAssistant: yes", (("single question 0", "answer 0"),))]


def test_an_example_that_is_also_asked_is_no_sample():
    def without_definition(instances):
        example = {"input": " T  Question 0", "output": "yes"}
        return one(a_row("t", instances, 0, positive_examples=[example]))

    prompts, found = drawn([without_definition(1)])
    assert not found and "1 tasks cannot be asked" in prompts.note
    _, found = drawn([without_definition(2)], queries=8)
    assert [(prompt != "", len(pairs)) for prompt, pairs in found] == [(True, 1)] * 2


def test_a_source_is_seeded_and_says_what_was_skipped(tmp_path):
    bad = a_row("bad", 3)
    bad["instances"][1]["output"] = ""
    path = write(tmp_path / "tasks.jsonl", [*ROWS[:5], bad, {"name": "none"}])
    with pytest.raises(DataError, match=r"tasks.jsonl:6 \(task bad\): instance 2.*skip_bad_rows"):
        load_source(Source(str(path), "tasks"), 2)
    source = Source(str(path), "tasks", skip_bad_rows=2, shots=(1, 2))
    loaded = load_source(source, 2)
    assert "2 rows cannot be used and were skipped" in loaded.note
    groups = mix([loaded], [1.0], seed=3)
    again = mix([load_source(source, 2)], [1.0], seed=3)
    assert [groups[i] for i in range(40)] == [again[i] for i in range(40)]
    assert [groups[i] for i in range(40)] != [loaded.dataset(4)[i] for i in range(40)]
    epoch = len(loaded.places)
    assert len({repr(groups[i]) for i in range(epoch)}) == epoch
    assert groups[0] != groups[epoch]  # prompts are drawn anew


def test_the_fingerprint_is_that_of_the_files(tmp_path):
    one = write(tmp_path / "a.jsonl", ROWS[:2])
    before = data_fingerprint([Source(str(tmp_path), "tasks")])
    assert data_fingerprint([Source(str(tmp_path), "tasks", held_out=HeldOut(0.5))]) != before
    write(one, ROWS[:3])
    assert data_fingerprint([Source(str(tmp_path), "tasks")]) != before
