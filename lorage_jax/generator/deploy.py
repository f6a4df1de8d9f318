"""Deployment of one system prompt: card, PEFT adapter, merged checkpoint, and a parity report.

The report compares the logits of every stage on one probe text, computed in float32 whatever the
dtype of the weights, so that differences come from the weights alone.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import from_dict, to_dict
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.merge import MergeReport, merge_with_report
from lorage_jax.generator.peft import load_adapter
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model, stored_dtype
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model, forward

OUTPUTS = ("card", "adapter", "merged")
REPORT = "report.json"
PROBE_TOKENS = 64  # length of the text on which logits are compared


@dataclass(frozen=True)
class Timings:
    """Seconds of the cloud pass, and of the merge with its rounding statistics."""

    specialize: float
    merge: float


@dataclass(frozen=True)
class DeployReport:
    """Result of one deployment; `report.json` holds the same fields.

    `parity` maps `max_abs_logit_diff` and each `unmerged_vs_<stage>` to the largest absolute logit
    difference. `dtype` is that of the merged weights. `prompt_tokens_saved` counts edge tokens per
    request; `cloud_tokens` is the length of the prompt in cloud tokens. `gates` lists, per layer,
    [expert, gate] pairs of the open gates. `seconds` is the total time.
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

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return to_dict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DeployReport:
        """The inverse of `to_json`. Raises ConfigError for a missing or unknown field."""
        return from_dict(cls, values)


def deploy(
    generator: Generator,
    prompt: str,
    out: Path,
    edge_folder: Path,
    *,
    save: Sequence[str] = OUTPUTS,
    dtype: str | None = None,
    base_name: str | None = None,
) -> DeployReport:
    """Specialises the edge for `prompt` and writes the results into `out`, an existing folder.

    Args:
        edge_folder: Hugging Face folder of the generator's edge.
        save: which of `card`, `adapter`, `merged` to write; report.json always is.
        dtype: dtype of the merged weights, `float32` or `bfloat16`; the edge's own for None.
        base_name: name of the base model in the adapter's config; `edge_folder` for None.

    Raises ConfigError (unknown output), DataError (a prompt that is empty or does not fit the
    cloud's context), and WeightsError (another edge, or logits that are not finite).
    """
    check_outputs(save)
    began = time.time()
    card = specialize(generator, prompt)
    specialize_seconds = time.time() - began
    # Merged in float32 when either side is: a bfloat16 edge does not round a float32 result.
    stored = stored_dtype(edge_folder)
    edge = load_model(edge_folder, "float32" if "float32" in (dtype, stored) else stored)
    card.check(edge, generator.pool)
    edge = generator.speaking(edge)
    probe = _probe(edge, prompt)
    logits = {"unmerged": _logits(edge, probe, card, generator.pool)}
    if "card" in save:
        card.save(out / "card.json")
    if "adapter" in save:
        export_adapter(generator.pool, card, edge, out / "adapter", base_name=base_name)
        logits["adapter"] = _logits(load_adapter(out / "adapter", edge), probe)
    merge_began = time.time()
    special, rounding = merge_with_report(edge, generator.pool, card, donate=True)
    timings = Timings(specialize_seconds, time.time() - merge_began)
    del edge  # its FFN weights were donated
    logits["merged"] = _logits(special, probe)
    if "merged" in save:
        export_merged(special, out / "merged", base=edge_folder, dtype=dtype)
        logits |= _reloaded_logits(out / "merged", probe)
    report = DeployReport(
        parity=_differences(logits),
        dtype=dtype or str(special.dtype),
        merge=rounding,
        prompt_tokens_saved=_tokens_saved(special, prompt),
        cloud_tokens=card.about["cloud_tokens"],
        card_bytes=len(json.dumps(card.to_dict())),
        gates=card.to_dict()["gates"],
        seconds=time.time() - began,
        timings=timings,
        saved=tuple(save),
    )
    (out / REPORT).write_text(json.dumps(report.to_json(), indent=1) + "\n", "utf-8")
    return report


def check_outputs(save: Sequence[str]) -> None:
    """Raises ConfigError unless `save` names at least one output, and no unknown one."""
    if not save or set(save) - set(OUTPUTS):
        raise ConfigError(f"save is {', '.join(save)!r}; expected any of {', '.join(OUTPUTS)}.")


def _probe(edge: Model, prompt: str) -> Int[np.ndarray, "1 T"]:
    """Tokens to compare logits on: the text of this task, then ids spread over the vocabulary."""
    text = edge.template.prompt(prompt)[:PROBE_TOKENS]
    spread = np.linspace(0, edge.config.vocab_size - 1, PROBE_TOKENS - len(text) + 8, dtype=int)
    return np.asarray([[*text, *spread]])[:, : edge.config.max_positions]


def _logits(
    model: Model, tokens: Int[np.ndarray, "1 T"], card: Card | None = None, pool: Pool | None = None
) -> Float[np.ndarray, "1 T V"]:
    """Logits in float32, whatever the dtype of the weights."""
    wide = model.replace(params=jax.tree.map(lambda x: x.astype(jnp.float32), model.params))
    gates = None if card is None else jnp.asarray(card.gates)[None]
    return np.asarray(forward(wide, tokens, gates=gates, pool=pool))


def _reloaded_logits(
    folder: Path, tokens: Int[np.ndarray, "1 T"]
) -> dict[str, Float[np.ndarray, "1 T V"]]:
    """Logits of an exported folder, read by us, and by transformers where torch is installed."""
    found = {"reloaded": _logits(load_model(folder, "float32"), tokens)}
    if importlib.util.find_spec("torch") is not None:
        found["transformers"] = _transformers_logits(folder, tokens)
    return found


def _transformers_logits(
    folder: Path, tokens: Int[np.ndarray, "1 T"]
) -> Float[np.ndarray, "1 T V"]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would fill the terminal
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def _differences(logits: dict[str, Float[np.ndarray, "1 T V"]]) -> dict[str, float]:
    """Largest absolute difference of each stage from the unmerged logits, and over all stages."""
    bad = [name for name, value in logits.items() if not np.isfinite(value).all()]
    if bad:
        raise WeightsError(
            f"the logits are not finite ({', '.join(bad)}): the edge's weights or the "
            "generator's experts hold NaN or infinity, or their sum overflows. Nothing was written."
        )
    first = logits["unmerged"]
    found = {
        f"unmerged_vs_{name}": float(np.abs(first - value).max())
        for name, value in logits.items()
        if name != "unmerged"
    }
    return {"max_abs_logit_diff": max(found.values()), **found}


def _tokens_saved(edge: Model, prompt: str) -> int:
    """Edge tokens of a request with the prompt in its context, minus one without."""
    return len(edge.template.prompt("x", prompt)) - len(edge.template.prompt("x"))
