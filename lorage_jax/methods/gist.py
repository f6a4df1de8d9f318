"""Gist tokens (arXiv 2304.08467): the prompt's only trace is the keys and values of k tokens.

The edge reads the prompt, followed by k gist vectors, and every question attends to their keys and
values instead of the prompt's. This is what the paper's masked pass computes, in two passes.
Questions take the positions that they would have after the whole prompt and the gists. The vectors
begin at the mean of the table of embeddings. Trained are the vectors, 16 by default, and a LoRA on
q, k, v and o; the authors train all weights, and one vector that they repeat at most 10 times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.files.manifest import Kind
from lorage_jax.infer.prefixes import Prefix
from lorage_jax.methods.autocompressor import Compressor
from lorage_jax.methods.method import register
from lorage_jax.methods.parts import parts_kind
from lorage_jax.models.cache import Past
from lorage_jax.models.decoder import Output
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.experiment import Training, settings_of


@register
@dataclass(frozen=True, eq=False)
class Gist(Compressor):
    """Keys and values of gist vectors, read after the prompt and placed before every question."""

    name: ClassVar[str] = "gist"
    what: ClassVar[str] = "the prompt as keys and values of gist tokens"
    result: ClassVar[str] = "gist"
    kind: ClassVar[Kind] = parts_kind("gist", "gist tokens")
    keys: ClassVar[bool] = True

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        segments = settings_of(cls, config).segments
        if segments > 1:
            raise ConfigError(
                f"segments is {segments}, but {cls.name} reads a prompt as one; leave segments "
                "out, or train an autocompressor."
            )
        return super().training(config, models, layout)

    @classmethod
    def first(cls, edge: ModelConfig, table: Float[Array, "V D"]) -> Float[Array, "D"]:
        return jnp.mean(table[: edge.vocab_size].astype(jnp.float32), axis=0)

    @classmethod
    def lead(cls, outputs: Sequence[Output], count: int) -> dict[str, Any]:
        (output,) = outputs
        whole = output.past
        assert whole is not None
        k, v = whole.k[:, :, -count:], whole.v[:, :, -count:]
        return {"past": Past(k, v, whole.valid[:, -count:], whole.positions[:, -count:])}

    @classmethod
    def kept(cls, edge: Model, prefix: Prefix, states: Float[np.ndarray, "M D"]) -> Prefix:
        return prefix
