"""Options of the commands that write or share model files for others to load.

They are `adapters`, `export`, `import`, `retarget` and `push`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorage_jax.commands.options import (
    Cloud,
    Coordinator,
    Dtype,
    Edge,
    GeneratorFolder,
    GgufType,
    Json,
    Overwrite,
    Positional,
    Processes,
    ProcessId,
)


@dataclass(frozen=True)
class Adapters:
    """Write a PEFT adapter per system prompt, for servers that hold many beside one base.

    Adapters that are there already stay, so that the list of prompts may grow. Anything else in the
    place of one (the adapter of another prompt, generator or edge) is refused.

    Example: lorage adapters --generator runs/a/generator --prompts prompts.jsonl --out adapters
    """

    generator: GeneratorFolder
    prompts: Path
    """JSON lines {"name": ..., "system": ...}; the name becomes the folder's."""
    out: Path
    """Folder of all adapters."""
    edge: Edge = None
    cloud: Cloud = None
    base_name: str | None = None
    """Name of the base in the adapters' configs, as the server is given it; by default the Hub's,
    or the folder's own."""
    json: Json = None


@dataclass(frozen=True)
class Export:
    """Write a model, specialised or not, as a GGUF file for llama.cpp.

    The file holds the weights, the tokenizer and the chat template of the trained turns. One tensor
    at a time is in memory.

    Example: lorage export special/merged --gguf special.gguf --type q8_0
    """

    model: Positional[Path]
    """Hugging Face folder, or GGUF file."""
    gguf: Path
    """File to write."""
    type: GgufType | None = None
    """How matrices are stored: f16 by default, or as in --base; fewer bits are less exact."""
    base: Path | None = None
    """GGUF file of the model's base, from which all but the FFN's matrices is copied."""
    pre: str | None = None
    """llama.cpp's name for the tokenizer's pre-tokenizer, if lorage does not recognise it."""
    turns: Path | None = None
    """For a base that adapters are applied to: a card, whose turns the file gets."""
    coordinator: Coordinator = None
    num_processes: Processes = None
    process_id: ProcessId = None
    json: Json = None
    overwrite: bool = False
    """Replace the file if it exists and is a GGUF file."""


@dataclass(frozen=True)
class Import:
    """Write a GGUF file as a Hugging Face folder, its weights dequantised.

    Commands take GGUF files themselves, too. One tensor at a time is in memory.

    Example: lorage import edge.gguf --out edge --dtype bfloat16
    """

    gguf: Positional[Path]
    """File of a model for llama.cpp."""
    out: Path
    """New folder for the model."""
    dtype: Dtype | None = None
    """Dtype of all weights; by default as in the file, and float32 for quantised ones."""
    pre: str | None = None
    """llama.cpp's name for the tokenizer's pre-tokenizer, if lorage does not recognise it."""
    json: Json = None
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Retarget:
    """Write a copy of a generator for other weights of the same models.

    A generator is for the very weights that it was trained with. Other weights of the same model,
    such as the Hub's own instead of a quantised file's, differ little, but they are another model,
    and this copy is for them. What it does there, lorage eval shows beside its controls.

    Example: lorage retarget smollm2 --edge SmolLM2-135M-Instruct --out my_generator
    """

    generator: Positional[Path]
    """Generator's folder, nano or smollm2 for a bundled one, or OWNER/NAME on the Hub."""
    out: Path
    """New folder for the generator."""
    edge: Path | None = None
    """Edge model (folder or GGUF); also the cloud, if the edge was its own cloud in training."""
    cloud: Path | None = None
    """Cloud model (folder or GGUF)."""
    json: Json = None
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Push:
    """Upload a generator, or an exported model or adapter, to the Hugging Face Hub.

    Its README.md becomes the model card. Log in first (hf auth login). A pushed generator loads by
    its name, OWNER/NAME.

    Example: lorage push runs/a/generator OWNER/NAME --private --scores scores.json
    """

    folder: Positional[Path]
    """Folder that lorage_jax wrote."""
    repository: Positional[str]
    """Its place on the Hub, OWNER/NAME; made if it does not exist."""
    private: bool = False
    """Make a new repository private."""
    scores: Path | None = None
    """File of lorage eval --json: its scores and controls become a part of the model card."""
    json: Json = None
