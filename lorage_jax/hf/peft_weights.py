"""Tensors of a PEFT folder with a LoRA or VeRA, in the layout of the base model's leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lorage_jax.config import ModelConfig
from lorage_jax.errors import WeightsError, bullets
from lorage_jax.files.safetensors import FLOATS, Checkpoint
from lorage_jax.hf import peft, tables
from lorage_jax.hf.multimodal import module_name
from lorage_jax.hf.peft import LoraConfig
from lorage_jax.models.leaves import Leaf
from lorage_jax.models.model import Model

PREFIX = "base_model.model."  # PEFT wraps the model twice
HEAD = "lm_head"
LeafPath = tuple[str, ...]  # ("layers", "q")


@dataclass(frozen=True)
class Update:
    """The LoRA of one matrix: `W + b a`, in the file's layout, in float32.

    `magnitude`: DoRA's lengths of the sum's rows; None for a plain LoRA.
    """

    leaf: LeafPath
    layer: int  # 0 for a leaf without layers
    a: Float[np.ndarray, "R I"]
    b: Float[np.ndarray, "O R"]
    magnitude: Float[np.ndarray, " O"] | None


@dataclass(frozen=True)
class Bias:
    """New values of one bias vector, or what is added to it."""

    leaf: LeafPath
    layer: int
    values: Float[np.ndarray, " O"]
    added: bool


@dataclass(frozen=True)
class Lora:
    """All changes that an adapter makes. `digest`: a hash of its settings and tensors."""

    updates: list[Update]
    biases: list[Bias]
    digest: str


@dataclass(frozen=True)
class _Part:
    """The rows of a tensor that one leaf holds; a fused tensor has several parts."""

    leaf: LeafPath
    layer: int
    row: tables.Row
    rows: slice


@dataclass
class _Tensor:
    """One tensor of the base: its shape in the file, and its parts from top to bottom."""

    shape: tuple[int, ...]
    parts: list[_Part]


def read_lora(folder: Path, base: Model) -> Lora:
    """Reads a PEFT folder with a LoRA for `base`; nothing is unpickled.

    Raises WeightsError, which lists everything beyond a plain LoRA, every tensor that is missing,
    unknown or of another shape, and every weight beside the LoRA that differs from the base's.
    """
    config = peft.read_config(folder)
    file = folder / peft.TENSORS
    if not file.exists() and (folder / peft.PICKLE).exists():
        raise WeightsError(
            f"{folder} holds {peft.PICKLE}, a pickle, which is never opened (it can run code). "
            "Load it with peft and save it again: save_pretrained writes safetensors."
        )
    return _Reader(config, Checkpoint.open_file(file), base).read()


class _Reader:
    def __init__(self, config: LoraConfig, checkpoint: Checkpoint, base: Model):
        self.config, self.checkpoint, self.base = config, checkpoint, base
        self.tensors = _tensors(base.config, base.source)
        self.left = set(checkpoint.names())
        self.problems: list[str] = []

    def read(self) -> Lora:
        modules = list(self._modules())
        self._read_projections(modules)
        updates = [update for module in modules for update in self._updates(module)]
        biases = [bias for module in modules for bias in self._own_bias(module)]
        biases += [bias for name in sorted(self.left) for bias in self._beside(name)]
        self.problems += [f"{name} {self._why(name)}" for name in sorted(self.left)]
        base = self.base.source or "the model"
        if not modules:
            self.problems = [f"target_modules in {peft.CONFIG} names no linear layer of {base}"]
        if self.problems:
            raise WeightsError(
                f"{self.checkpoint.path} does not fit {base} "
                f"({len(self.problems)} problem{'s' * (len(self.problems) > 1)}):\n"
                f"{bullets(self.problems)}"
            )
        return Lora(updates, biases, _digest(self.config, self.checkpoint))

    def _modules(self) -> Iterator[str]:
        """The names of the linear layers to adapt."""
        for name, tensor in self.tensors.items():
            module = name.removesuffix(".weight")
            if tensor.parts[0].row.inputs == 0:
                continue
            selected = self.config.selects(module, output=module == HEAD)
            if selected is None:
                part = "vera_lambda_d" if self.config.vera else "lora_A.weight"
                selected = f"{PREFIX}{module}.{part}" in self.checkpoint
            if selected:
                yield module

    def _updates(self, module: str) -> Iterator[Update]:
        tensor, rank = self.tensors[f"{module}.weight"], self.config.rank(module)
        outputs, inputs = tensor.shape
        stem = PREFIX + module
        if self.config.vera:
            yield from self._vera_updates(module)
            return
        a = self._take(f"{stem}.lora_A.weight", (rank, inputs))
        b = self._take(f"{stem}.lora_B.weight", (outputs, rank))
        magnitude = None
        if self.config.dora:
            name = f"{stem}.lora_magnitude_vector"
            name = f"{name}.weight" if f"{name}.weight" in self.checkpoint else name
            magnitude = self._take(name, (outputs,))
        if a is None or b is None or (magnitude is None and self.config.dora):
            return
        b = b * np.float32(self.config.scale(module))
        for part in tensor.parts:
            own = None if magnitude is None else magnitude[part.rows]
            yield Update(part.leaf, part.layer, a, b[part.rows], own)

    def _read_projections(self, modules: Sequence[str]) -> None:
        """VeRA's frozen factors, as large as the largest linear layer needs."""
        self.projections: tuple[np.ndarray, np.ndarray] | None = None
        if not self.config.vera or not modules:
            return
        shapes = [self.tensors[f"{module}.weight"].shape for module in modules]
        rank = self.config.r
        a = self._take("base_model.vera_A", (rank, max(inputs for _, inputs in shapes)))
        b = self._take("base_model.vera_B", (max(outputs for outputs, _ in shapes), rank))
        self.projections = None if a is None or b is None else (a, b)

    def _vera_updates(self, module: str) -> Iterator[Update]:
        tensor, stem = self.tensors[f"{module}.weight"], PREFIX + module
        outputs, inputs = tensor.shape
        d = self._take(f"{stem}.vera_lambda_d", (self.config.r,))
        b = self._take(f"{stem}.vera_lambda_b", (outputs,))
        if d is None or b is None or self.projections is None:
            return
        down = self.projections[0][:, :inputs] * d[:, None]
        up = self.projections[1][:outputs] * b[:, None]
        for part in tensor.parts:
            yield Update(part.leaf, part.layer, down, up[part.rows], None)

    def _own_bias(self, module: str) -> Iterator[Bias]:
        """The bias of B, which is added to the base's."""
        if not self.config.lora_bias:
            return
        name = f"{PREFIX}{module}.lora_B.bias"
        values = self._take(name, self.tensors[f"{module}.weight"].shape[:1])
        if f"{module}.bias" not in self.tensors:
            self.problems.append(f"{name} has no bias in the base to be added to")
        elif values is not None:
            values = values * np.float32(self.config.scale(module))
            for part in self.tensors[f"{module}.bias"].parts:
                yield Bias(part.leaf, part.layer, values[part.rows], added=True)

    def _take(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """A tensor in float32; None, and a problem, unless it has this shape."""
        self.left.discard(name)
        if name not in self.checkpoint:
            self.problems.append(f"{name} is missing; expected shape {shape}")
            return None
        found, dtype = self.checkpoint.shape(name), self.checkpoint.dtype(name)
        if found != shape:
            self.problems.append(f"{name} has shape {found}; expected {shape}")
        elif dtype not in FLOATS.values():
            self.problems.append(f"{name} is {dtype}; expected floating point")
        else:
            values = np.asarray(self.checkpoint.read(name), np.float32)
            if np.isfinite(values).all():
                return values
            self.problems.append(f"{name} holds NaN or infinity")
        return None

    def _beside(self, name: str) -> Iterator[Bias]:
        """Handles a tensor that PEFT saves beside a LoRA: a bias, or a copy of a base weight."""
        own = _base_name(name)
        tensor = self.tensors.get(own)
        if tensor is None or not name.startswith(PREFIX):
            return
        if tensor.shape == self.checkpoint.shape(name):
            theirs = self._base_values(tensor)
            if np.array_equal(self.checkpoint.read(name).astype(theirs.dtype), theirs):
                self.left.discard(name)
                return
        if not own.endswith(".bias") or not self.config.bias:
            return
        if (values := self._take(name, tensor.shape)) is not None:
            for part in tensor.parts:
                yield Bias(part.leaf, part.layer, values[part.rows], added=False)

    def _base_values(self, tensor: _Tensor) -> np.ndarray:
        """A tensor of the base in the file's layout."""
        parts = []
        for part in tensor.parts:
            if part.leaf == ("head",) and self.base.config.tied_head:
                return np.asarray(self.base.params["embed"])
            value: Any = self.base.params
            for name in part.leaf:
                value = value[name]
            value = value[part.layer] if part.leaf[0] == "layers" else value
            parts.append(tables.to_file(np.asarray(value), part.row))
        return np.concatenate(parts)

    def _why(self, name: str) -> str:
        """The problem with a tensor that nothing asks for."""
        if "lora_embedding_" in name:
            return f"is a LoRA on the embeddings, which is not supported. {peft.MERGE}"
        own = _base_name(name)
        if name.startswith(PREFIX) and own in self.tensors:
            expected, found = self.tensors[own].shape, self.checkpoint.shape(name)
            if expected != found:
                return f"has shape {found}; the base's is {expected}: was the vocabulary resized?"
            return f"is a weight of the base itself, changed in training. {peft.MERGE}"
        if f"{own.split('.lora_')[0]}.weight" in self.tensors and ".lora_" in own:
            return f"is not asked for by {peft.CONFIG}"
        return "is not known" + f"; expected {PREFIX}..." * (not name.startswith(PREFIX))


def lora_digest(folder: Path) -> str:
    """The `Lora.digest` of a PEFT folder, without its base. Raises WeightsError."""
    return _digest(peft.read_config(folder), Checkpoint.open_file(folder / peft.TENSORS))


def _digest(config: LoraConfig, checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(repr(config).encode())
    for name in sorted(checkpoint.names()):
        digest.update(name.encode() + checkpoint.raw(name).tobytes())
    return digest.hexdigest()


def _base_name(name: str) -> str:
    """The base's name of a tensor that was saved beside a LoRA."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def _tensors(config: ModelConfig, source: Path | None) -> dict[str, _Tensor]:
    """Every tensor of the base by its name in transformers; a tied head, too."""
    found: dict[str, _Tensor] = {}
    leaves = list(tables.rows(config))
    if config.tied_head:
        head = Leaf((config.width, config.vocab_size), ("embed", "vocab"))
        leaves.append((("head",), head, tables.row(config, ("head",))))
    for path, leaf, row in leaves:
        stacked = leaf.axes[0] == "layers"
        inner = leaf.shape[1:] if stacked else leaf.shape
        rows, shape = tables.file_shape(inner, row)[0], tables.tensor_shape(inner, row)
        name = module_name(row.name, source)
        for layer in range(leaf.shape[0]) if stacked else (0,):
            tensor = found.setdefault(name.format(layer=layer), _Tensor(shape, []))
            tensor.parts.append(_Part(path, layer, row, slice(row.start, row.start + rows)))
    for tensor in found.values():
        tensor.parts.sort(key=lambda part: part.rows.start)
    return found
