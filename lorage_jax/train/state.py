"""What a training run changes, and nothing else: the frozen models are not in it."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, UInt32

from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.generator.generator import new_trained, trained_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.models.model import Model
from lorage_jax.sharding import ShardingRules, replicated, tree_shardings


@flax.struct.dataclass
class TrainState:
    """`trained` and `statistics` as in `generator.generator`; `key`: raw bits, folded with step."""

    step: Int[Array, ""]
    trained: dict[str, Any]
    statistics: dict[str, Any]
    optimizer: Any
    key: UInt32[Array, "2"]


def new_state(
    config: GeneratorConfig,
    cloud: Model,
    edge: ModelConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    shardings: TrainState,
) -> TrainState:
    """The state before the first step, made in place under its shardings."""

    def build(embed: Array) -> TrainState:
        init_key, run_key = jax.random.split(jax.random.PRNGKey(seed))
        view = cloud.replace(params={"embed": embed})
        trained, statistics = new_trained(config, view, edge, init_key)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, trained, statistics, optimizer.init(trained), run_key)

    return jax.jit(build, out_shardings=shardings)(cloud.params["embed"])


def state_shardings(
    config: GeneratorConfig,
    cloud: ModelConfig,
    edge: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
) -> TrainState:
    """The optimizer's moments are sharded as the parameters that they belong to."""
    leaves = trained_leaves(config, cloud, edge)
    trained = tree_shardings(leaves, rules, mesh)
    moments = moment_shardings(leaves, trained, optimizer, mesh)
    statistics = tree_shardings(statistics_leaves(config, edge.layers), rules, mesh)
    whole = replicated(mesh)
    return TrainState(whole, trained, statistics, moments, whole)


def moment_shardings(
    leaves: Any, shardings: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Any:
    """Of the optimizer's state: moments as their parameters, everything else whole."""
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), leaves)
    params = jax.tree_util.tree_leaves_with_path(abstract)
    places = {
        (path, leaf.shape): place
        for (path, leaf), place in zip(params, jax.tree.leaves(shardings), strict=True)
    }

    # A moment's path ends as its parameter's: `(1)[0].mu["pool"]["gate"]["a"]`.
    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        ends = (places.get((path[at:], leaf.shape)) for at in range(len(path)))
        return next((found for found in ends if found is not None), replicated(mesh))

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, abstract))
