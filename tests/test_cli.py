"""The command line as people use it: what works, and what one gets for every kind of bad input."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import lorage_jax as lg
from lorage_jax import cli
from lorage_jax.commands import specialize as specialize_module
from tests.hf.conftest import tiny_disk  # noqa: F401  a fixture
from tests.tiny import make_tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

REPOSITORY = Path(__file__).parent.parent
EXPERIMENT = """
from lorage_jax.config import *

def config():
    return ExperimentConfig(
        cloud="{root}/cloud", edge="{root}/edge", out="{root}/unused",
        data=DataConfig(sources=(Source("{root}/train.jsonl"),), prompts_per_batch=8,
                        queries_per_prompt=2, max_prompt_tokens=64, max_query_tokens=48,
                        min_bucket=48),
        generator=GeneratorConfig(rank=4, cloud_rank=4),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
        steps=6, dtype="float32", remat="none", save_every=2, log_every=2)
"""
PROMPT = "Say 7 twice."
WEIGHTS = "model.safetensors"


def lorage(*args):
    return cli.main([str(arg) for arg in args])


def subprocess_lorage(*args, **options):
    command = [sys.executable, "-m", "lorage_jax.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def contents(*folders):
    """Everything below the folders, hidden things included."""
    paths = [path for folder in folders for path in sorted(folder.rglob("*"))]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture(scope="module")
def world(tmp_path_factory, pair, data_file):
    """A user's folder: cloud, edge, data, an experiment, and what train and specialize made.

    Shared: tests read it and write into their own tmp_path.
    """
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(pair[0], root / "cloud")
    shutil.copytree(pair[1], root / "edge")
    shutil.copy(data_file, root / "train.jsonl")
    make_tiny("llama", root / "cloud2", seed=8, num_hidden_layers=2, hidden_size=32)
    make_tiny("qwen2", root / "edge2", seed=9)
    (root / "exp.py").write_text(EXPERIMENT.format(root=root))
    (root / "prompt.txt").write_text(PROMPT + "\n")
    out = ("--out", root / "run", "--json", root / "train.json")
    assert lorage("train", root / "exp.py", *out) == 0
    generator, special = root / "run" / "generator", root / "special"
    made = ("--out", special, "--json", root / "special.json")
    prompt = ("--generator", generator, "--prompt", root / "prompt.txt")
    assert lorage("specialize", *prompt, *made) == 0
    return SimpleNamespace(root=root, generator=generator, special=special, prompt=prompt)


@pytest.fixture
def refuse(world, tmp_path, capfd):
    """Runs a command that must end in exactly one message that `says` (a regex) and change nothing.

    What stands in tmp_path before is watched, too.
    """

    def check(*args, says, code=1):
        before = contents(world.root, tmp_path)
        capfd.readouterr()
        assert lorage(*args) == code
        error = capfd.readouterr().err
        assert error.startswith("lorage: ") and error.count("lorage: ") == 1, error
        assert "Traceback" not in error and "Error(" not in error
        assert re.search(says, error), error
        assert contents(world.root, tmp_path) == before

    return check


@pytest.fixture
def specialize(world, tmp_path):
    """Arguments of a good `lorage specialize`, with changes: names of options to values."""

    def args(**changes):
        options = {
            "generator": world.generator,
            "prompt": world.root / "prompt.txt",
            "out": tmp_path / "out",
        } | changes
        flags = [(f"--{name}", value) for name, value in options.items() if value is not True]
        switches = [f"--{name}" for name, value in options.items() if value is True]
        return ["specialize", *(part for flag in flags for part in flag), *switches]

    return args


# What works


def test_train_leaves_a_generator_and_its_figures(world):
    figures = json.loads((world.root / "train.json").read_text())
    assert figures["steps"] == 6 and len(figures["losses"]) == 6
    assert figures["seconds"] > 0 and figures["generator"] == str(world.generator)
    assert lg.load_generator(world.generator).fingerprint == figures["fingerprint"]
    assert (world.root / "run" / "config.json").exists()
    assert not (world.root / "unused").exists()


def test_train_resumes(world, tmp_path, capfd):
    run, figures = tmp_path / "run", tmp_path / "figures.json"
    shutil.copytree(world.root / "run", run)
    shutil.rmtree(run / "checkpoints" / "6")
    shutil.rmtree(run / "generator")
    args = ("train", world.root / "exp.py", "--out", run, "--json", figures)
    assert lorage(*args, "--resume") == 0
    assert json.loads(figures.read_text())["first_step"] == 4
    first, again = (
        load_file(r / "generator" / "generator.safetensors") for r in (world.root / "run", run)
    )
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert "Generator: " in capfd.readouterr().out


def check_report(report, special):
    assert 0 <= report["parity"]["max_abs_logit_diff"] < 2e-4
    assert {"unmerged_vs_merged", "unmerged_vs_reloaded", "unmerged_vs_transformers"} < set(
        report["parity"]
    )
    assert report["prompt_tokens_saved"] > 10
    assert isinstance(report["seconds"], float) and report["seconds"] > 0
    assert json.loads((special / "report.json").read_text()) == report


def test_specialize_reports_and_its_outputs_load(world):
    check_report(json.loads((world.root / "special.json").read_text()), world.special)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokens = np.arange(3, 30)[None]
    ours = np.asarray(lg.forward(lg.load_model(world.special / "merged"), tokens))
    edge = np.asarray(lg.forward(lg.load_model(world.root / "edge"), tokens))
    assert np.abs(ours - edge).max() > 1e-3  # it is specialised
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(world.special / "merged")
        base = AutoModelForCausalLM.from_pretrained(world.root / "edge")
        adapted = PeftModel.from_pretrained(base, world.special / "adapter")
        for model in (merged, adapted):
            theirs = model.eval()(torch.tensor(tokens)).logits.numpy()
            np.testing.assert_allclose(ours, theirs, atol=2e-4)
    card = lg.specialize(lg.load_generator(world.generator), PROMPT)
    np.testing.assert_array_equal(lg.load_card(world.special / "card.json").gates, card.gates)


def test_specialize_from_standard_input_in_a_process_of_its_own(world, specialize, tmp_path):
    for name in ("cloud", "edge"):
        shutil.copytree(world.root / name, tmp_path / "moved" / name)
    done = subprocess_lorage(
        *specialize(prompt="-", json=tmp_path / "r.json", save="merged"),
        *("--cloud", tmp_path / "moved" / "cloud", "--edge", tmp_path / "moved" / "edge"),
        input=PROMPT,
    )
    assert (done.returncode, done.stderr) == (0, "")  # no noise of the libraries
    assert "Parity" in done.stdout and "prompt tokens saved" in done.stdout.lower()
    check_report(json.loads((tmp_path / "r.json").read_text()), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "lorage.json",
        "merged",
        "report.json",
    ]
    ours, theirs = (load_file(f / "merged" / WEIGHTS) for f in (tmp_path / "out", world.special))
    assert all(np.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


@pytest.mark.parametrize("save", ["card", "adapter", " card , adapter "])
def test_specialize_saves_what_is_asked_for(specialize, tmp_path, save):
    assert lorage(*specialize(save=save)) == 0
    made = {path.name for path in (tmp_path / "out").iterdir()} - {"lorage.json", "report.json"}
    assert made == {"card.json" if "card" in save else "", "adapter" if "adap" in save else ""} - {
        ""
    }


def test_specialize_overwrites_its_own_folder_only_when_told(world, specialize, tmp_path, refuse):
    shutil.copytree(world.special, tmp_path / "out")
    refuse(*specialize(), says="exists and is not empty")
    assert lorage(*specialize(save="card", overwrite=True)) == 0
    assert not (tmp_path / "out" / "merged").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refuse(*specialize(overwrite=True), says=r"did not write there.*notes\.txt")


def test_a_moved_cloud_is_named_and_repaired(world, specialize, tmp_path, refuse):
    for name in ("cloud", "edge"):
        shutil.copytree(world.root / name, tmp_path / "new" / name)
    shutil.copytree(world.generator, tmp_path / "generator")
    path = tmp_path / "generator" / "lorage.json"
    values = json.loads(path.read_text())
    for role in ("cloud", "edge"):
        values[role] |= {"path": "/moved/away", "relative": "../moved"}
    path.write_text(json.dumps(values))
    at, new = {"generator": tmp_path / "generator"}, tmp_path / "new"
    refuse(*specialize(**at), says="edge model is not at its recorded place.*--edge")
    refuse(*specialize(**at, edge=new / "edge"), says="cloud model is not at its .*--cloud")
    assert lorage(*specialize(**at, edge=new / "edge", cloud=new / "cloud", save="card")) == 0


def test_generate(world, tmp_path, capfd, monkeypatch):
    def text(model, *args, tokens=6):
        result = tmp_path / "result.json"
        more = ("--max-new-tokens", tokens, "--json", result)
        assert lorage("generate", "--model", model, *args, *more) == 0
        said = capfd.readouterr()
        found = json.loads(result.read_text())
        assert said.out == found["output"] + "\n" and said.err == ""
        return found

    merged, edge = world.special / "merged", world.root / "edge"
    answer = text(merged, "--input", "go 3")
    assert answer["input"] == "User: go 3\nAssistant:"
    assert text(merged, "--input", "go 3", "--raw")["input"] == "go 3"
    assert text(edge, "--input", "go 3")["input"] == "go 3"
    told = text(edge, "--input", "go 3", "--system", world.root / "prompt.txt")
    assert told["input"] == f"System: {PROMPT}\n\nUser: go 3\nAssistant:"
    model = lg.load_model(merged)
    assert answer["output"] == lg.generate(model, answer["input"], max_new_tokens=6)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"go 3\n")))
    assert text(merged, "--input", "-")["output"] == answer["output"]


def test_inspect(world, tmp_path, capfd):
    png, result = tmp_path / "gates.png", tmp_path / "card.json"
    assert lorage("inspect", world.special / "card.json", "--png", png, "--json", result) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert json.loads(result.read_text())["open_gates_per_layer"] == [2, 2, 2]
    shown = capfd.readouterr().out
    assert "layer" in shown and "cloud_tokens" in shown
    for folder in (world.special, world.special / "merged", world.special / "adapter"):
        assert lorage("inspect", folder) == 0
        assert capfd.readouterr().out == shown.replace(f"picture: {png}\n", "")
    assert lorage("inspect", world.generator, "--json", result) == 0
    assert json.loads(result.read_text())["sizes"]["trained.meta"] == 3 * 32
    shown = capfd.readouterr().out
    assert "trained.pool" in shown and f"cloud {world.root / 'cloud'}" in shown


def test_an_ascii_terminal_and_a_closed_pipe(world):
    card = world.special / "card.json"
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess_lorage("inspect", card, env=ascii_only)
    assert done.returncode == 0 and done.stderr == "" and "layer" in done.stdout
    command = f"{sys.executable} -m lorage_jax.cli inspect {card} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command", ["quickstart", "train", "specialize", "generate", "inspect", "bench"]
)
def test_help_has_an_example(command, capfd):
    with pytest.raises(SystemExit) as end:
        lorage(command, "--help")
    shown = capfd.readouterr().out
    assert end.value.code == 0 and f"Example: lorage {command} " in shown
    assert "--json" in shown


def test_help_is_for_users_and_quick():
    """No heavy library is imported before there is something to do."""
    code = (
        "import sys\nfrom lorage_jax.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'torch', 'transformers', 'orbax', 'grain', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dataclass" not in done.stdout and "lorage quickstart" in done.stdout


@pytest.mark.parametrize(
    "args", [[], ["foo"], ["inspect", "card.json", "--foo"], ["train"], ["bench", "foo"]]
)
def test_unknown_words_end_in_usage(args, capfd):
    with pytest.raises(SystemExit) as end:
        lorage(*args)
    assert end.value.code == 2
    assert "--help" in capfd.readouterr().err


# Bad input: prompts and options


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"good\n\xfcnd\n", "line 2 is not UTF-8"),
        (b"x" * 300, r"309 tokens.* at most 253 .*Shorten"),
        (None, "no such file"),
        ("folder", "directory"),
    ],
)
def test_bad_prompts(specialize, refuse, tmp_path, data, says):
    prompt = tmp_path / "bad.txt"
    if data == "folder":
        prompt.mkdir()
    elif data is not None:
        prompt.write_bytes(data)
    refuse(*specialize(prompt=prompt), says=says)


def test_an_empty_standard_input(specialize, refuse, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"  ")))
    refuse(*specialize(prompt="-"), says="standard input: is empty")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"save": "card,merge"}, "card, adapter, merged"),
        ({"save": ","}, "expected any of"),
        ({"generator": "missing"}, "not a folder"),
        ({"generator": "prompt.txt"}, "not a folder"),
        ({"generator": "cloud"}, "holds no lorage.json"),
        ({"generator": "special"}, "not a generator"),
        ({"edge": "edge2"}, "edge2 is not the edge this generator"),
        ({"edge": "cloud"}, "cloud is not the edge this generator"),
        ({"edge": "missing"}, "missing is not a folder"),
        ({"cloud": "cloud2"}, "cloud2 is not the cloud this generator"),
        ({"cloud": "edge"}, "edge is not the cloud this generator"),
        ({"cloud": "missing"}, "missing is not a folder"),
        ({"out": "prompt.txt"}, "is a file"),
        ({"out": "prompt.txt", "overwrite": True}, "is a file"),
        ({"out": "cloud"}, "exists and is not empty"),
        ({"out": "cloud", "overwrite": True}, "did not write it"),
        ({"out": "prompt.txt/below"}, "is a file or a dead link"),
        ({"json": "cloud"}, "not a plain file"),
        ({"json": "prompt.txt/below"}, "is a file or a dead link"),
    ],
)
def test_bad_options_of_specialize(world, specialize, refuse, options, says, monkeypatch):
    """None of them needs the cloud's weights to be loaded first."""
    from lorage_jax.generator import store

    monkeypatch.setattr(store, "load_model", lambda *_: pytest.fail("the cloud was loaded"))
    paths = {k: v if k in ("save", "overwrite") else world.root / v for k, v in options.items()}
    refuse(*specialize(**paths), says=says)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--input", "x " * 200], "417 tokens.*context is 256"),
        (["--input", "x", "--max-new-tokens", 0], "max_new_tokens is 0"),
        (["--input", "x", "--max-new-tokens", 10**12], "context is 256"),
        (["--input", " ", "--raw"], "empty"),
        (["--input", "a\udcffb"], "not valid Unicode"),
        (["--input", "x", "--temperature", "nan"], "temperature"),
        (["--input", "x", "--top-p", 0], "top_p"),
        (["--input", "x", "--top-k", -1], "top_k"),
        (["--input", "x", "--seed", -1], "seed"),
        (["--input", "x", "--stop", ""], "stop"),
        (["--input", "x", "--system", "/nowhere/prompt"], "no such file"),
        (["--input", "x", "--system", "/nowhere/prompt", "--raw"], "exclude"),
        (["--input", "x", "--json", "/dev/null"], "not a plain file"),
    ],
)
def test_bad_options_of_generate(world, refuse, args, says):
    refuse("generate", "--model", world.special / "merged", *args, says=says)


