"""The LoRA-Gen protocol: the texts that cloud and edge read in every arm, and the verdicts."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

from lorage_jax.data.task_rows import choice_example
from lorage_jax.data.task_table import TASKS as DESCRIBED
from lorage_jax.data.tasks import Task
from lorage_jax.data.templates import edge_prompt, edge_prompt_with_system, encode, encode_target
from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.arms import CONTROLS
from lorage_jax.evaluate.harness import LorageLM
from lorage_jax.evaluate.lm_eval_tasks import (
    SEEN,
    UNSEEN,
    Run,
    evaluate_generator,
    evaluate_model,
    summary,
)
from lorage_jax.evaluate.local_tasks import TaskData, check_names
from lorage_jax.evaluate.paired import Gap
from lorage_jax.evaluate.protocol import partner
from lorage_jax.evaluate.results import EvalResult, TaskScore
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.hf.load import load_model
from lorage_jax.infer.score import score
from lorage_jax.methods.lora_gen import LoraGen
from tests.evaluate.local_data import record, write_tasks
from tests.tiny import make_generator

NAMES = ["arc_easy", "piqa"]
BASELINES = ("in_context", "few_shot")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return TaskData(str(write_tasks(tmp_path_factory.mktemp("tasks"), records=6)))


@pytest.fixture(scope="module")
def generator(pair):
    return make_generator(*pair)


@pytest.fixture(scope="module")
def edge(pair):
    return load_model(pair[1])


def a_run(edge, data, shots):
    return Run(LorageLM(edge), data, {"*": shots}, None, 1234, say=lambda line: None)


def run_all(generator, edge, data, names=NAMES, template="trained", shots=1, **options):
    run = a_run(edge, data, shots)
    run.template = template
    options = {"controls": True, "baseline": True} | options
    found = evaluate_generator(run, edge, LoraGen(generator, run.lm.journal), names, **options)
    return found, run.samples


@pytest.fixture(scope="module")
def outcome(generator, edge, data):
    return run_all(generator, edge, data)


def lls(samples, arm, name):
    return [row["loglikelihoods"] for row in samples if (row["arm"], row["task"]) == (arm, name)]


def by_hand(model, name, system=None):
    """Log-likelihoods of the choices after the edge's own template, record by record."""
    split = {"arc_easy": 200, "piqa": 100}[name]  # records of test and validation
    rows = [record(name, split + i) for i in range(6)]
    found = []
    for row in rows:
        user = row["question"]
        text = edge_prompt(user) if system is None else edge_prompt_with_system(system, user)
        context = encode(model.tokenizer, text, bos=True)
        choices = [encode_target(model.tokenizer, choice)[:-1] for choice in row["choices"]]
        scores = score(model, [(context, choice) for choice in choices])
        found.append([one.loglikelihood for one in scores])
    return found


def test_the_prompt_goes_to_the_cloud_and_the_bare_question_to_the_edge(outcome, generator, edge):
    found, samples = outcome
    for name in NAMES:
        prompt = found.cards[name].about["prompt"]
        assert prompt.startswith(DESCRIBED[name].descriptions[0])
        assert prompt.count("User: ") == 1  # one sample
        special = merge(edge, generator.pool, specialize(generator, prompt))
        wanted = by_hand(special, name)
        np.testing.assert_allclose(lls(samples, "lora_gen", name), wanted, atol=5e-3)
        assert np.abs(np.subtract(wanted, by_hand(edge, name))).max() > 0.5  # the card matters
        task = found.arms["lora_gen"].tasks[name]
        assert task.cloud_tokens == found.cards[name].about["cloud_tokens"] > 50
        assert task.edge_tokens < found.arms["in_context"].tasks[name].edge_tokens - 50


