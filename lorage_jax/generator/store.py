"""A generator's folder: `generator.safetensors` (trained parts) and `lorage.json` (the rest).

The cloud's weights are not in it; the folder records where the cloud and the edge were, relative to
itself and absolute, and their fingerprints, which loading checks.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.bundled import GENERATORS, MODELS, generator_folder, kept_models
from lorage_jax.config import GeneratorConfig, HeldOut
from lorage_jax.data.templates import TemplateKind, notice_change
from lorage_jax.errors import (
    ConfigError,
    DataError,
    LorageError,
    WeightsError,
    bullets,
    did_you_mean,
)
from lorage_jax.fields import from_dict, home_path, require_kind, to_dict
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.files.fingerprint import TWO_MODELS, fingerprint, short
from lorage_jax.files.hub import HUB_NAME, fetch, is_hub_name
from lorage_jax.files.manifest import Kind, check_fields, write_manifest
from lorage_jax.files.outputs import new_folder
from lorage_jax.files.safetensors import Checkpoint, save
from lorage_jax.generator.generator import Generator, trained_leaves
from lorage_jax.generator.pool import make_pool, pool_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.generator.trees import flatten, read_tree
from lorage_jax.hf.arithmetic import arithmetic, different_arithmetic
from lorage_jax.hf.family import from_values, to_values
from lorage_jax.hf.hub_card import (
    METHOD,
    SCORES,
    licence_text,
    portable_name,
    write_hub_card,
)
from lorage_jax.hf.load import load_model
from lorage_jax.hf.source import is_model, read_model_config
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout

TENSORS = "generator.safetensors"
SAVED = ("float32", "bfloat16")  # dtypes of the trained parts
GENERATOR = Kind(
    "lorage-generator/1",
    "a generator",
    "the `generator` folder of a run of `lorage train`",
    {
        "fingerprint": str,
        "generator": dict,
        "dtype": str,
        "cloud": dict,
        "edge": dict,
        "templates": int,
        "about": dict,
        "cloud.fingerprint": str,
        "edge.fingerprint": str,
        "edge.config": dict,
    },
)
OPTIONAL: dict[str, type] = {
    f"{role}.{name}": str
    for role in ("cloud", "edge")
    for name in ("relative", "path", "hub", "chat_template", "turns")
}


USE = """```bash
lorage specialize --generator THIS_FOLDER --prompt prompt.txt --out special
lorage generate --model special/merged --input "..."
```

```python
import lorage_jax as lg

generator = lg.load_generator("THIS_FOLDER")   # or OWNER/NAME on the Hub
card = lg.specialize(generator, "You are ...")
special = lg.merge(lg.load_model("EDGE"), generator.pool, card)
```"""


def save_generator(
    generator: Generator, folder: str | Path, overwrite: bool = False, dtype: str = "float32"
) -> None:
    """Writes a generator as a folder: to a temporary sibling, then renamed into place.

    `dtype` is that of the trained parts in the file. In bfloat16 the folder is half as large, but
    rounding makes it another generator, with another fingerprint.

    Raises OutputError if the folder exists, unless `overwrite` and lorage_jax wrote it.
    """
    require_kind(generator, Generator, "generator", "a Generator, before the folder to write")
    target = home_path(folder)
    if dtype not in SAVED:
        raise WeightsError(f"dtype is {dtype!r}; expected one of {', '.join(SAVED)}.")
    stored = jax.tree.map(lambda x: jnp.asarray(x, DTYPES[dtype]), generator.trained)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), stored)
    generator = dataclasses.replace(generator, trained=rounded)
    arrays = flatten({"trained": stored, "statistics": generator.statistics})
    with new_folder(target, overwrite=overwrite) as temporary:
        save(temporary / TENSORS, {k: np.asarray(v) for k, v in arrays.items()}, {})
        values = {
            "format": GENERATOR.format,
            "fingerprint": generator.fingerprint,
            "generator": to_dict(generator.config),
            **generator.template.to_dict(),
            "dtype": str(generator.cloud.dtype),
            "cloud": {
                **recorded_places(generator.cloud.source, target),
                "fingerprint": generator.cloud.fingerprint,
                "config": to_values(generator.cloud.config),
                **_turns(generator, "cloud"),
            },
            "edge": {
                **recorded_places(generator.edge_source, target),
                "fingerprint": generator.edge_fingerprint,
                "config": to_values(generator.edge),
                **_turns(generator, "edge"),
            },
            "about": generator.about,
        }
        _write_hub_card(temporary, generator)
        write_manifest(temporary, values)


def _write_hub_card(folder: Path, generator: Generator) -> None:
    """README.md in the Hub's format: what the generator is for, and how it is called."""
    sources = {"cloud": generator.cloud.source, "edge": generator.edge_source}
    cloud, edge = ("unknown" if s is None else portable_name(s) for s in sources.values())
    config = generator.config
    about = {**generator.about, "template": generator.template.name}
    facts = {
        "cloud, which reads system prompts": f"`{cloud}`",
        "edge, which is specialised": f"`{edge}`, {generator.edge.layers} layers",
        "experts": f"{config.experts} of rank {config.rank} per layer; {config.top_k} are kept",
        **{name: json.dumps(value) for name, value in about.items()},
    }
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    parts = {
        "": f"It turns a system prompt into a specialised `{edge}` ({METHOD}). It works with "
        "exactly the two models below.",
        "Use": USE,
        "Training": f"| | |\n|---|---|\n{rows}",
        "Scores": SCORES,
        "Licence": licence_text(sources) + "\nThe data of the training have licences of their own.",
    }
    title = f"A generator for {edge}"
    write_hub_card(folder, title, parts, bases=list(sources.values()), library="lorage_jax")


