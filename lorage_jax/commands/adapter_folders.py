"""`lorage adapters`: a PEFT folder per system prompt, for servers that hold many."""

from __future__ import annotations

from typing import Any

from lorage_jax.commands.conversions import Adapters
from lorage_jax.data.named_prompts import read_named_prompts
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.store import edge_path, generator_path, load_generator, read_values
from lorage_jax.hf.load import load_model

AT_ONCE = 16  # prompts of one cloud pass


def run(options: Adapters) -> dict[str, Any]:
    """Writes the folder of every prompt that has none yet; returns the names of both kinds."""
    prompts = read_named_prompts(options.prompts)
    kept = [name for name in prompts if (options.out / name).exists()]
    new = [name for name in prompts if name not in kept]
    if new:
        source = generator_path(options.generator)
        folder = edge_path(read_values(source), source, options.edge)  # before the cloud is loaded
        generator, edge = load_generator(source, options.cloud), load_model(folder)
        for begin in range(0, len(new), AT_ONCE):
            names = new[begin : begin + AT_ONCE]
            cards = specialize(generator, [prompts[name] for name in names])
            for name, card in zip(names, cards, strict=True):
                place = options.out / name
                export_adapter(generator.pool, card, edge, place, base_name=options.base_name)
    print(f"Adapters in {options.out}: {len(new)} written, {len(kept)} were there.")
    return {"written": new, "kept": kept}
