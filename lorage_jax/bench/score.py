"""Scoring speed on requests like HellaSwag's, or on records, against lm-eval's `hf` in one run."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lorage_jax.bench import peers
from lorage_jax.bench.comparison import PEER, Side, Work, compared
from lorage_jax.bench.counting import matmul_macs
from lorage_jax.bench.matmul import matmul_rate
from lorage_jax.bench.programs import prefill_program
from lorage_jax.bench.timing import Bystanders, in_turn
from lorage_jax.compilation import Compilations
from lorage_jax.config import ModelConfig
from lorage_jax.data.records import read_rows
from lorage_jax.data.tokenizer import train_tokenizer
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.hf.family import family_decoder
from lorage_jax.hf.load import load_model
from lorage_jax.hf.save import save_model
from lorage_jax.infer.place import place
from lorage_jax.infer.score import Request, default_batch_tokens, score
from lorage_jax.models.leaves import initialise, model_leaves
from lorage_jax.models.model import Model

QUESTIONS, ENDINGS, CONTEXT = 32, 4, 200
SMALL = family_decoder(
    "llama", vocab_size=8192, width=512, layers=6, heads=8, kv_heads=2, ffn_width=1408
)
BATCH_SIZES = (1, 8, 32, 64, 128)  # of the hf model; the fastest is reported
LOGITS_BYTES = 2 << 30  # of one batch of the hf model, which holds them for all its tokens
NEEDS = ("torch", "transformers", "lm_eval")


def bench_score(
    folder: Path | None,
    repeats: int,
    dtype: str,
    records: Path | None = None,
    questions: int = QUESTIONS,
) -> dict[str, Any]:
    """Requests per second of `score` and of lm-eval's `hf` at its best batch size, and the ratio.

    lm-eval runs all requests once at every batch size whose logits fit LOGITS_BYTES, and those of
    the fastest again, in turn with ours. Rates are medians of `repeats`; ours exclude compilation,
    which is a figure of its own. Without torch and lm-eval, the figures of `hf` are None.

    Args:
        folder: of the model; by default SMALL with random weights.
        records: a file of {question, choices}, asked like ARC; by default, random tokens with 200
            to a question and four endings of 15 to 35.
        questions: how many of them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        name = "random weights" if folder is None else folder.resolve().name
        if folder is None:
            folder = Path(temporary) / "model"
            save_model(_random_model(dtype), folder)
        model = place(load_model(folder, dtype))
        requests = _requests(model, records, questions)
        with Compilations() as compiled:
            ours = score(model, requests)
        actions: dict[str, Any] = {"lorage": lambda: score(model, requests)}
        absent, best, rates, theirs = peers.missing(*NEEDS), None, {}, []
        if absent is None:
            scorer = peers.load_scorer(folder, dtype)
            sizes = _batch_sizes(model.config, requests)
            rates, theirs = _probed(scorer, requests, sizes)
            best = max(sizes, key=rates.__getitem__)
            actions[PEER] = lambda: peers.loglikelihoods(scorer, requests, best)
        with Bystanders() as others:
            times = in_turn(actions, repeats)
    said = {"missing": absent, "others": others.share}
    result = _comparison(model.config, requests, dtype, times, compiled, said)
    hf = result[PEER]
    pairs = zip(ours, theirs, strict=False)
    return {
        "model": name,
        "layers": model.config.layers,
        "width": model.config.width,
        "dtype": dtype,
        "requests": len(requests),
        "lorage_requests_per_second": result["lorage"]["requests_per_second"],
        "lorage_batch_tokens": default_batch_tokens(jax.default_backend()),
        "lorage_compile_seconds": compiled.seconds,
        "hf_requests_per_second": None if hf is None else hf["requests_per_second"],
        "hf_best_batch_size": best,
        "hf_by_batch_size": {str(size): rate for size, rate in rates.items()},
        "ratio_lorage_to_hf": result["ratio"],
        "largest_difference_nats": max((abs(a[0] - b) for a, b in pairs), default=None),
        **result,
    }