def _turns(generator: Generator, role: str) -> dict[str, str]:
    found = {
        "chat_template": generator.chat_templates.get(role),
        "turns": generator.turns.get(role),
    }
    return {name: value for name, value in found.items() if value is not None}


def recorded_places(source: Path | None, target: Path) -> dict[str, str]:
    """Fields of a manifest in `target` that `recorded_path` reads: where a model's folder is."""
    if source is None:
        return {}
    absolute, home = Path(source).resolve(), target.resolve()
    paths = {"relative": os.path.relpath(absolute, home)}
    if HUB_NAME.fullmatch(name := portable_name(absolute)):
        paths["hub"] = name
    # Beside the generator, the relative path is enough: the parent may be moved as a whole.
    return paths if absolute.parent == home.parent else {**paths, "path": str(absolute)}


def generator_path(folder: str | Path) -> Path:
    """The folder of a generator: a path, a bundled one's name, or a repository of the Hub."""
    path = generator_folder(home_path(folder))
    return fetch(path.as_posix()) if is_hub_name(path) else path


def read_values(folder: str | Path) -> dict[str, Any]:
    """The `lorage.json` of a generator folder. Raises WeightsError."""
    folder = generator_path(folder)
    if not folder.is_dir():
        raise WeightsError(
            f"{folder} is not a folder; expected {GENERATOR.origin}, or {' or '.join(GENERATORS)} "
            f"for a bundled generator{did_you_mean(str(folder), GENERATORS) or '.'}"
        )
    values = GENERATOR.read(folder)
    recorded = {name: kind for name, kind in OPTIONAL.items() if _has(values, name)}
    check_fields(folder, values, recorded)
    return values


def held_out(values: dict[str, Any]) -> list[HeldOut]:
    """The parts of files of tasks that training held out, by `read_values`; may be empty."""
    return [from_dict(HeldOut, one) for one in values["about"].get("held_out", [])]


def _template(folder: Path, values: dict[str, Any]) -> TemplateKind:
    try:
        return TemplateKind.of(values)
    except DataError as error:
        raise WeightsError(
            f"{folder} was trained with prompt templates {values['templates']}: {error}"
        ) from None


