"""`lorage specialize`: a system prompt to a card, an adapter, a merged checkpoint, and a proof."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lorage_jax.commands.options import Specialize
from lorage_jax.data.records import read_text
from lorage_jax.data.templates import edge_prompt, edge_prompt_with_system, encode
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.files.outputs import check_target, new_folder, write_manifest
from lorage_jax.generator.adapter import export_adapter, load_adapter
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.merge import merge_with_report
from lorage_jax.generator.store import (
    check_identity,
    load_generator,
    read_values,
    recorded_path,
)
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model, stored_dtype
from lorage_jax.models.model import Model, forward

OUTPUTS = ("card", "adapter", "merged")
PROBE_TOKENS = 64  # length of the text on which logits are compared


def run(options: Specialize) -> dict[str, Any]:
    """Writes the folder `--out`, prints and returns the report."""
    wanted = _outputs(options.save)
    check_target(options.out, options.overwrite)
    text = read_text(options.prompt)
    values = read_values(options.generator)
    folder = options.edge or recorded_path(values, "edge", options.generator)
    check_identity(folder, values, "edge")  # before anything large is loaded
    loaded = load_generator(options.generator, options.cloud)
    with new_folder(options.out, overwrite=options.overwrite) as temporary:
        report = specialize_into(loaded, text, temporary, folder, wanted, options.dtype)
        files = {"format": "lorage-special/1", "report": report}
        write_manifest(temporary, files)
    print(describe(report, options.out))
    return report


def specialize_into(
    generator: Generator,
    prompt: str,
    out: Path,
    edge_folder: Path,
    save: tuple[str, ...],
    dtype: str | None,
    base_name: str | None = None,
) -> dict[str, Any]:
    """The work itself, into an existing folder: also `report.json`, which it returns.

    `base_name`: what the adapter calls its base model, when that is not `edge_folder`.
    """
    first = began = time.time()
    card = specialize(generator, prompt)
    specialize_seconds = time.time() - began
    # Merged in float32 when either side is: a bfloat16 edge does not round a float32 result.
    stored = stored_dtype(edge_folder)
    edge = load_model(edge_folder, "float32" if "float32" in (dtype, stored) else stored)
    card.check(edge, generator.pool)
    probe = _probe(edge, prompt)
    logits = {"unmerged": _logits(edge, probe, card, generator.pool)}
    if "card" in save:
        card.save(out / "card.json")
    if "adapter" in save:
        export_adapter(generator.pool, card, edge, out / "adapter", base_name=base_name)
        logits["adapter"] = _logits(load_adapter(out / "adapter", edge), probe)
    began = time.time()
    special, rounding = merge_with_report(edge, generator.pool, card, donate=True)
    merge_seconds = time.time() - began
    del edge  # its FFN weights were donated
    logits["merged"] = _logits(special, probe)
    if "merged" in save:
        export_merged(special, out / "merged", base=edge_folder, dtype=dtype)
        logits["reloaded"] = _logits(load_model(out / "merged", "float32"), probe)
        if importlib.util.find_spec("torch") is not None:
            logits["transformers"] = _transformers_logits(out / "merged", probe)
    report = {
        "parity": _differences(logits),
        "dtype": dtype or str(special.dtype),
        "merge": {
            "largest_rounding": rounding.largest_rounding,
            "share_unmoved": rounding.unmoved,
            "weights": rounding.weights,
        },
        "prompt_tokens_saved": _tokens_saved(special, prompt),
        "cloud_tokens": card.about["cloud_tokens"],
        "card_bytes": len(json.dumps(card.to_dict())),
        "gates": card.to_dict()["gates"],
        "seconds": time.time() - first,
        "timings": {"specialize": specialize_seconds, "merge": merge_seconds},
        "saved": list(save),
    }
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return report


def describe(report: dict[str, Any], out: Path) -> str:
    """The report for people."""
    parity = report["parity"]
    pairs = ", ".join(f"{k} {v:.1e}" for k, v in parity.items() if k != "max_abs_logit_diff")
    return (
        f"Specialised: {', '.join(report['saved'])} in {out}\n"
        f"Parity: largest logit difference {parity['max_abs_logit_diff']:.1e} ({pairs}), "
        f"weights {report['dtype']}\n"
        f"Merge: largest rounding error {report['merge']['largest_rounding']:.1e}, "
        f"{report['merge']['share_unmoved']:.1%} of FFN weights did not move\n"
        f"Prompt tokens saved per request: {report['prompt_tokens_saved']} "
        f"(read once by the cloud: {report['cloud_tokens']}); card {report['card_bytes']} bytes"
    )


def _outputs(save: str) -> tuple[str, ...]:
    wanted = tuple(part.strip() for part in save.split(",") if part.strip())
    strange = [part for part in wanted if part not in OUTPUTS]
    if strange or not wanted:
        raise ConfigError(f"--save is {save!r}; expected any of {', '.join(OUTPUTS)}, with commas.")
    return wanted


def _probe(edge: Model, prompt: str) -> np.ndarray:
    """Tokens [1, T] to compare logits on: real text of this task, then ids spread over all V."""
    text = encode(edge.tokenizer, edge_prompt(prompt), bos=True)[:PROBE_TOKENS]
    spread = np.linspace(0, edge.config.vocab_size - 1, PROBE_TOKENS - len(text) + 8, dtype=int)
    return np.asarray([[*text, *spread]])[:, : edge.config.max_positions]


def _logits(model: Model, tokens: np.ndarray, card: Card | None = None, pool: Any = None):
    """Computed in float32 whatever the dtype of the weights, so that only the weights count."""
    wide = model.replace(params=jax.tree.map(lambda x: x.astype(jnp.float32), model.params))
    if card is None:
        return np.asarray(forward(wide, tokens))
    return np.asarray(forward(wide, tokens, gates=card, pool=pool))


def _transformers_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would fill the terminal
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def _differences(logits: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest absolute difference of each stage to the unmerged logits, and over all."""
    strange = [name for name, value in logits.items() if not np.isfinite(value).all()]
    if strange:
        raise WeightsError(
            f"the logits are not finite ({', '.join(strange)}): the edge's weights or the "
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
    """Edge tokens of a request with the prompt in its context, less one without."""
    with_prompt = encode(edge.tokenizer, edge_prompt_with_system(prompt, "x"), bos=True)
    return len(with_prompt) - len(encode(edge.tokenizer, edge_prompt("x"), bos=True))
