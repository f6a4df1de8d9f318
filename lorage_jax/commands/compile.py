"""`lorage compile`: run an experiment's programs through the TPU compiler, without a TPU."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorage_jax.aot.topology import Topology, parse_topology, tpu_devices
from lorage_jax.chips import GIB
from lorage_jax.commands.experiment import load_experiment
from lorage_jax.commands.experiment_options import Compile
from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.errors import ConfigError

if TYPE_CHECKING:
    from lorage_jax.aot.programs import Setting


def run(options: Compile) -> dict[str, Any]:
    """Compiles the programs, prints the figures per chip and returns them.

    A program that does not fit is a result, not an error: `fits` is then false.
    """
    topology, config = parse_topology(options.topology), load_experiment(options.experiment)
    _check(options, config)
    sizes = None if options.batches is None else _sizes(options.batches)
    cloud = model_shape("cloud", config.cloud, options.layers)
    edge = model_shape("edge", config.edge, options.layers)
    devices = tpu_devices(topology)  # before anything else touches jax
    from lorage_jax.aot.programs import Setting
    from lorage_jax.sharding import Layout, make_mesh
    from lorage_jax.train.experiment import batch_rows
    from lorage_jax.train.generator import check_models

    mesh = make_mesh(config.mesh, devices, batch_rows(config))
    check_models(config, cloud, edge)
    chip_bytes = topology.chip.usable_gib * GIB
    setting = Setting(config, cloud, edge, Layout(mesh), options.row_tokens, chip_bytes)
    if sizes is None:
        return _training(setting, topology)
    return _batches(setting, topology, sizes, options.programs)


def _training(setting: Setting, topology: Topology) -> dict[str, Any]:
    """All programs of the experiment."""
    from lorage_jax.aot.programs import model_macs, programs
    from lorage_jax.aot.report import compile_program, page, settled, step_roofline
    from lorage_jax.train.experiment import check_devices

    mesh, row_tokens = setting.layout.mesh, setting.row_tokens
    check_devices(setting.config, mesh)
    setting = settled(setting, topology)
    figures = {}
    for program in programs(setting):
        print(f"compiling {program.name} ...", file=sys.stderr, flush=True)
        figures[program.name] = compile_program(program, topology)
    result = {
        **_about(setting, topology),
        "mesh": dict(mesh.shape),
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


def _batches(
    setting: Setting, topology: Topology, sizes: list[int], programs: str
) -> dict[str, Any]:
    """Decoding and specialising at several batch sizes."""
    from lorage_jax.aot.batches import PROGRAMS, batch_figures, batch_page

    names = [name.strip() for name in programs.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PROGRAMS]:
        raise ConfigError(
            f"--programs has {', '.join(unknown)}; expected any of {', '.join(PROGRAMS)}."
        )
    found = []
    for one in batch_figures(setting, topology, sizes, names):
        print(f"compiled {one['program']} of {one['batch']} rows", file=sys.stderr, flush=True)
        found.append(one)
    result = {
        **_about(setting, topology),
        "row_tokens": setting.row_tokens,
        "batches": found,
        "fits": all(one["fits"] for one in found),
    }
    print(batch_page(result))
    return result


def _sizes(text: str) -> list[int]:
    """The numbers of rows in `--batches`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--batches is {text!r}; expected numbers of rows, such as 1,32,256.")
    return [int(part) for part in parts]


def _check(options: Compile, config: ExperimentConfig) -> None:
    row_tokens = options.row_tokens
    if row_tokens is not None and row_tokens < 1:
        raise ConfigError(f"--row-tokens is {row_tokens}; expected 1 or more.")
    if config.method not in (None, "lora_gen"):
        raise ConfigError(
            f"the experiment's method is {config.method!r}; lorage compile knows only the programs "
            "of lora_gen. Leave the method out to compile those."
        )


def _about(setting: Setting, topology: Topology) -> dict[str, Any]:
    config, cloud, edge = setting.config, setting.cloud, setting.edge
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "hbm_gib_per_chip": topology.chip.hbm_gib,
        "chip": dataclasses.asdict(topology.chip),
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
