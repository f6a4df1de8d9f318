"""Bad prompts, options, experiments and training data: one message each, nothing lost."""

import io
import sys

import pytest

from tests.commands.world import (
    EXPERIMENT,
    REPOSITORY,
    lorage,
)

VALUES = (
    "save",
    "overwrite",
    "base-name",
    "gguf-type",
    "dtype",
    "rounding",
    "seed",
    "strict",
)  # options that are no paths

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"good\n\xfcnd\n", "line 2 is not UTF-8"),
        (b"x" * 300, r"308 tokens.* at most 253 .*Shorten"),
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
    refuse(*specialize(prompt="-"), says="standard input: is empty; expected the text of a system")


@pytest.mark.parametrize(("data", "says"), [(b" ", "is empty"), (b"\xff", "not UTF-8")])
def test_a_bad_input_of_generate_is_not_called_a_prompt(world, refuse, monkeypatch, data, says):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    model = ("--model", world.special / "merged")
    refuse("generate", *model, "--input", "-", says=f"{says}.*; expected the text of --input")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"save": "card,merge"}, "card, adapter, merged"),
        ({"save": ","}, "expected any of"),
        ({"save": "card,gguf", "base-name": "me/edge"}, "--base-name goes with the output adapter"),
        ({"save": "card,lora-gguf", "gguf-type": "f16"}, "--gguf-type goes with the output gguf, "),
        ({"save": "card", "dtype": "bfloat16"}, "--dtype goes with the output merged or gguf, but"),
        ({"save": "adapter", "rounding": "stochastic"}, "--rounding goes with the output merged"),
        ({"save": "card,lora-gguf", "seed": 0}, "--seed goes with .*Add merged to it, or leave"),
        ({"dtype": "float32", "rounding": "stochastic"}, "--rounding stochastic: float32 is never"),
        ({"dtype": "float32", "seed": 3}, "--seed is of stochastic rounding, .*float32 is never"),
        ({"rounding": "nearest", "seed": 3}, "--seed is of stochastic rounding, but --rounding is"),
        ({"save": "card", "strict": True}, "--strict goes with the output merged or gguf"),
        ({"generator": "missing"}, r"not a folder; .*or nano or smollm2 for a bundled generator\."),
        ({"generator": "prompt.txt"}, "not a folder"),
        ({"generator": "cloud"}, "holds no lorage.json"),
        ({"generator": "special"}, "not a generator"),
        ({"generator": "run"}, r"holds no lorage\.json; .*; did you mean .*/run/generator\?"),
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
    """All are found before the cloud's weights are loaded."""
    from lorage_jax.generator import store

    monkeypatch.setattr(store, "load_model", lambda *_: pytest.fail("the cloud was loaded"))
    paths = {k: v if k in VALUES else world.root / v for k, v in options.items()}
    refuse(*specialize(**paths), says=says)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("out", r"is the same as --out .*out\. .*such as .*out\.json"),
        ("out/../out", "is the same as"),
        ("", "is a folder above --out"),
    ],
)
def test_the_result_has_its_place_beside_the_folder(specialize, refuse, tmp_path, place, says):
    asked = specialize(out=tmp_path / "new" / "out", json=tmp_path / "new" / place)
    refuse(*asked, says=says)


def test_the_result_of_a_run_may_lie_in_its_folder(tmp_path, capsys):
    """Other files than a run's own may be there, so the missing experiment is what is told."""
    run = ("train", tmp_path / "none.py", "--out", tmp_path / "run", "--json")
    assert lorage(*run, tmp_path / "run" / "result.json") == 1
    assert "none.py" in capsys.readouterr().err
    assert lorage(*run, tmp_path / "run") == 1
    assert "is the same as --out" in capsys.readouterr().err


