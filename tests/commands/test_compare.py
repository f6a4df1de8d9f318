"""`lorage compare`: what is trained once, what the table says, and what is refused."""

import json
from random import Random

import pytest

from lorage_jax.compare import measure
from lorage_jax.report.comparison import to_markdown
from lorage_jax.world import prompts as world_prompts
from tests.commands.world import lorage

EXPERIMENT = """
from lorage_jax import nano
from lorage_jax.config import *

def config():
    base = ExperimentConfig(
        cloud=str(nano.CLOUD), edge=str(nano.EDGE), out="unused",
        data=DataConfig(sources=(Source("synthetic", "synthetic", name="words"),),
                        prompts_per_batch=8, queries_per_prompt=1, max_prompt_tokens=96,
                        max_query_tokens=64, min_bucket=64),
        generator=GeneratorConfig(rank=4, cloud_rank=4),
        optimizer=OptimizerConfig(1e-3, warmup_steps=1),
        steps=2, dtype="float32", remat="none")
    tuned = {"after": "lora_gen", "samples": 2}
    rows = {"in_context": {}, "lora_gen": {}, "lora": {}, "tuned_cards": tuned}
    return CompareConfig(base, rows, WorldQuestions(prompts=6, queries=1, families=("words",)))
"""


WRITTEN = """
from pathlib import Path
from lorage_jax import nano
from lorage_jax.config import *

def config():
    base = ExperimentConfig(cloud=str(nano.CLOUD), edge=str(nano.EDGE), out="unused",
                            data=DataConfig(sources=(Source("nothing"),)), steps=1, dtype="float32",
                            optimizer=OptimizerConfig(warmup_steps=0))
    rows = {"in_context_2": {"method": "in_context", "samples": 2},
            "lora_gen": {"trained": "nano"}}
    asked = TaskQuestions(str(Path(__file__).parent / "tasks.jsonl"),
                          held_out=HeldOut(tasks=0, paraphrases=0, instances=0.5),
                          splits=("instances",), queries=3)
    return CompareConfig(base, rows, asked)
"""


def tasks():
    """Tasks that the nano pair knows, as a file has them."""
    found = []
    for prompt in world_prompts.draw_prompts("train", 3, seed=5, family="words"):
        rng = Random(prompt.system)
        drawn = dict(prompt.draw(rng) for _ in range(40))
        rows = [{"input": user, "output": ["unlikely", target]} for user, target in drawn.items()]
        found.append({"name": prompt.task, "definition": prompt.system, "instances": rows})
    return found


def test_a_trained_generator_is_asked_about_written_tasks(tmp_path):
    """Accepted answers count; samples of the file stand after the prompts of a row."""
    (tmp_path / "exp.py").write_text(WRITTEN)
    lines = "".join(json.dumps(task) + "\n" for task in tasks())
    (tmp_path / "tasks.jsonl").write_text(lines)
    command = ["compare", tmp_path / "exp.py", "--out", tmp_path / "runs"]
    assert lorage(*command, "--json", tmp_path / "result.json") == 0
    methods = json.loads((tmp_path / "result.json").read_text())["methods"]
    assert list(methods) == ["bare", "in_context_2", "lora_gen"]
    scores = {name: one["splits"]["written/instances"] for name, one in methods.items()}
    assert scores["lora_gen"]["exact_match"] > 0.6 > 0.2 > scores["bare"]["exact_match"]
    assert scores["bare"]["prompts"] == 3
    assert methods["lora_gen"]["trained_parameters"] > 100_000 and methods["lora_gen"]["merged"]
    assert methods["in_context_2"]["edge_tokens"] > methods["bare"]["edge_tokens"] + 10
    (tmp_path / "tasks.jsonl").write_text(lines.replace("unlikely", "likely"))
    assert lorage(*command, "--json", tmp_path / "other.json") == 1, "measured on other questions"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    (folder / "exp.py").write_text(EXPERIMENT)
    command = ["compare", folder / "exp.py", "--out", folder / "runs", "--limit", "3"]
    command += ["--json", folder / "result.json", "--table", folder / "table.md"]
    assert lorage(*command) == 0
    return folder, command, json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_all_methods_answer_the_same_questions(made):
    _, _, result = made
    methods = result["methods"]
    assert list(methods) == ["bare", "in_context", "lora_gen", "lora", "tuned_cards"]
    assert set(result["controls"]) == {"bare", "shuffled", "random", "mean_gates"}
    splits = list(methods["bare"]["splits"])
    assert "words/paraphrase" in splits
    for method in [*methods.values(), *result["controls"].values()]:
        assert list(method["splits"]) == splits
        for one in method["splits"].values():
            assert 0 <= one["exact_match"] <= 1 and one["prompts"] == 3
    # The edge knows how to follow a prompt; two steps teach a method nothing.
    assert methods["in_context"]["splits"]["words/train"]["exact_match"] > 0.5
    assert methods["lora"]["splits"]["words/train"]["exact_match"] < 0.5
    gap = methods["in_context"]["splits"]["words/train"]["gap"]["gap"]
    ours = methods["lora_gen"]["splits"]["words/train"]
    assert gap == pytest.approx(
        methods["in_context"]["splits"]["words/train"]["exact_match"] - ours["exact_match"]
    )


