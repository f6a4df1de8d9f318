"""Scoring next to lm-eval's hf model: the same requests, with both forms of the result."""

import json

import pytest

from lorage_jax.bench import peers, score
from lorage_jax.errors import DataError
from lorage_jax.hf.load import load_model


def test_records_on_both_sides(tiny, tmp_path, monkeypatch):
    folder, _ = tiny("llama")
    records = tmp_path / "records.jsonl"
    rows = [{"question": f"{n} and 1", "choices": ["one", "two", f"{n + 1}"]} for n in range(5)]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(score, "matmul_rate", lambda dtype: 1e9)
    monkeypatch.setattr(score, "BATCH_SIZES", (1, 4))
    result = score.bench_score(folder, 1, "float32", records, questions=2)
    assert result["requests"] == 6
    assert result["largest_difference_nats"] < 1e-3
    assert set(result["hf_by_batch_size"]) == {"1", "4"}
    assert result["hf_best_batch_size"] in (1, 4)
    theirs = result["transformers"]
    assert result["hf_requests_per_second"] == theirs["requests_per_second"]
    assert result["lorage_requests_per_second"] == pytest.approx(6 / result["lorage"]["seconds"])
    assert result["ratio"] == result["ratio_lorage_to_hf"]
    assert result["ratio"] == pytest.approx(theirs["seconds"] / result["lorage"]["seconds"])


def test_requests_of_records(tiny, tmp_path):
    folder, _ = tiny("llama")
    model = load_model(folder, "float32")
    records = tmp_path / "records.jsonl"
    records.write_text('{"question": "1 and 1", "choices": ["two", "ten"]}\n{"text": "x"}\n')
    (context, ending), (_, other) = score.arc_like(model, records, 1)
    read = model.tokenizer.decode
    assert read(context) == "Question: 1 and 1\nAnswer:"
    assert (read([*context, *ending]), read([*context, *other])) == (
        "Question: 1 and 1\nAnswer: two",
        "Question: 1 and 1\nAnswer: ten",
    )
    with pytest.raises(DataError, match=r"jsonl:2: expected \{question, choices\}, found text"):
        score.arc_like(model, records, 2)


def test_without_lm_eval(tiny, monkeypatch):
    folder, _ = tiny("llama")
    monkeypatch.setattr(score, "matmul_rate", lambda dtype: 1e9)
    monkeypatch.setattr(score, "CONTEXT", 20)
    monkeypatch.setattr(peers, "missing", lambda *names: "lm-eval is not installed.")
    result = score.bench_score(folder, 1, "float32", questions=2)
    assert result["requests"] == 8 and result["lorage_requests_per_second"] > 0
    for name in ("transformers", "ratio", "hf_requests_per_second", "largest_difference_nats"):
        assert result[name] is None
    assert result["note"].startswith("lm-eval is not installed.")  # others may be busy, too


def test_batches_whose_logits_do_not_fit_are_left_out(tiny, monkeypatch):
    config = load_model(tiny("llama")[0], "float32").config
    requests = [([1] * 90, [1] * 10)]
    monkeypatch.setattr(score, "LOGITS_BYTES", 40 * 100 * 4 * config.vocab_size)
    assert score._batch_sizes(config, requests) == [1, 8, 32]
    monkeypatch.setattr(score, "LOGITS_BYTES", 0)
    assert score._batch_sizes(config, requests) == [1]