# Bad input: folders and files


def damaged_model(folder, how):
    config, weights = folder / "config.json", folder / WEIGHTS
    if isinstance(how, dict):
        config.write_text(json.dumps(json.loads(config.read_text()) | how))
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "garbage":
        weights.write_bytes(b"\xff" * 100)
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "deep":
        config.write_text("[" * 100_000)
    elif how in (WEIGHTS, "config.json"):
        (folder / how).unlink()
    else:
        tensors = load_file(weights)
        tensors["model.norm.weight"] = np.zeros(7 if how == "shape" else 32, np.int32)
        save_file(tensors, weights)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("config.json", r"^lorage: \S+ has no config.json.*\n$"),
        (WEIGHTS, "no model.safetensors"),
        ("cut", "truncated"),
        ("garbage", "corrupt"),
        ("shape", r"model\.norm\.weight has shape \(7,\); config says \(32,\)"),
        ("integers", "is I32; expected floating"),
        ("no tokenizer", "no usable tokenizer"),
        ("deep", "cannot be read as JSON"),
        ({"model_type": "mamba"}, "'mamba'.*supported are llama"),
        ({"model_type": ["llama"]}, "supported are llama"),
        ({"num_hidden_layers": 5}, r"layers\.4\.\S+ is missing"),
        ({"num_hidden_layers": 0}, "layers is 0"),
        ({"num_attention_heads": "4"}, "num_attention_heads.*expected int"),
        ({"num_key_value_heads": 0}, "kv_heads is 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "'x'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "relu6"}, "relu6"),
    ],
)
def test_bad_models(world, refuse, tmp_path, how, says):
    shutil.copytree(world.root / "cloud", tmp_path / "model")
    damaged_model(tmp_path / "model", how)
    refuse("generate", "--model", tmp_path / "model", "--input", "x", says=says)


