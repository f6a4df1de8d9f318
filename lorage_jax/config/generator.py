"""Configuration of a generator's trained parts: the paper's switches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorage_jax.fields import check_types, require, require_least


@dataclass(frozen=True)
class GeneratorConfig:
    """Trained parts and the paper's switches.

    Defaults are the paper's values except `top_k`: on the nano pair, 4 experts beat the paper's 2
    by far (`experiments/results/nano_switches.md`).
    """

    experts: int = 8  # E (paper: n)
    top_k: int = 4  # K
    rank: int = 16  # R
    alpha: float = 16.0  # scales the LoRA by alpha / rank
    dropout: float = 0.05  # on the inputs of every LoRA, during training
    combine: Literal["factors", "products"] = "factors"
    pool_scope: Literal["per_layer", "shared"] = "per_layer"
    router_scope: Literal["shared", "per_layer"] = "shared"
    router_width: int | None = None  # width of f1; None means cloud width / 4
    batch_norm: bool = True
    routing: Literal["topk", "gumbel"] = "topk"
    gumbel_temperature: float = 1.0
    hidden_layer: int | None = None  # read cloud layer i; None reads after the final norm
    cloud_rank: int = 16  # 0 means no adapters in the cloud
    cloud_alpha: float = 16.0
    cv_weight: float = 0.01  # alpha in Eq. 9

    def __post_init__(self):
        check_types(self)
        require(
            1 <= self.top_k <= self.experts,
            f"top_k is {self.top_k}; expected 1 to {self.experts} (experts).",
        )
        require(self.experts >= 2, f"experts is {self.experts}; a router needs at least 2.")
        require_least(self, 1, "rank")
        require_least(self, 0, "cloud_rank")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; expected 0 <= dropout < 1.")
        width, heat = self.router_width, self.gumbel_temperature
        require(width is None or width >= 1, f"router_width is {width}; expected 1 or more.")
        require(heat > 0, f"gumbel_temperature is {heat}; expected more than 0.")
        require_least(self, 0, "cv_weight")

    @property
    def scale(self) -> float:
        """alpha / R, the factor of the assembled LoRA."""
        return self.alpha / self.rank

    @classmethod
    def paper(cls) -> GeneratorConfig:
        """The setting of arXiv 2506.11638, independent of our defaults."""
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
