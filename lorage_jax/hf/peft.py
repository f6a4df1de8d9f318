"""`adapter_config.json` of a PEFT folder: the LoRA or VeRA it asks for, read as PEFT reads it.

A setting under which the same tensors would mean something else is an error. So is an unknown value
of a setting that PEFT knows. Settings that PEFT does not know change nothing there, nor here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorage_jax.errors import WeightsError, bullets, denied

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MERGE = "Merge it with peft, and load the merged folder"

# Settings that make the adapter something else than a LoRA on linear layers.
BEYOND = {
    "modules_to_save": "it holds whole modules beside the LoRA",
    "trainable_token_indices": "it holds trained token embeddings",
    "target_parameters": "its LoRA is on parameters, not on linear layers",
    "layer_replication": "its model has repeated layers",
    "alora_invocation_tokens": "aLoRA works on a part of the tokens, so that it cannot be merged",
    "arrow_config": "Arrow chooses an adapter per token, so that it cannot be merged",
    "use_qalora": "QA-LoRA pools its input",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "kasa_config": "KaSA changes the base's weights",
    "monteclora_config": "MonteCLoRA samples its factors",
    "velora_config": "VeLoRA is not a plain LoRA",
    "megatron_config": "its layers are Megatron's",
}
# Ways to begin (`init_lora_weights`) that leave the base as it is, and those that change it.
HARMLESS = ("gaussian", "eva", "orthogonal", "mica")
CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LoraConfig:
    """A plain LoRA on linear layers: their ranks, scales and names.

    Attributes:
        r, alpha: rank and alpha of the modules that no pattern names.
        rank_pattern, alpha_pattern: regular expression for the end of a module's name -> value.
        rslora: scales by alpha / sqrt(r), not by alpha / r.
        dora: every output has a trained magnitude.
        vera: all layers share random factors, which trained vectors scale.
        bias: True if the folder may hold biases that replace those of the base.
        lora_bias: True if B has a bias of its own.
        targets: names or ends of names of the adapted modules, or a regular expression for the
            whole name; None means all modules that have tensors.
        excluded: the same, for modules that are not adapted.
        layers: the layers to adapt; None means all.
        layers_pattern: names of the list of layers, before the layer's number.
    """

    r: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    vera: bool = False
    bias: bool = False
    lora_bias: bool = False
    targets: tuple[str, ...] | str | None = None
    excluded: tuple[str, ...] | str = ()
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()

    def rank(self, module: str) -> int:
        """The rank of a module, by its name in the model."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """The factor of a module's B A."""
        rank = self.rank(module)
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def selects(self, module: str, output: bool) -> bool | None:
        """True if the module is adapted; `output`: it is the head. None if its tensors decide."""
        if isinstance(self.excluded, str):
            if self.excluded and re.fullmatch(self.excluded, module):
                return False
        elif _ends_with_any(module, self.excluded):
            return False
        if self.targets is None:
            return None
        if isinstance(self.targets, str):
            if self.targets.lower() == "all-linear":
                return not output
            return re.fullmatch(self.targets, module) is not None
        if module in self.targets:
            return True
        return _ends_with_any(module, self.targets) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        if self.layers is None:
            return True
        if not self.layers_pattern:
            found = re.match(r".*?\.[^.]*\.(?P<layer>\d+)\.", module)
        else:
            start, end = r"(?:^|.*?\.)", r"\.(?P<layer>\d+)\."
            tries = (re.match(start + name + end, module) for name in self.layers_pattern)
            found = next((match for match in tries if match), None)
        return found is not None and int(found["layer"]) in self.layers


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return patterns.get(module, default)


