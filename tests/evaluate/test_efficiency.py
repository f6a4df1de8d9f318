"""The benchmarks' mechanics, on a tiny shape: they time what they say. No timing is asserted."""

import dataclasses
import json

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.cli import main
from lorage_jax.config import GeneratorConfig
from lorage_jax.evaluate import efficiency, export_memory, memory
from lorage_jax.evaluate.shapes import plain_decoder, with_layers
from lorage_jax.hf.config import to_hf_config

SIZES = {"vocab_size": 97, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48}
CONFIG = plain_decoder("llama", layers=2, **SIZES)


def test_the_card_changes_the_edge():
    edge, pool, card = efficiency.random_edge(CONFIG, "float32")
    special = lg.merge(edge, pool, card)
    tokens = [[1, 2, 3]]
    assert np.abs(lg.forward(edge, tokens) - lg.forward(special, tokens)).max() > 1e-3


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_merge_is_measured_beside_peft(family):
    config = plain_decoder(family, layers=2, **SIZES)
    result = efficiency.bench_merge(config, 2, "bfloat16")
    ratio = result["peft_seconds"] / result["lorage_donated_seconds"]
    assert result["ratio_peft_to_lorage_donated"] == pytest.approx(ratio)
    assert min(result["lorage_seconds"], result["lorage_donated_seconds"]) > 0


def test_decoding_is_measured_for_both(monkeypatch):
    """Merged weights are placed otherwise than fresh ones: the first call of each is warm-up."""
    called = []
    generate = efficiency.generate_tokens

    def watched(model, *args, **kwargs):
        called.append("base" if model.card is None else "merged")
        return generate(model, *args, **kwargs)

    monkeypatch.setattr(efficiency, "generate_tokens", watched)
    result = efficiency.bench_decode(dataclasses.replace(CONFIG, eos_ids=(3,)), 1, "float32")
    assert called == ["base", "merged"] * 2
    ratio = result["merged_seconds"] / result["base_seconds"]
    assert result["ratio_merged_to_base"] == pytest.approx(ratio)


def test_many_prompts_are_specialised_in_one_call_and_one_by_one(monkeypatch):
    seen = []
    specialize = efficiency._specialize

    def watched(*args):
        gates = specialize(*args)
        seen.append((args[-2].shape, int(args[-1].sum()), gates))
        return gates

    monkeypatch.setattr(efficiency, "_specialize", watched)
    cloud = plain_decoder("llama", layers=1, **SIZES)
    result = efficiency.bench_specialize(
        CONFIG, cloud, GeneratorConfig(), instruction_tokens=20, repeats=1, dtype="float32"
    )
    shapes = [shape for shape, _, _ in seen]
    assert shapes == ([(64, 24)] + [(1, 24)] * 64 + [(64, 24)] + [(1, 24)] * 64)
    assert all(real == 20 * shape[0] for shape, real, _ in seen)
    batch, single = seen[0][2], [gates for _, _, gates in seen[1:65]]
    assert batch.shape == (64, CONFIG.layers, 8)
    np.testing.assert_allclose(batch, np.concatenate(single), atol=1e-5)
    ratio = result["batch_seconds"] / result["single_calls_seconds"]
    assert result["ratio_batch_to_single"] == pytest.approx(ratio)


@pytest.mark.parametrize("what", ["merge", "decode", "export", "memory", "specialize"])
def test_the_command_takes_any_shape(tmp_path, monkeypatch, what):
    """A folder with a config.json, cut to one layer."""
    seen = []

    def fake(config, *args, **kwargs):
        seen.append(config)
        return {}

    module = {"export": export_memory, "memory": memory}.get(what, efficiency)
    monkeypatch.setattr(module, f"bench_{what}", fake)
    fields = to_hf_config(CONFIG, "float32")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    file = tmp_path / "out.json"
    edge = ["--edge-config", str(tmp_path), "--layers", "1"]
    assert main(["bench", what, *edge, "--json", str(file)]) == 0
    assert seen == [with_layers(CONFIG, 1)]
    result = json.loads(file.read_text())
    assert (result["bench"], result["shape"]) == (what, str(tmp_path))
