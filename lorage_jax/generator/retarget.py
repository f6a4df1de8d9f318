"""A trained generator for other weights of its models, such as the Hub's own for rounded ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lorage_jax.errors import ConfigError
from lorage_jax.fields import home_path
from lorage_jax.files.fingerprint import fingerprint
from lorage_jax.files.outputs import check_target
from lorage_jax.files.safetensors import Checkpoint
from lorage_jax.generator.generator import Generator
from lorage_jax.generator.store import (
    TENSORS,
    check_config,
    check_contents,
    generator_path,
    load_generator,
    read_values,
    save_generator,
    with_cloud,
)
from lorage_jax.hf.load import load_model
from lorage_jax.hf.source import open_model
from lorage_jax.models.model import Model


def retarget(
    folder: str | Path,
    out: str | Path,
    *,
    edge: str | Path | None = None,
    cloud: str | Path | None = None,
    overwrite: bool = False,
) -> Generator:
    """Writes a copy of a generator for other weights of its edge, of its cloud, or of both.

    The trained parts stay as they are. They suit the weights of the training, so what they do under
    others has to be measured: `lorage eval` shows it beside the controls.

    Args:
        folder: the generator's folder, a bundled one's name, or OWNER/NAME on the Hub.
        out: the new folder.
        edge: folder or GGUF file of the edge. Also the cloud's, if the edge was its own cloud in
            training and `cloud` is None.
        cloud: folder or GGUF file of the cloud.
        overwrite: replace `out` if lorage_jax wrote it.

    Returns the new generator.

    Raises ConfigError if there is neither, or if they are those of the training; WeightsError
    unless the models compute and tokenize as those of the training; OutputError if `out` exists.
    """
    if edge is None and cloud is None:
        raise ConfigError("retarget needs other weights: give an edge, a cloud, or both.")
    folder = generator_path(folder)
    check_target(out, overwrite, folder, edge, cloud)
    values = read_values(folder)
    if cloud is None and values["cloud"]["fingerprint"] == values["edge"]["fingerprint"]:
        cloud = edge
    if cloud is None:
        made = load_generator(folder)
    else:
        cloud = home_path(cloud)
        check_config(cloud, values, "cloud")
        made = with_cloud(folder, values, load_model(cloud, values["dtype"]))
        check_contents(made, values)
        _ = made.reads  # raises for another tokenizer
    if edge is not None:
        made = _for_edge(made, values, home_path(edge))
    if (made.cloud.fingerprint, made.edge_fingerprint) == tuple(
        values[role]["fingerprint"] for role in ("cloud", "edge")
    ):
        raise ConfigError(
            f"{folder} is for these weights already. Use it as it is; commands take models that "
            "were moved as --edge and --cloud."
        )
    origin = {role: values[role]["fingerprint"] for role in ("cloud", "edge")}
    origin["generator"] = values["fingerprint"]
    made = dataclasses.replace(made, about={**made.about, "retargeted_from": origin})
    save_generator(made, out, overwrite, trained_dtype(folder))
    return made


def _for_edge(generator: Generator, values: dict, edge: Path) -> Generator:
    check_config(edge, values, "edge")
    opened = open_model(edge, with_tokenizer=True)
    generator.speaking(Model(opened.config, {}, opened.tokenizer, source=edge))
    return dataclasses.replace(generator, edge_fingerprint=fingerprint(edge), edge_source=edge)


def trained_dtype(folder: Path) -> str:
    """The dtype of a generator's trained parts in its file."""
    tensors = Checkpoint.open_file(folder / TENSORS)
    found = {tensors.dtype(name) for name in tensors.names() if name.startswith("trained.")}
    return "bfloat16" if found == {"BF16"} else "float32"