def _requests(model: Model, records: Path | None, questions: int) -> list[Request]:
    if records is None:
        return hellaswag_like(model.config, questions)
    return arc_like(model, records, questions)


def hellaswag_like(config: ModelConfig, questions: int = QUESTIONS) -> list[Request]:
    """(context, ending) token ids: contexts of 200 tokens, each with four endings."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(3, config.vocab_size) for _ in range(count)]

    contexts = [tokens(CONTEXT) for _ in range(questions)]
    return [(c, tokens(draw.randint(15, 35))) for c in contexts for _ in range(ENDINGS)]


def arc_like(model: Model, records: Path, questions: int) -> list[Request]:
    """(context, choice) token ids of the first {question, choices} of a file, in ARC's words.

    Raises DataError for another kind of row, ConfigError for a model without a tokenizer.
    """
    if model.tokenizer is None:
        raise ConfigError(f"{model.source} has no tokenizer, which --records needs.")

    def ids(text: str) -> list[int]:
        return model.tokenizer(text)["input_ids"]

    requests: list[Request] = []
    for at, row in read_rows(records)[:questions]:
        question, choices = row.get("question"), row.get("choices")
        if not isinstance(question, str) or not isinstance(choices, list) or not choices:
            raise DataError(f"{at}: expected {{question, choices}}, found {', '.join(row)}.")
        context = ids(f"Question: {question}\nAnswer:")
        for choice in choices:
            whole = ids(f"Question: {question}\nAnswer: {choice}")
            requests.append((context, whole[len(context) :]))
    return requests


def _batch_sizes(config: ModelConfig, requests: Sequence[Request]) -> list[int]:
    longest = max(len(context) + len(ending) for context, ending in requests)
    each = 4 * longest * config.vocab_size
    return [size for size in BATCH_SIZES if size == 1 or size * each <= LOGITS_BYTES]


def _probed(
    scorer: Any, requests: Sequence[Request], sizes: Sequence[int]
) -> tuple[dict[int, float], list[float]]:
    """Requests per second of `hf` at each batch size, and its scores."""
    rates, scores = {}, []
    peers.loglikelihoods(scorer, requests[:1], 1)  # not timed: it starts the threads
    for size in sizes:
        began = time.perf_counter()
        scores = peers.loglikelihoods(scorer, requests, size)
        rates[size] = len(requests) / (time.perf_counter() - began)
    return rates, scores


def _comparison(
    config: ModelConfig,
    requests: Sequence[Request],
    dtype: str,
    times: dict[str, list[float]],
    compiled: Compilations,
    said: dict[str, Any],
) -> dict[str, Any]:
    ours = Side("score", times["lorage"], {"compile_seconds": compiled.seconds})
    theirs = Side("lm-eval's hf on torch", times[PEER]) if PEER in times else None
    work = Work("requests", len(requests), _macs(config, requests, dtype))
    return compared(ours, theirs, work, matmul_rate(dtype) * jax.device_count(), **said)


def _macs(config: ModelConfig, requests: Sequence[Request], dtype: str) -> int:
    """Multiply-accumulates with each context read once, attention left out."""
    contexts = {tuple(context) for context, _ in requests}
    scored = sum(len(ending) for _, ending in requests)
    read = sum(map(len, contexts)) + scored - len(requests)  # the last token is not read
    head = config.vocab_size * config.width
    token = matmul_macs(prefill_program(config, 1, last=True, dtype=dtype)) - head
    return read * token + scored * head


def _random_model(dtype: str) -> Model:
    tokenizer = train_tokenizer(["words to begin with"], 300, bos=True)
    params = jax.jit(lambda key: initialise(model_leaves(SMALL), key, DTYPES[dtype]))(
        jax.random.key(0)
    )
    return Model(SMALL, params, tokenizer)
