"""The description of a model family, as given by a file in `hf/families/`, and the registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lorage_jax.config import ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.fields import from_dict, to_dict
from lorage_jax.models.presets import plain_decoder

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
# Fields with a default; recorded configs leave them out where the family implies them.
IMPLIED = tuple(
    one.name for one in dataclasses.fields(ModelConfig) if one.default is not dataclasses.MISSING
)

# get(name, default): a field of config.json with transformers' defaults filled in.
Get = Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """The tensor of a leaf in a Hugging Face file.

    Attributes:
        name: Hugging Face name; {layer} stands for the layer index.
        inputs: the number of leading input axes of the leaf's per-layer array; 0 for a vector or a
            table.
        table: the array has one row per token or position, and is stored as it is.
        fused: the leaves that share the tensor, stacked along its first axis in this order; empty
            if it holds this leaf alone.
        start, total: the leaf's first row in a fused tensor, and the number of all rows;
            `tables.row` computes them.
    """

    name: str
    inputs: int = 0
    table: bool = False
    fused: tuple[str, ...] = ()
    start: int = 0
    total: int | None = None


def _nothing(_: Any) -> dict[str, Any]:
    return {}


def _no_problems(_: Any) -> list[str]:
    return []


@dataclass(frozen=True)
class Family:
    """A model family of transformers.

    Attributes:
        name: `model_type` in config.json.
        architecture: the transformers class, for `architectures` in config.json.
        fields: `ModelConfig` fields that all models of the family share.
        read: returns further `ModelConfig` fields, given a function that looks up config.json.
        reads: names of the config.json fields that only this family's `read` uses.
        names: the family's own names of config.json fields that other families share; None for
            a field that it lacks.
        problems: describes what of a config.json the decoder does not compute, given a function
            that looks it up.
        near: model types that could be taken for this family -> what such a model is, and what it
            would take to load it.
        write: returns the config.json fields besides those that all families share.
        rows: tensors of leaves that differ from llama's, by leaf name.
        decoder: the module of the file that holds embeddings, layers and the last norm.
        multimodal: `model_type` of models that contain one of this family for their text; such a
            folder loads as its text part.
        shapes: named model shapes, for benchmarks without downloads.
        known: last part of a model's name on the Hub -> its name in `shapes`.
        tokenizer: makes a tokenizer whose normaliser and splitting rules the family's class in
            transformers imposes on every tokenizer.json; None if it imposes none.
    """

    name: str
    architecture: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Get], dict[str, Any]] = _nothing
    reads: frozenset[str] = frozenset()
    names: Mapping[str, str | None] = field(default_factory=dict)
    problems: Callable[[Get], list[str]] = _no_problems
    near: Mapping[str, str] = field(default_factory=dict)
    write: Callable[[ModelConfig], dict[str, Any]] = _nothing
    rows: Mapping[str, Row] = field(default_factory=dict)
    decoder: str = "model"
    multimodal: str | None = None
    shapes: Mapping[str, ModelConfig] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Callable[[], Any] | None = None


_REGISTRY: dict[str, Family] = {}
FAMILIES: Mapping[str, Family] = MappingProxyType(_REGISTRY)  # complete once hf.families is loaded


def register(family: Family) -> Family:
    """Adds a family to the registry. Raises ConfigError if its name is taken."""
    if _REGISTRY.setdefault(family.name, family) is not family:
        raise ConfigError(f"two families are called {family.name!r}.")
    return family


def get_family(name: str) -> Family:
    """Returns the family called `name`. Raises ConfigError, listing the known names."""
    import lorage_jax.hf.families  # noqa: F401  its files register themselves

    if name not in FAMILIES:
        raise ConfigError(f"family is {name!r}; expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def family_decoder(name: str, **sizes: Any) -> ModelConfig:
    """A `plain_decoder` with the fields that all models of this family share."""
    return plain_decoder(name, **(dict(get_family(name).fields) | sizes))


def to_values(config: ModelConfig) -> dict[str, Any]:
    """Converts a config to JSON values, without the fields that its family implies."""
    values, fields = to_dict(config), get_family(config.family).fields
    defaults = {one.name: one.default for one in dataclasses.fields(config)}
    return {
        name: value
        for name, value in values.items()
        if name not in IMPLIED or value != fields.get(name, defaults[name])
    }


def to_text(config: ModelConfig) -> str:
    """Spells out a config for hashes: two that differ have different texts."""
    own = {name: value for name, value in to_values(config).items() if name in IMPLIED}
    if config.rope_scaling is not None and config.rope_scaling.kind == "yarn":
        own |= to_dict(config.rope_scaling)
    return f"{config!r}{own or ''}"


def from_values(values: dict[str, Any]) -> ModelConfig:
    """The inverse of `to_values`. Raises ConfigError for an unknown family or field."""
    fields = get_family(str(values.get("family"))).fields
    return from_dict(ModelConfig, {k: fields[k] for k in IMPLIED if k in fields} | values)


# Parts of config.json that several families write.


def activation(config: ModelConfig) -> str:
    """The activation's name in transformers."""
    return {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation)


def layer_types(config: ModelConfig) -> list[str]:
    """The `layer_types` field: the attention type of every layer."""
    return ["sliding_attention" if slides else "full_attention" for slides in config.sliding]


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """The `rope_parameters` field: base and scaling of rotary positions."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rotary_fraction != 1:
        rope["partial_rotary_factor"] = config.rotary_fraction
    scaling = config.rope_scaling
    if scaling is None:
        return rope
    rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        rope["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "llama3":
        rope["low_freq_factor"] = scaling.low_freq_factor
        rope["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        for name in ("beta_fast", "beta_slow", "truncate", "attention_factor"):
            rope[name] = getattr(scaling, name)
    return rope
