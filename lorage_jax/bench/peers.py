"""Libraries that do the same work on PyTorch: transformers, peft, and lm-eval's `hf` model.

They get the threads and the kind of device that our programs use.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lorage_jax.config import ModelConfig, OptimizerConfig
from lorage_jax.errors import listed
from lorage_jax.hf import tables

INSTALL = {"torch": "torch", "transformers": "transformers", "peft": "peft", "lm_eval": "lm-eval"}


def missing(*packages: str) -> str | None:
    """A sentence that names the packages that are not installed; None if all are."""
    absent = [INSTALL[name] for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    verb = "is" if len(absent) == 1 else "are"
    return (
        f"{listed(absent, 4)} {verb} not installed, so only lorage was measured; for the "
        f"comparison, pip install {' '.join(absent)}."
    )


def threads() -> int:
    """The number of CPU threads that XLA computes with: the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def torch_device() -> str:
    """`cuda` if our programs run on a GPU that torch can use as well, else `cpu`.

    Also gives torch as many threads as we have. XLA must leave it memory on a GPU: see
    `share_the_gpu`.
    """
    import torch

    torch.set_num_threads(threads())
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def share_the_gpu() -> None:
    """Keeps XLA from reserving most of a GPU's memory; to be called before it is used."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def load_torch(folder: Path, dtype: str) -> Any:
    """The folder's model in transformers, ready to compute."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    loader: Any = transformers.AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.to(torch_device()).eval()


def greedy(model: Any, rows: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    """Continues rows of equal length by `new_tokens` tokens with transformers' cache.

    The prompt is one forward pass with the logits of the last token, every further token another.
    """
    import torch

    with torch.inference_mode():
        tokens = torch.tensor(rows, device=model.device)
        output = model(tokens, use_cache=True, logits_to_keep=1)
        # The newer name of transformers' cache, or the older one.
        name = "cache" if "cache" in output else "past_key_values"
        found = [output.logits[:, -1].argmax(-1, keepdim=True)]
        while len(found) < new_tokens:
            output = model(found[-1], use_cache=True, **{name: output[name]})
            found.append(output.logits[:, -1].argmax(-1, keepdim=True))
        return torch.cat(found, dim=1).tolist()


def lora_stepper(
    folder: Path,
    config: ModelConfig,
    dtype: str,
    tokens: np.ndarray,
    targets: np.ndarray,
    *,
    rank: int,
    alpha: int,
    optimizer: OptimizerConfig,
    checkpointing: bool,
) -> Callable[[], float]:
    """A function that takes one step of peft's LoRA on the FFN with AdamW and returns its loss.

    Args:
        config: the model's, which says which modules the FFN has.
        tokens: token ids [B, T].
        targets: True at the tokens to predict, [B, T].
        checkpointing: compute activations again in the backward pass.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    modules = [module.rsplit(".", 1)[-1] for module in tables.adapted(config)]
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about transformers' older names
        model: Any = get_peft_model(load_torch(folder, dtype), lora).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(
        trained, optimizer.learning_rate, optimizer.betas, weight_decay=optimizer.weight_decay
    )
    ids = torch.tensor(tokens, dtype=torch.long, device=torch_device())
    labels = ids.masked_fill(~torch.tensor(targets, device=ids.device), -100)

    def step() -> float:
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, optimizer.clip_norm)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.item()

    return step


def load_scorer(folder: Path, dtype: str) -> Any:
    """The folder as lm-eval's `hf` model."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    transformers.utils.logging.disable_progress_bar()
    hf: Any = HFLM  # lm-eval's registry returns its own base class
    return hf(str(folder), dtype=dtype, device=torch_device(), batch_size=1)


def loglikelihoods(
    scorer: Any, requests: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> list[float]:
    """Scores (context, continuation) pairs of token ids in lm-eval, in nats."""
    scorer.batch_size_per_gpu = batch_size
    asked = [(None, list(context), list(ending)) for context, ending in requests]
    return [value for value, _ in scorer._loglikelihood_tokens(asked, disable_tqdm=True)]
