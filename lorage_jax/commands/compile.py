"""`lorage compile`: run an experiment's programs through the TPU compiler, without a TPU."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from lorage_jax.aot.topology import parse_topology, tpu_devices
from lorage_jax.chips import GIB
from lorage_jax.commands.experiment import load_experiment
from lorage_jax.commands.options import Compile
from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.errors import ConfigError


def run(options: Compile) -> dict[str, Any]:
    """Compiles the programs, prints the figures per chip and returns them.

    A program that does not fit is a result, not an error: `fits` is then false.
    """
    topology, config = parse_topology(options.topology), load_experiment(options.experiment)
    layers, row_tokens = options.layers, options.row_tokens
    if row_tokens is not None and row_tokens < 1:
        raise ConfigError(f"--row-tokens is {row_tokens}; expected 1 or more.")
    if config.method not in (None, "lora_gen"):
        raise ConfigError(
            f"the experiment's method is {config.method!r}; lorage compile knows only the programs "
            "of lora_gen. Leave the method out to compile those."
        )
    cloud = model_shape("cloud", config.cloud, layers)
    edge = model_shape("edge", config.edge, layers)
    devices = tpu_devices(topology)  # before anything else touches jax
    from lorage_jax.aot.programs import Setting, model_macs, programs
    from lorage_jax.aot.report import compile_program, page, settled, step_roofline
    from lorage_jax.sharding import Layout, make_mesh
    from lorage_jax.train.experiment import batch_rows, check_devices
    from lorage_jax.train.generator import check_models

    mesh = make_mesh(config.mesh, devices, batch_rows(config))
    check_devices(config, mesh)
    check_models(config, cloud, edge)
    chip_bytes = topology.chip.usable_gib * GIB
    setting = Setting(config, cloud, edge, Layout(mesh), row_tokens, chip_bytes)
    setting = settled(setting, topology)
    figures = {}
    for program in programs(setting):
        print(f"compiling {program.name} ...", file=sys.stderr, flush=True)
        figures[program.name] = compile_program(program, topology)
    result = {
        "topology": topology.name,
        "chips": topology.chips,
        "hbm_gib_per_chip": topology.chip.hbm_gib,
        "chip": dataclasses.asdict(topology.chip),
        "mesh": dict(mesh.shape),
        **_about(setting.config, cloud, edge),
        "programs": figures,
        "roofline": step_roofline(figures["train_step"], topology, model_macs(setting)),
        "fits": all(one["fits"] for one in figures.values()),
    }
    if row_tokens is not None:
        typical, macs = figures["typical_step"], model_macs(setting, row_tokens)
        roof = step_roofline(typical, topology, macs)
        result |= {"row_tokens": row_tokens, "typical_roofline": roof}
    print(page(result))
    return result


def _about(config: ExperimentConfig, cloud: ModelConfig, edge: ModelConfig) -> dict[str, Any]:
    return {
        "cloud": config.cloud,
        "cloud_layers": cloud.layers,
        "edge": config.edge,
        "edge_layers": edge.layers,
        "rows": config.data.rows,
        "prompts": config.data.prompts_per_batch,
        "prompt_tokens": config.data.max_prompt_tokens,
        "query_tokens": config.data.max_query_tokens,
        "accumulate": config.optimizer.accumulate,
        "packed_rows": config.data.packed_rows,
        "remat": config.remat,
    }


def model_shape(role: str, name: str, layers: int | None) -> ModelConfig:
    """The shape of a model, from a folder with a config.json or from its known name.

    `role` is cloud or edge, for the message. A deeper model is cut to `layers` layers. Raises
    ConfigError if the shape is not known.
    """
    from lorage_jax.hf.presets import KNOWN, known_shape
    from lorage_jax.hf.source import is_model, read_model_config
    from lorage_jax.models.presets import with_layers

    config = read_model_config(Path(name)) if is_model(Path(name)) else known_shape(name)
    if config is None:
        raise ConfigError(
            f"the {role} {name!r} is not a folder, and no shape is known by that name "
            f"(known: {', '.join(KNOWN)}). A folder with its config.json alone is enough to "
            "compile."
        )
    return config if layers is None else with_layers(config, min(layers, config.layers))
