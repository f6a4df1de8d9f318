"""Agreement of a specialised edge's stages: unmerged, merged, exported, reloaded, in PEFT's format.

Logits are compared on one probe text, in float32 whatever the dtype of the weights, so that
differences come from the weights alone.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lorage_jax.errors import WeightsError
from lorage_jax.generator.card import Card
from lorage_jax.hf.gguf import gguf_tensors
from lorage_jax.hf.load import load_model, read_params
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model, forward

# Largest difference of two stages with the same weights, as a share of the largest logit (or of 1,
# if that is less): float32 arithmetic in another order.
LIMIT = 1e-3
FOLDERS = ("reloaded", "transformers")  # stages that read the merged folder


def probe_logits(
    model: Model, tokens: Int[np.ndarray, "1 T"], card: Card | None = None, pool: Pool | None = None
) -> Float[np.ndarray, "1 T V"]:
    """Logits in float32, whatever the dtype of the weights."""
    gates = None if card is None else jnp.asarray(card.gates)[None]
    return np.asarray(forward(cast(model, "float32"), tokens, gates=gates, pool=pool))


def cast(model: Model, dtype: str) -> Model:
    """The model with all its weights in another dtype."""
    return model.replace(params=jax.tree.map(lambda x: x.astype(dtype), model.params))


def reloaded_logits(
    folder: Path, tokens: Int[np.ndarray, "1 T"]
) -> dict[str, Float[np.ndarray, "1 T V"]]:
    """Logits of an exported folder, read by us, and by transformers where torch is installed."""
    found = {"reloaded": probe_logits(load_model(folder, "float32"), tokens)}
    if importlib.util.find_spec("torch") is not None:
        found["transformers"] = _transformers_logits(folder, tokens)
    return found


def gguf_logits(
    model: Model, path: Path, tokens: Int[np.ndarray, "1 T"]
) -> Float[np.ndarray, "1 T V"]:
    """Logits with the weights of a GGUF file that `model` was written to."""
    tensors = gguf_tensors(path, model.config)
    params = read_params(model.config, tensors, str(model.dtype))
    return probe_logits(model.replace(params=params), tokens)


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


def differences(logits: dict[str, Float[np.ndarray, "1 T V"]]) -> dict[str, float]:
    """Largest absolute difference of each stage from the unmerged logits, and over all stages.

    Raises WeightsError for logits that are not finite.
    """
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


def check_limits(logits: dict[str, Float[np.ndarray, "1 T V"]], exact: bool) -> float:
    """Returns the largest difference allowed between stages with the same weights.

    The adapter has the unmerged weights; so have the merged ones, if `exact` (float32). The folder
    has the merged ones. Raises WeightsError for a stage beyond the limit.
    """
    limit = LIMIT * max(1.0, float(np.abs(logits["unmerged"]).max()))
    for name, value in logits.items():
        reference = "merged" if name in FOLDERS else "unmerged"
        if name == "unmerged" or (name == "merged" and not exact):
            continue
        found = float(np.abs(logits[reference] - value).max())
        if not found <= limit:
            raise WeightsError(
                f"the logits of the {name} stage differ from the {reference} ones by {found:.1e}; "
                f"the limit is {limit:.1e}. Nothing was written. Please report this as a bug."
            )
    return limit


def mean_kl(reference: Float[np.ndarray, "B T V"], other: Float[np.ndarray, "B T V"]) -> float:
    """KL(reference || other) in nats, the mean over tokens of logits, in float64."""
    first, second = _log_softmax(reference), _log_softmax(other)
    return float((np.exp(first) * (first - second)).sum(-1).mean())


def _log_softmax(logits: Float[np.ndarray, "B T V"]) -> Float[np.ndarray, "B T V"]:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))
