"""Deployment of one system prompt: card, PEFT adapter, merged checkpoint, and a parity report."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import from_dict, to_dict
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.lora_gguf import export_lora_gguf
from lorage_jax.generator.merge import Cast, MergeReport, merge_with_report
from lorage_jax.generator.parity import (
    cast,
    check_limits,
    differences,
    gguf_logits,
    mean_kl,
    probe_logits,
    reloaded_logits,
)
from lorage_jax.generator.peft import load_adapter
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model, stored_dtypes
from lorage_jax.llamacpp.export import check_exportable, export_gguf
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model

USUAL = ("card", "adapter", "merged")
OUTPUTS = (*USUAL, "gguf", "lora-gguf")
REPORT = "report.json"
PROBE_TOKENS = 64  # length of the text on which logits are compared
LOST = 0.1  # share of the card's effect that a cast may lose without a warning
NOISE = 1e-9  # KL in nats per token that float32 arithmetic alone can make


@dataclass(frozen=True)
class Timings:
    """Seconds of the cloud pass, and of the merge with its rounding statistics."""

    specialize: float
    merge: float


@dataclass(frozen=True)
class DeployReport:
    """Result of one deployment; `report.json` holds the same fields.

    `parity` maps `max_abs_logit_diff` and each `unmerged_vs_<stage>` to the largest absolute logit
    difference; stages with the same weights differ by at most `parity_limit`. `dtype` is that of
    the merged weights. `prompt_tokens_saved` counts edge tokens per request; `cloud_tokens` is the
    length of the prompt in cloud tokens. `gates` lists, per layer, [expert, gate] pairs of the open
    gates. `seconds` is the total time.
    """

    parity: dict[str, float]
    dtype: str
    merge: MergeReport
    prompt_tokens_saved: int
    cloud_tokens: int
    card_bytes: int
    gates: list[list[list[Any]]]
    seconds: float
    timings: Timings
    saved: tuple[str, ...]
    parity_limit: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return to_dict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DeployReport:
        """The inverse of `to_json`. Raises ConfigError for a missing or unknown field."""
        return from_dict(cls, values)


@dataclass(frozen=True)
class Outputs:
    """The files of a deployment, and how its merged weights are stored.

    Attributes:
        save: any of OUTPUTS; report.json is always written.
        dtype: float32, bfloat16 or float16 for all weights; by default they keep their dtypes.
        rounding, seed: of the merged weights, see `merge`.
        strict: make it an error if the cast or the GGUF file loses more than LOST of the card's
            effect.
        base_name: name of the base model in the adapter's config; see `portable_name`.
        gguf_type: how the matrices of the merged GGUF file are stored; see `export_gguf`.

    Raises ConfigError unless `save` names at least one output, and no unknown one, and for a dtype
    or seed that `merge` does not take.
    """

    save: tuple[str, ...] = USUAL
    dtype: str | None = None
    rounding: str = "auto"
    seed: int = 0
    strict: bool = False
    base_name: str | None = None
    gguf_type: str = "f16"

    @property
    def merges(self) -> bool:
        """True if merged weights are written, in either format."""
        return bool({"merged", "gguf"} & set(self.save))

    def __post_init__(self) -> None:
        if not self.save or set(self.save) - set(OUTPUTS):
            raise ConfigError(
                f"save is {', '.join(self.save)!r}; expected any of {', '.join(OUTPUTS)}."
            )
        Cast(self.dtype, self.rounding, self.seed)  # raises before the long work


@dataclass(frozen=True)
class Reading:
    """A prompt that the cloud has read: its card, and the seconds that it took."""

    card: Card
    seconds: float


def read_prompt(generator: Generator, prompt: str) -> Reading:
    """Makes the card of a prompt; if the cloud spans processes, all must call it."""
    began = time.monotonic()
    return Reading(specialize(generator, prompt), time.monotonic() - began)


def deploy(
    generator: Generator,
    prompt: str,
    out: Path,
    edge_folder: Path,
    outputs: Outputs | None = None,
    reading: Reading | None = None,
) -> DeployReport:
    """Specialises the edge for `prompt` and writes the results into `out`, an existing folder.

    `edge_folder` is the Hugging Face folder of the generator's edge; `reading` is the prompt's, if
    it has been read; its card may have a pool of its own. Raises DataError (a prompt that is empty
    or does not fit the cloud's context) and WeightsError (another edge, logits that are not finite
    or differ between stages by more than `parity.LIMIT`, a lossy cast with `strict`).
    """
    outputs, reading = outputs or Outputs(), reading or read_prompt(generator, prompt)
    began, card = time.monotonic() - reading.seconds, reading.card
    pool = card.pool or generator.pool
    stored, lossless = stored_dtypes(edge_folder)
    target = outputs.dtype or stored
    # A cast between two dtypes goes through float32, and is made once, by the merge.
    edge = load_model(edge_folder, target if target == lossless else "float32")
    card.check(edge, pool)
    edge = generator.speaking(edge)
    if {"gguf", "lora-gguf"} & set(outputs.save):
        check_exportable(edge)  # before the long work
    probe = _probe(edge, prompt)
    base = probe_logits(edge, probe)
    logits = {"unmerged": probe_logits(edge, probe, card, pool)}
    _write_unmerged(pool, card, edge, out, outputs)
    if "adapter" in outputs.save:
        adapted = load_adapter(out / "adapter", cast(edge, "float32"))
        logits["adapter"] = probe_logits(adapted, probe)
    merge_began = time.monotonic()
    how: dict[str, Any] = {"donate": True} if target == lossless else {"dtype": target}
    how |= {"rounding": outputs.rounding, "seed": outputs.seed}
    special, merge = merge_with_report(edge, pool, card, **how)
    timings = Timings(reading.seconds, time.monotonic() - merge_began)
    del edge  # its FFN weights may have been donated
    # As in the folder: with `dtype`, the weights that are not merged are cast, too.
    whole = special if outputs.dtype is None else cast(special, target)
    logits["merged"] = probe_logits(whole, probe)
    merge = _with_divergences(merge, logits, base)
    _check_loss(merge, target, outputs)
    if "gguf" in outputs.save:
        merge = _write_gguf(whole, out / "merged.gguf", outputs, merge, logits["unmerged"], probe)
    if "merged" in outputs.save:
        export_merged(special, out / "merged", base=edge_folder, dtype=outputs.dtype)
        logits |= reloaded_logits(out / "merged", probe)
    report = DeployReport(
        parity=differences(logits),
        parity_limit=check_limits(logits, exact=target == "float32"),
        dtype=target,
        merge=merge,
        **_facts(special, prompt, card),
        seconds=time.monotonic() - began,
        timings=timings,
        saved=outputs.save,
    )
    return _written(report, out)


def _write_unmerged(pool: Pool, card: Card, edge: Model, out: Path, outputs: Outputs) -> None:
    """Writes the outputs that are used beside the base."""
    if "card" in outputs.save:
        card.save(out / "card.json")
    if "adapter" in outputs.save:
        export_adapter(pool, card, edge, out / "adapter", base_name=outputs.base_name)
    if "lora-gguf" in outputs.save:
        export_lora_gguf(pool, card, edge, out / "lora.gguf")


def _write_gguf(
    model: Model,
    path: Path,
    outputs: Outputs,
    merge: MergeReport,
    unmerged: Float[np.ndarray, "1 T V"],
    probe: Int[np.ndarray, "1 T"],
) -> MergeReport:
    """Writes the merged GGUF file and returns the report with what it loses.

    Raises WeightsError if that is too much, with `strict`.
    """
    export_gguf(model, path, outputs.gguf_type)
    lost = mean_kl(unmerged, gguf_logits(model, path, probe))
    merge = dataclasses.replace(merge, kl_lost_gguf=lost)
    _check_loss(merge, str(model.dtype), outputs)
    return merge


def _written(report: DeployReport, out: Path) -> DeployReport:
    (out / REPORT).write_text(json.dumps(report.to_json(), indent=1) + "\n", "utf-8")
    return report


def _with_divergences(
    merge: MergeReport, logits: dict[str, Float[np.ndarray, "1 T V"]], base: np.ndarray
) -> MergeReport:
    """The report with what the cast loses of the card's effect, on the probe."""
    lost = mean_kl(logits["unmerged"], logits["merged"])
    return dataclasses.replace(merge, kl_lost=lost, kl_effect=mean_kl(logits["unmerged"], base))


