"""The programs of a pair of models on a mesh, traced on abstract arrays, without weights.

`train_step` is the step of training on the longest batch, `typical_step` the same on a shorter one.
`merge` assembles the LoRA of one card and adds it to the edge. `specialize` reads prompts, `decode`
generates tokens with the merged edge, and `decode_cards` with the base and a card per row; on their
meshes no weights move (`sharding.inference_mesh`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lorage_jax.bench.counting import matmul_macs
from lorage_jax.buckets import bucket
from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.generator.generator import compiled_gates, trained_leaves
from lorage_jax.generator.merge import compiled_merge
from lorage_jax.generator.pool import assemble, make_pool, pool_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.infer.generate import Progress, compiled_continue
from lorage_jax.infer.sample import Sampling
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.models.cache import Cache
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import model_leaves
from lorage_jax.models.presets import parameter_count
from lorage_jax.sharding import Layout, inference_mesh, replicated
from lorage_jax.train.experiment import build_step
from lorage_jax.train.remat import longest_of
from lorage_jax.train.state import abstract_arrays

NEW_TOKENS = 64  # number of new tokens that fit into the cache of `decode`


@dataclass(frozen=True)
class Program:
    """A traced program; `traced.lower().compile()` compiles it.

    Attributes:
        arguments: the abstract arguments, with shardings.
        macs: multiply-accumulates of one run on all chips together; with `turns`, of one turn.
        turns: True for a loop of unknown length, whose figures are those of one turn: decoding a
            token in every row.
    """

    name: str
    traced: Any
    arguments: Any
    macs: int
    turns: bool = False


@dataclass(frozen=True)
class Setting:
    """The experiment, the models and the devices to trace programs for."""

    config: ExperimentConfig
    cloud: ModelConfig
    edge: ModelConfig
    layout: Layout
    row_tokens: int | None = None  # slots per row in `typical_step`; None leaves that step out
    chip_bytes: float = math.inf  # memory of a chip, by which models are laid out for inference

    def inference(self, model: ModelConfig) -> Setting:
        """The setting on the mesh that `model` reads and decodes on."""
        weights = parameter_count(model) * DTYPES[self.config.dtype].dtype.itemsize
        devices = list(self.layout.mesh.devices.flat)
        mesh = inference_mesh(weights, self.chip_bytes, devices)
        return dataclasses.replace(self, layout=Layout(mesh))

    def filled(self, rows: int | None) -> int:
        """`rows`, filled up to a multiple of the batch devices; by default, one for each."""
        each = self.layout.batch_devices
        return each * math.ceil((rows or 1) / each)


def programs(setting: Setting) -> list[Program]:
    """All four programs, and `typical_step` if `row_tokens` is set."""
    made = [
        make(setting) for make in (train_program, specialize_program, merge_program, decode_program)
    ]
    if setting.row_tokens is not None:
        made.insert(1, train_program(setting, setting.row_tokens))
    return made


def train_program(setting: Setting, row_tokens: int | None = None) -> Program:
    """The training step on the longest batch, or on one with `row_tokens` slots per row."""
    config, layout = setting.config, setting.layout
    models = {"cloud": setting.cloud, "edge": setting.edge}
    program = build_step(LoraGen, config, models, layout)
    batch = longest_of(LoraGen, config, layout, row_tokens)
    name = "train_step" if row_tokens is None else "typical_step"
    return _program(name, program.step.trace, program.state, program.frozen, batch)


def model_macs(setting: Setting, row_tokens: int | None = None) -> int:
    """Multiply-accumulates of a train step on all chips, without recomputed activations."""
    config = dataclasses.replace(setting.config, remat="none")
    return train_program(dataclasses.replace(setting, config=config), row_tokens).macs


def specialize_program(
    setting: Setting, rows: int | None = None, tokens: int | None = None
) -> Program:
    """Computes the gates of `rows` prompts of `tokens` tokens, by default the longest."""
    config, cloud, edge = setting.config, setting.cloud, setting.edge
    setting = setting.inference(cloud)
    layout = setting.layout
    shape = setting.filled(rows), bucket(tokens or config.data.max_prompt_tokens)
    spread = NamedSharding(layout.mesh, PartitionSpec(layout.rules.batch))
    trace = functools.partial(compiled_gates.trace, config.generator, cloud, layout=layout)
    return _program(
        "specialize",
        trace,
        _model(setting, cloud),
        _arrays(setting, trained_leaves(config.generator, cloud, edge), "float32"),
        _arrays(setting, statistics_leaves(config.generator, edge.layers), "float32"),
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=spread),
        jax.ShapeDtypeStruct(shape, bool, sharding=spread),
    )


def merge_program(setting: Setting) -> Program:
    """Assembles a card's LoRA from the pool and merges it into the FFN weights, in place.

    `generator.merge` compiles the two halves separately, the second per layer for large models.
    """
    edge, generator = setting.edge, setting.config.generator
    pool = make_pool(_arrays(setting, pool_leaves(generator, edge), "float32"), generator)
    layers = _model(setting, edge)["layers"]
    ffn = {name: layers[name] for name in edge.projections}
    placed = tuple((name, weights.sharding) for name, weights in ffn.items())
    rank = generator.rank * (1 if generator.combine == "factors" else generator.top_k)

    def merge(ffn, pool, gates):
        return compiled_merge(placed, donate=False)(ffn, assemble(pool, gates, rank))

    gates = jax.ShapeDtypeStruct(
        (edge.layers, generator.experts), jnp.float32, sharding=replicated(setting.layout.mesh)
    )
    jitted = jax.jit(merge, out_shardings=dict(placed), donate_argnums=0)
    return _program("merge", jitted.trace, ffn, pool, gates)


def decode_program(
    setting: Setting, rows: int | None = None, tokens: int | None = None, cards: bool = False
) -> Program:
    """Generates tokens in `rows` rows, after queries of `tokens` tokens, by default the longest.

    With `cards`, every row has gates of its own beside the base's weights.
    """
    edge, generator = setting.edge, setting.config.generator
    setting = setting.inference(edge)
    mesh, rules, dtype = setting.layout.mesh, setting.layout.rules, DTYPES[setting.config.dtype]
    longest = tokens or setting.config.data.max_query_tokens
    rows, slots = setting.filled(rows), bucket(longest) + bucket(NEW_TOKENS)
    heads = (edge.layers, rows, edge.kv_heads, slots, edge.head_dim)
    (kv,) = rules.spec(("kv_heads",), (edge.kv_heads,), mesh)

    def array(shape: tuple[int, ...], dtype: Any, *axes: Any) -> Any:
        place = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    cache = Cache(
        k=array(heads, dtype, None, rules.batch, kv),
        v=array(heads, dtype, None, rules.batch, kv),
        valid=array((rows, slots), bool, rules.batch),
        length=array((), jnp.int32),
    )
    progress = Progress(
        tokens=array((rows, bucket(NEW_TOKENS)), jnp.int32, rules.batch),
        done=array((rows,), bool, rules.batch),
        step=array((), jnp.int32),
    )
    sampling = {name: array((), value.dtype) for name, value in Sampling().operands().items()}
    controls = sampling | {"eos": array((1,), jnp.int32), "pad": array((), jnp.int32)}
    pool, gates = None, None
    if cards:
        pool = make_pool(_arrays(setting, pool_leaves(generator, edge), "float32"), generator)
        gates = array((rows, edge.layers, generator.experts), jnp.float32, rules.batch)
    params, limit = _model(setting, edge), array((), jnp.int32)
    arguments = (params, cache, progress, controls, pool, gates, limit)
    traced = compiled_continue.trace(edge, *arguments)

    def turn(params, cache, newest, pool, gates):
        inputs = {"cache": cache, "pool": pool, "gates": gates, "last": True}
        return Decoder(edge).apply({"params": params}, newest, **inputs)

    newest = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
    macs = matmul_macs(jax.make_jaxpr(turn)(params, cache, newest, pool, gates))
    return Program("decode_cards" if cards else "decode", traced, arguments, macs, turns=True)


def _program(name: str, trace: Callable[..., Any], *arguments: Any) -> Program:
    traced = trace(*arguments)
    return Program(name, traced, arguments, matmul_macs(traced.jaxpr))


def _model(setting: Setting, model: ModelConfig) -> Any:
    return _arrays(setting, model_leaves(model), setting.config.dtype)


def _arrays(setting: Setting, leaves: Any, dtype: str) -> Any:
    return abstract_arrays(leaves, dtype, setting.layout)
