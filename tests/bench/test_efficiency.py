"""The benchmarks' mechanics, on a tiny shape: they time what they say. No timing is asserted."""

import dataclasses
import json

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.bench import efficiency, export, memory, train
from lorage_jax.cli import main
from lorage_jax.config import GeneratorConfig
from lorage_jax.hf.config import to_hf_config
from lorage_jax.models.presets import plain_decoder, with_layers

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


@pytest.mark.parametrize("what", ["merge", "decode", "export", "memory", "specialize", "train"])
def test_the_command_takes_any_shape(tmp_path, monkeypatch, what):
    """A folder with a config.json, cut to one layer."""
    seen = []

    def fake(config, *args, **kwargs):
        seen.append(config)
        return {}

    modules = {"export": export, "memory": memory, "train": train}
    module = modules.get(what, efficiency)
    monkeypatch.setattr(module, f"bench_{what}", fake)
    fields = to_hf_config(CONFIG, "float32")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    file = tmp_path / "out.json"
    edge = ["--edge-config", str(tmp_path), "--layers", "1"]
    assert main(["bench", what, *edge, "--json", str(file)]) == 0
    assert seen == [with_layers(CONFIG, 1)]
    result = json.loads(file.read_text())
    assert (result["bench"], result["shape"]) == (what, str(tmp_path))


def test_training_steps_are_of_the_same_rows(monkeypatch):
    """Whatever Q is: as many rows for the edge, fewer prompts for the cloud, all in real steps."""
    seen, make = [], train.make_train_step

    def watched(*args):
        step = make(*args)

        def run(state, frozen, batch):
            state, metrics = step(state, frozen, batch)
            prompts, queries = batch["prompt_tokens"][0], batch["query_tokens"][0]
            seen.append((prompts.shape, queries.shape, int(state.step), float(metrics["loss"])))
            return state, metrics

        return run

    monkeypatch.setattr(train, "make_train_step", watched)
    cloud = plain_decoder("llama", layers=3, **SIZES)
    result = train.bench_train(
        CONFIG,
        cloud,
        GeneratorConfig(),
        rows=64,  # a row for each of the test's devices also at Q = 8
        prompt_tokens=24,
        query_tokens=16,
        repeats=1,
        dtype="float32",
    )
    assert [prompts[1] for prompts, *_ in seen] == [64, 32, 16, 8] * 2
    assert {queries for _, queries, *_ in seen} == {(1, 64, 16)}
    assert [step for *_, step, _ in seen] == list(range(1, 9))
    assert all(np.log(SIZES["vocab_size"]) * 0.5 < loss < 20 for *_, loss in seen)
    shares = [result[f"q{q}_cloud_share_of_arithmetic"] for q in (1, 2, 4, 8)]
    work = [share / (1 - share) for share in shares]  # beside the edge's
    np.testing.assert_allclose(work, [work[0] / q for q in (1, 2, 4, 8)], rtol=1e-6)
    rates = [result[f"q{q}_edge_tokens_per_second"] for q in (8, 1)]
    assert result["ratio_q8_to_q1"] == pytest.approx(rates[0] / rates[1])


def test_training_rows_must_divide(capsys):
    assert main(["bench", "train", "--rows", "12"]) == 1
    assert "--rows is 12; expected a multiple of 8" in capsys.readouterr().err