def test_baselines_and_controls_ask_what_they_say(outcome, generator, edge):
    found, samples = outcome
    assert set(found.arms) == {"lora_gen", *BASELINES, *CONTROLS}
    first, second = NAMES
    prompts = {name: found.cards[name].about["prompt"] for name in NAMES}

    def close(arm, model, name, system=None):
        wanted = by_hand(model, name, system)
        np.testing.assert_allclose(lls(samples, arm, name), wanted, atol=5e-3)

    close("bare", edge, first)
    close("in_context", edge, first, prompts[first])
    close("shuffled", merge(edge, generator.pool, specialize(generator, prompts[second])), first)
    close("shuffled", merge(edge, generator.pool, specialize(generator, prompts[first])), second)
    known = [text for task in DESCRIBED.values() for text in task.descriptions]
    mean = np.mean([card.gates for card in specialize(generator, known)], axis=0)
    card = specialize(generator, "x")
    blind = type(card)(mean, card.generator, card.edge, pool=card.pool)
    close("mean_gates", merge(edge, generator.pool, blind), first)
    close("mean_gates", merge(edge, generator.pool, blind), second)
    tokens = {arm: found.arms[arm].tasks[first].cloud_tokens for arm in ("lora_gen", "random")}
    assert tokens["random"] == tokens["lora_gen"]
    assert lls(samples, "random", first) != lls(samples, "lora_gen", first)
    few = found.arms["few_shot"].tasks[first]
    assert few.shots == 1 and found.arms["lora_gen"].tasks[first].shots == 0
    shots = [found.arms[arm].tasks[first].cloud_shots for arm in ("lora_gen", "shuffled", "random")]
    assert shots == [1, 1, 0] and found.arms["in_context"].tasks[first].shots == 1
    assert found.arms["shuffled"].tasks[first].facts["prompt_of"] == second
    assert found.arms["mean_gates"].tasks[first].prompts == len(known)


def test_few_shot_is_lm_evals_own_protocol(outcome, edge, data):
    _, samples = outcome
    run = a_run(edge, data, 1)
    evaluate_model(run, edge, NAMES)
    for name in NAMES:
        assert lls(samples, "few_shot", name) == lls(run.samples, "model", name)


def test_the_harness_template_is_lm_evals_zero_shot_text(generator, edge, data):
    found, samples = run_all(generator, edge, data, ["piqa"], "harness", baseline=False)
    run = a_run(edge, data, 0)
    evaluate_model(run, edge, ["piqa"])
    wanted = lls(run.samples, "model", "piqa")
    np.testing.assert_allclose(lls(samples, "bare", "piqa"), wanted, atol=2e-3)
    assert set(found.arms) == {"lora_gen", *CONTROLS}


def test_in_the_harness_template_the_prompt_stands_in_front_as_text(generator, edge, data):
    found, samples = run_all(generator, edge, data, ["piqa"], "harness", controls=False)
    prompt = found.cards["piqa"].about["prompt"]
    row = record("piqa", 100)
    text = f"{prompt}\n\nQuestion: {row['question']}\nAnswer:"
    context = edge.tokenizer.encode(text)
    scores = score(edge, [(context, edge.tokenizer.encode(f" {c}")) for c in row["choices"]])
    wanted = [one.loglikelihood for one in scores]
    np.testing.assert_allclose(lls(samples, "in_context", "piqa")[0], wanted, atol=5e-3)


def test_gaps_are_paired_by_record(outcome):
    found, samples = outcome

    def right(arm, name):
        rows = [row for row in samples if (row["arm"], row["task"]) == (arm, name)]
        return np.array([float(row["label"] == row["prediction"]) for row in rows])

    for arm in CONTROLS:
        differences = [right("lora_gen", name) - right(arm, name) for name in NAMES]
        for name, difference in zip(NAMES, differences, strict=True):
            gap = found.gaps[arm][name]
            assert gap.gap == pytest.approx(difference.mean())
            assert gap.stderr == pytest.approx(difference.std(ddof=1) / np.sqrt(6))
        mean = found.gaps[arm]["ave"]
        assert mean.gap == pytest.approx(np.mean([d.mean() for d in differences]))


def test_a_generator_that_ignores_the_prompt_is_told_so(pair, edge, data):
    blind = make_generator(*pair)
    router = blind.trained["router"]
    router["f2"] = jax.tree.map(lambda x: x * 0, router["f2"])  # the same logits for all prompts
    cards = specialize(blind, ["one prompt", "a very different one"])
    np.testing.assert_array_equal(cards[0].gates, cards[1].gates)
    found, _ = run_all(blind, edge, data, baseline=False)
    words = " ".join(found.words)
    for arm in ("shuffled", "random"):
        assert found.gaps[arm]["ave"] == Gap(0, 0, False)
        assert f"no significant difference against {arm}" in words


def test_samples_that_do_not_fit_the_cloud_are_left_out(generator, edge, data):
    found, _ = run_all(generator, edge, data, ["boolq"], shots=5, controls=False, baseline=False)
    card = found.cards["boolq"].about
    room = generator.cloud.config.max_positions - generator.edge.layers
    assert 0 < card["shots"] < 5 and card["cloud_tokens"] <= room
    assert found.arms["lora_gen"].tasks["boolq"].cloud_shots == card["shots"]


