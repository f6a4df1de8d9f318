"""Time of the merge, against PEFT's merge of a LoRA of the same rank."""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
from typing import Any

from lorage_jax.bench.edge import random_edge
from lorage_jax.bench.timing import seconds
from lorage_jax.config import ModelConfig
from lorage_jax.generator.merge import merge
from lorage_jax.hf import tables
from lorage_jax.hf.config import to_hf_config
from lorage_jax.models.model import Model


def bench_merge(config: ModelConfig, repeats: int, dtype: str) -> dict[str, Any]:
    """Times the jitted merge against `peft`'s merge_and_unload of a LoRA of the same rank (16).

    Figures are seconds, medians of `repeats`. Ours exclude compilation, which is a figure of its
    own. Without peft or torch, `peft_seconds` is None.
    """
    edge, pool, card = random_edge(config, dtype)

    def run(donate: bool) -> float:
        nonlocal edge
        special: list[Model] = []

        def action() -> Any:
            special.append(merge(edge, pool, card, donate=donate))
            return special[0].params

        took = seconds(action)
        if donate:  # the edge is consumed: the next call gets this one's result as its base
            edge = special[0].replace(card=None)
        return took

    first = run(donate=False)
    ours = [run(donate=False) for _ in range(repeats)]
    run(donate=True)  # compiles
    donated = [run(donate=True) for _ in range(repeats)]
    result = {
        "layers": config.layers,
        "dtype": dtype,
        "lorage_seconds": statistics.median(ours),
        "lorage_donated_seconds": statistics.median(donated),
        "lorage_compile_seconds": first - min(ours),
    }
    del edge
    gc.collect()
    if importlib.util.find_spec("peft") is None or importlib.util.find_spec("torch") is None:
        return result | {"peft_seconds": None}
    theirs = [_peft_merge(config, dtype) for _ in range(repeats)]
    peft = statistics.median(theirs)
    return result | {
        "peft_seconds": peft,  # in place, like our donating merge
        "ratio_peft_to_lorage": peft / result["lorage_seconds"],
        "ratio_peft_to_lorage_donated": peft / result["lorage_donated_seconds"],
    }


def _peft_merge(config: ModelConfig, dtype: str) -> float:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = to_hf_config(config, dtype)
    with torch.device("meta"):
        shape = AutoConfig.for_model(**fields)
        model = AutoModelForCausalLM.from_config(shape).to(getattr(torch, dtype))
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    modules = [module.rsplit(".", 1)[-1] for module in tables.adapted(config)]
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=modules))
    began = time.perf_counter()
    adapted.merge_and_unload()
    return time.perf_counter() - began