def _by_role(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {role: values[role][name] for role in ("cloud", "edge") if name in values[role]}


def _has(values: dict[str, Any], name: str) -> bool:
    role, inside = name.split(".")
    return inside in values[role]


def recorded_path(values: dict[str, Any], role: str, folder: Path) -> Path:
    """The recorded folder of the `cloud` or `edge`, or one of its name among the kept models.

    Its weights are not compared here (`check_identity`). Raises WeightsError if there is none.
    """
    entry, folder = values[role], generator_path(folder)
    home = folder.resolve()  # as it was recorded
    near = home / entry["relative"] if "relative" in entry else None
    far = Path(entry["path"]) if "path" in entry else None
    name = next((path.name for path in (near, far) if path is not None), None)
    kept = None if name is None else kept_models() / name
    for path in (near, far, kept):
        if path is not None and is_model(path):
            return Path(os.path.normpath(path))
    said = ""
    if "hub" in entry:
        try:
            return fetch(entry["hub"])
        except WeightsError as error:
            said = f" Also, {error}"
    raise WeightsError(
        f"{folder}: the {role} model is not at its recorded place ({near or 'none recorded'})"
        + ("" if kept is None else f", and {MODELS} has no {name} (looked for {kept})")
        + f". Pass its folder with --{role} (Python: {role}=).{said}"
    )


def edge_path(values: dict[str, Any], folder: Path, given: Path | None) -> Path:
    """The edge of the generator in `folder`: `given`, or where it was recorded, and no other.

    Raises WeightsError if there is none, or if it is not the edge of the training.
    """
    edge = given or recorded_path(values, "edge", folder)
    check_identity(edge, values, "edge")
    return edge


def check_identity(source: Path | Model, values: dict[str, Any], role: str) -> None:
    """Raises WeightsError unless `source` has the arithmetic and weights of the cloud or edge."""
    check_config(source, values, role)
    expected = values[role]["fingerprint"]
    found = source.fingerprint if isinstance(source, Model) else fingerprint(source)
    if found != expected:
        where = source.source if isinstance(source, Model) else source
        raise WeightsError(
            f"{where} is not the {role} this generator was trained with (weights "
            f"{short(found)}, expected {short(expected)}). {TWO_MODELS} For other weights of "
            "the same model, `lorage retarget` makes a generator."
        )


def check_config(source: Path | Model, values: dict[str, Any], role: str) -> None:
    """Raises WeightsError that names every field which changes the logits of the same weights.

    Nothing is compared if no config was recorded.
    """
    if not isinstance(recorded := values[role].get("config"), dict):
        return
    found = source.config if isinstance(source, Model) else read_model_config(source)
    try:
        expected = from_values(recorded)
    except ConfigError:
        return  # a damaged record, which loading reports
    different = different_arithmetic(arithmetic(expected), found)
    if different:
        where = source.source if isinstance(source, Model) else source
        raise WeightsError(
            f"{where} is not the {role} this generator was trained with; by its config.json:\n"
            f"{bullets(different)}"
        )


def load_generator(
    folder: str | Path,
    cloud: str | Path | Model | None = None,
    dtype: str | None = None,
    layout: Layout | None = None,
) -> Generator:
    """Loads a generator with its cloud model.

    Args:
        folder: the generator's folder, a bundled one's name ("nano"), or OWNER/NAME on the Hub.
        cloud: the cloud model, or its folder if it is no longer where the generator recorded it.
        dtype: dtype of the cloud's weights. Default: as in training.
        layout: how the cloud is sharded over devices, as in `load_model`.

    Raises WeightsError that lists every tensor that does not fit, or that names a changed cloud.
    """
    require_kind(folder, str | os.PathLike, "folder", "a generator's folder or name")
    folder = generator_path(folder)
    values = read_values(folder)
    source = cloud if cloud is not None else recorded_path(values, "cloud", folder)
    source = source if isinstance(source, Model) else home_path(source)
    check_identity(source, values, "cloud")
    if not isinstance(source, Model):
        source = load_model(source, dtype or values["dtype"], layout)
    generator = with_cloud(folder, values, source)
    notice_change(generator.chat_templates.get("cloud"), source.tokenizer, source.source)
    check_contents(generator, values)
    return generator


def check_contents(generator: Generator, values: dict[str, Any]) -> None:
    """Raises WeightsError unless the trained parts are those that `read_values` describe."""
    trained_with = generator.cloud.replace(identity=values["cloud"]["fingerprint"])
    if values["fingerprint"] != dataclasses.replace(generator, cloud=trained_with).fingerprint:
        raise WeightsError(
            f"{generator.source}: {TENSORS} is not what lorage.json describes; the folder was "
            "changed."
        )


def with_cloud(folder: Path, values: dict[str, Any], model: Model) -> Generator:
    """The generator of a folder with its `read_values`, and a cloud that is not compared here.

    Raises WeightsError for a damaged folder.
    """
    template = _template(folder, values)
    try:
        config = from_dict(GeneratorConfig, values["generator"])
        edge = from_values(values["edge"]["config"])
    except ConfigError as error:
        raise WeightsError(f"{folder}/lorage.json is damaged: {error}") from None
    leaves = {
        "trained": trained_leaves(config, model.config, edge),
        "statistics": statistics_leaves(config, edge.layers),
    }
    arrays = read_tree(folder / TENSORS, leaves)
    try:
        edge_source = recorded_path(values, "edge", folder)
    except LorageError:
        edge_source = None
    return Generator(
        config=config,
        cloud=model,
        edge=edge,
        edge_fingerprint=values["edge"]["fingerprint"],
        trained=arrays["trained"],
        statistics=arrays["statistics"],
        edge_source=edge_source,
        source=folder,
        about=values["about"],
        template=template,
        chat_templates=_by_role(values, "chat_template"),
        turns=_by_role(values, "turns"),
    )


def load_pool(folder: str | Path) -> Pool:
    """Loads a generator's experts alone: a device with the edge needs nothing else for its cards.

    The cloud is not read. Raises WeightsError for a folder that is damaged.
    """
    folder = generator_path(folder)
    values = read_values(folder)
    try:
        config = from_dict(GeneratorConfig, values["generator"])
        leaves = flatten(pool_leaves(config, from_values(values["edge"]["config"])))
    except ConfigError as error:
        raise WeightsError(f"{folder}/lorage.json is damaged: {error}") from None
    checkpoint, experts = Checkpoint.open_file(folder / TENSORS), {}
    for name, leaf in leaves.items():
        stored = f"trained.pool.{name}"
        if stored not in checkpoint or checkpoint.shape(stored) != leaf.shape:
            raise WeightsError(f"{folder / TENSORS} has no {stored} of shape {leaf.shape}.")
        projection, part = name.split(".")
        array = jnp.asarray(checkpoint.read(stored), jnp.float32)
        experts.setdefault(projection, {})[part] = array
    return make_pool(experts, config, values["fingerprint"])
