"""LoRA-Gen in JAX: a system prompt in, a specialised small language model out.

The public face. Names are imported when first used, so that `import lorage_jax` is quick. Where
libtpu is installed without a TPU, it is kept from looking for one and from complaining.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lorage_jax.libtpu import keep_quiet as _keep_quiet

if TYPE_CHECKING:
    from lorage_jax.errors import LorageError as LorageError
    from lorage_jax.generator.adapter import export_adapter as export_adapter
    from lorage_jax.generator.card import Card as Card
    from lorage_jax.generator.card import load_card as load_card
    from lorage_jax.generator.generator import Generator as Generator
    from lorage_jax.generator.generator import specialize as specialize
    from lorage_jax.generator.lora_gguf import export_lora_gguf as export_lora_gguf
    from lorage_jax.generator.merge import merge as merge
    from lorage_jax.generator.peft import load_adapter as load_adapter
    from lorage_jax.generator.store import load_generator as load_generator
    from lorage_jax.generator.store import save_generator as save_generator
    from lorage_jax.hf.export import export_merged as export_merged
    from lorage_jax.hf.load import load_model as load_model
    from lorage_jax.infer.chat import chat as chat
    from lorage_jax.infer.forward import forward as forward
    from lorage_jax.infer.generate import generate as generate
    from lorage_jax.llamacpp.export import export_gguf as export_gguf
    from lorage_jax.llamacpp.onto import export_onto_gguf as export_onto_gguf
    from lorage_jax.methods.training import train as train
    from lorage_jax.models.model import Model as Model

_HOMES = {
    "LorageError": "errors",
    "Model": "models.model",
    "forward": "infer.forward",
    "load_model": "hf.load",
    "export_merged": "hf.export",
    "export_adapter": "generator.adapter",
    "export_gguf": "llamacpp.export",
    "export_lora_gguf": "generator.lora_gguf",
    "export_onto_gguf": "llamacpp.onto",
    "load_adapter": "generator.peft",
    "Generator": "generator.generator",
    "specialize": "generator.generator",
    "load_generator": "generator.store",
    "save_generator": "generator.store",
    "Card": "generator.card",
    "load_card": "generator.card",
    "merge": "generator.merge",
    "generate": "infer.generate",
    "chat": "infer.chat",
    "train": "methods.training",
}
__all__ = sorted(_HOMES)

_keep_quiet()
# Tokenizers and configs need no PyTorch; transformers says that it misses it.
logging.getLogger("transformers").addFilter(
    lambda record: not record.getMessage().startswith("PyTorch was not found")
)


class _Room(ModuleType):
    """A room that has the name of a public function, `train`; it can be called as the function."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(_home(name), name)(*args, **options)


class _Face(ModuleType):
    """This module. Importing a room makes it an attribute here, instead of the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def _home(name: str) -> ModuleType:
    return importlib.import_module(f"lorage_jax.{_HOMES[name]}")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("lorage_jax")
    if name not in _HOMES:
        raise AttributeError(f"module 'lorage_jax' has no attribute {name!r}")
    value = getattr(_home(name), name)
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return __all__
