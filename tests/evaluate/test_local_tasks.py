"""Local files with lm-eval's definitions: the Hub's layouts, and invalid folders."""

import json

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

from lorage_jax.errors import ConfigError, DataError
from lorage_jax.evaluate import local_tasks
from lorage_jax.evaluate.local_tasks import TaskData, check_names
from tests.evaluate.local_data import TASKS, record, write_tasks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), records=3)


def first_requests(data, name, shots=0):
    task = data.load(name, shots)
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=1)
    return [instance.args for instance in task.instances]


# lm-eval's exact requests for record 200 (test) or 100 (validation) of each task.
EXPECTED = {
    "arc_challenge": ("Question: What warms bird 200?\nAnswer:", " the sun"),
    "openbookqa": ("What warms bird 200?", " the sun"),
    "boolq": ("Bird 100 sits in the sun.\nQuestion: What warms bird 100?\nAnswer:", " no"),
    "social_iqa": ("Q: Bird 100 sat down. What warms bird 100?\nA:", " the sun"),
    "piqa": ("Question: What warms bird 100?\nAnswer:", " the sun"),
    "winogrande": ("Bird 100 likes the sun more than a stone since the sun", " is warm."),
    "hellaswag": ("Walking: A man number 100 walks. He stops. The man", " the sun"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_definitions_text_is_lm_evals(folder, name):
    requests = first_requests(TaskData(str(folder)), name)
    assert requests[0] == EXPECTED[name]
    assert len(requests) == TASKS[name]


def test_rows_in_the_hubs_own_layout_are_read_as_they_are(tmp_path):
    rows = {
        "arc_easy": {
            "question": "Why?",
            "choices": {"text": ["a", "b"], "label": ["1", "2"]},
            "answerKey": "2",
        },
        "winogrande": {"sentence": "A _ is", "option1": "x", "option2": "y", "answer": "2"},
        "boolq": {"passage": "P.", "question": "is it", "idx": 0, "label": 1},
    }
    for name, row in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "validation.jsonl").write_text(json.dumps(row) + "\n")
    data = TaskData(str(tmp_path))
    assert first_requests(data, "arc_easy")[1] == ("Question: Why?\nAnswer:", " b")
    assert first_requests(data, "winogrande")[1] == ("A y", " is")
    assert first_requests(data, "boolq")[1] == ("P.\nQuestion: is it?\nAnswer:", " yes")
    assert data.load("boolq", 0).doc_to_target(rows["boolq"]) == 1


def test_a_field_that_the_first_row_lacks_is_read(tmp_path):
    rows = mmlu_rows("test", 3)
    rows[1]["note"] = "kept"
    write_split(tmp_path, "mmlu_anatomy", "test", rows)
    docs = TaskData(str(tmp_path)).load("mmlu_anatomy", 0).eval_docs
    assert [doc["note"] for doc in docs] == [None, "kept", None]
    assert [doc["question"] for doc in docs] == [row["question"] for row in rows]


def test_another_split_than_the_definitions_is_recorded_and_told(folder, tmp_path):
    data = TaskData(str(folder))
    data.load("arc_easy", 0)
    data.load("piqa", 0)  # whose definition has no split of answers but validation
    assert data.facts("arc_easy") == data.facts("piqa") == {} and not data.words(["arc_easy"])
    write_split(tmp_path, "arc_easy", "validation", [record("arc_easy", i) for i in range(3)])
    data = TaskData(str(tmp_path))
    data.load("arc_easy", 0)
    assert data.facts("arc_easy") == {"split": "validation"}
    [said] = data.words(["arc_easy", "piqa"])
    assert said == (
        "arc_easy was scored on its validation split; lm-eval's definition scores test, which "
        "--data lacks."
    )


def test_rows_that_do_not_go_together_are_told(tmp_path):
    (tmp_path / "arc_easy").mkdir()
    path = tmp_path / "arc_easy" / "test.jsonl"
    rows = [
        {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}
        | {"id": i}
        for i in (1, "x7")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"do not all have the same types of values"):
        TaskData(str(tmp_path)).load("arc_easy", 0)
    (tmp_path / "wikitext").mkdir()
    (tmp_path / "wikitext" / "test.jsonl").write_text('{"words": "no page"}\n')
    with pytest.raises(DataError, match=r"lack fields that lm-eval's definition of wikitext reads"):
        TaskData(str(tmp_path)).load("wikitext", 0)


def test_boolqs_answer_is_read_by_its_text(tmp_path):
    (tmp_path / "boolq").mkdir()
    row = record("boolq", 0) | {"choices": ["Yes", "No"], "label": 0}
    (tmp_path / "boolq" / "validation.jsonl").write_text(json.dumps(row) + "\n")
    task = TaskData(str(tmp_path)).load("boolq", 0)
    assert task.doc_to_choice(row)[task.doc_to_target(task.eval_docs[0])] == "yes"


def test_a_group_is_told_from_an_unknown_task():
    with pytest.raises(ConfigError, match="ai2_arc is a group of lm-eval tasks"):
        check_names(["ai2_arc"])


def test_samples_come_from_the_train_split(folder):
    context, _ = first_requests(TaskData(str(folder)), "arc_easy", shots=2)[0]
    samples = context.split("\n\n")
    assert len(samples) == 3 and samples[2] == "Question: What warms bird 200?\nAnswer:"
    train = {f"Question: What warms bird {i}?" for i in range(3)}
    assert all(sample.split("\n")[0] in train for sample in samples[:2])


def test_what_was_read_is_fingerprinted(folder, tmp_path):
    data = TaskData(str(folder))
    data.load("arc_easy", 1)
    data.load("boolq", 0)
    assert {name: sorted(splits) for name, splits in data.fingerprints.items()} == {
        "arc_easy": ["test", "train"],
        "boolq": ["validation"],
    }
    other = TaskData(str(write_tasks(tmp_path / "other", records=4)))
    other.load("arc_easy", 1)
    assert other.fingerprints["arc_easy"]["test"] != data.fingerprints["arc_easy"]["test"]


def test_folders_one_level_down_are_found(folder):
    data = TaskData(str(folder.parent))
    assert data.load("piqa", 0).task_name == "piqa"


def test_unknown_tasks_are_told_with_the_nearest(folder):
    with pytest.raises(ConfigError) as error:
        check_names(["arc_chalenge", "piqa", "zzzz", "gpt4tool"], others=("gpt4tools",))
    lines = str(error.value).splitlines()
    assert lines[0].startswith("there is no task 'arc_chalenge'; did you mean arc_challenge")
    assert lines[1] == "there is no task 'zzzz'" and "gpt4tools" in lines[2] and len(lines) == 3
    with pytest.raises(ConfigError, match="names no task"):
        check_names([])


def test_names_are_found_without_reading_all_definitions(monkeypatch):
    index, whole = local_tasks._index, []

    def counted(folders, everything):
        whole.append(everything)
        return index(folders, everything)

    monkeypatch.setattr(local_tasks, "_index", counted)
    with monkeypatch.context() as patched:
        patched.setattr(local_tasks, "_folders", None)  # not called for our own tasks
        check_names(["piqa"])
    check_names(["mmlu_anatomy", "piqa"])
    assert local_tasks._definition("mmlu_anatomy")["dataset_name"] == "anatomy"
    with pytest.raises(ConfigError, match="did you mean arc_challenge"):
        check_names(["arc_chalenge"])
    assert whole and not any(whole)


@pytest.mark.parametrize(
    ("splits", "shots", "says"),
    [
        (("train",), 0, r"is scored on its test or validation split; expected test.jsonl"),
        (
            ("test",),
            2,
            r"draws its 2 samples from the train split.*found test.jsonl.*--shots 2,arc_easy=0",
        ),
    ],
)
def test_a_missing_split_is_told(tmp_path, splits, shots, says):
    write_tasks(tmp_path / "data", splits=splits)
    with pytest.raises(DataError, match=says):
        TaskData(str(tmp_path / "data")).load("arc_easy", shots)


def test_a_missing_folder_is_told(tmp_path, folder):
    with pytest.raises(DataError, match="no such folder"):
        TaskData(str(tmp_path / "nowhere"))
    (tmp_path / "data" / "something").mkdir(parents=True)
    with pytest.raises(DataError, match="no folder arc_easy; found something"):
        TaskData(str(tmp_path / "data")).load("arc_easy", 0)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("arc_easy", {"label": None}, r"test.jsonl:2: the answer is missing"),
        ("arc_easy", {"label": 9}, r"test.jsonl:2: label is 9; expected 0 to 3"),
        ("piqa", {"choices": ["one"]}, r"validation.jsonl:2: choices is \['one'\]"),
        ("piqa", {"choices": ["a", "b", "c"]}, r"validation.jsonl:2: 3 choices; this task has 2"),
        ("boolq", {"choices": ["maybe", "so"]}, r"validation.jsonl:2: the answer is 'so'; expec"),
        ("gsm8k", {"answer": "7"}, r"test.jsonl:2: the answer has no final number"),
        ("winogrande", {"question": "No blank."}, r"validation.jsonl:2: the sentence has no blank"),
    ],
)
def test_a_record_that_cannot_be_used_is_told_with_its_line(tmp_path, name, change, says):
    (tmp_path / name).mkdir()
    rows = [record(name, 0), record(name, 1) | change]
    split = "test" if name in ("arc_easy", "gsm8k") else "validation"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name / f"{split}.jsonl").write_text(text)
    with pytest.raises(DataError, match=says):
        TaskData(str(tmp_path)).load(name, 0)


