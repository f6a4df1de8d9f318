"""Sets of GPT4Tools records to score: the benchmark's files, or generated ones in their place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorage_jax.data.gpt4tools import ToolRecord, read_tool_records, to_tool_records
from lorage_jax.data.records import ENDINGS, file_digest
from lorage_jax.errors import DataError
from lorage_jax.world.tools import draw

TRAINING = ("train", "71k")  # in the names of the benchmark's files for training


@dataclass(frozen=True)
class ToolSet:
    """Records that are scored together: their name, where they are from, and a digest of that."""

    name: str
    source: str
    files: str
    records: list[ToolRecord]


def benchmark_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """(files to score, files left out because they are for training), each sorted by name.

    Raises DataError for a folder without a file to score.
    """
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS))
    training = [path for path in files if any(mark in path.name for mark in TRAINING)]
    scored = [path for path in files if path not in training]
    if not scored:
        raise DataError(f"{folder}: no test records; expected GPT4Tools' {' or '.join(ENDINGS)}.")
    return scored, training


def benchmark_set(path: Path) -> ToolSet:
    """One file of the benchmark; its test files differ in whether training had their tools."""
    records = read_tool_records(path)
    source = f"{len(records)} records of {path.name}"
    return ToolSet(path.name.split(".")[0], source, file_digest(path), records)


def generated_set(split: str, count: int, seed: int) -> ToolSet:
    """`count` records of our own, whose tools are those of the training ("seen") or "unseen"."""
    rows = draw("train" if split == "seen" else split, count, seed)
    source = f"{count} generated records with {split} tools (seed {seed})"
    return ToolSet(f"generated_{split}", source, "generated", to_tool_records(rows))
