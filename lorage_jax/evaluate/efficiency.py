"""What merging and merged decoding cost, measured side by side in one run.

Machines are noisy: every figure is a median of repeats, and what counts are ratios within a run.
Random weights serve, as time does not depend on their values.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.generator.card import Card
from lorage_jax.generator.merge import merge
from lorage_jax.generator.pool import Pool, make_pool, pool_leaves
from lorage_jax.hf.config import to_hf_config
from lorage_jax.hf.load import DTYPES
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.models.leaves import initialise, model_leaves
from lorage_jax.models.model import Model

EDGE = "sha256:random-weights"


def tinyllama(layers: int) -> ModelConfig:
    """The shape of TinyLlama-1.1B (22 layers), at any depth."""
    return ModelConfig(
        family="llama",
        vocab_size=32_000,
        width=2048,
        layers=layers,
        heads=32,
        kv_heads=4,
        head_dim=64,
        ffn_width=5632,
        max_positions=2048,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        tied_head=False,
        activation="silu",
        query_scale=64**-0.5,
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
        attn_softcap=None,
        final_softcap=None,
        window=None,
        sliding=(False,) * layers,
        bos_id=1,
        eos_ids=(),
        pad_id=0,
    )


def random_edge(layers: int, dtype: str) -> tuple[Model, Pool, Card]:
    """A TinyLlama-shaped model, a pool of two experts of rank 16, and a card that opens both."""
    config = tinyllama(layers)
    params = jax.jit(lambda key: initialise(model_leaves(config), key, DTYPES[dtype]))(
        jax.random.key(0)
    )
    edge = Model(config, params, tokenizer=None)
    edge.__dict__["fingerprint"] = EDGE  # hashing random weights would say nothing
    generator = GeneratorConfig(experts=2)
    experts = initialise(pool_leaves(generator, config), jax.random.key(1))
    experts = jax.tree.map(lambda x: jnp.where(x == 0, 0.01, x), experts)
    gates = np.full((layers, 2), 0.5, np.float32)
    jax.block_until_ready((params, experts))
    return edge, make_pool(experts, generator), Card(gates, "", EDGE)


def seconds(action: Callable[[], Any]) -> float:
    """Wall time of one call, its arrays finished."""
    began = time.perf_counter()
    jax.block_until_ready(action())
    return time.perf_counter() - began


def bench_merge(layers: int, repeats: int, dtype: str) -> dict[str, Any]:
    """The jitted merge against `peft`'s merge_and_unload of a LoRA of the same rank (16).

    Seconds; ours without its compilation, which is given apart.
    """
    edge, pool, card = random_edge(layers, dtype)

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
        "layers": layers,
        "dtype": dtype,
        "lorage_seconds": statistics.median(ours),
        "lorage_donated_seconds": statistics.median(donated),
        "lorage_compile_seconds": first - min(ours),
    }
    del edge
    gc.collect()
    if importlib.util.find_spec("peft") is None or importlib.util.find_spec("torch") is None:
        return result | {"peft_seconds": None}
    theirs = [_peft_merge(layers, dtype) for _ in range(repeats)]
    peft = statistics.median(theirs)
    return result | {
        "peft_seconds": peft,  # in place, as our donating merge
        "ratio_peft_to_lorage": peft / result["lorage_seconds"],
        "ratio_peft_to_lorage_donated": peft / result["lorage_donated_seconds"],
    }


def _peft_merge(layers: int, dtype: str) -> float:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = to_hf_config(tinyllama(layers), dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**fields)).to(getattr(torch, dtype))
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    modules = ["gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=modules))
    began = time.perf_counter()
    adapted.merge_and_unload()
    return time.perf_counter() - began


def bench_decode(layers: int, repeats: int, dtype: str) -> dict[str, Any]:
    """Greedy decoding by the merged model against the base: the same program, other numbers.

    Seconds for 32 tokens behind a prompt of 32, one row, base and merged in turn.
    """
    edge, pool, card = random_edge(layers, dtype)
    special = merge(edge, pool, card)
    rows = [list(range(1, 33))]
    run = {
        "base": lambda: generate_tokens(edge, rows, max_new_tokens=32),
        "merged": lambda: generate_tokens(special, rows, max_new_tokens=32),
    }
    times: dict[str, list[float]] = {"base": [], "merged": []}
    seconds(run["base"])  # compiles for both
    for number in range(repeats):
        # In turn, and each first every other time, so that drift of the machine hits both alike.
        for name in ("base", "merged") if number % 2 == 0 else ("merged", "base"):
            times[name].append(seconds(run[name]))
    base, merged = (statistics.median(times[name]) for name in ("base", "merged"))
    spread = max(max(t) / min(t) for t in times.values())
    return {
        "layers": layers,
        "dtype": dtype,
        "base_seconds": base,
        "merged_seconds": merged,
        "ratio_merged_to_base": merged / base,
        "largest_spread_within_one": spread,
    }
