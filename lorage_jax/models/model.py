"""A loaded language model and its forward function."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.fields import require_kind
from lorage_jax.files.fingerprint import fingerprint, fingerprint_arrays
from lorage_jax.models.bits import program_params
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.experts import Experts


class MergedCard(Protocol):
    """The card of an adapter that was merged into a model (`generator.card.Card`)."""

    @property
    def gates(self) -> np.ndarray: ...  # [L, E]
    @property
    def generator(self) -> str: ...  # fingerprint
    @property
    def edge(self) -> str: ...  # fingerprint of the base model
    def to_dict(self) -> dict[str, Any]: ...  # JSON values


@dataclass(frozen=True)
class MergedLora:
    """An adapter of PEFT that was merged into a model.

    Attributes:
        digest: a hash of the adapter and its weight.
        leaves: paths of the parameters that it changed, e.g. ("layers", "q").
    """

    digest: str
    leaves: frozenset[tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Model:
    """A language model in memory.

    Attributes:
        params: a plain nested dict of arrays, as `models/leaves.py` describes.
        template: the turns it reads and writes (`data.templates.Template`): those of its
            specialisation, else its own chat template, else plain ones; None without a tokenizer.
        source: the folder it was loaded from.
        card: the card whose adapter is merged into `params`; None for a base model.
        cast: how the sum with that adapter was rounded, and to which dtype.
        loras: the PEFT adapters that are merged into `params`.
        identity: the base's fingerprint, if known; otherwise it is computed from the weights.
        answers: True if an adapter brought these turns along: the model answers in them, whereas
            one that only has plain turns would rather continue a text.
    """

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Any
    template: Any = None
    source: Path | None = None
    card: MergedCard | None = None
    cast: str = ""
    loras: tuple[MergedLora, ...] = ()
    identity: str | None = None
    answers: bool = False

    def __repr__(self) -> str:
        """One line, without the values of the weights."""
        size = sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(self.params))
        merged = [] if self.card is None else ["with a card merged"]
        merged += [f"with {len(self.loras)} adapter(s) merged"] if self.loras else []
        parts = [
            self.config.family,
            f"{size / 1e6:,.1f} M parameters",
            str(getattr(self.params.get("embed"), "dtype", "no dtype")),
            str(self.source or "in memory"),
            *merged,
        ]
        return f"Model({', '.join(parts)})"

    def replace(self, **changes: Any) -> Model:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def dtype(self) -> Any:
        """The dtype of the weights."""
        return self.params["embed"].dtype

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity of the weights: the base's, with that of everything merged into it."""
        merged = [lora.digest for lora in self.loras]
        if self.card is not None:
            gates = hashlib.sha256(np.asarray(self.card.gates, np.float32).tobytes()).hexdigest()
            merged.append(f"{self.card.generator} {gates} {self.cast}")
        return merged_fingerprint(self.base_fingerprint, merged)

    @functools.cached_property
    def base_fingerprint(self) -> str:
        """Identity of the base weights: a hash over the folder's tensors."""
        if self.identity is not None:
            return self.identity
        if self.source is not None:
            return fingerprint(self.source)
        flat = jax.tree_util.tree_flatten_with_path(self.params)[0]
        return fingerprint_arrays(
            {jax.tree_util.keystr(path): np.asarray(value) for path, value in flat}
        )


def require_model(value: Any, name: str = "model") -> None:
    """Raises ConfigError unless the argument `name` is a Model."""
    require_kind(value, Model, name, "a Model, as lg.load_model(folder) returns it")


def merged_fingerprint(base: str, merged: Sequence[str]) -> str:
    """Identity of weights: the base's fingerprint, with the digests of all that was merged."""
    if not merged:
        return base
    return "sha256:" + hashlib.sha256("\n".join([base, *merged]).encode()).hexdigest()


def forward(
    model: Model,
    tokens: Int[np.ndarray, "B T"],
    mask: Bool[Array | np.ndarray, "B T"] | None = None,
    gates: Float[Array, "B L E"] | None = None,
    pool: Experts | None = None,
) -> Float[Array, "B T V"]:
    """Computes float32 logits at every token; `infer.forward.forward` also takes cards and lists.

    Args:
        mask: True at real tokens; rows are left- or right-padded. Default: all are real.
        gates: weights of the pool's experts, per row.
        pool: the experts that `gates` combines.

    Raises ConfigError for token ids outside the vocabulary, and for rows longer than a table of
    learned positions.
    """
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < model.config.vocab_size:
        raise ConfigError(
            f"token ids run from {tokens.min()} to {tokens.max()}; this model's vocabulary is "
            f"0 to {model.config.vocab_size - 1}. Was another tokenizer used?"
        )
    if model.config.position_offset is not None:  # the device would clamp it without a word
        longest = tokens.shape[1] if mask is None else int(np.asarray(mask).sum(1).max(initial=0))
        if longest > (room := model.config.max_positions):
            raise ConfigError(
                f"a row has {longest} tokens; this model has learned {room} positions."
            )
    return _forward(model.config, program_params(model.params), tokens, mask, pool, gates)


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, tokens, mask, pool, gates):
    decoder = Decoder(config)
    return decoder.apply({"params": params}, tokens, mask, gates=gates, pool=pool).logits
