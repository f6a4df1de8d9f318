"""Scoring speed on requests like HellaSwag's, against lm-eval's own `hf` model in one run."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from lorage_jax.config import ModelConfig
from lorage_jax.data.tokenizer import train_tokenizer
from lorage_jax.errors import ConfigError
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.hf.family import family_decoder
from lorage_jax.hf.load import load_model
from lorage_jax.hf.save import save_model
from lorage_jax.infer.score import BATCH_TOKENS, place, score
from lorage_jax.models.leaves import initialise, model_leaves
from lorage_jax.models.model import Model

QUESTIONS, ENDINGS, CONTEXT = 32, 4, 200
SMALL = family_decoder(
    "llama", vocab_size=8192, width=512, layers=6, heads=8, kv_heads=2, ffn_width=1408
)
BATCH_SIZES = (1, 8, 32, 64, 128)  # of the hf model; the fastest is reported


def bench_score(folder: Path | None, repeats: int, dtype: str) -> dict:
    """Requests per second of `score` and of lm-eval's `hf` at its best batch size, and the ratio.

    Questions have 200 tokens and four endings of 15 to 35 tokens. Rates are medians of `repeats`.
    Ours exclude compilation, which is a figure of its own. Without a folder, the model is SMALL
    with random weights. Raises ConfigError unless torch and lm-eval are installed.
    """
    try:
        import torch
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ConfigError(
            f"the comparison needs {error.name}; pip install torch lm-eval."
        ) from None
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary) / "model"
            save_model(_random_model(dtype), folder)
        model = place(load_model(folder, dtype))
        requests = hellaswag_like(model.config)
        began = time.perf_counter()
        ours = score(model, requests)
        first = time.perf_counter() - began
        device = "cuda" if torch.cuda.is_available() else "cpu"
        hf: Any = HFLM  # lm-eval's registry returns its own base class
        theirs = hf(str(folder), dtype=dtype, device=device, batch_size=1)
        asked = [(None, list(context), list(ending)) for context, ending in requests]
        times: dict[Any, list[float]] = {"ours": [], **{size: [] for size in BATCH_SIZES}}
        answers: list[Any] = []
        for _ in range(repeats):
            times["ours"].append(_seconds(lambda: score(model, requests)))
            for size in BATCH_SIZES:
                theirs.batch_size_per_gpu = size
                times[size].append(_seconds(lambda: answers.append(_loglikelihoods(theirs, asked))))
    rates = {name: len(requests) / statistics.median(found) for name, found in times.items()}
    best = max(BATCH_SIZES, key=rates.__getitem__)
    pairs = zip(ours, answers[0], strict=True)
    return {
        "layers": model.config.layers,
        "width": model.config.width,
        "dtype": dtype,
        "requests": len(requests),
        "lorage_requests_per_second": rates["ours"],
        "lorage_batch_tokens": BATCH_TOKENS,
        "lorage_compile_seconds": first - min(times["ours"]),
        "hf_requests_per_second": rates[best],
        "hf_best_batch_size": best,
        "hf_by_batch_size": {str(size): rates[size] for size in BATCH_SIZES},
        "ratio_lorage_to_hf": rates["ours"] / rates[best],
        "largest_difference_nats": max(abs(a[0] - b[0]) for a, b in pairs),
    }


def hellaswag_like(config: ModelConfig) -> list[tuple[list[int], list[int]]]:
    """(context, ending) token ids: QUESTIONS contexts of 200 tokens, each with four endings."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(3, config.vocab_size) for _ in range(count)]

    contexts = [tokens(CONTEXT) for _ in range(QUESTIONS)]
    return [(c, tokens(draw.randint(15, 35))) for c in contexts for _ in range(ENDINGS)]


def _loglikelihoods(model: Any, asked: list) -> list[tuple[float, bool]]:
    return model._loglikelihood_tokens(asked, disable_tqdm=True)


def _seconds(action: Any) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _random_model(dtype: str) -> Model:
    tokenizer = train_tokenizer(["words to begin with"], 300, bos=True)
    params = jax.jit(lambda key: initialise(model_leaves(SMALL), key, DTYPES[dtype]))(
        jax.random.key(0)
    )
    return Model(SMALL, params, tokenizer)