def _facts(edge: Model, prompt: str, card: Card) -> dict[str, Any]:
    """The fields of the report about prompt and card."""
    return {
        "prompt_tokens_saved": _tokens_saved(edge, prompt),
        "cloud_tokens": card.about["cloud_tokens"],
        "card_bytes": len(json.dumps(card.to_dict())),
        "gates": card.to_dict()["gates"],
    }


def loss_in_words(merge: MergeReport, dtype: str, gguf_type: str = "f16") -> str | None:
    """Says that the cast, or the GGUF file, loses more than LOST of the card's effect.

    And what to do; None if neither does.
    """
    if (share := _share_lost(merge.kl_lost, merge.kl_effect)) is not None:
        other = "nearest" if merge.rounding == "stochastic" else "stochastic"
        return (
            f"the cast to {dtype} loses {share}; {merge.share_unmoved:.1%} of the FFN weights did "
            f"not move. To keep it, use --dtype float32, --rounding {other}, or the adapter "
            "without merging it (--save adapter; lorage generate --adapter)."
        )
    if (share := _share_lost(merge.kl_lost_gguf, merge.kl_effect)) is not None:
        return (
            f"the GGUF file in {gguf_type} loses {share}. To keep it, use a --gguf-type of more "
            "bits (q8_0, f16, f32), or --save lora-gguf for llama.cpp's --lora beside the base."
        )
    return None


def _share_lost(lost: float | None, effect: float | None) -> str | None:
    """The share of the effect that is lost, in words; None if it is LOST or less."""
    lost, effect = lost or 0.0, effect or 0.0
    if lost <= max(LOST * effect, NOISE):
        return None
    share = f"{lost / effect:.0%} of the prompt's effect" if effect > NOISE else "the whole effect"
    return f"{share} (KL {lost:.1e} of {effect:.1e} nats per token)"


def _check_loss(merge: MergeReport, dtype: str, outputs: Outputs) -> None:
    """Raises WeightsError for a lossy cast of weights that are written, if `strict`."""
    if not (outputs.strict and outputs.merges):
        return
    if (words := loss_in_words(merge, dtype, outputs.gguf_type)) is not None:
        raise WeightsError(f"{words} Nothing was written (--strict).")


def _probe(edge: Model, prompt: str) -> Int[np.ndarray, "1 T"]:
    """Tokens to compare logits on: the text of this task, then ids spread over the vocabulary."""
    text = edge.template.prompt(prompt)[:PROBE_TOKENS]
    spread = np.linspace(0, edge.config.vocab_size - 1, PROBE_TOKENS - len(text) + 8, dtype=int)
    return np.asarray([[*text, *spread]])[:, : edge.config.max_positions]


def _tokens_saved(edge: Model, prompt: str) -> int:
    """Edge tokens of a request with the prompt in its context, minus one without."""
    return len(edge.template.prompt("x", prompt)) - len(edge.template.prompt("x"))
