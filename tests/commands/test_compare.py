"""`lorage compare`: what is trained once, what the table says, and what is refused."""

import json

import pytest

from lorage_jax.report.comparison import to_markdown
from lorage_jax.world import compare
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
    return CompareConfig(base, {"in_context": {}, "lora_gen": {}, "lora": {}},
                         WorldQuestions(prompts=6, queries=1, families=("words",)))
"""


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
    assert list(methods) == ["bare", "in_context", "lora_gen", "lora"]
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
    assert [one["merged"] for one in methods.values()] == [None, None, True, True]
    assert [one["trained_parameters"] > 0 for one in methods.values()] == [False, False, True, True]
    assert methods["lora"]["trained_parameters"] == 6 * 3 * 4 * (128 + 256)  # L x 3 x R x (D + F)
    assert methods["in_context"]["edge_tokens"] > methods["bare"]["edge_tokens"]
    assert methods["lora_gen"]["edge_tokens"] == methods["bare"]["edge_tokens"]
    assert methods["lora_gen"]["bigger_model"] and not methods["lora"]["bigger_model"]
    assert all(one["seconds_per_request"] > 0 for one in methods.values())
    assert [one["unseen_tasks"] for one in methods.values()] == [False, True, True, False]
    flops = {name: one["flops_per_request"] for name, one in methods.items()}
    assert flops["lora_gen"] == flops["lora"] == flops["bare"] < flops["in_context"]


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
    monkeypatch.setattr(compare, "_figures", lambda *_: pytest.fail("measured again"))
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