def test_weights_that_are_not_finite_are_no_result(specialize, world, tmp_path, refuse):
    """A folder of NaN could be written, with NaN for its parity: that is not what was asked for."""
    broken, edge = tmp_path / "generator", tmp_path / "edge"
    shutil.copytree(world.root / "edge", edge)
    tensors = load_file(edge / WEIGHTS)
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, edge / WEIGHTS)
    shutil.copytree(world.generator, broken)
    values = json.loads((broken / "lorage.json").read_text())
    from lorage_jax.hf.fingerprint import fingerprint

    values["edge"]["fingerprint"] = fingerprint(edge)
    (broken / "lorage.json").write_text(json.dumps(values))
    refuse(*specialize(generator=broken, edge=edge), says="not finite")


def change(values, name, value):
    """Sets `a.b` of nested dicts; None deletes it."""
    *path, last = name.split(".")
    for key in path:
        values = values[key]
    if value is None:
        del values[last]
    else:
        values[last] = value


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("format", "lorage-generator/9", "lorage-generator/9"),
        ("fingerprint", "sha256:00", "the folder was changed"),
        ("fingerprint", None, "fingerprint is missing"),
        ("generator", "x", "generator is"),
        ("generator.experts", "8", "experts is '8'"),
        ("generator.strange", 1, "no field strange"),
        ("generator.rank", 5, r"pool\.down\.a has shape"),
        ("templates", 99, "templates 99"),
        ("dtype", "int4", "int4"),
        ("cloud", None, "cloud is missing"),
        ("cloud.path", 3, "cloud.path is 3"),
        ("edge.config", None, "edge.config is missing"),
        ("edge.config.sliding", 3, "sliding is 3"),
        ("about", [1], "about is"),
    ],
)
def test_a_damaged_generator(world, specialize, refuse, tmp_path, name, value, says):
    folder = tmp_path / "generator"
    shutil.copytree(world.generator, folder)
    values = json.loads((folder / "lorage.json").read_text())
    change(values, name, value)
    (folder / "lorage.json").write_text(json.dumps(values))
    refuse(*specialize(generator=folder), says=says)


