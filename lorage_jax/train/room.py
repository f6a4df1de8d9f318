"""Checks before a training that the longest texts fit into a row of the edge."""

from __future__ import annotations

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.errors import ConfigError


def check_room(
    config: ExperimentConfig,
    edge: ModelConfig,
    *,
    prompt: bool = False,
    slots: int = 0,
    reader: str = "",
) -> None:
    """Raises ConfigError unless the longest row fits into the edge's context.

    Args:
        config: the run, whose `data` say how long texts may be.
        edge: the model that reads the row.
        prompt: the row has a system prompt before the query.
        slots: vectors, or slots of keys and values, in the row.
        reader: who reads such rows, after "read by"; by default all.
    """
    data = config.data
    parts = [f"max_prompt_tokens {data.max_prompt_tokens}"] * prompt
    parts += [f"{slots} slots of vectors"] * bool(slots)
    parts += [f"max_query_tokens {data.max_query_tokens}"]
    if prompt * data.max_prompt_tokens + slots + data.max_query_tokens > edge.max_positions:
        told = " and ".join(parts) + (f", read by {reader}," if reader else "")
        raise ConfigError(
            f"{told} exceed the edge's context of {edge.max_positions}. Lower one of them."
        )


def check_unpacked(config: ExperimentConfig, why: str) -> None:
    """Raises ConfigError if texts are packed into rows, with the reason against it."""
    if config.data.packed_rows is not None:
        raise ConfigError(f"{why}; leave packed_rows out.")
