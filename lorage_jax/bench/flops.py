"""Arithmetic of a request with and without the system prompt, and of the cloud pass (Table 13).

Multiply-accumulates (MACs) are counted on the programs themselves, at true shapes and without
weights. As in the paper, logits are computed at every position and attention over all pairs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lorage_jax.bench.counting import compiled_flops, matmul_macs
from lorage_jax.bench.programs import cloud_program, merge_programs, prefill_program
from lorage_jax.bench.routed import ROUTED
from lorage_jax.config import GeneratorConfig, ModelConfig


def bench_flops(
    edge: ModelConfig,
    cloud: ModelConfig,
    generator: GeneratorConfig,
    *,
    input_tokens: int,
    instruction_tokens: int,
    dtype: str,
) -> dict[str, Any]:
    """Counts the MACs of a request with the prompt and without it, and of the cloud pass.

    The result also has the number of requests after which the cloud pass has paid for itself.
    `with_prompt` (base, LoRA) reads instruction and input, as do `loramoe` and `mixlora`, with all
    their experts beside the edge; `specialized` (LoRA-Gen) reads the input alone.
    `last_logit` counts the head at the last position only, as `generate` computes it.
    `compiled_flops` are the compiler's own counts.
    """
    lengths = {"with_prompt": input_tokens + instruction_tokens, "specialized": input_tokens}
    programs = {
        name: prefill_program(edge, tokens, dtype=dtype) for name, tokens in lengths.items()
    }
    whole = lengths["with_prompt"]
    for method in ROUTED:
        programs[method.name] = prefill_program(edge, whole, dtype=dtype, method=method)
    programs["cloud_pass"] = cloud_program(generator, cloud, edge, instruction_tokens, dtype)
    macs = {name: matmul_macs(program) for name, program in programs.items()}
    flops = {name: compiled_flops(program) for name, program in programs.items()}
    last = {
        name: matmul_macs(prefill_program(edge, tokens, last=True, dtype=dtype))
        for name, tokens in lengths.items()
    }
    without = dataclasses.replace(generator, cloud_rank=0)
    bare_cloud = cloud_program(without, cloud, edge, instruction_tokens, dtype)
    return {
        "layers": edge.layers,
        "input_tokens": input_tokens,
        "instruction_tokens": instruction_tokens,
        "unit": "multiply-accumulates, logits at every position, attention over all pairs",
        **{f"macs_{name}": value for name, value in macs.items()},
        "ratio_with_prompt_to_specialized": macs["with_prompt"] / macs["specialized"],
        "break_even_requests": break_even(macs["cloud_pass"], macs),
        "macs_cloud_adapters": macs["cloud_pass"] - matmul_macs(bare_cloud),
        "macs_merge": sum(map(matmul_macs, merge_programs(generator, edge, dtype))),
        **{f"macs_last_logit_{name}": value for name, value in last.items()},
        "break_even_requests_last_logit": break_even(macs["cloud_pass"], last),
        **{f"compiled_flops_{name}": value for name, value in flops.items()},
        "compiled_flops_over_2_macs": max(flops[name] / 2 / macs[name] for name in macs),
    }


def break_even(cloud_pass: int, macs: dict[str, int]) -> int:
    """The number of requests after which the savings outweigh the cloud pass."""
    return math.ceil(cloud_pass / (macs["with_prompt"] - macs["specialized"]))