@pytest.mark.slow
def test_costs_are_facts(made):
    _, _, result = made
    methods = result["methods"]
    assert [one["merged"] for one in methods.values()] == [None, None, True, True, True]
    trained = {name: one["trained_parameters"] for name, one in methods.items()}
    assert trained["bare"] == trained["in_context"] == 0
    assert trained["tuned_cards"] == trained["lora_gen"] > trained["lora"]
    assert methods["lora"]["trained_parameters"] == 6 * 3 * 4 * (128 + 256)  # L x 3 x R x (D + F)
    assert methods["in_context"]["edge_tokens"] > methods["bare"]["edge_tokens"]
    assert methods["lora_gen"]["edge_tokens"] == methods["bare"]["edge_tokens"]
    assert methods["lora_gen"]["bigger_model"] and not methods["lora"]["bigger_model"]
    assert all(one["seconds_per_request"] > 0 for one in methods.values())
    assert [one["unseen_tasks"] for one in methods.values()] == [False, True, True, False, False]
    flops = {name: one["flops_per_request"] for name, one in methods.items()}
    assert methods["tuned_cards"]["what"].endswith("merged; 2 solved samples per prompt")
    assert (
        flops["lora_gen"]
        == flops["tuned_cards"]
        == flops["lora"]
        == flops["bare"]
        < flops["in_context"]
    )


@pytest.mark.slow
def test_the_table(made):
    folder, _, result = made
    table = (folder / "table.md").read_text()
    assert table == to_markdown(result)
    assert "control: shuffled" in table and "trained values" in table
    assert table.count("**lora_gen**") == 3


@pytest.mark.slow
def test_what_is_there_is_not_made_again(made, monkeypatch):
    folder, command, result = made
    monkeypatch.setattr(measure, "_figures", lambda *_: pytest.fail("measured again"))
    assert lorage(*command) == 0
    again = json.loads((folder / "result.json").read_text())
    for name, method in again["methods"].items():
        assert method["splits"] == result["methods"][name]["splits"]
    text = (folder / "exp.py").read_text().replace("1e-3", "2e-3")
    (folder / "other.py").write_text(text)
    assert lorage("compare", folder / "other.py", *command[2:]) == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--methods", "lora,nothing"), "no method 'nothing'; expected autocompressor, bare"),
        (("--methods", "lora_genn"), "; did you mean lora_gen, "),
        (("--methods", "lora,lorahub"), "lorahub needs a folder of PEFT folders"),
        (("--seeds", "0"), "--seeds is 0; expected 1 or more"),
        (("--limit", "0"), "--limit is 0; expected 1 or more"),
    ],
)
def test_mistakes_are_one_message(tmp_path, capfd, more, says):
    (tmp_path / "exp.py").write_text(EXPERIMENT)
    assert lorage("compare", tmp_path / "exp.py", "--out", tmp_path / "runs", *more) == 1
    error = capfd.readouterr().err
    assert error.startswith("lorage: ") and says in error and "Traceback" not in error