def test_a_result_says_which_split_was_scored(generator, edge, tmp_path):
    data = TaskData(str(write_tasks(tmp_path, records=2, splits=("train", "validation"))))
    options = {"controls": False, "baseline": False, "shots": 0}
    found, _ = run_all(generator, edge, data, ("arc_easy", "piqa"), **options)
    tasks = found.to_json()["arms"]["lora_gen"]["tasks"]
    assert tasks["arc_easy"]["split"] == "validation" and "split" not in tasks["piqa"]
    assert [one for one in found.words if "split" in one] == data.words(("arc_easy",))
    alone = evaluate_model(a_run(edge, data, 0), edge, ("arc_easy",))
    assert alone.words == data.words(("arc_easy",)) != []


def test_a_task_without_a_description_is_refused(generator, edge, data):
    with pytest.raises(ConfigError, match="needs a description of mmlu; only arc"):
        run_all(generator, edge, data, ["mmlu"])


YAML = """task: rhymes
dataset_path: nobody/has_it
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{asked}}"
doc_to_choice: "{{options}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""


def test_a_new_task_is_one_row_of_the_table(generator, edge, tmp_path, monkeypatch):
    """Once registered, it is read from local files, described, scored and given a control."""

    def to_hub(row, where):
        example = choice_example(row, where)
        return {"asked": example.user, "options": list(example.choices), "answer": example.label}

    def to_example(row, where):
        row = {"question": row["asked"], "choices": row["options"], "label": row["answer"]}
        return choice_example(row, where)

    task = Task(
        "rhymes",
        ("Say the word that rhymes.",),
        to_example,
        to_hub,
        hub_field="asked",
        folder=str(tmp_path / "definition"),
        shared_kind="science questions",
    )
    (tmp_path / "definition").mkdir()
    (tmp_path / "definition" / "rhymes.yaml").write_text(YAML)
    folder = write_tasks(tmp_path / "data", records=3)
    (folder / "rhymes").mkdir()
    for split in ("train", "test"):
        rows = [{"question": f"Cat {i}?", "choices": ["hat", "dog"], "label": 0} for i in range(3)]
        rows[2] = {"asked": "Sun?", "options": ["moon", "fun"], "answer": 1}  # in lm-eval's layout
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rhymes" / f"{split}.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="no task 'rhymes'"):
        check_names(["rhymes"])

    monkeypatch.setitem(DESCRIBED, "rhymes", task)
    check_names(["rhymes"])
    data = TaskData(str(folder))
    docs = list(data.load("rhymes", 0).eval_docs)
    assert [doc["asked"] for doc in docs] == ["Cat 0?", "Cat 1?", "Sun?"]
    others = [DESCRIBED[name] for name in ("rhymes", "arc_easy", "piqa")]
    assert partner(task, others).name == "piqa"  # of another kind
    found, samples = run_all(
        generator, edge, data, ["rhymes", "arc_easy"], baseline=False, controls=True
    )
    assert found.cards["rhymes"].about["prompt"].startswith("Say the word that rhymes.")
    assert len(lls(samples, "lora_gen", "rhymes")) == 3
    assert found.arms["lora_gen"].tasks["rhymes"].n == 3
    other = found.arms["shuffled"].tasks["rhymes"].facts["prompt_of"]
    assert DESCRIBED[other].kind != task.kind


def test_means_over_the_eight():
    tasks = {
        name: TaskScore({"acc": 0.1 * i, "acc_stderr": 0.01})
        for i, name in enumerate((*SEEN, *UNSEEN), 1)
    }
    found = summary(tasks)
    assert found["ave"] == pytest.approx(0.45) and found["mean"] == pytest.approx(0.45)
    assert found["har"] == pytest.approx(8 / sum(1 / (0.1 * i) for i in range(1, 9)))
    assert found["seen"] == pytest.approx(0.3) and found["unseen"] == pytest.approx(0.7)
    assert found["ave_stderr"] == pytest.approx(0.01 / np.sqrt(8))
    del tasks["piqa"]
    found = summary(tasks)
    assert found["ave"] is found["har"] is found["unseen"] is None
    assert found["mean"] == pytest.approx(0.4) and found["seen"] == pytest.approx(0.3)


def test_the_outcome_is_json(outcome):
    values = outcome[0].to_json()
    assert json.loads(json.dumps(values)) == values
    assert EvalResult.from_json(values, "here").to_json() == values
    assert values["results"] == values["arms"]["lora_gen"]["tasks"]
