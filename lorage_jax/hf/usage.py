"""How a model is used, beside its weights: arithmetic, vocabulary and turns, as one digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lorage_jax.data.templates import ChatTemplate, Template
from lorage_jax.fields import home_path
from lorage_jax.hf.arithmetic import arithmetic
from lorage_jax.hf.load import folder_template
from lorage_jax.hf.source import open_model

# (path, mtime_ns, size) of every file beside the weights -> digest. A changed file is a new key.
_known: dict[tuple[tuple[str, int, int], ...], str] = {}


def usage_digest(path: str | Path) -> str:
    """A digest of what a model's answers depend on beside its weights.

    A fingerprint covers weights alone: two models with the same one answer differently with other
    fields in config.json, another tokenizer or another chat template. Raises WeightsError for a
    folder or GGUF file that cannot be read.
    """
    path = home_path(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    key = tuple((str(file.resolve()), stat.st_mtime_ns, stat.st_size) for file, stat in stats)
    if key not in _known:
        config, _, tokenizer, _ = open_model(path, with_tokenizer=True)
        parts = [
            arithmetic(config),
            _vocabulary(tokenizer),
            _turns(folder_template(path, tokenizer)),
        ]
        text = json.dumps(parts, sort_keys=True, default=str)
        _known[key] = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return _known[key]


def _vocabulary(tokenizer: Any) -> list[tuple[str, int]] | None:
    return None if tokenizer is None else sorted(tokenizer.get_vocab().items())


def _turns(template: Template | None) -> list[Any] | None:
    """The turns, and how the tokenizer cuts their text."""
    if template is None:
        return None
    own = template.identity() if isinstance(template, ChatTemplate) else None
    kind = template.kind
    return [kind.name, kind.version, own, template.digest(), template.read_digest()]
