"""Writes one PEFT folder per system prompt, for vLLM, SGLang and other servers with many adapters.

python tools/adapters.py nano prompts.jsonl --out /cards --base-name /models/edge

prompts.jsonl has one {"name": ..., "system": ...} per line; the name is the folder's and, in the
server, the adapter's. Folders that exist are left alone, so the list may grow.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path

from lorage_jax.errors import DataError
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.store import edge_path, generator_path, load_generator, read_values
from lorage_jax.hf.load import load_model
from lorage_jax.models.model import Model

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
AT_ONCE = 16  # prompts of one cloud pass


def read_prompts(path: Path) -> dict[str, str]:
    """System prompts by name. Raises DataError that names the line."""
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            name, system = row["name"], row["system"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{where}: expected {{"name", "system"}} ({error}).') from None
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise DataError(f"{where}: the name is {name!r}; expected letters, digits, '.-_'.")
        if not isinstance(system, str) or not system.strip():
            raise DataError(f"{where}: the system prompt is empty.")
        if name in found:
            raise DataError(f"{where}: {name!r} was there before.")
        found[name] = system
    return found


def write_adapters(
    generator: Generator, edge: Model, prompts: Mapping[str, str], out: Path, base_name: str | None
) -> list[str]:
    """Writes the folder of every prompt that has none yet; returns their names."""
    new = [name for name in prompts if not (out / name).exists()]
    for begin in range(0, len(new), AT_ONCE):
        names = new[begin : begin + AT_ONCE]
        cards = specialize(generator, [prompts[name] for name in names])
        for name, card in zip(names, cards, strict=True):
            export_adapter(generator.pool, card, edge, out / name, base_name=base_name)
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description="One PEFT folder per system prompt")
    parser.add_argument("generator", type=Path, help="folder of `lorage train`, nano or smollm2")
    parser.add_argument("prompts", type=Path, help='JSON lines {"name", "system"}')
    parser.add_argument("--out", type=Path, required=True, help="folder of all adapters")
    parser.add_argument("--edge", type=Path, help="folder of the edge, if it has moved")
    parser.add_argument("--base-name", help="the string that `vllm serve` is given as the model")
    options = parser.parse_args()
    prompts = read_prompts(options.prompts)
    source = generator_path(options.generator)
    folder = edge_path(read_values(source), source, options.edge)
    generator = load_generator(source)
    new = write_adapters(generator, load_model(folder), prompts, options.out, options.base_name)
    print(f"{len(new)} new of {len(prompts)} adapters in {options.out}")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"adapters: {error}") from None
