"""What can be set: frozen dataclasses, validated when built, saved as JSON beside every result.

`ModelConfig` describes a decoder (from a Hugging Face `config.json`, see `hf/config.py`),
`GeneratorConfig` the trained parts (PAPER switches), `ExperimentConfig` a run of `lorage train`,
`PretrainConfig` one of `lorage pretrain`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lorage_jax.data.config import DataConfig, Source
from lorage_jax.fields import check_types, require, require_choice

SIZES = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn_width")


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary positions: `llama3` (by wavelength) or `linear`."""

    kind: Literal["llama3", "linear"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self):
        check_types(self)
        require_choice("rope scaling", self.kind, ("llama3", "linear"))


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
        check_types(self)
        require_choice("family", self.family, ("llama", "qwen2", "gemma", "gemma2"))
        require_choice("activation", self.activation, ("silu", "gelu_tanh"))
        for name in SIZES:
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected >= 1.")
        require(
            self.heads % self.kv_heads == 0,
            f"{self.heads} heads do not divide over {self.kv_heads} kv heads.",
        )
        require(
            len(self.sliding) == self.layers,
            f"sliding names {len(self.sliding)} layers; the model has {self.layers}.",
        )
        require(
            self.window is not None or not any(self.sliding),
            "some layers slide but no window is given.",
        )
        require(self.head_dim % 2 == 0, f"head_dim is {self.head_dim}; rope needs it even.")