def test_several_processes_of_a_command_for_one(world, refuse, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    refuse("serve", "--generator", world.generator, says="one process, but 4 were started")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--input", "x " * 200], "416 tokens.*context is 256.* by at least 161"),
        (["--input", "x", "--max-new-tokens", 0], "max_new_tokens is 0"),
        (["--input", "x", "--max-new-tokens", 10**12], "context is 256"),
        (["--input", " ", "--raw"], "empty"),
        (["--input", "x", "--adapter", "missing"], "missing is not a folder"),
        (["--input", "x", "--adapter", "cloud=much"], "a folder and a weight"),
        (["--input", "a\udcffb"], "not valid Unicode"),
        (["--input", "x", "--temperature", "nan"], "temperature"),
        (["--input", "x", "--temperature", 1, "--top-p", 0], "top_p is 0"),
        (["--input", "x", "--temperature", 1, "--top-k", -1], "top_k is -1"),
        (["--input", "x", "--temperature", 1, "--seed", -1], "seed is -1"),
        (["--input", "x", "--stop", ""], "stop"),
        (["--input", "x", "--system", "/nowhere/prompt"], "no such file"),
        (["--input", "x", "--system", "/nowhere/prompt", "--raw"], "cannot be combined"),
        (["--input", "x", "--json", "/dev/null"], "not a plain file"),
    ],
)
def test_bad_options_of_generate(world, refuse, args, says):
    refuse("generate", "--model", world.special / "merged", *args, says=says)


def test_options_of_sampling_without_sampling(world, capfd):
    args = ("generate", "--model", world.special / "merged", "--input", "x", "--max-new-tokens", 1)
    assert lorage(*args, "--top-k", 5, "--seed", 0) == 0
    assert "lorage: --top-k, --seed: only sampling obeys this" in capfd.readouterr().err
    assert lorage(*args, "--top-k", 5, "--seed", 0, "--temperature", 1) == 0
    assert "sampling" not in capfd.readouterr().err


def test_names_of_bundled_generators_and_models_inside_are_hinted_at(world, refuse, specialize):
    refuse(*specialize(generator="nan0"), says=r"nan0 is not a folder.*; did you mean nano\?")
    refuse("serve", "--generator", "smolm2", says=r"; did you mean smollm2\?")
    asked = ("generate", "--input", "x", "--model")
    refuse(*asked, world.special, says=r"no config\.json.*; did you mean .*/special/merged\?")
    refuse(*asked, world.root, says=r"no config\.json.*safetensors\)\.\n")
    refuse(*asked, "nano", says=r"nano is a bundled generator, whose edge is .*/nano/edge\.")
    refuse(
        *asked, "some/model", says="on the Hub, fetch it: hf download some/model --local-dir model"
    )
    refuse(*asked, world.root / "x", says=r"model folder, or a GGUF file\.\n")
    edge = (*asked, world.root / "edge", "--adapter")
    refuse(*edge, world.special, says=r"no adapter_config\.json; did you mean .*/special/adapter\?")
    refuse(*edge, world.special / "merged", says=r"It is a model; pass it as --model")


# Training


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def config(:\n", r"exp\.py, line 1: SyntaxError"),
        ("x = 1\n", r"exp\.py: defines no function config"),
        ("def config():\n    return 1 / 0\n", r"exp\.py, line 2: ZeroDivisionError"),
        ("def config():\n    raise SystemExit(0)\n", r"exp\.py, line 2: SystemExit"),
        ("def config():\n    return 3\n", "returned int, not ExperimentConfig"),
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
    """One of them is a model folder, whose config.json must not become the run's."""
    (tmp_path / "file").write_text("mine")
    exp = world.root / "exp.py"
    refuse("train", exp, "--out", world.root / "run", says="already holds a run.*--resume")
    refuse("train", exp, "--out", tmp_path / "file", says="is a file")
    refuse("train", exp, "--out", tmp_path / "file" / "run", says="is a file or a dead link")
    refuse("train", exp, "--out", world.root / "edge", says="config.json of something else")
    args = ("train", exp, "--out", world.root / "edge", "--resume")
    refuse(*args, says="config.json of something else")
    refuse("train", exp, "--out", tmp_path / "r", "--json", tmp_path, says="not a plain file")
