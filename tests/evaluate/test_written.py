"""Files of tasks in `lorage eval`: what is asked, what is shown, how answers are scored."""

import json

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

from lorage_jax.config import HeldOut
from lorage_jax.data.written_tasks import divide, read_tasks
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.evaluate.local_tasks import TaskData
from lorage_jax.evaluate.protocol import partner
from lorage_jax.evaluate.written import exact_match, token_f1, written_tasks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def a_row(name, instances=12, definitions=3, choices=False, **more):
    options = {"choices": ["yes", "no"]} if choices else {}
    return {
        "name": name,
        "definition": [f"Definition {i} of {name}." for i in range(definitions)],
        "instances": [
            {"input": f"{name} {i}?", "output": ["yes", "no"][i % 2], **options}
            for i in range(instances)
        ],
        **more,
    }


@pytest.fixture
def file(tmp_path):
    rows = [a_row("free"), a_row("choosing", choices=True), a_row("blind", definitions=0)]
    rows.append(a_row("shown", positive_examples=[{"input": "shown?", "output": "no"}] * 2))
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def requests_of(found, name, shots, **text):
    task = TaskData("hub", found).load(name, shots, **text)
    task.set_fewshot_seed(1)
    task.build_all_requests()
    return task, [instance.args for instance in task.instances]


def test_questions_and_samples_never_meet(file):
    for shots in (0, 1, 3):
        found = written_tasks([file], {"*": shots})
        for one in found.tasks.values():
            asked, samples = ({i.key for i in part} for part in (one.asked, one.samples))
            assert asked and not asked & samples and len(samples) >= shots
            if shots == 0:
                assert len(one.asked) == 12
    assert len(written_tasks([file], {"*": 1}).tasks["shown"].asked) == 12  # it has examples
    assert written_tasks([file]).tasks["blind"].shots == 5
    assert written_tasks([file]).tasks["free"].shots == 0
    assert written_tasks([file]).files["free"]["tasks.jsonl"].startswith("sha256:")


def test_a_task_lists_the_digest_of_its_own_file(file):
    other = file.with_suffix(".json")
    other.write_text(json.dumps([a_row("other")]))
    found = written_tasks([other, file]).files
    assert [*found["free"]] == ["tasks.jsonl"] and [*found["other"]] == ["tasks.json"]


def test_lm_eval_asks_in_plain_few_shot_form(file):
    found = written_tasks([file], {"*": 2})
    task, requests = requests_of(found, "free", 2, **TaskData("hub", found).few_shot("free"))
    context, settings = requests[0]
    assert context.startswith("Definition ") and context.count("Input: ") == 3
    assert context.endswith("\nOutput:") and settings["max_gen_toks"] < 20
    metrics = task.process_results(task.eval_docs[0], ["The YES."])
    assert metrics == {"exact_match": 1.0, "f1": 1.0}
    task, requests = requests_of(found, "choosing", 0)
    assert task.OUTPUT_TYPE == "multiple_choice"
    assert [request[1] for request in requests[:2]] == [" yes", " no"]
    lls = [(-1.0, False), (-2.0, False)]
    docs = list(task.eval_docs)
    right = [task.process_results(doc, lls)["acc"] for doc in docs]
    assert right == [float(doc["outputs"] == ["yes"]) for doc in docs]


def test_what_training_held_out_is_asked(file):
    held = HeldOut(tasks=0.4, paraphrases=0.5, instances=0.5, seed=2)
    found = written_tasks([file], {"*": 0}, [held])
    train = {task.name: task for task in divide(read_tasks([file]), held, "train")}
    assert 0 < len(train) < 4
    for name, one in found.tasks.items():
        assert one.facts["task_held_out"] == (name not in train)
        if name in train:
            assert not {i.key for i in one.asked} & {i.key for i in train[name].instances}
            wording_seen = one.task.descriptions[0] in train[name].definitions
            assert one.facts["wording_held_out"] == (name != "blind" and not wording_seen)
        else:
            assert len(one.asked) == 12
    both = written_tasks([file], {"*": 0}, [held, HeldOut(0, 0, 0.5, seed=5)])
    assert len(both.tasks["free"].asked) < len(found.tasks["free"].asked)
    with pytest.raises(DataError, match="no task has an instance that training held out"):
        written_tasks([file], {}, [HeldOut(0, 0, 0)])


def test_the_control_is_another_task_of_another_group(tmp_path):
    rows = [a_row(name, group=name[0]) for name in ("a1", "a2", "b1")]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [one.task for one in written_tasks([path]).tasks.values()]
    assert [partner(task, tasks).name for task in tasks] == ["b1", "b1", "a1"]
    assert partner(tasks[0], tasks[:1]).name == "arc_challenge"  # the project's own


def test_too_few_samples_and_unknown_tasks_are_named(file):
    found = written_tasks([file], {"*": 9})
    with pytest.raises(DataError, match=r"free has 4 samples besides its questions; 9 are"):
        TaskData("hub", found).load("free", 9)
    with pytest.raises(ConfigError, match="needs a description of mmlu_anatomy"):
        TaskData("hub", found).described("mmlu_anatomy")


@pytest.mark.parametrize(
    ("answer", "accepted", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1),
        ("Eiffel", "Eiffel Tower", 0, 2 / 3),
        ("red red blue", "red blue blue", 0, 2 / 3),
        ("", "x", 0, 0),
        ("a", "A", 1, 1),
        ("the", "A", 0, 0),
        ("+", "-", 0, 0),
        ("-", "-", 1, 1),
    ],
)
def test_scores_are_squads(answer, accepted, exact, f1):
    assert exact_match(answer, accepted) == exact
    assert token_f1(answer, accepted) == pytest.approx(f1)
