"""Recognises folders with quantised weights, which the decoder does not compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors

from lorage_jax.errors import WeightsError
from lorage_jax.files.safetensors import used_files

FIELDS = ("quantization_config", "compression_config")
# `quant_method` in config.json -> what people call it.
METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "torchao": "torchao",
    "quanto": "quanto",
    "aqlm": "AQLM",
    "bitnet": "BitNet",
}
# Ends of the names that such tensors have -> the methods that write them.
TENSORS = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "FP8",
    ".weight_scale": "FP8 or compressed-tensors",
    ".weight.absmax": "bitsandbytes",
    ".weight.quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
}
ADVICE = (
    "Only float32, bfloat16 and float16 weights are read: get the release of this model that is "
    "not quantised, or load this one in transformers, call model.dequantize() and save_pretrained, "
    "and remove quantization_config from the new config.json."
)


def refuse_quantised_config(folder: Path, raw: dict[str, Any]) -> None:
    """Raises WeightsError if a config.json, whose fields are `raw`, is of quantised weights."""
    for field in FIELDS:
        if raw.get(field) is not None:
            raise WeightsError(f"{folder} holds {_named(raw[field])} ({field}). {ADVICE}")


def refuse_quantised_tensors(folder: Path) -> None:
    """Raises WeightsError if a folder's model is quantised, whatever its config.json says."""
    for file in used_files(folder):
        if (found := _quantised_tensor(file)) is not None:
            raise WeightsError(f"{folder} holds quantised weights: {found}. {ADVICE}")


def _named(settings: Any) -> str:
    """The kind of quantised weights that a config's settings describe."""
    settings = settings if isinstance(settings, dict) else {}
    method = settings.get("quant_method") or settings.get("quant_library")
    bits = settings.get("bits") or settings.get("w_bit")
    if method is None and {"load_in_4bit", "load_in_8bit"} & set(settings):
        method = "bitsandbytes"
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        bits = 4 if settings.get("load_in_4bit") else 8
    name = METHODS.get(str(method).lower(), str(method)) if method else "quantised"
    return f"{name} weights of {bits} bits" if isinstance(bits, int) else f"{name} weights"


def _quantised_tensor(file: Path) -> str | None:
    """Describes the first quantised tensor of a file; None if there is none."""
    try:
        with safetensors.safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is not a dict
                for end, method in TENSORS.items():
                    if name.endswith(end):
                        return f"{name} is a tensor of {method}"
                dtype = tensors.get_slice(name).get_dtype()
                if dtype.startswith(("F8", "F4", "F6")):
                    return f"{name} is {dtype}"
    except (safetensors.SafetensorError, OSError):
        pass  # opening the checkpoint says what is wrong with it
    return None
