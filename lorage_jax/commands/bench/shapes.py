"""Model shapes and token counts from the options of a measurement."""

from __future__ import annotations

from pathlib import Path

from lorage_jax.commands.bench.options import EdgeShape
from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.fields import home_path
from lorage_jax.hf.config import model_config
from lorage_jax.hf.presets import SHAPES, shape_name
from lorage_jax.models.presets import with_layers


def edge_shape(options: EdgeShape) -> tuple[str, ModelConfig]:
    """Name and full depth of the edge that `--shape` or `--edge-config` asks for.

    Raises ConfigError for an unknown shape, for both options at once, and for a folder that holds
    no model.
    """
    if options.edge_config is None:
        if options.shape not in SHAPES:
            raise ConfigError(
                f"--shape is {options.shape!r}; expected one of {', '.join(SHAPES)}. "
                "--edge-config takes any other shape from a config.json."
            )
        return options.shape, SHAPES[options.shape]
    if options.shape != EdgeShape.shape:
        raise ConfigError(
            f"both --shape {options.shape} and --edge-config {options.edge_config} name the "
            "edge's shape; give one of them."
        )
    full = _read(options.edge_config)
    return shape_name(full) or str(options.edge_config), full


def cut(full: ModelConfig, options: EdgeShape) -> ModelConfig:
    """The edge with `--layers` layers, or all of them."""
    return full if options.layers is None else with_layers(full, options.layers)


def cloud_shape(folder: Path | None) -> tuple[str, ModelConfig]:
    """Name and shape of the cloud in `folder`; LLaMA3-8B for None."""
    cloud = SHAPES["llama3-8b"] if folder is None else _read(folder)
    return shape_name(cloud) or str(folder), cloud


def folder_shape(folder: Path) -> ModelConfig:
    """The shape of the model in `folder`. Raises ConfigError if it is not a folder."""
    return _read(home_path(folder))


def check_no_shape(options: EdgeShape) -> None:
    """Raises ConfigError if an option for random weights is given beside `--model`."""
    for name in ("shape", "edge_config", "cloud_config", "layers"):
        given = getattr(options, name, None)
        if given is not None and given != getattr(EdgeShape, name, None):
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--model measures the folder as it is; --{flag} {given} is for random weights. "
                "Give one of them."
            )


def check_context(role: str, config: ModelConfig, **counts: int) -> None:
    """Raises ConfigError if the tokens in `counts` exceed the model's context."""
    total = sum(counts.values())
    if total > config.max_positions:
        parts = " + ".join(f"{count} {kind}" for kind, count in counts.items())
        raise ConfigError(
            f"{parts} tokens are {total}; the {role}'s context is {config.max_positions}. "
            "Ask for fewer."
        )


def _read(folder: Path) -> ModelConfig:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; expected one that holds a config.json.")
    return model_config(folder)
