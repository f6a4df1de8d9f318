"""`lorage bench train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from lorage_jax.bench.lora_step import compare_lora_step
from lorage_jax.bench.peers import share_the_gpu
from lorage_jax.bench.train import QUERIES, bench_train
from lorage_jax.commands.bench.options import Train
from lorage_jax.commands.bench.shapes import (
    check_context,
    check_no_shape,
    cloud_shape,
    edge_shape,
    folder_shape,
)
from lorage_jax.commands.bench.shown import shown
from lorage_jax.config import GeneratorConfig
from lorage_jax.errors import ConfigError
from lorage_jax.hf.presets import shape_name
from lorage_jax.models.presets import with_layers

ROWS = 64
INSTRUCTION = 200  # tokens of a prompt
RANK, REMAT = 8, "full"  # of the LoRA on a real model
CPU_LAYERS, CPU_ROWS = 2, 8  # a CPU takes the true widths, but few layers and rows


def run(options: Train) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    if options.model is not None:
        return _beside_peft(options, options.model)
    for flag, given in (("--rank", options.rank), ("--remat", options.remat)):
        if given is not None:
            raise ConfigError(
                f"{flag} goes with --model, whose LoRA is trained; the generator's step has its "
                "own. Leave it out, or name a folder."
            )
    name, edge = edge_shape(options)
    _, cloud = cloud_shape(options.cloud_config)
    cpu = jax.default_backend() == "cpu"
    rows = options.rows or (CPU_ROWS if cpu else ROWS)
    if rows % max(QUERIES):
        raise ConfigError(f"--rows is {rows}; expected a multiple of {max(QUERIES)}.")
    if layers := options.layers or (CPU_LAYERS if cpu else None):
        edge, cloud = (with_layers(model, min(layers, model.layers)) for model in (edge, cloud))
    instruction, own = options.instruction_tokens or INSTRUCTION, options.input_tokens
    check_context("edge", edge, instruction=instruction, input=own)
    check_context("cloud", cloud, instruction=instruction, meta=edge.layers)
    cloud_name = shape_name(cloud) or str(options.cloud_config or "llama3-8b, shallower")
    figures = bench_train(
        edge,
        cloud,
        GeneratorConfig(),
        rows=rows,
        prompt_tokens=instruction,
        query_tokens=own,
        repeats=options.repeats,
        dtype=options.dtype,
    )
    about = {"shape": name, "cloud": cloud_name}
    return shown("train", about | figures)


def _beside_peft(options: Train, model: Path) -> dict[str, Any]:
    share_the_gpu()
    check_no_shape(options)
    if options.instruction_tokens is not None:
        raise ConfigError(
            "--model trains a LoRA without a prompt; --instruction-tokens is for random weights. "
            "Leave it out."
        )
    check_context("model", folder_shape(model), input=options.input_tokens)
    figures = compare_lora_step(
        model,
        rows=options.rows or CPU_ROWS,
        tokens=options.input_tokens,
        rank=options.rank or RANK,
        remat=options.remat or REMAT,
        repeats=options.repeats,
        dtype=options.dtype,
    )
    return shown("train", figures)
