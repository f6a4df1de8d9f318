"""A training step of one LoRA on a real model's FFN, against peft on torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from lorage_jax.bench import peers
from lorage_jax.bench.comparison import PEER, Side, Work, compared
from lorage_jax.bench.matmul import matmul_rate
from lorage_jax.bench.timing import Bystanders, in_turn
from lorage_jax.compilation import Compilations
from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    MeshConfig,
    Source,
)
from lorage_jax.data.batches import Batch, host_rows
from lorage_jax.hf.load import load_model
from lorage_jax.methods.lora import Lora
from lorage_jax.models.bits import program_params
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout, make_mesh
from lorage_jax.train.experiment import build_step, new_state
from lorage_jax.train.flops import edge_flops
from lorage_jax.train.step import device_batch, micro_sharding

STEPS = 1000  # of the learning rate's schedule
NEEDS = ("torch", "transformers", "peft")


def compare_lora_step(
    folder: Path,
    *,
    rows: int,
    tokens: int,
    rank: int,
    remat: Literal["none", "full"],
    repeats: int,
    dtype: Literal["float32", "bfloat16"],
) -> dict[str, Any]:
    """Times an optimizer step on `rows` rows of `tokens` tokens, whose second halves are targets.

    Rows are random tokens, the same for both, without padding. The LoRA is on the FFN's matrices,
    in float32 beside frozen weights in `dtype`; AdamW with clipped gradients, no dropout. With
    `remat` full, both sides compute the activations again in the backward pass. The losses of the
    first step are those of the model as it is, so they agree.
    """
    config = _experiment(rows, tokens, rank, remat, dtype)
    layout = Layout(make_mesh(MeshConfig(-1, -1, -1), rows=rows))
    edge = load_model(folder, dtype, layout)
    batch = _batch(rows, tokens, edge.config.vocab_size)
    step = _stepper(config, edge, batch, layout)
    with Compilations() as compiled:
        loss = step()
    actions, absent = {"lorage": step}, peers.missing(*NEEDS)
    their_loss = None
    if absent is None:
        actions[PEER] = peers.lora_stepper(
            folder,
            edge.config,
            dtype,
            *_arrays(batch),
            rank=rank,
            alpha=rank,
            optimizer=config.optimizer,
            checkpointing=remat == "full",
        )
        their_loss = actions[PEER]()
    with Bystanders() as others:
        times = in_turn(actions, repeats)
    ours = Side(
        "lorage train", times["lorage"], {"loss": loss, "compile_seconds": compiled.seconds}
    )
    theirs = None
    if absent is None:
        theirs = Side("peft on torch", times[PEER], {"loss": their_loss})
    work = Work("tokens", rows * tokens, edge_flops(config.generator, edge.config, batch) // 2)
    rate = matmul_rate(dtype) * jax.device_count()
    return {
        "model": folder.resolve().name,
        "dtype": dtype,
        "rows": rows,
        "tokens": tokens,
        "rank": rank,
        "remat": remat,
        **compared(ours, theirs, work, rate, missing=absent, others=others.share),
    }


def _experiment(
    rows: int, tokens: int, rank: int, remat: Literal["none", "full"], dtype: Any
) -> ExperimentConfig:
    data = DataConfig(
        sources=(Source("synthetic", "synthetic"),),  # not read
        prompts_per_batch=rows,
        max_query_tokens=tokens,
    )
    return ExperimentConfig(
        cloud="",
        edge="",
        out="",
        data=data,
        steps=STEPS,
        method=Lora.name,
        generator=GeneratorConfig(rank=rank, alpha=float(rank), dropout=0.0),
        dtype=dtype,
        remat=remat,
    )


def _batch(rows: int, tokens: int, vocabulary: int) -> Batch:
    asked = np.random.default_rng(0).integers(0, vocabulary, (rows, tokens), np.int32)
    target = np.broadcast_to(np.arange(tokens) >= tokens // 2, asked.shape)
    return Batch((), (host_rows(tokens=asked, mask=np.ones_like(target), loss_mask=target),))


def _arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and marks of the targets, [B, T]."""
    (asked,) = batch.queries
    assert asked.loss_mask is not None
    return np.asarray(asked.tokens), np.asarray(asked.loss_mask)


def _stepper(
    config: ExperimentConfig, edge: Model, batch: Batch, layout: Layout
) -> Callable[[], float]:
    """A function that takes a step of `lorage train` and returns its loss."""
    program = build_step(Lora, config, {"edge": edge.config}, layout)
    frozen = {"edge": program_params(edge.params)}
    state = new_state(program, frozen, config.seed)
    placed = device_batch(batch, 1, micro_sharding(layout))

    def step() -> float:
        nonlocal state
        state, metrics = program.step(state, frozen, placed)
        return float(jax.block_until_ready(metrics["loss"]))

    return step
