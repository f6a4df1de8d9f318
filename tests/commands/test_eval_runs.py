"""`lorage eval --run`: finished trainings of other methods, asked beside a generator."""

import json
import shutil

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

from lorage_jax import load_generator, load_model
from lorage_jax.evaluate.controls import Ready
from lorage_jax.evaluate.harness import LorageLM
from lorage_jax.evaluate.lm_eval_tasks import Run, evaluate_generator
from lorage_jax.evaluate.local_tasks import TaskData
from lorage_jax.methods.finished import find_finished
from lorage_jax.methods.lora import load_lora
from lorage_jax.methods.lora_gen import LoraGen
from tests.commands.world import EXPERIMENT, lorage
from tests.evaluate.local_data import write_tasks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def trained(world, root, name, steps, **method):
    """The folder of a run of another method; `method` are fields of its config."""
    fields = "".join(f"{key}={value}, " for key, value in method.items())
    text = EXPERIMENT.format(root=world.root).replace("save_every=2, ", "")
    text = text.replace("steps=6,", f"steps={steps}, {fields}")
    text = "from lorage_jax.methods.lora import LoraSettings\n" + text
    (root / f"{name}.py").write_text(text)
    assert lorage("train", root / f"{name}.py", "--out", root / name) == 0
    return root / name


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """Finished runs of the same edge: a LoRA, and one with the prompt in its context."""
    root = tmp_path_factory.mktemp("runs")
    for name, settings in (("plain", ""), ("shown", 'prompt="in_context"')):
        trained(world, root, name, 3, method='"lora"', settings=f"LoraSettings({settings})")
    return root


@pytest.mark.parametrize(
    ("method", "slots"),
    [("prompt_tuning", 100), pytest.param("loramoe", 0, marks=pytest.mark.slow)],
)
def test_methods_that_are_not_merged(world, tmp_path, refuse, method, slots):
    run = trained(world, tmp_path, method, 3, method=f'"{method}"')
    data = write_tasks(tmp_path / "data", records=4)
    args = ["eval", "--generator", world.generator, "--no-baseline", "--run", run]
    more = ["--tasks", "piqa,gpt4tools", "--limit", "2", "--max-new-tokens", "4", "--data", data]
    assert lorage(*args, *more, "--json", tmp_path / "scores.json") == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    sets = [one["arms"] for one in result["gpt4tools"]["sets"].values()]
    for arms in (*sets, {name: arm["tasks"]["piqa"] for name, arm in result["arms"].items()}):
        own, bare = arms[method]["edge_tokens"], arms["bare"]["edge_tokens"]
        assert own == bare + slots if slots else own > bare  # soft tokens, or the prompt
    if slots:
        long = ["--tasks", "gpt4tools", "--limit", "1", "--max-new-tokens", "245"]
        refuse(*args, "--no-controls", *long, says="what stands in front .* takes 100 positions")


def args_of(world, runs, tasks, folder, *more):
    found = ["eval", "--generator", world.generator, "--tasks", tasks, "--no-baseline", *more]
    for name in ("plain", "shown"):
        found += ["--run", runs / name]
    return [*found, "--json", folder / "scores.json"]


def test_runs_are_asked_the_same_questions(world, runs, tmp_path):
    data = write_tasks(tmp_path / "data", records=4)
    args = args_of(world, runs, "piqa", tmp_path, "--shots", "1", "--data", data)
    assert lorage(*args, "--samples", tmp_path / "rows.jsonl") == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    arms = result["arms"]
    assert {"lora_gen", "plain", "shown", "shuffled", "bare"} < set(arms)
    assert set(result["gaps"]) == set(arms) - {"lora_gen"}
    assert (
        arms["shown"]["what"].endswith("in its context") and "context" not in arms["plain"]["what"]
    )
    about = result["model"]["runs"]
    assert about["plain"]["method"] == "lora"
    assert about["plain"]["contents"] != about["shown"]["contents"]
    assert not any("plain" in sentence for sentence in result["words"])
    tokens = {name: arm["tasks"]["piqa"]["edge_tokens"] for name, arm in arms.items()}
    assert tokens["plain"] == tokens["bare"] < tokens["shown"]

    edge, generator = load_model(world.root / "edge"), load_generator(world.generator)
    run = Run(LorageLM(edge), TaskData(str(data)), {"*": 1}, None, 1234)
    merged = Ready(load_lora(runs / "plain" / "lora", edge))
    known = {"merged": merged, "shown": Ready(load_lora(runs / "shown" / "lora", edge), True)}
    method = LoraGen(generator)
    evaluate_generator(run, edge, method, ["piqa"], controls=False, baseline=False, others=known)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]

    def likely(samples, arm):
        return [row["loglikelihoods"] for row in samples if row["arm"] == arm]

    assert likely(rows, "plain") == likely(run.samples, "merged") != likely(rows, "bare")
    assert likely(rows, "shown") == likely(run.samples, "shown") != likely(rows, "plain")


def test_tool_calls_after_the_context_of_a_run(world, runs, tmp_path):
    args = args_of(world, runs, "gpt4tools", tmp_path, "--limit", "2", "--max-new-tokens", "4")
    assert lorage(*args) == 0
    sets = json.loads((tmp_path / "scores.json").read_text())["gpt4tools"]["sets"]
    for one in sets.values():
        tokens = {name: arm["edge_tokens"] for name, arm in one["arms"].items()}
        assert tokens["plain"] == tokens["lora_gen"] < tokens["shown"]
        assert {"plain", "shown", "bare"} < set(one["gaps"])
        assert not any("plain" in sentence for sentence in one["words"])


def test_what_is_no_finished_run_is_told(world, runs, refuse, tmp_path):
    asked = ["eval", "--generator", world.generator, "--tasks", "gpt4tools", "--limit", "1"]
    refuse(*asked, "--run", world.root / "edge", says="is not the folder of a training run")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text('{"method": "lora", "steps": 2}')
    refuse(
        *asked, "--run", tmp_path / "begun", says="has no lora/, so its training has not finished"
    )
    (tmp_path / "bare").symlink_to(runs / "plain")
    refuse(*asked, "--run", tmp_path / "bare", says="bare is the name of an arm of evaluations")
    for name in ("model", "specialized"):
        (tmp_path / name).symlink_to(runs / "plain")
        says = f"{name} is the name of an arm of evaluations"
        refuse(*asked, "--run", tmp_path / name, says=says)
    refuse(*asked, "--run", world.root / "run", says="is the training of a generator")
    twice = ["--run", runs / "plain", "--run", runs / "plain"]
    refuse(*asked, *twice, says="plain is the name of two runs")
    model = ["eval", "--model", world.root / "edge", "--tasks", "piqa", "--run", runs / "plain"]
    refuse(*model, says="--run goes with --generator")


def test_the_contents_of_a_run_are_those_of_its_weights(runs, tmp_path):
    """A LoRA's manifest says how it was trained, and not of what data."""
    first = find_finished(runs / "plain")
    shutil.copytree(runs / "plain", tmp_path / "plain")
    again = find_finished(tmp_path / "plain")
    assert again.contents == first.contents
    weights = again.folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert again.contents != first.contents
