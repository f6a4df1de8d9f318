"""Training steps at several numbers of queries per prompt, on a tiny shape."""

import dataclasses

import numpy as np
import pytest

from lorage_jax.bench import train
from lorage_jax.config import GeneratorConfig
from lorage_jax.hf.family import family_decoder

SIZES = {"vocab_size": 97, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48}
CONFIG = family_decoder("llama", layers=2, **SIZES)


@pytest.mark.slow
def test_training_steps_are_of_the_same_rows(monkeypatch):
    """For every Q: as many rows for the edge, fewer prompts for the cloud, all in real steps."""
    seen, build = [], train.build_step

    def watched(*args):
        program = build(*args)

        def run(state, frozen, batch):
            state, metrics = program.step(state, frozen, batch)
            prompts, queries = batch.prompts[0].tokens, batch.queries[0].tokens
            seen.append((prompts.shape, queries.shape, int(state.step), float(metrics["loss"])))
            return state, metrics

        return dataclasses.replace(program, step=run)

    monkeypatch.setattr(train, "build_step", watched)
    monkeypatch.setattr(train, "QUERIES", (1, 8))  # both ends, each of which has its own program
    cloud = family_decoder("llama", layers=3, **SIZES)
    result = train.bench_train(
        CONFIG,
        cloud,
        GeneratorConfig(),
        rows=64,  # one row per test device even at Q = 8
        prompt_tokens=24,
        query_tokens=16,
        repeats=1,
        dtype="float32",
    )
    assert [prompts[1] for prompts, *_ in seen] == [64, 8] * 2
    assert {queries for _, queries, *_ in seen} == {(1, 64, 16)}
    assert [step for *_, step, _ in seen] == list(range(1, 5))
    assert all(np.log(SIZES["vocab_size"]) * 0.5 < loss < 20 for *_, loss in seen)
    shares = [result[f"q{q}_cloud_share_of_arithmetic"] for q in (1, 8)]
    work = [share / (1 - share) for share in shares]  # besides the edge's
    np.testing.assert_allclose(work, [work[0] / q for q in (1, 8)], rtol=1e-6)
    rates = [result[f"q{q}_edge_tokens_per_second"] for q in (8, 1)]
    assert result["ratio_q8_to_q1"] == pytest.approx(rates[0] / rates[1])
