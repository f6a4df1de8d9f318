"""Pretraining as a whole: it learns, its folder loads everywhere, it resumes bit for bit."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.config import (
    Corpus,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    PretrainConfig,
    Source,
)
from lorage_jax.data.templates import encode
from lorage_jax.data.tokenizer import train_tokenizer
from lorage_jax.errors import ConfigError, DataError, OutputError, TrainingError
from lorage_jax.files.safetensors import read_tensors
from lorage_jax.hf.family import family_decoder, get_family
from lorage_jax.hf.tokenizer import load_tokenizer
from lorage_jax.train.pretrain import pretrain
from lorage_jax.train.watch import read_logs
from tests.tiny import FAMILIES, hf_config, torch_logits
from tests.train.test_generator import interrupt_at

SHAPE = {"vocab_size": 320, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48}
TEXT = "It rained, and nobody came. The old house was dark, and the wind went through the trees. "


@pytest.fixture
def config(tmp_path):
    """config(family, **changes) -> a small run on words and prose, of changed fields."""
    prose = tmp_path / "prose.jsonl"
    prose.write_text("".join(json.dumps({"text": TEXT * n}) + "\n" for n in (1, 2, 3)), "utf-8")

    def make(family="qwen2", **changes):
        bos = 1 if family == "llama" else None
        model = family_decoder(family, **SHAPE, bos_id=bos, tied_head=family == "qwen2")
        words = Source("synthetic", "synthetic", name="words", weight=0.7)
        base = PretrainConfig(
            model=model,
            out=str(tmp_path / "run"),
            corpora=(
                Corpus(words, documents=8, rows=8, row_tokens=128, queries=2),
                Corpus(Source(str(prose), "text", weight=0.3), documents=8, rows=8, row_tokens=128),
            ),
            steps=6,
            tokenizer_documents=60,
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
            remat="none",
            save_every=4,
            log_every=2,
        )
        return dataclasses.replace(base, **changes)

    return make


@pytest.mark.parametrize("family", [pytest.param("qwen2", marks=pytest.mark.slow), "llama"])
def test_it_learns_and_leaves_a_model(config, family):
    from transformers import AutoModelForCausalLM

    settings = config(family, steps=16)
    result = pretrain(settings, progress=False)
    losses = [loss for _, loss in result.losses]
    assert [step for step, _ in result.losses] == list(range(1, 17)) and result.first_step == 0
    assert losses[0] == pytest.approx(np.log(SHAPE["vocab_size"]), rel=0.15)
    assert np.mean(losses[-4:]) < 0.85 * np.mean(losses[:2])

    model = lg.load_model(result.folder)
    tokenizer = model.tokenizer
    assert model.config.vocab_size == len(tokenizer) == SHAPE["vocab_size"]
    assert (model.config.bos_id is None) is (family == "qwen2")
    assert model.config.eos_ids == (tokenizer.eos_token_id,)
    tensors = read_tensors(result.folder / "model.safetensors")
    assert {str(x.dtype) for x in tensors.values()} == {"bfloat16"}
    assert result.parameters == sum(x.size for x in tensors.values())
    text = "User: Grüße, 世界!\n\n  Assistant: </s>"
    assert tokenizer.decode(encode(tokenizer, text, bos=False)) == text
    theirs = AutoModelForCausalLM.from_pretrained(result.folder).float().eval()
    tokens = np.array([tokenizer.encode(TEXT)[:40]])
    ours = np.asarray(lg.forward(model, tokens))
    np.testing.assert_allclose(ours, torch_logits(theirs, tokens), atol=2e-4)
    assert np.abs(ours).max() > 1.0

    found = read_logs(result.folder.parent / "logs")
    for name in ("loss", "answer_loss", "grad_norm", "learning_rate", "tokens_per_second"):
        assert [step for step, _ in found[f"train/{name}"]] == list(range(2, 17, 2)), name
    resolved = json.loads((result.folder.parent / "config.json").read_text("utf-8"))
    assert resolved["steps"] == 16 and len(resolved["tokenizer_contents"]) == 64


@pytest.mark.slow
def test_it_can_begin_from_a_folder(config, tmp_path):
    """Weights and tokenizer are the folder's, and stay so with a tiny learning rate."""
    first = pretrain(config(steps=16, saved_dtype="float32"), progress=False)
    still = OptimizerConfig(learning_rate=1e-9, warmup_steps=0)
    begun = {"init": str(first.folder), "out": str(tmp_path / "more"), "seed": 5}
    settings = config(**begun, steps=2, optimizer=still, saved_dtype="float32")
    second = pretrain(settings, progress=False)
    assert second.losses[0][1] < 0.85 * first.losses[0][1]
    before, after = (read_tensors(r.folder / "model.safetensors") for r in (first, second))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_allclose(value, after[name], atol=1e-6, err_msg=name)
    ids = [load_tokenizer(r.folder).encode(TEXT) for r in (first, second)]
    assert ids[0] == ids[1]

    other = dataclasses.replace(settings.model, ffn_width=64)
    elsewhere = dataclasses.replace(settings, out=str(tmp_path / "other"))
    refused(dataclasses.replace(elsewhere, model=other), "ffn_width 64, there 48")
    nowhere = dataclasses.replace(elsewhere, init=str(tmp_path / "nowhere"))
    refused(nowhere, "nowhere, which is not a folder")


