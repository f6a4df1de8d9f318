"""What can be set: frozen dataclasses, validated when built, saved as JSON beside every result.

`ModelConfig` describes a decoder (from a Hugging Face `config.json`, see `hf/config.py`),
`GeneratorConfig` the trained parts (PAPER switches), `ExperimentConfig` a training run.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from lorage_jax.errors import ConfigError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


SIZES = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn_width")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _check_types(config: Any) -> None:
    """Every field holds what its annotation says; an int is also a float, a bool is no int."""
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        kind = str(hint) if typing.get_origin(hint) else hint.__name__
        _require(_fits(hint, value), f"{name} is {value!r}; expected {kind}.")


def _fits(hint: Any, value: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return True  # `_require_choice` tells the choices
    if origin in (typing.Union, types.UnionType):
        return any(_fits(arg, value) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(value) == len(hints) and all(map(_fits, hints, value))
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, hint)


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name} is {value!r}; expected one of {', '.join(choices)}.")


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary positions: `llama3` (by wavelength) or `linear`."""

    kind: Literal["llama3", "linear"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self):
        _check_types(self)
        _require_choice("rope scaling", self.kind, ("llama3", "linear"))


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model. Letters: V vocabulary, D width, L layers, N/K heads, H, F."""

    family: Literal["llama", "qwen2", "gemma", "gemma2"]
    vocab_size: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # N
    kv_heads: int  # K
    head_dim: int  # H
    ffn_width: int  # F
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_head: bool
    activation: Literal["silu", "gelu_tanh"]
    query_scale: float  # multiplies q.k before the soft-cap
    qkv_bias: bool
    out_bias: bool
    ffn_bias: bool
    attn_softcap: float | None
    final_softcap: float | None
    window: int | None  # keys seen by a sliding layer, the query itself included
    sliding: tuple[bool, ...]  # [L]: which layers slide
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None

    def __post_init__(self):
        _check_types(self)
        _require_choice("family", self.family, ("llama", "qwen2", "gemma", "gemma2"))
        _require_choice("activation", self.activation, ("silu", "gelu_tanh"))
        for name in SIZES:
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected >= 1.")
        _require(
            self.heads % self.kv_heads == 0,
            f"{self.heads} heads do not divide over {self.kv_heads} kv heads.",
        )
        _require(
            len(self.sliding) == self.layers,
            f"sliding names {len(self.sliding)} layers; the model has {self.layers}.",
        )
        _require(
            self.window is not None or not any(self.sliding),
            "some layers slide but no window is given.",
        )
        _require(self.head_dim % 2 == 0, f"head_dim is {self.head_dim}; rope needs it even.")


@dataclass(frozen=True)
class GeneratorConfig:
    """The trained parts and the paper's switches. Defaults are the paper's values."""

    experts: int = 8  # E (paper: n)
    top_k: int = 2  # K
    rank: int = 16  # R
    alpha: float = 16.0  # the LoRA is scaled by alpha / rank
    dropout: float = 0.05  # on the inputs of every LoRA, in training only
    combine: Literal["factors", "products"] = "factors"
    pool_scope: Literal["per_layer", "shared"] = "per_layer"
    router_scope: Literal["shared", "per_layer"] = "shared"
    router_width: int | None = None  # width of f1; None: cloud width / 4
    batch_norm: bool = True
    routing: Literal["topk", "gumbel"] = "topk"
    gumbel_temperature: float = 1.0
    hidden_layer: int | None = None  # None: after the final norm; i: output of cloud layer i
    cloud_rank: int = 16  # 0: no adapters in the cloud
    cloud_alpha: float = 16.0
    cv_weight: float = 0.01  # paper: alpha of Eq. 9

    def __post_init__(self):
        _check_types(self)
        _require_choice("combine", self.combine, ("factors", "products"))
        _require_choice("pool_scope", self.pool_scope, ("per_layer", "shared"))
        _require_choice("router_scope", self.router_scope, ("shared", "per_layer"))
        _require_choice("routing", self.routing, ("topk", "gumbel"))
        _require(
            1 <= self.top_k <= self.experts,
            f"top_k is {self.top_k}; expected 1 to {self.experts} (experts).",
        )
        _require(self.experts >= 2, f"experts is {self.experts}; a router needs at least 2.")
        _require(self.rank >= 1, f"rank is {self.rank}; expected 1 or more.")
        _require(self.cloud_rank >= 0, f"cloud_rank is {self.cloud_rank}; expected 0 or more.")
        _require(0 <= self.dropout < 1, f"dropout is {self.dropout}; expected 0 <= dropout < 1.")
        width, heat = self.router_width, self.gumbel_temperature
        _require(width is None or width >= 1, f"router_width is {width}; expected 1 or more.")
        _require(heat > 0, f"gumbel_temperature is {heat}; expected > 0.")
        _require(self.cv_weight >= 0, f"cv_weight is {self.cv_weight}; expected 0 or more.")

    @property
    def scale(self) -> float:
        """alpha / R, the factor of the assembled LoRA."""
        return self.alpha / self.rank

    @classmethod
    def paper(cls) -> GeneratorConfig:
        """The setting of arXiv 2506.11638, whatever our defaults become."""
        return cls(
            experts=8,
            top_k=2,
            rank=16,
            alpha=16.0,
            dropout=0.05,
            combine="factors",
            pool_scope="per_layer",
            router_scope="shared",
            batch_norm=True,
            routing="topk",
            cloud_rank=16,
            cloud_alpha=16.0,
            cv_weight=0.01,
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay to zero. Defaults are the paper's values."""

    learning_rate: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    warmup_steps: int = 50
    clip_norm: float = 1.0  # global norm; 0: no clipping
    accumulate: int = 1  # micro-batches per step

    def __post_init__(self):
        _check_types(self)
        _require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; expected > 0.")
        _require(self.accumulate >= 1, f"accumulate is {self.accumulate}; expected 1 or more.")
        _require(all(0 <= b < 1 for b in self.betas), f"betas are {self.betas}; expected 0 to 1.")
        for name in ("weight_decay", "warmup_steps", "clip_norm"):
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; expected >= 0.")


