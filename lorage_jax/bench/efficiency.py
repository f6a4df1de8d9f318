"""What specialising, merging and merged decoding cost, measured side by side in one run.

Machines are noisy: every figure is a median of repeats, and what counts are ratios within a run.
Random weights serve, as time does not depend on their values.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.bench.timing import in_turn, largest_spread, seconds
from lorage_jax.buckets import bucket, left_pad
from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import _specialize, trained_leaves
from lorage_jax.generator.merge import merge
from lorage_jax.generator.pool import Pool, make_pool, pool_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.hf.config import to_hf_config
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.models.leaves import initialise
from lorage_jax.models.model import Model
from lorage_jax.models.presets import random_model

EDGE = "sha256:random-weights"


def random_edge(config: ModelConfig, dtype: str) -> tuple[Model, Pool, Card]:
    """A model of this shape, a pool of two experts of rank 16, and a card that opens both."""
    edge = random_model(config, dtype)
    edge.__dict__["fingerprint"] = EDGE  # hashing random weights would say nothing
    generator = GeneratorConfig(experts=2, top_k=2)
    experts = initialise(pool_leaves(generator, config), jax.random.key(1))
    experts = jax.tree.map(lambda x: jnp.where(x == 0, 0.01, x), experts)
    gates = np.full((config.layers, 2), 0.5, np.float32)
    jax.block_until_ready(experts)
    return edge, make_pool(experts, generator), Card(gates, "", EDGE)


def bench_merge(config: ModelConfig, repeats: int, dtype: str) -> dict[str, Any]:
    """The jitted merge against `peft`'s merge_and_unload of a LoRA of the same rank (16).

    Seconds; ours without its compilation, which is given apart.
    """
    edge, pool, card = random_edge(config, dtype)

    def run(donate: bool) -> float:
        nonlocal edge
        special: list[Model] = []

        def action() -> Any:
            special.append(merge(edge, pool, card, donate=donate))
            return special[0].params

        took = seconds(action)
        if donate:  # the edge is consumed: the next call gets this one's result as its base
            edge = special[0].replace(card=None)
            edge.__dict__["fingerprint"] = EDGE
        return took

    first = run(donate=False)
    ours = [run(donate=False) for _ in range(repeats)]
    run(donate=True)  # compiles
    donated = [run(donate=True) for _ in range(repeats)]
    result = {
        "layers": config.layers,
        "dtype": dtype,
        "lorage_seconds": statistics.median(ours),
        "lorage_donated_seconds": statistics.median(donated),
        "lorage_compile_seconds": first - min(ours),
    }
    del edge
    gc.collect()
    if importlib.util.find_spec("peft") is None or importlib.util.find_spec("torch") is None:
        return result | {"peft_seconds": None}
    theirs = [_peft_merge(config, dtype) for _ in range(repeats)]
    peft = statistics.median(theirs)
    return result | {
        "peft_seconds": peft,  # in place, as our donating merge
        "ratio_peft_to_lorage": peft / result["lorage_seconds"],
        "ratio_peft_to_lorage_donated": peft / result["lorage_donated_seconds"],
    }


def _peft_merge(config: ModelConfig, dtype: str) -> float:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = to_hf_config(config, dtype)
    with torch.device("meta"):
        shape = AutoConfig.for_model(**fields)
        model = AutoModelForCausalLM.from_config(shape).to(getattr(torch, dtype))
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    modules = ["gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=modules))
    began = time.perf_counter()
    adapted.merge_and_unload()
    return time.perf_counter() - began


def bench_decode(config: ModelConfig, repeats: int, dtype: str) -> dict[str, Any]:
    """Greedy decoding by the merged model against the base: the same program, other numbers.

    Seconds for 32 tokens behind a prompt of 32, one row, base and merged in turn.
    """
    edge, pool, card = random_edge(config, dtype)
    special = merge(edge, pool, card)
    rows = [list(range(1, 33))]
    times = in_turn(
        {
            "base": lambda: generate_tokens(edge, rows, max_new_tokens=32),
            "merged": lambda: generate_tokens(special, rows, max_new_tokens=32),
        },
        repeats,
    )
    base, merged = (statistics.median(times[name]) for name in ("base", "merged"))
    return {
        "layers": config.layers,
        "dtype": dtype,
        "base_seconds": base,
        "merged_seconds": merged,
        "ratio_merged_to_base": merged / base,
        "largest_spread_within_one": largest_spread(times),
    }


PROMPTS = 64


def bench_specialize(
    edge: ModelConfig,
    cloud: ModelConfig,
    generator: GeneratorConfig,
    *,
    instruction_tokens: int,
    repeats: int,
    dtype: str,
) -> dict[str, Any]:
    """Seconds to turn 64 prompts into gates in one batch, and in 64 calls, each waited for.

    All prompts have `instruction_tokens` tokens and are padded as `specialize` pads them.
    """
    model = random_model(cloud, dtype)
    trained = initialise(
        # The pool takes no part in making gates, and it is large.
        {k: v for k, v in trained_leaves(generator, cloud, edge).items() if k != "pool"},
        jax.random.key(1),
    )
    running = initialise(statistics_leaves(generator, edge.layers), jax.random.key(2))
    ids = np.random.default_rng(0).integers(0, cloud.vocab_size, (PROMPTS, instruction_tokens))
    tokens, mask = left_pad(ids.tolist(), bucket(instruction_tokens))

    def gates(rows: slice) -> Any:
        return _specialize(
            generator, cloud, model.params, trained, running, tokens[rows], mask[rows]
        )

    def one_by_one() -> None:
        for i in range(PROMPTS):
            jax.block_until_ready(gates(slice(i, i + 1)))

    times = in_turn({"batch": lambda: gates(slice(None)), "single": one_by_one}, repeats)
    batch, single = (statistics.median(times[name]) for name in ("batch", "single"))
    return {
        "prompts": PROMPTS,
        "instruction_tokens": instruction_tokens,
        "padded_tokens": tokens.shape[1],
        "meta_tokens": edge.layers,
        "cloud_layers": cloud.layers,
        "cloud_width": cloud.width,
        "dtype": dtype,
        "batch_seconds": batch,
        "single_calls_seconds": single,
        "ratio_batch_to_single": batch / single,
        "largest_spread_within_one": largest_spread(times),
    }
