"""The command line in normal use."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.generator import deploy as deploying
from lorage_jax.hf import dtype as dtypes
from tests.commands.world import (
    PROMPT,
    WEIGHTS,
    lorage,
    subprocess_lorage,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_train_leaves_a_generator_and_its_figures(world):
    figures = json.loads((world.root / "train.json").read_text())
    assert figures["steps"] == 6 and len(figures["losses"]) == 6
    assert figures["seconds"] > 0 and figures["generator"] == str(world.generator)
    assert lg.load_generator(world.generator).fingerprint == figures["fingerprint"]
    assert 1 <= figures["programs"] <= figures["most_programs"] == 2  # prompts of 48 or 64
    assert 0 < figures["compile_seconds"] < figures["seconds"]
    whole = figures["provenance"]["compiled"]  # with those of loading and of the state
    assert whole["programs"] >= figures["programs"]
    assert whole["seconds"] >= figures["compile_seconds"]
    assert (world.root / "run" / "config.json").exists()
    assert not (world.root / "unused").exists()


@pytest.mark.parametrize(
    "resume", [("--resume",), pytest.param(("--resume", "auto"), marks=pytest.mark.slow)]
)
def test_train_resumes(world, tmp_path, capfd, resume):
    run, figures = tmp_path / "run", tmp_path / "figures.json"
    shutil.copytree(world.root / "run", run)
    shutil.rmtree(run / "checkpoints" / "6")
    shutil.rmtree(run / "generator")
    args = ("train", world.root / "exp.py", "--out", run, "--json", figures)
    assert lorage(*args, *resume) == 0
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
    origin = report.pop("provenance")  # only in the --json file
    assert origin["command"].startswith("lorage specialize --generator")
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


@pytest.mark.slow
def test_specialize_from_standard_input_in_a_process_of_its_own(world, specialize, tmp_path):
    for name in ("cloud", "edge"):
        shutil.copytree(world.root / name, tmp_path / "moved" / name)
    done = subprocess_lorage(
        *specialize(prompt="-", json=tmp_path / "r.json", save="merged"),
        *("--cloud", tmp_path / "moved" / "cloud", "--edge", tmp_path / "moved" / "edge"),
        input=PROMPT,
    )
    assert (done.returncode, done.stderr) == (0, "")  # no library output
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


def test_another_dtype_is_cast_once(world, specialize, tmp_path):
    """The sum is in float32 and cast once; the weights are not cast before it."""
    assert lorage(*specialize(dtype="bfloat16", save="merged")) == 0
    name = "model.layers.1.mlp.gate_proj.weight"
    merged = load_file(world.special / "merged" / WEIGHTS)[name]
    exported = load_file(tmp_path / "out" / "merged" / WEIGHTS)[name]
    np.testing.assert_array_equal(exported, merged.astype(exported.dtype))
    assert exported.dtype != merged.dtype
    assert json.loads((tmp_path / "out" / "report.json").read_text())["dtype"] == "bfloat16"


def test_what_the_cast_loses_is_reported(world, specialize, tmp_path, capfd, refuse, monkeypatch):
    """In numbers, in words beyond a tenth of the effect, and as an error with --strict."""
    options = {"dtype": "bfloat16", "save": "merged"}
    assert lorage(*specialize(rounding="nearest", **options)) == 0
    merge = json.loads((tmp_path / "out" / "report.json").read_text())["merge"]
    assert merge["rounding"] == "nearest" and 0 < merge["kl_lost"] < 0.1 * merge["kl_effect"]
    assert merge["update_kept"] < 1 and "loses" not in capfd.readouterr().err

    monkeypatch.setattr(deploying, "LOST", 0.5 * merge["kl_lost"] / merge["kl_effect"])
    assert lorage(*specialize(out=tmp_path / "words", rounding="nearest", **options)) == 0
    error = capfd.readouterr().err
    assert "of the prompt's effect" in error and "--rounding stochastic" in error
    again = specialize(out=tmp_path / "strict", rounding="nearest", strict=True, **options)
    refuse(*again, says=r"the cast to bfloat16 loses .* Nothing was written \(--strict\)")


def test_a_merge_that_is_not_the_adapter_is_an_error(specialize, refuse, monkeypatch):
    """In float32, merged logits must be the unmerged ones; in a narrower dtype, rounding counts."""
    real = deploying.merge_with_report

    def wrong(*args, **options):
        special, report = real(*args, **options)
        layers = special.params["layers"] | {"up": special.params["layers"]["up"] * 1.1}
        return special.replace(params=special.params | {"layers": layers}), report

    monkeypatch.setattr(deploying, "merge_with_report", wrong)
    refuse(*specialize(), says="the logits of the merged stage differ from the unmerged ones")
    assert lorage(*specialize(dtype="bfloat16", save="merged")) == 0


def test_stochastic_rounding_by_seed(world, specialize, tmp_path):
    name, found = "model.layers.1.mlp.gate_proj.weight", []
    for seed in (3, 3, 4):
        out = tmp_path / str(len(found))
        options = {"dtype": "bfloat16", "save": "merged", "rounding": "stochastic"}
        assert lorage(*specialize(out=out, seed=seed, **options)) == 0
        found.append(load_file(out / "merged" / WEIGHTS)[name].astype(np.float32))
        assert json.loads((out / "report.json").read_text())["merge"]["rounding"] == "stochastic"
    np.testing.assert_array_equal(found[0], found[1])
    assert np.any(found[0] != found[2])


def test_generate_fits_the_context_by_default(world, capfd):
    """As in quickstart's hint: no length given, and less than 128 tokens left in the context."""
    args = ("--model", world.special / "merged", "--input", "x" * 200)
    assert lorage("generate", *args) == 0