@pytest.mark.parametrize("kind", ["cut", "flipped", "missing", "json", "deep"])
def test_damaged_files_of_a_generator(world, specialize, refuse, tmp_path, kind):
    folder = tmp_path / "generator"
    shutil.copytree(world.generator, folder)
    tensors = folder / "generator.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-3] ^= 255
    tensors.write_bytes(data[:3000] if kind == "cut" else data)
    if kind == "missing":
        tensors.unlink()
    if kind in ("json", "deep"):
        (folder / "lorage.json").write_text("{" if kind == "json" else "[" * 100_000)
    word = {"cut": "truncated", "flipped": "was changed", "missing": "missing"}.get(kind, "be read")
    refuse(*specialize(generator=folder), says=word)
    if kind != "flipped":
        refuse(
            "inspect", folder, says=word if kind != "missing" else "does not exist in|not a card"
        )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("format", "x", "found 'x'"),
        ("gates", None, "gates"),
        ("gates", [[[0, 1.0]]], "1 rows of gates for 3 layers"),
        ("layers", 10**12, "rows of gates"),
        ("experts", 10**12, "experts"),
        ("experts", 1, "expert"),
        ("about", "x", "about is 'x'"),
        ("gates", [[[0, float("nan")]]] * 3, "not finite"),
        ("gates", [[[0.5, 1.0]]] * 3, "damaged"),
    ],
)
def test_damaged_cards(world, refuse, tmp_path, name, value, says):
    values = json.loads((world.special / "card.json").read_text())
    change(values, name, value)
    card = tmp_path / "card.json"
    card.write_text(json.dumps(values))
    refuse("inspect", card, "--png", tmp_path / "gates.png", says=says)


