"""Device memory of a request with and without the system prompt (Table 13).

It is read from the compiled programs, at full depth and true shapes; no weights are made.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from lorage_jax.bench.routed import ROUTED, routed_pool
from lorage_jax.buckets import bucket
from lorage_jax.chips import GIB
from lorage_jax.config import ModelConfig
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.infer.generate import compiled_continue, compiled_start, padded_prompt
from lorage_jax.infer.sample import Sampling
from lorage_jax.models.bits import cache_dtype, program_params, shared_bytes
from lorage_jax.models.experts import Routed
from lorage_jax.models.leaves import model_leaves
from lorage_jax.models.presets import parameter_count, structs


def bench_memory(
    config: ModelConfig,
    *,
    input_tokens: int,
    instruction_tokens: int,
    new_tokens: int,
    dtype: str,
) -> dict[str, Any]:
    """Device memory in GiB of one row in `generate`'s programs, by formula and by the compiler.

    Weights and cache have a formula. For the two programs, the compiler gives arguments (which
    include weights and cache), temporaries, output, and their total less the memory that output
    and arguments share. `request` is prefill and all new tokens in one program; `decode` continues
    after a prefill, in the donated cache.

    `with_prompt` (base, LoRA) reads instruction and input, as do `loramoe` and `mixlora`, with all
    their experts and routers beside the edge: `adapters_gib_*`, float32, which their arguments
    include and `weights_gib` does not. `specialized` (LoRA-Gen) reads the input alone.
    """
    result: dict[str, Any] = {
        "layers": config.layers,
        "dtype": dtype,
        "new_tokens": new_tokens,
        "parameters": parameter_count(config),
        "weights_gib": parameter_count(config) * DTYPES[dtype].dtype.itemsize / GIB,
    }
    params = _params(config, dtype)
    cached = jnp.dtype(cache_dtype(params)).name
    whole = instruction_tokens + input_tokens
    pools = {method.name: routed_pool(method, config, _abstract) for method in ROUTED}
    lengths = {"with_prompt": whole, "specialized": input_tokens} | dict.fromkeys(pools, whole)
    for way, tokens in lengths.items():
        length, size = padded_prompt(tokens), bucket(new_tokens)
        result[f"tokens_{way}"] = tokens
        result[f"cache_slots_{way}"] = length + size
        result[f"cache_gib_{way}"] = cache_bytes(config, length + size, cached) / GIB
        for part, sizes in _programs(config, params, pools.get(way), length, size).items():
            for kind, each in sizes.items():
                result[f"{part}_{kind}_gib_{way}"] = each / GIB
    for way, pool in pools.items():
        held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool))
        result[f"adapters_gib_{way}"] = held / GIB
    for way, ending in {"with_prompt": "", **{way: f"_{way}" for way in pools}}.items():
        for part in ("request", "decode"):
            ratio = _beyond(result, part, way) / _beyond(result, part, "specialized")
            result[f"ratio_{part}_beyond_weights{ending}"] = ratio
    return result


def cache_bytes(config: ModelConfig, slots: int, dtype: str) -> int:
    """Bytes of the keys and values of all layers, for one row: 2 L K H `slots` numbers."""
    numbers = 2 * config.layers * config.kv_heads * config.head_dim * slots
    return numbers * jnp.dtype(dtype).itemsize


def _beyond(result: dict[str, Any], part: str, way: str) -> float:
    return result[f"{part}_total_gib_{way}"] - result["weights_gib"]


def _params(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Abstract parameters on the first device, as `generate` hands them to its programs."""
    return program_params(_abstract(model_leaves(config), dtype))


def _abstract(leaves: Any, dtype: str = "float32") -> Any:
    """Shapes of a tree of leaves, on the first device."""
    here = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), structs(leaves, dtype)
    )


def _programs(
    config: ModelConfig, params: dict[str, Any], pool: Routed | None, length: int, size: int
) -> dict[str, dict[str, int]]:
    """Bytes of the two programs of `generate` for one row of `length` and `size` new tokens."""
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, length), bool)
    controls = Sampling().operands() | {"eos": np.zeros(0, np.int32), "pad": np.int32(0)}
    limit = np.int32(size)
    start = compiled_start.lower(config, size, params, tokens, mask, controls, pool, None, limit)
    cache, progress = start.out_info
    more = compiled_continue.lower(config, params, cache, progress, controls, pool, None, limit)
    twice = shared_bytes(params)
    return {"request": _sizes(start.compile(), twice), "decode": _sizes(more.compile(), twice)}


def _sizes(program: Any, twice: int) -> dict[str, int]:
    """Bytes of a program by the compiler's memory analysis.

    `twice`: bytes of the arguments that are views of others.
    """
    sizes = program.memory_analysis()
    argument, output = sizes.argument_size_in_bytes - twice, sizes.output_size_in_bytes
    temporary, shared = sizes.temp_size_in_bytes, sizes.alias_size_in_bytes
    return {
        "argument": argument,
        "temporary": temporary,
        "output": output,
        "total": argument + temporary + output - shared,
    }
