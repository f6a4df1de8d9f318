"""`lorage pretrain`: its figures and picture, stages of an experiment, one message per error."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.commands.experiment import load_experiment
from lorage_jax.config import CompareConfig, ExperimentConfig, PretrainConfig
from lorage_jax.errors import ConfigError
from lorage_jax.train.watch import read_logs
from tests.commands.world import EXPERIMENT, REPOSITORY, lorage
from tests.processes import finish, join

SIBLING = """
from lorage_jax.config import Corpus, Source

def corpora():
    return (Corpus(Source("synthetic", "synthetic", name="words"), documents=8, rows=8,
                   row_tokens=96, queries=1),)
"""
PRETRAIN = """
from lorage_jax.config import OptimizerConfig, PretrainConfig
from lorage_jax.hf.family import family_decoder

def config():
    from sibling import corpora

    model = family_decoder("qwen2", vocab_size=300, width=16, layers=1, heads=2, kv_heads=1,
                          ffn_width=16, tied_head=True)
    return PretrainConfig(model=model, out="unused", corpora=corpora(), steps=3,
                          tokenizer_documents=20, optimizer=OptimizerConfig(1e-2, warmup_steps=1),
                          remat="none")
"""


@pytest.fixture
def experiment(tmp_path):
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "sibling.py").write_text(SIBLING)
    (folder / "tiny.py").write_text(PRETRAIN)
    return folder / "tiny.py"


def test_pretrain_leaves_a_model_and_its_figures(experiment, tmp_path, capfd):
    run, figures = tmp_path / "run", tmp_path / "figures.json"
    assert lorage("pretrain", experiment, "--out", run, "--json", figures) == 0
    found = json.loads(figures.read_text())
    assert found["model"] == str(run / "model") and found["seconds"] > 0
    assert found["steps"] == 3 and found["first_step"] == 0
    assert [step for step, _ in found["losses"]] == [1, 2, 3]
    curve = read_logs(run / "logs")["train/loss"]
    first, last = curve[0][1], curve[-1][1]
    printed = capfd.readouterr().out
    assert f"{found['parameters']:,} parameters. Trained 3 steps in " in printed
    assert f" s (compiled 1 of at most 1 program in {found['compile_seconds']:.1f} s), " in printed
    assert (found["programs"], found["most_programs"]) == (1, 1)
    assert f"loss {first:.3f} -> {last:.3f}.\nModel: {run / 'model'}\n" in printed
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert lg.load_model(run / "model").config.layers == 1
    # Run again, it is refused; resumed, there is nothing left to do and the picture is kept.
    assert lorage("pretrain", experiment, "--out", run) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("lorage: ") and "--resume" in error
    picture = (run / "loss.png").read_bytes()
    assert lorage("pretrain", experiment, "--out", run, "--resume") == 0
    printed = capfd.readouterr().out
    assert "Trained 0 steps" in printed and "compiled" not in printed
    assert (run / "loss.png").read_bytes() == picture


def test_mistakes_are_one_message(refuse, experiment, world, tmp_path):
    out = ("--out", tmp_path / "run")
    refuse("pretrain", world.root / "exp.py", *out, says="exp.py is for `lorage train`")
    refuse("train", experiment, *out, says="is for `lorage pretrain`: .* an ExperimentConfig")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "loss.png").write_text("mine")
    refuse("pretrain", experiment, "--out", taken, says=r"loss\.png exists")
    refuse("pretrain", tmp_path / "none.py", *out, says="there is no experiment file")
    for name, old, new, says in (
        ("a", "steps=3", "steps=0", r"a\.py, line \d+: steps is 0"),
        ("b", "vocab_size=300", "vocab_size=30", "vocab_size is 30; .* at least 258"),
        ("c", '"qwen2"', '"llama", qkv_bias=True', "a saved llama would not be .*qkv_bias"),
        ("d", "return ", "return 3 or ", "returned int, not PretrainConfig"),
        ("e", "def config", "def other", "defines no function .* a PretrainConfig"),
    ):
        assert old in PRETRAIN
        (experiment.parent / f"{name}.py").write_text(PRETRAIN.replace(old, new, 1))
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            refuse("pretrain", experiment.parent / f"{name}.py", *out, says=says)
        finally:
            sys.dont_write_bytecode = before


def test_prose_for_a_generator_is_refused(refuse, world, tmp_path):
    text = EXPERIMENT.replace('train.jsonl")', 'train.jsonl", "text")').format(root=world.root)
    (tmp_path / "exp.py").write_text(text)
    refuse("train", tmp_path / "exp.py", "--out", tmp_path / "run", says="is of kind text: prose")


def test_siblings_can_be_imported_and_leave_nothing(experiment, tmp_path):
    path, modules = list(sys.path), set(sys.modules)
    assert load_experiment(experiment, PretrainConfig).corpora[0].row_tokens == 96
    assert sys.path == path and "sibling" not in sys.modules
    other = tmp_path / "other"
    shutil.copytree(experiment.parent, other)
    (other / "sibling.py").write_text(SIBLING.replace("row_tokens=96", "row_tokens=80"))
    assert load_experiment(other / "tiny.py", PretrainConfig).corpora[0].row_tokens == 80
    (other / "sibling.py").write_text("\n\ndef corpora(:\n")
    with pytest.raises(ConfigError, match=r"tiny\.py, line 6: SyntaxError: .*sibling\.py, line 3"):
        load_experiment(other / "tiny.py", PretrainConfig)
    assert sys.path == path and not {"sibling", "tiny"} & (set(sys.modules) - modules)


STAGED = """
def config(stage="a"):
    import dataclasses

    return dataclasses.replace(first(), out={"a": "runs/a", "b": "runs/b"}[stage])
