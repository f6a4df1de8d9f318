"""Configuration of `lorage pretrain`: a small language model from scratch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lorage_jax.config.data import Source
from lorage_jax.config.model import ModelConfig
from lorage_jax.config.training import MeshConfig, OptimizerConfig
from lorage_jax.fields import check_types, expand_home, require, require_least


@dataclass(frozen=True)
class Corpus:
    """One kind of pretraining batch: documents of one source, packed into rows.

    A document is a piece of prose, or one system prompt with `queries` solved requests.
    """

    source: Source  # its weight is the share of batches
    documents: int  # per batch; documents that do not fit are left out
    rows: int
    row_tokens: int = 256  # length of a row, and of the longest document
    queries: int = 4
    blind: float = 0.1  # share of documents without their system prompt
    steps: tuple[int, int | None] = (0, None)  # (first, end): used in steps first <= step < end

    def __post_init__(self):
        check_types(self)
        require_least(self, 1, "documents", "rows", "row_tokens", "queries")
        require(0 <= self.blind <= 1, f"blind is {self.blind}; expected a share from 0 to 1.")
        begin, end = self.steps
        require(
            begin >= 0 and (end is None or begin < end),
            f"steps is {self.steps}; expected (first, end) with 0 <= first < end.",
        )

    def used(self, step: int) -> bool:
        """True if batches of this corpus may be drawn at `step`, counted from 0."""
        begin, end = self.steps
        return begin <= step and (end is None or step < end)


@dataclass(frozen=True)
class PretrainConfig:
    """A small language model from scratch: everything `lorage pretrain` needs.

    First a tokenizer of `model.vocab_size` tokens is trained, with a bos unless `bos_id` is None;
    its ids replace those in `model`. With `init`, weights and tokenizer come from that folder,
    whose model must have the shape of `model`.
    """

    model: ModelConfig
    out: str  # folder of the run
    corpora: tuple[Corpus, ...]
    steps: int
    init: str = ""  # Hugging Face folder to start from; random weights by default
    tokenizer_documents: int = 10_000  # drawn from all corpora, by weight, to train the tokenizer
    prompt_weight: float = 0.1  # loss weight of prompt tokens; answers and prose have weight 1
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(3e-3))
    mesh: MeshConfig = field(default_factory=MeshConfig)
    saved_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # training is in float32
    remat: Literal["none", "full"] = "full"
    seed: int = 0
    save_every: int = 500
    keep: int = 2
    log_every: int = 50

    def __post_init__(self):
        check_types(self)
        expand_home(self, "out", "init")
        require(len(self.corpora) > 0, "corpora is empty; name at least one Corpus.")
        require_least(self, 1, "steps", "tokenizer_documents", "save_every", "keep")
        require_least(self, 1, "log_every")
        share = self.prompt_weight
        require(0 <= share <= 1, f"prompt_weight is {share}; expected 0 to 1.")
        warmup = self.optimizer.warmup_steps
        require(
            warmup < self.steps,
            f"warmup_steps is {warmup}; expected fewer than the {self.steps} steps of the run.",
        )
        require(
            self.optimizer.accumulate == 1,
            "pretraining does not support gradient accumulation; leave it at 1.",
        )
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
