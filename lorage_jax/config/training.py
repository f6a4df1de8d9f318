"""Configuration of `lorage train`: models, data, optimizer, mesh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lorage_jax.config.data import DataConfig
from lorage_jax.config.generator import GeneratorConfig
from lorage_jax.fields import check_types, expand_home, require, require_least


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay to zero. Defaults are the paper's values.

    `muon` orthogonalises the updates of matrices and leaves the rest to AdamW; from scratch it
    needs far fewer steps.
    """

    learning_rate: float = 2e-5
    kind: Literal["adamw", "muon"] = "adamw"
    matrix_rate: float = 3.0  # muon only: learning-rate multiplier for matrices
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    warmup_steps: int = 50
    clip_norm: float = 1.0  # largest global gradient norm; 0 disables clipping
    accumulate: int = 1  # micro-batches per step

    def __post_init__(self):
        check_types(self)
        for name in ("matrix_rate", "learning_rate"):
            rate = getattr(self, name)
            require(rate > 0, f"{name} is {rate}; expected more than 0.")
        require_least(self, 1, "accumulate")
        require(all(0 <= b < 1 for b in self.betas), f"betas are {self.betas}; expected 0 to 1.")
        require_least(self, 0, "weight_decay", "warmup_steps", "clip_norm")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, for all remaining devices.

    If all three are -1, `data` is the number of TPU slices, `fsdp` the largest number of a slice's
    devices that divides the rows of a batch, and `tensor` the rest.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        check_types(self)


@dataclass(frozen=True)
class ExperimentConfig:
    """A training run: all that `lorage train` needs and a checkpoint records."""

    cloud: str  # Hugging Face folder
    edge: str  # Hugging Face folder
    out: str  # folder of the run
    data: DataConfig
    steps: int
    method: str | None = None  # a method with trained parts, of methods/; None: lora_gen
    settings: Any = None  # the method's own dataclass (`Trainable.settings`); None: its defaults
    init: str = ""  # generator folder to start from; by default, trained parts are new
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # frozen weights and activations
    # full: compute activations again in the backward pass; auto: only if they do not fit.
    remat: Literal["none", "full", "auto"] = "full"
    seed: int = 0
    save_every: int = 100
    keep: int = 3  # number of checkpoints to keep
    log_every: int = 10

    def __post_init__(self):
        check_types(self)
        expand_home(self, "cloud", "edge", "out", "init")
        require_least(self, 1, "steps")
        require_least(self, 1, "save_every", "keep", "log_every")
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
            f"packed_rows and accumulate = {accumulate} cannot be combined: prompts of one "
            "micro-batch may have their queries in rows of another. Leave one of them out.",
        )
        # BatchNorm needs variance, and a per-layer router sees one number per prompt and expert.
        prompts = self.data.prompts_per_batch // accumulate
        if self.generator.batch_norm and self.generator.router_scope == "per_layer":
            require(
                prompts >= 2,
                "router_scope per_layer with BatchNorm needs at least 2 prompts per micro-batch; "
                f"got {prompts}. Raise prompts_per_batch or lower accumulate.",
            )
