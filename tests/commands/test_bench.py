"""`lorage bench`: shapes, options, and the figures of the paper."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from lorage_jax.commands.bench import flops, latency
from lorage_jax.hf.config import to_hf_config
from lorage_jax.hf.family import family_decoder
from lorage_jax.hf.presets import SHAPES
from lorage_jax.models.presets import with_layers
from tests.bench.shapes import tiny
from tests.commands.world import lorage

SIZES = {"vocab_size": 97, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48}
CONFIG = family_decoder("llama", layers=2, **SIZES)
MEASUREMENTS = "merge prefill decode export flops latency memory score specialize train".split()


def folder(tmp_path, config, name="edge"):
    """Only a config.json: no weights, no tokenizer."""
    path = tmp_path / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps(to_hf_config(config, "bfloat16")))
    return path


@pytest.mark.parametrize("what", MEASUREMENTS)
def test_help_has_an_example(what, capsys):
    with pytest.raises(SystemExit) as end:
        lorage("bench", what, "--help")
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"Example: lorage bench {what}" in text and "--json" in text


@pytest.mark.parametrize("what", ["merge", "decode", "export", "memory", "specialize", "train"])
def test_the_command_takes_any_shape(tmp_path, monkeypatch, what):
    """A folder with a config.json, cut to one layer."""
    seen = []

    def fake(config, *args, **kwargs):
        seen.append(config)
        return {}

    module = importlib.import_module(f"lorage_jax.commands.bench.{what}")
    monkeypatch.setattr(module, f"bench_{what}", fake)
    fields = to_hf_config(CONFIG, "float32")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    file = tmp_path / "out.json"
    edge = ["--edge-config", str(tmp_path), "--layers", "1"]
    assert lorage("bench", what, *edge, "--json", file) == 0
    assert seen == [with_layers(CONFIG, 1)]
    result = json.loads(file.read_text())
    assert (result["bench"], result["shape"]) == (what, str(tmp_path))


@pytest.mark.parametrize(
    ("what", "compare", "options", "settings"),
    [
        ("prefill", "compare_prefill", (), {"batch": 1, "prompt_tokens": 200, "repeats": 5}),
        (
            "decode",
            "compare_decode",
            ("--batch", 16, "--new-tokens", 8),
            {"batch": 16, "prompt_tokens": 32, "new_tokens": 8, "repeats": 3},
        ),
        (
            "train",
            "compare_lora_step",
            ("--input-tokens", 64, "--remat", "none"),
            {"rows": 8, "tokens": 64, "rank": 8, "remat": "none", "repeats": 3},
        ),
        (
            "score",
            "bench_score",
            ("--records", "x.jsonl", "--questions", 5),
            {"records": Path("x.jsonl"), "questions": 5},
        ),
    ],
)
def test_a_real_model_is_measured_beside_another_library(
    tmp_path, monkeypatch, capsys, what, compare, options, settings
):
    seen, file = [], tmp_path / "out.json"
    given = {"lorage": {"seconds": 0.5}, "ratio": 2.0, "machine": {"threads": 3}}
    module = importlib.import_module(f"lorage_jax.commands.bench.{what}")
    monkeypatch.setattr(
        module, compare, lambda model, *args, **kw: seen.append((model, args, kw)) or given
    )
    model = folder(tmp_path, CONFIG)
    args = ("--model", model, "--dtype", "float32", *options)
    assert lorage("bench", what, *args, "--json", file) == 0
    ((where, rest, kept),) = seen
    assert where == model
    if what == "score":
        assert (rest, kept) == ((3, "float32"), settings)
    else:
        assert (rest, kept) == ((), settings | {"dtype": "float32"})
    result = json.loads(file.read_text())
    assert {name: result[name] for name in given} == given and result["bench"] == what
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert lines == {"bench": what, "lorage.seconds": "0.5", "ratio": "2", "machine.threads": "3"}


def test_table_13(tmp_path, capsys):
    """The paper's inference column from a folder that holds only config.json."""
    file = tmp_path / "flops.json"
    edge = folder(tmp_path, SHAPES["qwen2-1.5b"])
    tokens = ("--input-tokens", 100, "--instruction-tokens", 200)
    assert lorage("bench", "flops", "--edge-config", edge, *tokens, "--json", file) == 0
    result = json.loads(file.read_text())
    assert result["macs_with_prompt"] == pytest.approx(4.708e11, rel=1e-3)
    assert result["macs_specialized"] == pytest.approx(1.552e11, rel=1e-3)
    # LLaMA3-8B: 6.98e9 weights in its layers, 200 + 28 slots.
    assert result["macs_cloud_pass"] == pytest.approx(6.98e9 * 228, rel=0.03)
    assert result["break_even_requests"] == 6
    assert result["compiled_flops_with_prompt"] / 2 == pytest.approx(4.708e11, rel=0.03)
    assert result["compiled_flops_specialized"] / 2 == pytest.approx(1.552e11, rel=0.03)
    for name, macs in (("loramoe", 4.742e11), ("mixlora", 5.048e11)):
        assert result[f"macs_{name}"] == pytest.approx(macs, rel=0.03)
        assert result[f"compiled_flops_{name}"] / 2 == pytest.approx(macs, rel=0.03)
    assert result["compiled_flops_cloud_pass"] / 2 == pytest.approx(1.6066e12, rel=0.03)
    assert result["macs_last_logit_with_prompt"] == pytest.approx(
        4.708e11 - 299 * 1536 * 151_936, rel=1e-3
    )
    assert (result["shape"], result["cloud"]) == ("qwen2-1.5b", "llama3-8b")
    shown = capsys.readouterr().out
    assert shown.count("4.708e+11") == 2 and shown.count("1.552e+11") == 2  # ours, the paper's


