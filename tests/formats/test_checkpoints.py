"""Training runs of older versions resume, with the same losses and results."""

import dataclasses
import tarfile

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.config import (
    Corpus,
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    OptimizerConfig,
    PretrainConfig,
    Source,
)
from lorage_jax.hf.family import family_decoder
from lorage_jax.methods.lora import load_lora
from lorage_jax.methods.training import train
from lorage_jax.train.pretrain import pretrain


@pytest.fixture
def run(old, tmp_path):
    """run(name): a copy of an old run that stopped after step 2 of 4."""

    def unpack(name):
        # Python before 3.11.4 has no filters.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        with tarfile.open(old / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, **safe)
        return tmp_path / name

    return unpack


@pytest.fixture
def config(old):
    """The experiment of the runs `train` and `lora`, with all settings of that version."""
    return ExperimentConfig(
        cloud=str(old / "cloud"),
        edge=str(old / "edge"),
        out="",
        data=DataConfig(
            sources=(Source(str(old / "train.jsonl")),),
            prompts_per_batch=8,
            queries_per_prompt=1,
            max_prompt_tokens=32,
            max_query_tokens=32,
            min_bucket=32,
        ),
        steps=4,
        generator=GeneratorConfig(
            experts=4, top_k=2, rank=2, alpha=4.0, cloud_rank=2, router_width=8
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=1),
        dtype="float32",
        remat="none",
        save_every=2,
        keep=2,
        log_every=1,
    )


def check_goes_on(result, expected):
    assert result.first_step == 2
    steps, losses = zip(*result.losses, strict=True)
    known = dict(expected["losses"])
    assert steps == (3, 4)
    np.testing.assert_allclose(losses, [known[3], known[4]], rtol=1e-4)


def last_logits(model, expected):
    begin, end = expected["slice"]
    return np.asarray(lg.forward(model, np.asarray(expected["tokens"])))[0, -1, begin:end]


def test_a_generators_training(run, config, expected):
    result = train(dataclasses.replace(config, out=str(run("train"))), resume=True, progress=False)
    check_goes_on(result, expected["train"])
    card = lg.specialize(lg.load_generator(result.folder), "Say 7 twice.")
    # Trained further, they differ by 1.3e-4 between CPUs of two makers.
    np.testing.assert_allclose(card.gates, expected["trained_gates"], atol=1e-3)


def test_a_loras_training(old, run, config, expected):
    config = dataclasses.replace(config, out=str(run("lora")), method="lora")
    result = train(config, resume=True, progress=False)
    check_goes_on(result, expected["lora"])
    special = load_lora(result.folder, lg.load_model(old / "edge", "float32"))
    np.testing.assert_allclose(
        last_logits(special, expected), expected["logits"]["lora"], atol=1e-4
    )


def test_pretraining(old, run, expected):
    shape = {"vocab_size": 280, "width": 16, "layers": 2, "heads": 2, "kv_heads": 1}
    model = family_decoder("qwen2", **shape, ffn_width=24, bos_id=None, tied_head=True)
    requests, prose = (Source(str(old / "train.jsonl")), Source(str(old / "prose.jsonl"), "text"))
    prose = dataclasses.replace(prose, weight=0.5)
    config = PretrainConfig(
        model=model,
        out=str(run("pretrain")),
        corpora=(
            Corpus(requests, documents=8, rows=8, row_tokens=64, queries=2),
            Corpus(prose, documents=8, rows=8, row_tokens=64),
        ),
        steps=4,
        tokenizer_documents=20,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
        remat="none",
        save_every=2,
        log_every=1,
    )
    result = pretrain(config, resume=True, progress=False)
    check_goes_on(result, expected["pretrain"])
    found = last_logits(lg.load_model(result.folder, "float32"), expected)
    np.testing.assert_allclose(found, expected["logits"]["pretrain"], atol=2e-2)  # bfloat16
