"""Options of the subcommands of `lorage bench`: data only, like `commands/options.py`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lorage_jax.commands.options import Json
from lorage_jax.errors import ConfigError
from lorage_jax.fields import check_types

CloudConfig = Annotated[
    Path | None,
    tyro.conf.arg(help="Folder whose config.json gives the cloud's shape; by default LLaMA3-8B."),
]
InputTokens = Annotated[int, tyro.conf.arg(help="Tokens of a request, without the system prompt.")]
InstructionTokens = Annotated[int, tyro.conf.arg(help="Tokens of the system prompt.")]
Repeats = Annotated[int, tyro.conf.arg(help="Number of repetitions; medians are reported.")]
RealModel = Annotated[
    Path | None,
    tyro.conf.arg(help="Hugging Face folder to measure, side by side with another library."),
]


@dataclass(frozen=True, kw_only=True)
class Measured:
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the weights."""
    json: Json = None

    def __post_init__(self):
        """Raises ConfigError for a count below 1."""
        check_types(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                flag = field.name.replace("_", "-")
                raise ConfigError(f"--{flag} is {value}; expected 1 or more.")


@dataclass(frozen=True, kw_only=True)
class EdgeShape(Measured):
    shape: str = "tinyllama"
    """Shape of the edge, such as qwen2-1.5b or gemma2-2b; an unknown name lists all. Weights are
    random: run time does not depend on their values."""
    edge_config: Path | None = None
    """Folder whose config.json gives the edge's shape, instead of --shape."""
    layers: int | None = None
    """Number of edge layers, instead of the shape's own."""


@dataclass(frozen=True, kw_only=True)
class Merge(EdgeShape):
    """Time the merge of a LoRA into the edge, against PEFT's merge_and_unload.

    Example: lorage bench merge --shape tinyllama --dtype float32
    """

    repeats: Repeats = 3


@dataclass(frozen=True, kw_only=True)
class Prefill(Measured):
    """Time reading a prompt with a real model, against transformers in the same run.

    Example: lorage bench prefill --model special/merged --batch 16
    """

    model: Path
    """Hugging Face folder."""
    batch: int = 1
    """Prompts read at once."""
    prompt_tokens: int = 200
    """Tokens of a prompt."""
    repeats: Repeats = 5


@dataclass(frozen=True, kw_only=True)
class Decode(EdgeShape):
    """Time decoding: a real model against transformers, or merged weights against the base's.

    With --model, transformers decodes the same prompts in the same run. Without it, random weights
    of --shape are decoded as they are and with a LoRA merged into them.

    Example: lorage bench decode --model special/merged --prompt-tokens 200
    """

    model: RealModel = None
    batch: int = 1
    """Rows decoded at once."""
    prompt_tokens: int = 32
    """Tokens of a prompt."""
    new_tokens: int = 32
    """Tokens to generate."""
    repeats: Repeats = 3


@dataclass(frozen=True, kw_only=True)
class Export(EdgeShape):
    """Measure the peak memory of load, merge and export, in a fresh process (Linux).

    Example: lorage bench export --shape tinyllama
    """

    repeats: Annotated[int, tyro.conf.arg(help="Repetitions; the worst peak is reported.")] = 3


@dataclass(frozen=True, kw_only=True)
class Flops(EdgeShape):
    """Count the arithmetic of a request with and without the prompt, and of the cloud pass.

    Example: lorage bench flops --shape qwen2-1.5b
    """

    cloud_config: CloudConfig = None
    input_tokens: InputTokens = 100
    instruction_tokens: InstructionTokens = 200


@dataclass(frozen=True, kw_only=True)
class Latency(EdgeShape):
    """Time a request with and without the prompt: prefill, decoding, and the whole request.

    The prompt is read anew, or its keys are kept from before and copied to the request. A prefill
    with the prompt is also timed with LoRAMoE's and with MixLoRA's experts beside the edge.

    Example: lorage bench latency --shape tinyllama --dtype float32 --repeats 5
    """

    layers: int | None = None
    """Number of edge layers; by default the shape's own, but 4 on a CPU."""
    input_tokens: InputTokens = 100
    instruction_tokens: InstructionTokens = 200
    new_tokens: int = 32
    """Tokens to generate."""
    repeats: Repeats = 3


@dataclass(frozen=True, kw_only=True)
class Memory(EdgeShape):
    """Read the memory of a request with and without the prompt from the compiled programs.

    With the prompt, also with LoRAMoE's and with MixLoRA's experts beside the edge.

    Example: lorage bench memory --shape qwen2-1.5b --dtype float32
    """

    input_tokens: InputTokens = 100
    instruction_tokens: InstructionTokens = 200
    new_tokens: int = 32
    """Tokens to generate."""


@dataclass(frozen=True, kw_only=True)
class Score(Measured):
    """Time scoring, against lm-eval's hf model at its best batch size in the same run.

    Requests are like HellaSwag's, of random tokens, or those of the records in a file.

    Example: lorage bench score --model special/merged --dtype float32
    """

    model: Path | None = None
    """Folder of a model; by default a small one with random weights."""
    records: Path | None = None
    """JSON lines of {question, choices}, asked like ARC, instead of random tokens."""
    questions: int = 32
    """Number of questions, each with its choices."""
    repeats: Repeats = 3


@dataclass(frozen=True, kw_only=True)
class Specialize(EdgeShape):
    """Time the cloud pass over 64 prompts, in one batch and one by one.

    Example: lorage bench specialize --dtype float32
    """

    cloud_config: Annotated[
        Path | None,
        tyro.conf.arg(
            help="Folder whose config.json gives the cloud's shape; by default LLaMA3-8B, "
            "but a small cloud on a CPU."
        ),
    ] = None
    instruction_tokens: InstructionTokens = 200
    repeats: Repeats = 3


@dataclass(frozen=True, kw_only=True)
class Train(EdgeShape):
    """Time a training step: one LoRA on a real model against peft, or the generator's.

    With --model, peft takes the same step of a LoRA on the FFN in the same run. Without it, the
    step of a generator is timed on random weights, with 1, 2, 4 and 8 queries per prompt.

    Example: lorage bench train --model special/merged --input-tokens 256
    """

    model: RealModel = None
    rank: int | None = None
    """With --model: rank of the LoRA; by default 8."""
    remat: Literal["full", "none"] | None = None
    """With --model: full, the default, computes activations again in the backward pass, on both
    sides."""

    layers: int | None = None
    """At most this many layers of both models; by default all, but 2 on a CPU."""
    cloud_config: CloudConfig = None
    input_tokens: Annotated[int, tyro.conf.arg(help="Tokens of a query, target included.")] = 100
    instruction_tokens: int | None = None
    """Without --model: tokens of the system prompt; by default 200."""
    rows: int | None = None
    """Queries per batch, a multiple of 8; by default 64, but 8 on a CPU."""
    repeats: Repeats = 3


Measurement = (
    Merge | Prefill | Decode | Export | Flops | Latency | Memory | Score | Specialize | Train
)


@dataclass(frozen=True)
class Bench:
    """Measure time, memory and arithmetic, with random weights of real shapes or on real models.

    Example: lorage bench prefill --model special/merged
    """

    measurement: Measurement