def test_what_cannot_be_inspected(world, refuse, tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "taken.png").write_text("mine")
    refuse("inspect", world.root / "prompt.txt", says="is not a card")
    refuse("inspect", world.root / "train.json", says="found None")
    refuse("inspect", world.root / "cloud" / WEIGHTS, says="is not a card")
    refuse("inspect", world.root / "cloud", says="does not exist in")
    refuse("inspect", world.root / "nowhere", says="does not exist")
    refuse("inspect", tmp_path / "deep.json", says="is not a card")
    refuse("inspect", world.special, "--png", tmp_path / "taken.png", says=r"taken\.png exists")
    refuse("inspect", world.generator, "--png", tmp_path / "new.png", says="--png needs a card")


# Bad input: training


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def config(:\n", r"exp\.py, line 1: SyntaxError"),
        ("x = 1\n", r"exp\.py: defines no function config"),
        ("def config():\n    return 1 / 0\n", r"exp\.py, line 2: ZeroDivisionError"),
        ("def config():\n    raise SystemExit(0)\n", r"exp\.py, line 2: SystemExit"),
        ("def config():\n    return 3\n", "gave int, not ExperimentConfig"),
        ("def config(x):\n    return 3\n", r"exp\.py: TypeError: config\(\) missing"),
        ("import nowhere_at_all\n", "line 1: ModuleNotFoundError"),
        ("x = '\udcff'\n", "SyntaxError.*utf-8"),
    ],
)
def test_bad_experiment_files(refuse, tmp_path, text, says):
    path = tmp_path / "exp.py"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    refuse("train", path, "--out", tmp_path / "run", says=says)


