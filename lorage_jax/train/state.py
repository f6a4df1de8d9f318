"""The state of training: everything that a step changes, and so not the frozen models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, UInt32

from lorage_jax.files.dtypes import DTYPES
from lorage_jax.sharding import Layout, replicated


class TrainState(flax.struct.PyTreeNode):
    """The state of a run. The arrays of checkpoints are named after these fields.

    Attributes:
        step: number of finished steps.
        trained: the parameters that the optimizer updates.
        statistics: running statistics, which no gradient changes; {} if there are none.
        optimizer: the optimizer's state.
        key: raw random bits, folded with the step; None if the loss is not random.
    """

    step: Int[Array, ""]
    trained: Any
    statistics: Any
    optimizer: Any
    key: UInt32[Array, "2"] | None


def first_state(
    trained: Any, statistics: Any, optimizer: optax.GradientTransformation, key: Array | None
) -> TrainState:
    """The state before the first step."""
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, trained, statistics, optimizer.init(trained), key)


def abstract_state(
    leaves: Any,
    statistics: Any,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    *,
    random: bool = True,
) -> TrainState:
    """The shapes, dtypes and shardings of a state; moments are sharded like their parameters.

    `leaves` and `statistics` are trees of `Leaf`. `random` adds a key.
    """

    def build(trained: Any, statistics: Any) -> TrainState:
        key = jax.random.PRNGKey(0) if random else None
        return first_state(trained, statistics, optimizer, key)

    parts = {
        "trained": abstract_arrays(leaves, "float32", layout),
        "statistics": abstract_arrays(statistics, "float32", layout),
    }
    moments = moment_shardings(leaves, shardings(parts["trained"]), optimizer, layout)
    whole = replicated(layout.mesh)
    state = jax.eval_shape(build, parts["trained"], parts["statistics"])
    places = state.replace(
        step=whole,
        key=whole if random else None,
        optimizer=moments,
        **{name: shardings(part) for name, part in parts.items()},
    )
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places
    )


def abstract_arrays(leaves: Any, dtype: str, layout: Layout) -> Any:
    """Abstract arrays for a tree of `Leaf`, with the shardings of the layout."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, DTYPES[dtype], sharding=layout.sharding(leaf)
        ),
        leaves,
    )


def shardings(arrays: Any) -> Any:
    """The shardings of a tree of arrays or abstract arrays."""
    return jax.tree.map(lambda x: x.sharding, arrays)


def moment_shardings(
    leaves: Any, shardings: Any, optimizer: optax.GradientTransformation, layout: Layout
) -> Any:
    """Shardings of the optimizer's state: moments like their parameters, the rest replicated."""
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), leaves)
    params = jax.tree_util.tree_leaves_with_path(abstract)
    places: Mapping[Any, NamedSharding] = {
        (path, leaf.shape): place
        for (path, leaf), place in zip(params, jax.tree.leaves(shardings), strict=True)
    }

    # A moment's path ends with its parameter's path: `(1)[0].mu["pool"]["gate"]["a"]`.
    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        ends = (places.get((path[at:], leaf.shape)) for at in range(len(path)))
        return next((found for found in ends if found is not None), replicated(layout.mesh))

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, abstract))