PAPER = {4.708e11, 4.742e11, 5.048e11, 1.552e11}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--shape", "qwen2-1.5b"), PAPER),
        (("--shape", "qwen2-1.5b", "--layers", 28), PAPER),
        (("--shape", "qwen2-1.5b", "--layers", 27), set()),
        (("--shape", "qwen2-1.5b", "--input-tokens", 101), set()),
        (("--shape", "qwen2-1.5b", "--instruction-tokens", 100), set()),
        (("--shape", "tinyllama"), set()),
    ],
)
def test_the_papers_figures_appear_only_at_the_papers_setting(
    tmp_path, monkeypatch, args, expected
):
    monkeypatch.setattr(flops, "bench_flops", lambda *args, **kwargs: {})
    file = tmp_path / "out.json"
    assert lorage("bench", "flops", *args, "--json", file) == 0
    result = json.loads(file.read_text())
    assert {value for name, value in result.items() if name.startswith("paper")} == expected


@pytest.mark.parametrize(
    ("options", "layers", "depth"),
    [((), 4, "4 of 22 layers"), (("--layers", "2"), 2, "2 of 22 layers")],
)
def test_a_cpu_takes_a_reduced_depth_and_says_so(monkeypatch, tmp_path, options, layers, depth):
    seen = []

    def fake(config, **counts):
        seen.append((config.layers, counts))
        return {"layers": config.layers}

    monkeypatch.setattr(latency, "bench_latency", fake)
    file = tmp_path / "out.json"
    assert lorage("bench", "latency", *options, "--json", file) == 0
    counts = {"input_tokens": 100, "instruction_tokens": 200, "new_tokens": 32, "repeats": 3}
    assert seen == [(layers, counts | {"dtype": "bfloat16"})]
    result = json.loads(file.read_text())
    assert (result["bench"], result["shape"]) == ("latency", "tinyllama")
    assert result["depth"] == depth
    assert (result["paper_ms_with_prompt"], result["paper_ms_specialized"]) == (44.5, 21.2)
    assert result["paper_ratio"] == pytest.approx(2.1, abs=0.01)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("flops", "--input-tokens", 0), "--input-tokens is 0; expected 1 or more"),
        (("flops", "--instruction-tokens", -1), "--instruction-tokens is -1"),
        (("flops", "--layers", 0), "--layers is 0"),
        (("latency", "--new-tokens", 1), "new_tokens is 1; expected 2 or more"),
        (("latency", "--repeats", 0), "--repeats is 0"),
        (("latency", "--input-tokens", 1900), "are 2132; the edge's context is 2048"),
        (("flops", "--input-tokens", 1849), "are 2049; the edge's context is 2048"),
        (
            ("flops", "--shape", "qwen2-1.5b", "--instruction-tokens", 8165),
            "8165 instruction + 28 meta tokens are 8193; the cloud's context is 8192",
        ),
        (("flops", "--edge-config", "nowhere"), "nowhere is not a folder"),
        (("flops", "--cloud-config", "nowhere"), "nowhere is not a folder"),
        (("flops", "--edge-config", "."), "no config.json"),
        (("flops", "--shape", "gemma2-2b", "--edge-config", "."), "give one of them"),
        (("prefill", "--model", "nowhere"), "nowhere is not a folder"),
        (("decode", "--model", ".", "--layers", 2), "--layers 2 is for random weights"),
        (("train", "--model", ".", "--shape", "qwen2-1.5b"), "--shape qwen2-1.5b is for random"),
        (("train", "--rank", 4), "--rank goes with --model, "),
        (("train", "--remat", "none"), "--remat goes with --model, "),
        (
            ("train", "--model", ".", "--instruction-tokens", 9),
            "--instruction-tokens is for random weights",
        ),
        (("flops", "--shape", "gemma9"), "--shape is 'gemma9'; expected one of gemma2-2b, "),
    ],
)
def test_bad_options(tmp_path, monkeypatch, capsys, args, says):
    monkeypatch.chdir(tmp_path)
    assert lorage("bench", *args) == 1
    error = capsys.readouterr().err
    assert error.startswith("lorage: ") and says in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args",
    [
        ("flops", "--repeats", 7),
        ("merge", "--cloud-config", "."),
        ("score", "--model", ".", "--layers", 2),
    ],
)
def test_options_of_another_measurement(capsys, args):
    with pytest.raises(SystemExit) as end:
        lorage("bench", *args)
    assert end.value.code == 2 and args[-2] in capsys.readouterr().err


def test_a_deeper_edge_without_a_pattern_is_refused(tmp_path, capsys):
    config = dataclasses.replace(tiny("gemma2", 4), sliding=(False, False, False, True))
    edge = folder(tmp_path, config)
    assert lorage("bench", "flops", "--edge-config", edge, "--layers", 6) == 1
    assert "expected at most 4" in capsys.readouterr().err
    assert with_layers(config, 2).layers == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("prefill", "--prompt-tokens", 2048), "2048 prompt + 1 new tokens are 2049; the model's"),
        (("decode", "--prompt-tokens", 2017), "2017 prompt + 32 new tokens are 2049; the model's"),
        (("train", "--input-tokens", 2049), "2049 input tokens are 2049; the model's context is"),
    ],
)
def test_a_real_model_must_have_room(tmp_path, capsys, args, says):
    what, *options = args
    assert lorage("bench", what, "--model", folder(tmp_path, CONFIG), *options) == 1
    assert says in capsys.readouterr().err


def test_training_rows_must_divide(capsys):
    assert lorage("bench", "train", "--rows", 12) == 1
    assert "--rows is 12; expected a multiple of 8" in capsys.readouterr().err