def test_an_unknown_experiment_names_near_ones(refuse, monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    out = ("--out", tmp_path / "run")
    refuse("train", "experiments/real_smok.py", *out, says=r"mean experiments/real_smoke\.py")
    refuse("train", "real_smok", *out, says=r"mean experiments/real_smoke\.py")
    refuse("train", "setup.cfg", *out, says="not a Python file")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("steps=6", "steps=6.5", r"exp\.py, line \d+: steps is 6\.5; expected int"),
        ("steps=6", "steps=0", "steps is 0"),
        ('cloud="{root}/cloud"', "cloud=3", "cloud is 3; expected str"),
        ("{root}/cloud", "{root}/nowhere", "nowhere is not a folder"),
        ("prompts_per_batch=8", "prompts_per_batch=4", "does not divide over 8 devices"),
        ("max_prompt_tokens=64", "max_prompt_tokens=999", "cloud's context of 256"),
        ("max_query_tokens=48", "max_query_tokens=999", "edge's context of 256"),
        ("cloud_rank=4", "cloud_rank=4, hidden_layer=2", "hidden_layer is 2.* 0 to 1"),
        ("steps=6", "steps=6, mesh=MeshConfig(data=3)", "does not fit 8 devices"),
        ("{root}/train.jsonl", "{root}/nowhere.jsonl", "no such file"),
    ],
)
def test_bad_settings_of_a_run(world, refuse, tmp_path, old, new, says):
    assert old in EXPERIMENT
    (tmp_path / "exp.py").write_text(EXPERIMENT.replace(old, new).format(root=world.root))
    refuse("train", tmp_path / "exp.py", "--out", tmp_path / "run", says=says)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"system": oops}', r"data\.jsonl:2: is not JSON"),
        (b'{"system": "\xff"}', r"data\.jsonl:2: is not UTF-8"),
        (b"[" * 100_000, r"data\.jsonl:2: is not JSON"),
        (b'{"system": "a"}', r"data\.jsonl:2: the field user, target is missing"),
        (b'{"system": null, "user": "b", "target": "c"}', r"data\.jsonl:2: .*system is null"),
    ],
)
def test_bad_data(world, refuse, tmp_path, line, says):
    data = tmp_path / "data.jsonl"
    data.write_bytes(b'{"system": "a", "user": "b", "target": "c"}\n' + line + b"\n")
    text = EXPERIMENT.replace("{root}/train.jsonl", str(data)).format(root=world.root)
    (tmp_path / "exp.py").write_text(text)
    refuse("train", tmp_path / "exp.py", "--out", tmp_path / "run", says=says)