def _ends_with_any(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def named_base(folder: Path) -> str | None:
    """The name of the base model in a PEFT folder; None if there is none, or it cannot be read."""
    try:
        name = json.loads((folder / CONFIG).read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def read_config(folder: Path) -> LoraConfig:
    """Reads adapter_config.json. Raises WeightsError that lists everything beyond a plain LoRA."""
    try:
        values = json.loads((folder / CONFIG).read_text("utf-8"))
        if not isinstance(values, dict) or "peft_type" not in values:
            raise ValueError("expected an object with peft_type")
    except FileNotFoundError:
        raise WeightsError(f"{folder} is not a PEFT folder: {_instead(folder)}") from None
    except PermissionError:
        raise WeightsError(denied(folder / CONFIG)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{folder} is not a PEFT folder: {CONFIG} cannot be read ({error})."
        ) from None
    reader = _Reader(values)
    config = reader.config()
    if reader.beyond:
        raise WeightsError(
            f"{folder} is more than a plain LoRA ({CONFIG}):\n{bullets(reader.beyond)}\n{MERGE}."
        )
    if config is None or reader.wrong:
        raise WeightsError(f"{folder / CONFIG} cannot be used:\n{bullets(reader.wrong)}")
    return config


def _instead(folder: Path) -> str:
    """Says what a folder without adapter_config.json holds, and what to do."""
    found = f"it holds no {CONFIG}"
    if (folder / "config.json").is_file():
        return (
            f"{found}. It is a model; pass it as --model (Python: load_model), not as an adapter."
        )
    inside = sorted(folder.glob(f"*/{CONFIG}"))
    return f"{found}; did you mean {inside[0].parent}?" if inside else f"{found}."


class _Reader:
    """Reads the settings one by one and keeps every problem."""

    def __init__(self, values: dict[str, Any]):
        self.values = values
        self.beyond: list[str] = []
        self.wrong: list[str] = []

    def config(self) -> LoraConfig | None:
        if self.values.get("peft_type") == "VERA":
            return self._vera()
        if self.values.get("peft_type") != "LORA":
            self.beyond.append(
                f"peft_type is {self.values.get('peft_type')!r}; expected 'LORA' or 'VERA'"
            )
            return None  # another method has other settings
        for name, reason in BEYOND.items():
            if self.values.get(name):
                self.beyond.append(f"{name} is set: {reason}")
        self._beginning()
        found = LoraConfig(
            r=self._number("r", self.values.get("r", 8), int),
            alpha=self._number("lora_alpha", self.values.get("lora_alpha", 8), float),
            rank_pattern=self._pattern("rank_pattern", int),
            alpha_pattern=self._pattern("alpha_pattern", float),
            rslora=self._switch("use_rslora"),
            dora=self._switch("use_dora"),
            bias=self._bias(),
            lora_bias=self._switch("lora_bias"),
            targets=self._names("target_modules"),
            excluded=self._names("exclude_modules") or (),
            layers=self._layers(),
            layers_pattern=self._layers_pattern(),
        )
        # Read by PEFT, but without meaning for the linear layers of a decoder.
        self._switch("fan_in_fan_out")
        self._switch("ensure_weight_tying")
        if isinstance(found.targets, str) and (found.layers is not None or found.layers_pattern):
            self.wrong.append("layers_to_transform needs target_modules to be a list of names")
        if found.layers_pattern and found.layers is None:
            self.wrong.append("layers_pattern needs layers_to_transform")
        if found.dora and found.lora_bias:
            self.wrong.append("use_dora and lora_bias exclude each other")
        return found

    def _vera(self) -> LoraConfig:
        """VeRA has no alpha; its update is `b B d A` with the projections of the folder."""
        if self.values.get("modules_to_save"):
            self.beyond.append(f"modules_to_save is set: {BEYOND['modules_to_save']}")
        if self.values.get("save_projection", True) is not True:
            self.beyond.append(
                "save_projection is off: its random projections are not in the folder, and only "
                "torch can draw them again"
            )
        rank = self._number("r", self.values.get("r", 256), int)
        self._switch("fan_in_fan_out")
        if self.values.get("bias", "none") not in ("none", "all", "vera_only"):
            self.wrong.append(
                f"bias is {self.values['bias']!r}; expected 'none', 'all' or 'vera_only'"
            )
        return LoraConfig(
            r=rank,
            alpha=rank,
            vera=True,
            bias=self.values.get("bias", "none") != "none",
            targets=self._names("target_modules"),
            layers=self._layers(),
            layers_pattern=self._layers_pattern(),
        )

    def _beginning(self) -> None:
        value = self.values.get("init_lora_weights", True)
        if not isinstance(value, str):
            if not isinstance(value, bool | None):
                self.wrong.append(f"init_lora_weights is {value!r}; expected a name or a switch")
        elif value.lower().startswith(CHANGING):
            self.beyond.append(
                f"init_lora_weights is {value!r}, which changed the base's weights before "
                "training. peft converts such an adapter into a plain LoRA (save_pretrained with "
                "path_initial_model_for_weight_conversion)"
            )
        elif value.lower() not in HARMLESS:
            self.wrong.append(
                f"init_lora_weights is {value!r}; expected true, false or one of "
                f"{', '.join(HARMLESS)}"
            )

    def _switch(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool | None):
            self.wrong.append(f"{name} is {value!r}; expected true or false")
        return bool(value)

    def _bias(self) -> bool:
        value = self.values.get("bias", "none")
        if value not in ("none", "all", "lora_only"):
            self.wrong.append(f"bias is {value!r}; expected 'none', 'all' or 'lora_only'")
        return value != "none"

    def _number(self, name: str, value: Any, kind: type) -> Any:
        """A rank (an int of 1 or more) or an alpha (any finite number)."""
        kinds, expected = (int, "1 or more") if kind is int else (int | float, "a number")
        good = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not good or (kind is int and value < 1):
            self.wrong.append(f"{name} is {value!r}; expected {expected}")
            return 1
        return value

    def _pattern(self, name: str, kind: type) -> dict[str, Any]:
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            self.wrong.append(f"{name} is {value!r}; expected names with numbers")
            return {}
        return {
            key: self._number(f"{name}[{key!r}]", number, kind)
            for key, number in value.items()
            if self._compiles(name, key)
        }

    def _names(self, name: str) -> tuple[str, ...] | str | None:
        value = self.values.get(name)
        if isinstance(value, str):
            return value if self._compiles(name, value) else ""
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
        if value is not None:
            self.wrong.append(f"{name} is {value!r}; expected a list of names, or one expression")
        return None

    def _layers(self) -> tuple[int, ...] | None:
        value = self.values.get("layers_to_transform")
        found = [value] if isinstance(value, int) else value
        if found is None or found == []:
            return None
        if not isinstance(found, list) or any(type(one) is not int for one in found):
            self.wrong.append(f"layers_to_transform is {value!r}; expected numbers of layers")
            return None
        return tuple(found)

    def _layers_pattern(self) -> tuple[str, ...]:
        value = self.values.get("layers_pattern") or []
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or any(not isinstance(one, str) for one in found):
            self.wrong.append(f"layers_pattern is {value!r}; expected names")
            return ()
        return tuple(one for one in found if self._compiles("layers_pattern", one))

    def _compiles(self, name: str, expression: str) -> bool:
        try:
            re.compile(expression)
        except re.error as error:
            self.wrong.append(f"{name}: {expression!r} is not a regular expression ({error})")
            return False
        return True