def test_generate_with_an_adapter(world, tmp_path):
    """The base with the adapter answers as the merged folder; at weight 0, as the base."""

    def answer(model, *more):
        file = tmp_path / "answer.json"
        args = ("--input", "User: go 3", "--raw", "--max-new-tokens", 24, "--json", file)
        assert lorage("generate", "--model", world.root / model, *args, *more) == 0
        return json.loads(file.read_text())["output"]

    adapter, edge = world.special / "adapter", answer("edge")
    merged = answer("special/merged")
    assert merged != edge
    assert answer("edge", "--adapter", adapter) == merged
    assert answer("edge", "--adapter", f"{adapter}=0") == edge
    halves = ("--adapter", f"{adapter}=0.5", "--adapter", f"{adapter}=0.5")
    assert answer("edge", *halves) == merged


def test_export_of_a_base_with_the_turns_of_a_card(world, specialize, tmp_path, refuse):
    """A base with a chat template of its own, for a generator that was trained in plain turns."""
    edge = tmp_path / "edge"
    shutil.copytree(nano.EDGE, edge)
    (edge / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")

    def template(*more):
        out = tmp_path / f"{len(more)}.gguf"
        assert lorage("export", edge, "--gguf", out, *more) == 0
        return gguf.GGUFReader(out).fields["tokenizer.chat_template"].contents()

    assert template() == "{{ messages[0]['content'] }}"
    card = lg.specialize(lg.load_generator(nano.GENERATOR), "Reverse the words.")
    card.save(tmp_path / "card.json")
    assert template("--turns", tmp_path / "card.json") == lg.load_model(nano.EDGE).template.jinja()
    args = ("export", nano.EDGE, "--gguf", tmp_path / "x.gguf", "--turns")
    refuse(*args, world.special / "card.json", says="this card is for the edge model")
    merged = ("export", world.special / "merged", *args[2:])  # has the tokenizer of the card's edge
    refuse(*merged, world.special / "card.json", says="this card is for the edge model")


def test_specialize_overwrites_its_own_folder_only_when_told(world, specialize, tmp_path, refuse):
    shutil.copytree(world.special, tmp_path / "out")
    refuse(*specialize(), says="exists and is not empty")
    assert lorage(*specialize(save="card", overwrite=True)) == 0
    assert not (tmp_path / "out" / "merged").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refuse(*specialize(overwrite=True), says=r"did not write.*notes\.txt")
    generator = shutil.copytree(world.generator, tmp_path / "generator")
    same = {"generator": generator, "out": generator, "overwrite": True}
    refuse(*specialize(**same), says="would be replaced, but .*generator is read")


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
    assert answer["output"] == lg.chat(model, "go 3", max_new_tokens=6)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"go 3\n")))
    assert text(merged, "--input", "-")["output"] == answer["output"]