@dataclass(frozen=True)
class Source:
    """One data set. `path` is a local .json/.jsonl(.gz) file, a `datasets` name, or `synthetic`.

    `kind`: `instruction` rows are {instruction, input, output} or {system, user, target};
    `choices` rows are {question, choices, label} of one task, whose description and randomly
    drawn samples become the system prompt.
    """

    path: str
    kind: Literal["instruction", "choices", "synthetic"] = "instruction"
    name: str = ""  # the task's name (for `choices`), or a `datasets` configuration
    split: str = "train"
    shots: tuple[int, int] = (0, 5)  # fewest and most samples in the prompt, for `choices`
    needs_input: bool = False  # drop instruction rows whose input is empty
    limit: int | None = None
    weight: float = 1.0

    def __post_init__(self):
        _check_types(self)
        _require_choice("kind", self.kind, ("instruction", "choices", "synthetic"))
        _require(
            0 <= self.shots[0] <= self.shots[1],
            f"shots is {self.shots}; expected (fewest, most) with 0 <= fewest <= most.",
        )
        _require(self.weight > 0, f"weight is {self.weight}; expected more than 0.")
        _require(
            self.limit is None or self.limit >= 1,
            f"limit is {self.limit}; expected 1 or more, or None for all rows.",
        )


@dataclass(frozen=True)
class DataConfig:
    """A batch is P prompts with Q queries each; the cloud runs P times, the edge on P x Q rows."""

    sources: tuple[Source, ...]
    prompts_per_batch: int = 64  # P
    queries_per_prompt: int = 1  # Q
    max_prompt_tokens: int = 1024  # S at most, in cloud tokens
    max_query_tokens: int = 1024  # T at most, in edge tokens: input and target
    min_bucket: int = 32  # shapes are padded to min_bucket times a power of two (or the maximum)

    def __post_init__(self):
        _check_types(self)
        _require(len(self.sources) > 0, "data.sources is empty; name at least one Source.")
        _require(self.prompts_per_batch >= 1, "prompts_per_batch must be 1 or more.")
        _require(self.queries_per_prompt >= 1, "queries_per_prompt must be 1 or more.")
        for name in ("max_prompt_tokens", "max_query_tokens", "min_bucket"):
            value = getattr(self, name)
            _require(value >= 1, f"{name} is {value}; expected 1 or more.")

    @property
    def rows(self) -> int:
        """B = P x Q."""
        return self.prompts_per_batch * self.queries_per_prompt


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1 (all that are left)."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        _check_types(self)


@dataclass(frozen=True)
class ExperimentConfig:
    """A training run: everything `lorage train` needs, and everything a checkpoint records."""

    cloud: str  # Hugging Face folder
    edge: str  # Hugging Face folder
    out: str  # folder of the run
    data: DataConfig
    steps: int
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the frozen weights and activations
    remat: Literal["none", "full"] = "full"
    seed: int = 0
    save_every: int = 100
    keep: int = 3  # checkpoints kept
    log_every: int = 10

    def __post_init__(self):
        _check_types(self)
        _require_choice("dtype", self.dtype, ("float32", "bfloat16"))
        _require_choice("remat", self.remat, ("none", "full"))
        _require(self.steps >= 1, f"steps is {self.steps}; expected 1 or more.")
        for name in ("save_every", "keep", "log_every"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected >= 1.")
        warmup, accumulate = self.optimizer.warmup_steps, self.optimizer.accumulate
        _require(
            warmup < self.steps,
            f"warmup_steps is {warmup}; expected fewer than the {self.steps} steps of the run.",
        )
        _require(
            self.data.prompts_per_batch % accumulate == 0,
            f"prompts_per_batch {self.data.prompts_per_batch} does not divide into "
            f"accumulate = {accumulate} micro-batches.",
        )
        # BatchNorm needs variance: a per-layer router sees one number per prompt and expert.
        prompts = self.data.prompts_per_batch // accumulate
        if self.generator.batch_norm and self.generator.router_scope == "per_layer":
            _require(
                prompts >= 2,
                "router_scope per_layer with BatchNorm needs at least 2 prompts per micro-batch; "
                f"got {prompts}. Raise prompts_per_batch or lower accumulate.",
            )


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values (tuples become lists)."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """The inverse of `to_dict`. A field that `cls` does not know is an error that names it."""
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected an object, got {type(values).__name__}.")
    hints = _hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    _require(not unknown, f"{cls.__name__} has no field {', '.join(unknown)}.")
    try:
        return cls(**{k: _typed(hints[k], v) for k, v in values.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{cls.__name__}: {error}") from None


def _typed(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _typed(next(a for a in args if a is not type(None)), value)
    if origin is tuple and isinstance(value, (list, tuple)):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_typed(args[0], v) for v in value)
        return tuple(_typed(a, v) for a, v in zip(args, value, strict=True))
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)
    return value