def test_bad_places_for_a_run(world, refuse, tmp_path):
    """Among them a model folder: its config.json must not become the run's."""
    (tmp_path / "file").write_text("mine")
    exp = world.root / "exp.py"
    refuse("train", exp, "--out", world.root / "run", says="already holds a run.*--resume")
    refuse("train", exp, "--out", tmp_path / "file", says="is a file")
    refuse("train", exp, "--out", tmp_path / "file" / "run", says="is a file or a dead link")
    refuse("train", exp, "--out", world.root / "edge", says="config.json of something else")
    args = ("train", exp, "--out", world.root / "edge", "--resume")
    refuse(*args, says="config.json of something else")
    refuse("train", exp, "--out", tmp_path / "r", "--json", tmp_path, says="not a plain file")


# Interruptions and the environment


def fails(error):
    def export(*args, **options):
        raise error

    return export


def test_interruptions_leave_nothing(specialize, refuse, monkeypatch):
    place = (specialize_module, "export_merged")
    monkeypatch.setattr(*place, fails(KeyboardInterrupt()))
    refuse(*specialize(), says="interrupted", code=130)
    monkeypatch.setattr(*place, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    refuse(*specialize(), says="interrupted", code=130)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupted_overwrite_keeps_the_old_folder(world, specialize, refuse, tmp_path):
    shutil.copytree(world.special, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specialize_module, "export_merged", fails(KeyboardInterrupt()))
        refuse(*specialize(overwrite=True), says="interrupted", code=130)


def test_memory_disk_and_defects(specialize, refuse, monkeypatch, capfd):
    place = (specialize_module, "export_merged")
    for error, says in (
        (MemoryError("Unable to allocate 9 TiB"), "not enough memory.*9 TiB"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "not enough memory"),
        (OSError(28, "No space left on device"), "Cannot write .*No space left.*Free some space"),
        (OSError(5, "Input/output error", "/elsewhere/file"), "/elsewhere/file: Input/output"),
    ):
        monkeypatch.setattr(*place, fails(error))
        refuse(*specialize(), says=says)
    monkeypatch.setattr(*place, fails(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):  # a defect of ours is not dressed up as the user's
        lorage(*specialize())


def test_a_full_disk(specialize, refuse, tiny_disk):  # noqa: F811
    refuse(*specialize(out=tiny_disk / "out"), says="Cannot write .*No space left")
    assert list(tiny_disk.iterdir()) == []


def test_a_disk_that_fills_up_in_training(world, tiny_disk, capfd, caplog):  # noqa: F811
    """orbax alone would tell it in a thousand lines."""
    assert lorage("train", world.root / "exp.py", "--out", tiny_disk / "run") == 1
    error = capfd.readouterr().err
    last = error.splitlines()[-1]
    assert re.search("^lorage: .*could not be written .*No space left.*Check the disk", last)
    assert all(line.startswith("step ") for line in error.splitlines()[:-1]), error
    assert "orbax" not in caplog.text  # what pytest keeps from the terminal