@pytest.mark.slow  # so does a LoRA, in tests/methods/test_lora.py, by the same loop
def test_resume_is_bit_exact(config, monkeypatch, tmp_path):
    """8 steps = 4 steps + kill at 6 + 4 steps, on other devices' shares, with moved data."""
    whole = pretrain(config(steps=8, out=str(tmp_path / "whole")), progress=False)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config(steps=8), progress=False)
    assert not (tmp_path / "run" / "model").exists()
    second = pretrain(config(steps=8), resume=True, progress=False)
    assert second.first_step == 4 and second.losses == whole.losses[4:]
    first, again = (read_tensors(r.folder / "model.safetensors") for r in (whole, second))
    assert first.keys() == again.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)

    # The same run is finished. Data may move, but nothing may change.
    words, prose = config().corpora
    moved = tmp_path / "moved.jsonl"
    shutil.copy(prose.source.path, moved)
    corpora = (words, dataclasses.replace(prose, source=Source(str(moved), "text", weight=0.3)))
    third = pretrain(config(steps=8, corpora=corpora), resume=True, progress=False)
    assert third.losses == [] and third.first_step == 8
    moved.write_text(json.dumps({"text": "Other text."}), "utf-8")
    with pytest.raises(TrainingError, match="data_contents"):
        pretrain(config(steps=8, corpora=corpora), resume=True, progress=False)
    changed = config(
        steps=8,
        prompt_weight=0.5,
        corpora=(dataclasses.replace(words, queries=3), prose),
    )
    with pytest.raises(TrainingError) as caught:
        pretrain(changed, resume=True, progress=False)
    assert "- prompt_weight: saved 0.1, now 0.5" in str(caught.value)
    assert "- corpora.0.queries: saved 2, now 3" in str(caught.value)
    with pytest.raises(OutputError, match="already holds a run"):
        pretrain(config(steps=8), progress=False)


def refused(config, says, error=ConfigError):
    with pytest.raises(error, match=says):
        pretrain(config, progress=False)


def test_what_cannot_be_trained(config, tmp_path):
    words, prose = config().corpora
    rows = dataclasses.replace(words, rows=6)
    refused(config(corpora=(rows, prose)), "a batch of 6 rows .* 8 devices.*multiple of 8")
    refused(config(mesh=MeshConfig(data=3)), "8 devices")
    small = dataclasses.replace(config().model, vocab_size=200)
    refused(config(model=small), r"vocab_size is 200; .* at least 258: 256 bytes and <pad>, </s>\.")
    tight = dataclasses.replace(words, row_tokens=24)
    refused(config(corpora=(tight,)), "row_tokens is 24, but documents of synthetic are longer")
    lost = dataclasses.replace(config("llama").model, attn_softcap=3.0)
    refused(config(model=lost), "a saved llama would not be .*attn_softcap 3.0, there None")
    missing = dataclasses.replace(prose, source=Source(str(tmp_path / "none.jsonl"), "text"))
    refused(config(corpora=(missing,)), r"none\.jsonl: no such file", DataError)
    assert not (tmp_path / "run").exists()


def test_prose_is_no_data_for_a_generator():
    with pytest.raises(ConfigError, match=r"kind text: prose has no system prompts.*pretrain"):
        DataConfig((Source("prose.jsonl", "text"),))


def test_a_tokenizer_is_a_function_of_its_texts():
    one, other = (train_tokenizer([TEXT], 300, bos=True) for _ in range(2))
    assert one.get_vocab() == other.get_vocab() and len(one) == 300
    assert [one.pad_token_id, one.eos_token_id, one.bos_token_id] == [0, 1, 2]
    assert len(train_tokenizer(["a"], 300, bos=False)) == 258  # few texts, few tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [True, False])
def test_a_saved_tokenizer_reads_as_it_was_trained(tmp_path, family, bos):
    """transformers splits texts for qwen2 in its own way, whatever tokenizer.json says."""
    texts = [
        TEXT,
        "System: a\n\nUser: on 12 May 2024\n",
        'call("x", 365) -> [1, 22]',
        "don't (or\n\n",
    ]
    rules = get_family(family).tokenizer
    tokenizer = train_tokenizer(texts * 3, 400, bos, rules and rules())
    hf_config(family).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert len(loaded) == len(tokenizer)
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    for text in (*texts, *(a + b for a in texts for b in texts), "Grüße 7\r\n\t 世界  !?\n\n\n"):
        assert encode(loaded, text, bos=True) == encode(tokenizer, text, bos=True)
