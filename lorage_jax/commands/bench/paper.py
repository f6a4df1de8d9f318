"""The paper's figures, to print with a measurement at the paper's setting."""

from __future__ import annotations

from lorage_jax.commands.bench.options import Flops, Latency
from lorage_jax.report import paper

MODELS = {
    "tinyllama": "TinyLlama-1.1B",
    "qwen2-1.5b": "Qwen-1.5B",
    "gemma2-2b": "Gemma-2B",
}
TABLE_13_SHAPE = "qwen2-1.5b"


def paper_macs(shape: str | None, options: Flops) -> dict[str, float]:
    """Table 13's inference column, if model and token counts are the table's."""
    if shape != TABLE_13_SHAPE or not _paper_tokens(options):
        return {}
    names = ("with_prompt", "loramoe", "mixlora", "specialized")
    pairs = zip(names, paper.TABLE_13, strict=True)
    return {f"paper_macs_{name}": line.inference for name, line in pairs}


def paper_latency(shape: str | None, options: Latency) -> dict[str, float]:
    """Table 2's milliseconds for this model on the authors' device, and their ratio."""
    if shape not in MODELS or not _paper_tokens(options):
        return {}
    rows = {row.method: row.milliseconds for row in paper.TABLE_2 if row.model == MODELS[shape]}
    base, ours = rows[paper.BASE], rows[paper.OURS]
    return {
        "paper_ms_with_prompt": base,
        "paper_ms_specialized": ours,
        "paper_ratio": base / ours,
    }


def _paper_tokens(options: Flops | Latency) -> bool:
    return (options.input_tokens, options.instruction_tokens) == (100, 200)