def test_inspect(world, tmp_path, capfd):
    png, result = tmp_path / "gates.png", tmp_path / "card.json"
    assert lorage("inspect", world.special / "card.json", "--png", png, "--json", result) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert json.loads(result.read_text())["open_gates_per_layer"] == [4, 4, 4]
    shown = capfd.readouterr().out
    assert "layer" in shown and "cloud_tokens" in shown
    for folder in (world.special, world.special / "merged", world.special / "adapter"):
        assert lorage("inspect", folder) == 0
        assert capfd.readouterr().out == shown.replace(f"picture: {png}\n", "")
    assert lorage("inspect", world.generator, "--json", result) == 0
    assert json.loads(result.read_text())["sizes"]["trained.meta"] == 3 * 32
    shown = capfd.readouterr().out
    assert "trained.pool" in shown and f"cloud {world.root / 'cloud'}" in shown


def test_a_warning_of_the_package_is_a_line_of_the_command(world, monkeypatch, capfd):
    monkeypatch.setattr(dtypes, "free_memory", lambda: 1)
    assert (
        lorage("generate", "--model", world.root / "edge", "--input", "Hi.", "--max-new-tokens", 1)
        == 0
    )
    told = [line for line in capfd.readouterr().err.splitlines() if "bfloat16" in line]
    assert len(told) == 1 and told[0].startswith("lorage: float32 weights would take ")
    assert not logging.getLogger("lorage_jax").handlers


def test_an_ascii_terminal_and_a_closed_pipe(world):
    card = world.special / "card.json"
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess_lorage("inspect", card, env=ascii_only)
    assert done.returncode == 0 and done.stderr == "" and "layer" in done.stdout
    command = f"{sys.executable} -m lorage_jax.cli inspect {card} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command",
    [
        *("quickstart", "train", "pretrain", "specialize", "export", "generate", "inspect"),
        "report",
    ],
)
def test_help_has_an_example(command, capfd):
    with pytest.raises(SystemExit) as end:
        lorage(command, "--help")
    shown = capfd.readouterr().out
    assert end.value.code == 0 and f"Example: lorage {command} " in shown
    assert "--json" in shown


@pytest.mark.parametrize("words", ["--help", "train --help", "bench flops --help"])
def test_help_is_for_users_and_quick(words):
    """No heavy library is imported before there is work to do."""
    code = (
        "import sys\nfrom lorage_jax.cli import main\n"
        f"try:\n    main({words.split()})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'torch', 'transformers', 'orbax', 'grain', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dataclass" not in done.stdout and "Example: lorage" in done.stdout


@pytest.mark.parametrize(
    "args", [[], ["foo"], ["inspect", "card.json", "--foo"], ["train"], ["bench", "foo"]]
)
def test_unknown_words_end_in_usage(args, capfd):
    with pytest.raises(SystemExit) as end:
        lorage(*args)
    assert end.value.code == 2
    assert "--help" in capfd.readouterr().err


def test_commands_that_do_not_train_import_nothing_of_training():
    """orbax, grain and optax take seconds to import."""
    code = (
        "import sys\n"
        "import lorage_jax.commands.inspect, lorage_jax.commands.serve\n"
        "import lorage_jax.commands.specialize\n"
        "print([name for name in ('orbax', 'grain', 'optax') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
