"""Facts about a method that are read off what it does, not off what it says about itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lorage_jax.compare.parts import Part
from lorage_jax.config import CompareConfig, ExperimentConfig, MeshConfig
from lorage_jax.files.safetensors import Checkpoint
from lorage_jax.hf.source import read_model_config
from lorage_jax.methods.method import Conditioning, Method, get_method
from lorage_jax.methods.training import DEFAULT
from lorage_jax.models.leaves import count_values
from lorage_jax.models.model import Model
from lorage_jax.models.presets import parameter_count
from lorage_jax.sharding import Layout, make_mesh
from lorage_jax.world.samples import WorldSample

UNSEEN = ("composition", "tools", "tasks")  # splits of tasks that are not in training


def trained_parameters(
    method: Method, edge: Model, run: ExperimentConfig | None, result: Path | None
) -> int:
    """The number of values that training changes; of `tuned_fresh`, those of one prompt.

    Args:
        method: the method, loaded.
        edge: the model that it answers with.
        run: how it is trained; None if it is not trained here.
        result: the finished result, or folder of results, that it was loaded from instead.
    """
    known = method.trained_values()
    if known is not None:
        return known
    if result is not None:
        files = [Checkpoint.open_file(file) for file in sorted(result.rglob("*.safetensors"))]
        return sum(math.prod(file.shape(name)) for file in files for name in file.names())
    if run is None:
        return 0
    kind: Any = get_method(run.method or DEFAULT)
    models = {"edge": edge.config}
    if "cloud" in kind.frozen:
        models["cloud"] = read_model_config(Path(run.cloud))
    layout = Layout(make_mesh(MeshConfig(1, 1, 1), jax.local_devices()[:1]))
    return count_values(kind.training(run, models, layout).leaves)


def bigger_cloud(run: ExperimentConfig) -> bool:
    """True if the cloud has more parameters than the edge, by their config.json."""
    cloud, edge = (parameter_count(read_model_config(Path(x))) for x in (run.cloud, run.edge))
    return cloud > edge


def bigger_clouds(config: CompareConfig, parts: Sequence[Part]) -> set[str]:
    """The rows whose own cloud is bigger than the edge."""
    runs = {part.row: part.experiment or config.base for part in parts}
    return {row for row, run in runs.items() if bigger_cloud(run)}


def is_merged(method: Method, edge: Model, sample: WorldSample) -> bool | None:
    """True if one prompt's answers come from the edge's own shapes alone; None if nothing changes.

    Read off the method's placement.
    """
    placement = method.place(edge, method.prepare(sample.prompts[:1]))
    beside = (placement.cards, placement.prefixes, placement.pool)
    if any(one is not None for one in beside):
        return False
    pairs = zip(*(jax.tree.leaves(m.params) for m in (placement.model, edge)), strict=True)
    changed = any(a is not b and not np.array_equal(a, b) for a, b in pairs)
    return True if changed else None


def follows_prompts(method: Method, samples: Sequence[WorldSample]) -> bool | None:
    """True if the method makes something of an unseen task's prompt, without solved examples.

    That is a context, card or prefix which differs between the prompts of two tasks. None if the
    sample has only one.
    """
    sample = next((one for one in samples if one.split in UNSEEN), samples[0])
    task = dict(zip(sample.tasks, sample.prompts, strict=True))
    if len(task) < 2:
        return None
    made = method.prepare(list(task.values())[:2])
    if any(one.facts.get("examples") for one in made):
        return False
    return len({_made_of(one) for one in made}) == 2


def _made_of(one: Conditioning) -> tuple[Any, ...]:
    card = None if one.card is None else (one.card.gates, one.card.pool)
    made = tuple(np.asarray(x).tobytes() for x in jax.tree.leaves(card))
    return one.context, made, None if one.prefix is None else one.prefix.identity