"""


def test_an_experiment_may_have_data_classes_of_its_own(experiment):
    text = experiment.read_text()
    own = "import dataclasses\n@dataclasses.dataclass\nclass Size:\n    rows: int = 96\n"
    experiment.write_text(f"from __future__ import annotations\n{own}{text}")
    before = set(sys.modules)
    assert load_experiment(experiment, PretrainConfig)
    assert set(sys.modules) - before == set()


def test_a_stage_is_named_behind_the_file(experiment, tmp_path):
    path = tmp_path / "staged.py"
    path.write_text(experiment.read_text().replace("def config():", "def config(stage='a'):", 1))
    path.write_text(path.read_text() + "\n\nfirst = config\n\n\n" + STAGED)
    shutil.copy(experiment.parent / "sibling.py", tmp_path)
    assert load_experiment(path, PretrainConfig).out == "runs/a"
    assert load_experiment(f"{path}:b", PretrainConfig).out == "runs/b"
    with pytest.raises(ConfigError, match=r"staged\.py, line \d+: KeyError: 'c'"):
        load_experiment(f"{path}:c", PretrainConfig)
    with pytest.raises(ConfigError, match=r"there is no experiment file .*nowhere"):
        load_experiment(f"{tmp_path / 'nowhere'}:b", PretrainConfig)


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("nano/edge", "runs/nano_edge"),
        ("nano/edge:tools", "runs/nano_edge_tools"),
        ("experiments/nano/cloud.py:tools2", "runs/nano_cloud_tools2"),
        ("nano/cloud:tools3", "runs/nano_cloud_tools3"),
    ],
)
def test_a_name_below_experiments(monkeypatch, name, out):
    monkeypatch.chdir(REPOSITORY)
    assert load_experiment(name, PretrainConfig).out == out


def test_generator_stages(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    first, second = load_experiment("nano/generator:tools"), load_experiment("nano/generator")
    assert second.init == f"{first.out}/generator" and not first.init
    with pytest.raises(ConfigError, match="the stage is 'words'; expected one of tools, both"):
        load_experiment("nano/generator:words")


def test_the_experiments_of_this_repository_load():
    folder = REPOSITORY / "experiments" / "nano"
    for name in ("edge", "cloud"):
        config = load_experiment(folder / f"{name}.py", PretrainConfig)
        assert config.out == f"runs/nano_{name}"
    assert load_experiment(folder.parent / "real_smoke.py").steps > 0
    compared = load_experiment(folder / "compare.py", CompareConfig)
    assert compared.run("lora", 1).settings is not None and "lora_gen" in compared.methods
    with pytest.raises(ConfigError, match=r"edge\.py is for `lorage pretrain`"):
        load_experiment(folder / "edge.py", ExperimentConfig)


@pytest.mark.slow
def test_two_processes_make_the_model_of_one(experiment, tmp_path):
    made = {}
    for count in (1, 2):
        run, figures = tmp_path / f"run{count}", tmp_path / f"{count}.json"
        command = ["pretrain", experiment, "--out", run, "--json", figures]
        found = finish(join([command] * count, devices=2 // count))
        assert [code for code, _, _ in found] == [0] * count, found
        assert ["parameters. Trained" in text for _, text, _ in found] == [True, False][:count]
        made[count] = json.loads(figures.read_text()), lg.load_model(run / "model")
        assert (run / "loss.png").exists()
    (one, first), (two, second) = made[1], made[2]
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-2)  # of weights in bfloat16
