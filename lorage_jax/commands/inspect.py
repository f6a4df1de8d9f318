"""`lorage inspect`: what a card or a generator holds, as text, picture and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.errors import ConfigError
from lorage_jax.generator.card import load_card
from lorage_jax.generator.store import FORMAT, TENSORS, read_values
from lorage_jax.hf.files import read_tensors
from lorage_jax.hf.folder import check_file
from lorage_jax.pictures import gate_heatmap, gate_text


def inspect(path: Path, png: Path | None, overwrite: bool) -> dict[str, Any]:
    """Prints and returns the facts; with `png` also draws the gates of a card."""
    if path.is_dir() and (path / TENSORS).exists():
        if png is not None:
            raise ConfigError(f"{path} is a generator, without gates to draw; --png needs a card.")
        return _generator(path)
    if png is not None:
        check_file(png, overwrite)
    card = load_card(path)
    open_gates = np.count_nonzero(card.gates, axis=1)
    print(f"generator {card.generator}\nedge      {card.edge}")
    print("".join(f"{name}: {value}\n" for name, value in card.about.items()), end="")
    print(gate_text(card.gates))
    if png is not None:
        gate_heatmap(card.gates, png, overwrite)
        print(f"picture: {png}")
    return {**card.to_dict(), "open_gates_per_layer": open_gates.tolist()}


def _generator(path: Path) -> dict[str, Any]:
    values = read_values(path)
    tensors = read_tensors(path / TENSORS)
    sizes: dict[str, int] = {}
    for name, array in tensors.items():
        part = ".".join(name.split(".")[:2])
        sizes[part] = sizes.get(part, 0) + array.size
    print(f"{FORMAT}  {values['fingerprint']}")
    for role in ("cloud", "edge"):
        place = values[role].get("path") or values[role].get("relative", "(not recorded)")
        print(f"{role:6}{place}  {values[role]['fingerprint'][:19]}...")
    print("".join(f"{name:24}{size:14,} numbers\n" for name, size in sizes.items()), end="")
    settings = values["generator"] | values["about"]
    print("  ".join(f"{name}={value}" for name, value in settings.items()))
    return {**values, "sizes": sizes}