def mmlu_rows(split, count=4):
    return [
        {"question": f"{split} {i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4}
        for i in range(count)
    ]


def write_split(root, name, split, rows):
    (root / name).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / name / f"{split}.jsonl").write_text(text)


@pytest.mark.parametrize("others", [(), ("validation",), ("train", "validation")])
def test_samples_come_from_the_definitions_own_split(tmp_path, others):
    """mmlu's is `dev`, whatever files lie beside it."""
    for split in ("test", "dev", *others):
        write_split(tmp_path, "mmlu_anatomy", split, mmlu_rows(split))
    data = TaskData(str(tmp_path))
    requests = first_requests(data, "mmlu_anatomy", shots=2)
    questions = [line for line in requests[0][0].splitlines() if line.endswith("?")]
    assert questions == ["dev 0?", "dev 1?", "test 0?"]
    assert set(data.fingerprints["mmlu_anatomy"]) == {"test", "dev"}
    assert "dev" not in first_requests(data, "mmlu_anatomy", shots=0)[0][0]


def test_a_missing_split_of_samples_is_no_reason_to_take_another(tmp_path):
    for split in ("test", "validation", "train"):
        write_split(tmp_path, "mmlu_anatomy", split, mmlu_rows(split))
    with pytest.raises(DataError, match=r"2 samples from the dev split; expected dev.jsonl"):
        TaskData(str(tmp_path)).load("mmlu_anatomy", 2)


def test_samples_in_the_definition_need_no_file(tmp_path):
    write_split(tmp_path, "gsm8k_cot", "test", [record("gsm8k", i) for i in range(3)])
    data = TaskData(str(tmp_path))
    context, _ = first_requests(data, "gsm8k_cot", shots=2)[0]
    assert context.startswith("Q: There are 15 trees") and "What is 1 + 1" not in context
    assert context.count("Q: ") == 3 and "What is 0 + 1?" in context


@pytest.mark.parametrize("source", ["hub", "folder"])
def test_the_scored_records_are_never_samples(tmp_path, source):
    """lm-eval falls back to them, with a warning that nobody sees."""
    write_split(tmp_path, "qa4mre_2011", "test", [{"question_str": "?"}])
    data = TaskData(str(tmp_path) if source == "folder" else "hub")
    with pytest.raises(ConfigError, match=r"no samples but the records.*--shots 2,qa4mre_2011=0"):
        data.load("qa4mre_2011", 2)
