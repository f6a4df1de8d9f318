"""`lorage adapters`: a PEFT folder per system prompt, for servers that hold many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorage_jax.commands.conversion_options import Adapters
from lorage_jax.data.named_prompts import NamedPrompt, read_named_prompts
from lorage_jax.errors import DataError, OutputError, bullets
from lorage_jax.files.manifest import manifest_of, written_files
from lorage_jax.files.outputs import check_target
from lorage_jax.generator.adapter import FORMAT, export_adapter
from lorage_jax.generator.generator import (
    Generator,
    prompt_digest,
    prompt_tokens,
    specialize,
)
from lorage_jax.generator.store import edge_path, generator_path, load_generator, read_values
from lorage_jax.hf.load import load_model
from lorage_jax.hf.peft import named_base

AT_ONCE = 16  # prompts of one cloud pass


def run(options: Adapters) -> dict[str, Any]:
    """Writes the folder of every prompt that has none yet; returns the names of both kinds.

    Raises OutputError if at the place of a folder there is something else than its adapter, and
    DataError, naming the line, for a prompt that the cloud cannot read.
    """
    prompts = read_named_prompts(options.prompts)
    source = generator_path(options.generator)
    values = read_values(source)
    kept = _kept(options, prompts, values)
    new = [name for name in prompts if name not in kept]
    if new:
        folder = edge_path(values, source, options.edge)  # before the cloud is loaded
        generator = load_generator(source, options.cloud)
        _check_readable(generator, {name: prompts[name] for name in new})
        edge = load_model(folder)
        for begin in range(0, len(new), AT_ONCE):
            names = new[begin : begin + AT_ONCE]
            cards = specialize(generator, [prompts[name].system for name in names])
            for name, card in zip(names, cards, strict=True):
                place = options.out / name
                export_adapter(generator.pool, card, edge, place, base_name=options.base_name)
    print(f"Adapters in {options.out}: {len(new)} written, {len(kept)} were there.")
    return {"written": new, "kept": kept}


def _check_readable(generator: Generator, prompts: Mapping[str, NamedPrompt]) -> None:
    """Raises DataError for the first prompt that the cloud cannot read, before it reads any."""
    for name, prompt in prompts.items():
        try:
            prompt_tokens(generator, prompt.system)
        except DataError as error:
            raise DataError(f"{prompt.where} ({name}): {error}") from None


def _kept(
    options: Adapters, prompts: Mapping[str, NamedPrompt], values: dict[str, Any]
) -> list[str]:
    """The names whose adapters are there. Raises OutputError if anything else is in a place."""
    kept, problems = [], []
    for name, prompt in prompts.items():
        place = options.out / name
        if not place.is_dir() or not any(place.iterdir()):
            check_target(place, overwrite=False)
        elif different := _different(place, prompt.system, values, options.base_name):
            problems.append(f"{place} {different}")
        else:
            kept.append(name)
    if problems:
        raise OutputError(
            "These folders are not the adapters that were asked for, and are not replaced; move "
            f"them away, or choose another --out:\n{bullets(problems)}"
        )
    return kept


def _different(
    place: Path, system: str, values: dict[str, Any], base_name: str | None
) -> str | None:
    """Says how a folder is not the adapter of a prompt, by its manifest; None if it is that.

    `values` are those of the generator. Only a `base_name` that is given is compared.
    """
    found = manifest_of(place)
    if found.get("format") != FORMAT:
        return "is no adapter that lorage_jax wrote"
    if lost := [name for name in sorted(written_files(place)) if not (place / name).is_file()]:
        return f"is not whole: {lost[0]} is not there"
    recorded = {
        "prompt": (_inside(found, "card", "about", "prompt_sha256"), prompt_digest(system)),
        "generator": (found.get("generator"), values["fingerprint"]),
        "edge": (_inside(found, "base", "fingerprint"), values["edge"]["fingerprint"]),
    }
    other = [name for name, (there, asked) in recorded.items() if there != asked]
    if other:
        return f"was made from another {' and another '.join(other)}"
    if base_name is not None and (named := named_base(place)) != base_name:
        return f"calls its base model {named!r}, not {base_name!r}"
    return None


def _inside(values: Any, *names: str) -> Any:
    """The field of a field of a manifest; None where there is none."""
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values
