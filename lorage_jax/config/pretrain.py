"""A run of `lorage pretrain`: a small language model from scratch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lorage_jax.config.data import Source
from lorage_jax.config.model import ModelConfig
from lorage_jax.config.training import MeshConfig, OptimizerConfig
from lorage_jax.fields import check_types, require, require_choice


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