@dataclass(frozen=True)
class GeneratorConfig:
    """The trained parts and the paper's switches.

    Defaults are the paper's values but for `top_k`: on the nano pair 4 experts beat the paper's 2
    by far (`experiments/results/nano_switches.md`).
    """

    experts: int = 8  # E (paper: n)
    top_k: int = 4  # K
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
        check_types(self)
        require_choice("combine", self.combine, ("factors", "products"))
        require_choice("pool_scope", self.pool_scope, ("per_layer", "shared"))
        require_choice("router_scope", self.router_scope, ("shared", "per_layer"))
        require_choice("routing", self.routing, ("topk", "gumbel"))
        require(
            1 <= self.top_k <= self.experts,
            f"top_k is {self.top_k}; expected 1 to {self.experts} (experts).",
        )
        require(self.experts >= 2, f"experts is {self.experts}; a router needs at least 2.")
        require(self.rank >= 1, f"rank is {self.rank}; expected 1 or more.")
        require(self.cloud_rank >= 0, f"cloud_rank is {self.cloud_rank}; expected 0 or more.")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; expected 0 <= dropout < 1.")
        width, heat = self.router_width, self.gumbel_temperature
        require(width is None or width >= 1, f"router_width is {width}; expected 1 or more.")
        require(heat > 0, f"gumbel_temperature is {heat}; expected > 0.")
        require(self.cv_weight >= 0, f"cv_weight is {self.cv_weight}; expected 0 or more.")

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
    """AdamW with a linear warm-up and a cosine decay to zero. Defaults are the paper's values.

    `muon` orthogonalises the updates of matrices and leaves the rest to AdamW; from scratch it
    needs far fewer steps.
    """

    learning_rate: float = 2e-5
    kind: Literal["adamw", "muon"] = "adamw"
    matrix_rate: float = 3.0  # of muon: the learning rate of matrices is so many times larger
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    warmup_steps: int = 50
    clip_norm: float = 1.0  # global norm; 0: no clipping
    accumulate: int = 1  # micro-batches per step

    def __post_init__(self):
        check_types(self)
        require_choice("kind", self.kind, ("adamw", "muon"))
        require(self.matrix_rate > 0, f"matrix_rate is {self.matrix_rate}; expected > 0.")
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; expected > 0.")
        require(self.accumulate >= 1, f"accumulate is {self.accumulate}; expected 1 or more.")
        require(all(0 <= b < 1 for b in self.betas), f"betas are {self.betas}; expected 0 to 1.")
        for name in ("weight_decay", "warmup_steps", "clip_norm"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; expected >= 0.")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1 (all that are left).

    With all three -1, `data` is the number of TPU slices, `fsdp` as many of a slice's devices as
    the rows of a batch divide over, `tensor` the rest.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        check_types(self)


@dataclass(frozen=True)
class ExperimentConfig:
    """A training run: everything `lorage train` needs, and everything a checkpoint records."""

    cloud: str  # Hugging Face folder
    edge: str  # Hugging Face folder
    out: str  # folder of the run
    data: DataConfig
    steps: int
    init: str = ""  # generator folder to begin from; by default trained parts are fresh
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
        check_types(self)
        require_choice("dtype", self.dtype, ("float32", "bfloat16"))
        require_choice("remat", self.remat, ("none", "full"))
        require(self.steps >= 1, f"steps is {self.steps}; expected 1 or more.")
        for name in ("save_every", "keep", "log_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected >= 1.")
        warmup, accumulate = self.optimizer.warmup_steps, self.optimizer.accumulate
        require(
            warmup < self.steps,
            f"warmup_steps is {warmup}; expected fewer than the {self.steps} steps of the run.",
        )
        require(
            self.data.prompts_per_batch % accumulate == 0,
            f"prompts_per_batch {self.data.prompts_per_batch} does not divide into "
            f"accumulate = {accumulate} micro-batches.",
        )
        require(
            self.data.prompts_per_batch % (accumulate * self.data.prompt_chunks) == 0,
            f"{self.data.prompts_per_batch // accumulate} prompts of a micro-batch do not divide "
            f"into prompt_chunks = {self.data.prompt_chunks}.",
        )
        require(
            self.data.packed_rows is None or accumulate == 1,
            f"packed_rows and accumulate = {accumulate} do not go together: prompts of one "
            "micro-batch may have their queries in another one's rows. Leave one of them out.",
        )
        # BatchNorm needs variance: a per-layer router sees one number per prompt and expert.
        prompts = self.data.prompts_per_batch // accumulate
        if self.generator.batch_norm and self.generator.router_scope == "per_layer":
            require(
                prompts >= 2,
                "router_scope per_layer with BatchNorm needs at least 2 prompts per micro-batch; "
                f"got {prompts}. Raise prompts_per_batch or lower accumulate.",
            )


@dataclass(frozen=True)
class Corpus:
    """What a batch of pretraining may be made of: documents of one source, packed into rows.

    A document is a piece of prose, or one system prompt with `queries` solved requests.
    """

    source: Source  # its weight is the share of batches
    documents: int  # in a batch; those that find no room are left out
    rows: int
    row_tokens: int = 256  # slots of a row, and at most of a document
    queries: int = 4
    blind: float = 0.1  # share of documents that do not show their system prompt
    steps: tuple[int, int | None] = (0, None)  # used from this step on, up to that one (None: last)

    def __post_init__(self):
        check_types(self)
        for name in ("documents", "rows", "row_tokens", "queries"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected >= 1.")
        require(0 <= self.blind <= 1, f"blind is {self.blind}; expected a share from 0 to 1.")
        begin, end = self.steps
        require(
            begin >= 0 and (end is None or begin < end),
            f"steps is {self.steps}; expected (first, end) with 0 <= first < end.",
        )

    def used(self, step: int) -> bool:
        """Whether batches of this corpus may be drawn at `step`, the first being 0."""
        begin, end = self.steps
        return begin <= step and (end is None or step < end)


@dataclass(frozen=True)
class PretrainConfig:
    """A small language model from scratch: everything `lorage pretrain` needs.

    `model.vocab_size` is the size of the tokenizer that is trained first; whether `bos_id` is
    None says if it has a bos. Its ids replace those given. With `init`, weights and tokenizer are
    those of that folder, whose model must be of the shape of `model`.
    """

    model: ModelConfig
    out: str  # folder of the run
    corpora: tuple[Corpus, ...]
    steps: int
    init: str = ""  # Hugging Face folder to begin from; by default weights are drawn
    tokenizer_documents: int = 10_000  # of all corpora together, by weight
    prompt_weight: float = 0.1  # in the loss, of a prompt's tokens; answers and prose count 1
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(3e-3))
    mesh: MeshConfig = field(default_factory=MeshConfig)
    saved_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # trained in float32
    remat: Literal["none", "full"] = "full"
    seed: int = 0
    save_every: int = 500
    keep: int = 2
    log_every: int = 50

    def __post_init__(self):
        check_types(self)
        require_choice("saved_dtype", self.saved_dtype, ("float32", "bfloat16"))
        require_choice("remat", self.remat, ("none", "full"))
        require(len(self.corpora) > 0, "corpora is empty; name at least one Corpus.")
        for name in ("steps", "tokenizer_documents", "save_every", "keep"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected >= 1.")
        require(self.log_every >= 1, f"log_every is {self.log_every}; expected >= 1.")
        share = self.prompt_weight
        require(0 <= share <= 1, f"prompt_weight is {share}; expected 0 to 1.")
        warmup = self.optimizer.warmup_steps
        require(
            warmup < self.steps,
            f"warmup_steps is {warmup}; expected fewer than the {self.steps} steps of the run.",
        )
        require(self.optimizer.accumulate == 1, "pretraining knows no accumulate; leave it at 1.")
        for step in self.stages():
            require(
                any(corpus.used(step) for corpus in self.corpora),
                f"no corpus is used at step {step}.",
            )
        longest = max(corpus.row_tokens for corpus in self.corpora)
        require(
            longest <= self.model.max_positions,
            f"row_tokens is {longest}; the model has {self.model.max_positions} positions.",
        )

    def stages(self) -> list[int]:
        """The steps at which the corpora in use change, 0 first."""
        ends = {step for corpus in self.corpora for step in corpus.steps if step is not None}
        return [0, *sorted(step for step in ends if 0 < step < self.steps)]
