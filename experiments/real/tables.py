"""Shared parts of this folder's tables: results of `lorage eval`, kept, and files of a table.

A finished evaluation is kept in runs/real/tables under a name that says what it is of, so that a
table that is made again, or after an interruption, only asks what is not there.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorage_jax import cli
from lorage_jax.bundled import kept_models
from lorage_jax.evaluate.arms import MAIN
from lorage_jax.evaluate.results import EvalResult
from lorage_jax.files.outputs import write_file
from lorage_jax.methods.finished import find_finished
from lorage_jax.provenance import provenance

ROOT = Path(__file__).parents[2]
RUNS = Path("runs/real/tables")
RESULTS = ROOT / "experiments" / "results" / "real"
DATA = Path(os.environ.get("LORAGE_DATA", ROOT.parent / "shared" / "data"))
REAL_DATA = Path(os.environ.get("LORAGE_REAL_DATA", "runs/real/data"))
MODELS = kept_models()
EDGE = MODELS / "SmolLM2-135M-Instruct"
ARMS = {
    "few_shot": "edge, lm-eval's prompt",
    "in_context": "edge, prompt in its context",
    "no_tools": "edge without the tools",
    "lora": "+ one LoRA",
    "lora_in_context": "+ one LoRA, prompt in context",
    "lora_gen": "**+ LoRA-Gen**",
    "lora_gen_tools": "+ LoRA-Gen, tools in context",
    "shuffled": "control: another prompt's card",
    "random": "control: card of random text",
    "mean_gates": "control: mean gates of all prompts",
    "bare": "control: edge without prompt",
}


@dataclass(frozen=True)
class Options:
    """The options of every table."""

    limit: int
    generator: str
    json: Path
    dtype: str = "float32"
    run: Sequence[Path] = ()

    @property
    def runs(self) -> list[str]:
        """Arguments for the runs of other methods, without what the table has already."""
        named = [part for run in self.run for part in ("--run", str(run))]
        return [*named, "--no-baseline", "--no-controls"] if named else []

    def rows(self, usual: Sequence[str]) -> list[str]:
        """The names of the table's rows: the `usual` ones, or those that `runs` asks."""
        return [MAIN, *(run.name for run in self.run)] if self.run else list(usual)


def options(about: str, table: str, limit: int) -> Options:
    """The options of the command line, whose help begins with `about`."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--limit", type=int, default=limit, help="records per task")
    parser.add_argument("--generator", default="smollm2", help="a folder, or the bundled one")
    parser.add_argument("--dtype", default="float32", help="of the edge, as of lorage eval")
    parser.add_argument("--json", type=Path, help="the table; .md lies beside it")
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        help="a finished run of another method (suites.py), to ask instead of baselines and "
        "controls; may be repeated",
    )
    found = Options(**vars(parser.parse_args()))
    usual = RESULTS / (f"{table}_methods.json" if found.run else f"{table}.json")
    return dataclasses.replace(found, json=found.json or usual)


def evaluated(name: str, options: Options, arguments: Sequence[str]) -> EvalResult:
    """The result of `lorage eval` with these arguments, kept in runs/real/tables.

    `name` and the options tell results apart. Raises SystemExit if the evaluation fails, which has
    printed why.
    """
    generator = options.generator.strip("/").replace("/", "_")
    dtype = [] if options.dtype == "float32" else [options.dtype]
    asked = "-".join([name, generator, *map(_identity, options.run), str(options.limit), *dtype])
    file = RUNS / f"{asked}.json"
    if not file.exists():
        shared = ["--dtype", options.dtype, "--limit", str(options.limit), *options.runs]
        command = ["eval", *arguments, *shared, "--json", str(file)]
        print(f"lorage {shlex.join(command)}", flush=True)
        if code := cli.main(command):
            raise SystemExit(code)
    return EvalResult.from_json(json.loads(file.read_text("utf-8")), str(file))


def _identity(run: Path) -> str:
    """The name of a run, and the digest of what it left."""
    contents = json.dumps(find_finished(run).contents, sort_keys=True)
    return f"{run.name}@{hashlib.sha256(contents.encode()).hexdigest()[:8]}"


def write(file: Path, table: Mapping[str, Any], markdown: str) -> None:
    """Writes the table as JSON, and as Markdown beside it; prints the latter."""
    found = {**table, "provenance": provenance(["python", *sys.argv])}
    write_file(file, json.dumps(found, indent=1) + "\n", overwrite=True)
    write_file(file.with_suffix(".md"), markdown, overwrite=True)
    print(markdown)


def grid(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """The lines of a Markdown table: a column of names, and one for each of `head`."""
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    return lines + ["| " + " | ".join([name, *cells]) + " |" for name, cells in rows.items()]
