"""Prefix tuning (arXiv 2101.00190): trained keys and values of M slots in every layer.

One prefix for all training data; it ignores the system prompt. The keys and values are used as they
are, as if already rotated, and the questions' positions begin at M. They begin as those of a real
prompt; or, as in the paper, an MLP makes them from embeddings of the slots while they are trained.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax import ops
from lorage_jax.config import ExperimentConfig, ModelConfig
from lorage_jax.data.batches import Batch
from lorage_jax.fields import check_types, require
from lorage_jax.files.fingerprint import fingerprint_arrays
from lorage_jax.files.journal import request_key
from lorage_jax.infer.prefixes import Prefix, read_tokens
from lorage_jax.methods.method import Conditioning, Method, Placement, register
from lorage_jax.methods.parts import (
    parts_kind,
    read_manifest,
    read_parts,
    read_settings,
    speaking,
    trained_parts,
)
from lorage_jax.methods.prompt_tuning import first_ids
from lorage_jax.models.cache import Past
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import Leaf
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout
from lorage_jax.train.edge_loss import queries_nll
from lorage_jax.train.experiment import Trainable, Trained, Training, settings_of
from lorage_jax.train.room import check_room
from lorage_jax.train.step import Loss

KIND = parts_kind("prefix_tuning", "a trained prefix")


@dataclass(frozen=True)
class PrefixTuningSettings:
    """Settings of prefix tuning.

    With `projection`, an MLP of that hidden width makes keys and values from embeddings of the
    slots; it is trained with them and dropped afterwards, and the prefix begins at random.
    """

    slots: int = 10  # M
    text: str | None = None  # where it begins; None: the first system prompt of the data
    projection: int | None = None  # the paper's is 512

    def __post_init__(self):
        check_types(self)
        require(self.slots >= 1, f"slots is {self.slots}; expected 1 or more.")
        require(self.text is None or bool(self.text.strip()), "text is empty; leave it out.")
        width = self.projection
        require(width is None or width >= 1, f"projection is {width}; expected 1 or more.")
        require(
            width is None or self.text is None,
            "a prefix with a projection begins at random; leave text out.",
        )


@register
@dataclass(frozen=True, eq=False)
class PrefixTuning(Method, Trainable):
    """The edge with trained keys and values before its tokens."""

    name: ClassVar[str] = "prefix_tuning"
    what: ClassVar[str] = "trained keys and values before the bare question"
    mergeable: ClassVar[bool] = False
    result: ClassVar[str] = "prefix_tuning"
    frozen: ClassVar[tuple[str, ...]] = ("edge",)
    settings: ClassVar[type | None] = PrefixTuningSettings

    edge: Model
    k: Float[Array, "L M K H"]
    v: Float[Array, "L M K H"]

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> PrefixTuning:
        values = read_manifest(KIND, source, edge)
        settings = read_settings(PrefixTuningSettings, values, source)
        assert source is not None
        parts = read_parts(source, _kept_leaves(settings, edge.config))
        return cls(speaking(edge, values), parts["k"], parts["v"])

    @functools.cached_property
    def prefix(self) -> Prefix:
        """The trained keys and values, at positions 0 to M - 1."""
        arrays = {"k": np.asarray(self.k), "v": np.asarray(self.v)}
        name = request_key("prefix", fingerprint_arrays(arrays))
        return Prefix(self.k, self.v, name, np.arange(self.k.shape[1]))

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        facts = {"prefix_slots": self.prefix.slots}
        return [Conditioning(prefix=self.prefix, facts=facts) for _ in prompts]

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return Placement(edge.replace(template=self.edge.template), prefixes=[self.prefix])

    @classmethod
    def training(
        cls, config: ExperimentConfig, models: Mapping[str, ModelConfig], layout: Layout
    ) -> Training:
        settings, edge = settings_of(cls, config), models["edge"]
        check_room(config, edge, slots=settings.slots)
        decoder = Decoder(edge, remat=config.remat, layout=layout)

        def loss(trained: Any, statistics: Any, frozen: Any, micro: Batch, key: Any) -> Loss:
            k, v = keys_and_values(trained, edge)
            valid = jnp.ones((1, settings.slots), bool)
            past = Past(k[:, None], v[:, None], valid, jnp.arange(settings.slots)[None])
            return Loss(queries_nll(decoder, frozen["edge"], micro.queries, None, past=past)[0])

        return Training(_leaves(settings, edge), loss)

    @classmethod
    def begin(
        cls, config: ExperimentConfig, models: Mapping[str, Model]
    ) -> tuple[Any, Any, str] | None:
        super().begin(config, models)
        settings, edge = settings_of(cls, config), models["edge"]
        if settings.projection is not None:
            return None
        ids = first_ids(config, edge, settings.text, settings.slots)
        (read,) = read_tokens(edge, [ids])
        trained = {"k": jnp.asarray(read.k, jnp.float32), "v": jnp.asarray(read.v, jnp.float32)}
        arrays = {name: np.asarray(array) for name, array in trained.items()}
        return trained, {}, fingerprint_arrays(arrays)

    @classmethod
    def finish(
        cls, config: ExperimentConfig, models: Mapping[str, Model], trained: Any, statistics: Any
    ) -> Trained:
        k, v = keys_and_values(trained, models["edge"].config)
        settings = settings_of(cls, config)
        return trained_parts(KIND, config, settings, models, {"k": k, "v": v})


def keys_and_values(
    trained: dict[str, Any], edge: ModelConfig
) -> tuple[Float[Array, "L M K H"], Float[Array, "L M K H"]]:
    """The prefix: trained directly, or W2 tanh(W1 e + b1) + b2 of the slots' embeddings e."""
    if "embed" not in trained:
        return trained["k"], trained["v"]
    first, second = trained["f1"], trained["f2"]
    inner = ops.einsum("md,dh->mh", jnp.asarray(trained["embed"]), first["kernel"]) + first["bias"]
    out = ops.einsum("mh,ho->mo", jnp.tanh(inner), second["kernel"]) + second["bias"]
    shape = (out.shape[0], edge.layers, 2, edge.kv_heads, edge.head_dim)  # as in PEFT
    k, v = out.reshape(shape).transpose(2, 1, 0, 3, 4)
    return k, v


def _kept_leaves(settings: PrefixTuningSettings, edge: ModelConfig) -> dict[str, Leaf]:
    shape = (edge.layers, settings.slots, edge.kv_heads, edge.head_dim)
    leaf = Leaf(shape, ("layers", "rank", "kv_heads", "head_dim"), "unit")
    return {"k": leaf, "v": leaf}


def _leaves(settings: PrefixTuningSettings, edge: ModelConfig) -> dict[str, Any]:
    """The trained parts: the kept ones, or those of the MLP that makes them."""
    h = settings.projection
    if h is None:
        return _kept_leaves(settings, edge)
    out = 2 * edge.layers * edge.kv_heads * edge.head_dim

    def linear(inside: int, outside: int, axes: tuple[str, str]) -> dict[str, Leaf]:
        kernel = Leaf((inside, outside), axes, "kaiming")
        return {"kernel": kernel, "bias": Leaf((outside,), axes[1:], "zeros")}

    return {
        "embed": Leaf((settings.slots, edge.width), ("rank", "embed"), "unit"),
        "f1": linear(edge.width, h, ("embed", "hidden")),
        "f2": linear(h, out, ("hidden", "head_dim")),
    }
