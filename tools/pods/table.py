"""Compiles the paper's recipes for TPU slices, into one table: memory, time, MFU, collectives.

    python tools/pods/table.py                        # all recipes, all topologies
    python tools/pods/table.py --topologies v5e:2x4   # this topology only; other rows are kept
    python tools/pods/table.py --recipes paper/qwen3 --cloud Qwen3-8B --topologies v5e:2x4
    python tools/pods/table.py --batches              # decoding and specialising at 1, 32, 256 rows

Each pair is one `lorage compile` in its own process. Finished rows go into
`experiments/results/pod.json`, and `pod.md` is made from it. No TPU is needed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
RECIPES = ("paper/tinyllama", "paper/qwen", "paper/gemma")
CLOUD = "Meta-Llama-3-8B"
CHIPS = ("v5e", "v6e")
TOPOLOGIES = ("v5e:2x4", "v5e:4x4", "v5e:16x16", "v6e:2x4", "v5p:2x2x1", "v4:2x2x2", "v5e:2x4*2")
ROW_TOKENS = 2560  # per row of a typical batch: 20k tokens of prompts and 10k of queries, packed
INTRO = f"""# The paper's recipes, compiled for pods

A batch has 64 prompts and 64 queries, in 8 packed rows each. Memory is for the longest possible batch,
in which every text has 2048 tokens. Times are for a typical batch with rows of {ROW_TOKENS} slots and, in
brackets, for the longest. All figures come from the TPU compiler (`lorage compile`) without a TPU, so
no time was measured, and all are per chip. Memory is compared with what a chip leaves to a program. A
step takes at least the given time, which is the largest of arithmetic, HBM and interconnect, each by
itself. The MFU, which does not count recomputed activations, is at most the given one. Collectives
are the GB that a chip sends in a typical step.

| recipe | topology | chips | layers | train step, peak GiB | specialise | merge | decode | fits | typical step s (longest) | bound by | MFU % | collectives of the typical step | of the merge |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501
BATCHES, BATCH_TOKENS = "1,32,256", 512
# A chip decodes; a host of eight reads prompts, as the cloud does not fit a v5e chip. The edge has
# no part in that but the number of meta tokens.
BATCH_RUNS = (
    *((recipe, f"{chip}:1x1", "decode,decode_cards") for recipe in RECIPES for chip in CHIPS),
    *((RECIPES[0], f"{chip}:2x4", "specialize") for chip in CHIPS),
    (RECIPES[1], "v5e:2x4", "decode"),  # eight chips side by side: nothing is sent
)
BATCH_INTRO = f"""
## Decoding and specialising, by batch size

Decoding has a cache of {BATCH_TOKENS} tokens and 64 new ones; the figures are those of a token in every
row, mostly on one chip. `decode` is the merged edge, `decode_cards` the base with a card of its own for every
row. `specialize` reads prompts of {BATCH_TOKENS} tokens on a host of eight chips (figures per chip): the
weights stay where they are, split over as few chips as hold them in half of their memory (`data x
tensor`), and the rows go to the groups of such chips. A batch is filled up to a row per group. Bytes are
counted without the padding of tiles, and a token is chosen by sampling: the sort over Qwen's vocabulary moves
9.7 of the 17.2 GB of its 256 rows, which greedy decoding does without. The columns above for specialising and decoding are older: weights
then moved, 63 GB for 16 thousand tokens of prompts and 1.2 GB for a token of TinyLlama.

| edge | topology | program | batch | data x tensor | peak GiB | GFLOP | HBM GB | sent GB | at least ms | bound by | rows/s at most |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description="Compiles the paper's recipes for TPU slices")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="experiments' names")
    parser.add_argument("--topologies", nargs="+", help="default: all of the table")
    parser.add_argument("--cloud", default=CLOUD, help="LORAGE_CLOUD of the recipes")
    parser.add_argument("--layers", type=int, help="cut both models to this many layers")
    parser.add_argument("--batches", action="store_true", help="only the batch sizes")
    options = parser.parse_args()
    file = RESULTS / "pod.json"
    table = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    if options.batches:
        add_batches(table, options)
        return
    for recipe in options.recipes:
        for topology in options.topologies or TOPOLOGIES:
            label = recipe.replace("/", "_")
            label += "" if options.cloud == CLOUD else f" under {options.cloud}"
            name = f"{label} {topology}" + (f" {options.layers}" if options.layers else "")
            more = ["--row-tokens", str(ROW_TOKENS)]
            table["rows"][name] = {"recipe": label, **compiled(recipe, topology, more, options)}
            for program in table["rows"][name]["programs"].values():
                program.pop("collective_list")
            write(table)


def add_batches(table: dict[str, Any], options: argparse.Namespace) -> None:
    """Adds the runs at several batch sizes."""
    for recipe, topology, programs in BATCH_RUNS:
        if recipe not in options.recipes or topology not in (options.topologies or [topology]):
            continue
        more = ["--batches", BATCHES, "--programs", programs, "--row-tokens", str(BATCH_TOKENS)]
        result = compiled(recipe, topology, more, options)
        for one in result["batches"]:
            one.pop("collective_list")
        name = f"{recipe.replace('/', '_')} {topology}"
        table.setdefault("batches", {})[name] = result
        write(table)


def write(table: dict[str, Any]) -> None:
    (RESULTS / "pod.json").write_text(json.dumps(table, indent=1) + "\n")
    text = INTRO + "".join(line(row) for row in table["rows"].values())
    if "batches" in table:
        lines = [
            batch_line(run, one) for run in table["batches"].values() for one in run["batches"]
        ]
        text += BATCH_INTRO + "".join(lines)
    (RESULTS / "pod.md").write_text(text)


def compiled(
    recipe: str, topology: str, more: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """The result of `lorage compile --json`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.json"
        command = [sys.executable, "-m", "lorage_jax.cli", "compile", f"experiments/{recipe}.py"]
        command += ["--topology", topology, "--json", str(file), *more]
        command += ["--layers", str(options.layers)] if options.layers else []
        environment = os.environ | {"LORAGE_CLOUD": options.cloud}
        subprocess.run(command, cwd=ROOT, check=True, env=environment)
        result = json.loads(file.read_text())
    origin = result["provenance"]  # the file is temporary
    origin["command"] = origin["command"].replace(f" --json {file}", "")
    return result


def line(row: dict[str, Any]) -> str:
    """One row of the table as Markdown."""
    programs, roof = row["programs"], row["typical_roofline"]
    peaks = [
        number(programs[n]["peak_gib"]) for n in ("train_step", "specialize", "merge", "decode")
    ]
    sent = [collectives(programs[n]) for n in ("typical_step", "merge")]
    cells = [
        row["recipe"],
        row["topology"],
        row["chips"],
        f"{row['cloud_layers']} + {row['edge_layers']}",
        f"{peaks[0]} of {row['chip']['usable_gib']:g}",
        *peaks[1:],
        "yes" if row["fits"] else "**no**",
        f"{number(roof['step_s'])} ({number(row['roofline']['step_s'])})",
        roof["bound_by"] or "?",
        number(roof["predicted_mfu"] and 100 * roof["predicted_mfu"]),
        *sent,
    ]
    return "| " + " | ".join(map(str, cells)) + " |\n"


def batch_line(run: dict[str, Any], one: dict[str, Any]) -> str:
    """One row of the table of batch sizes as Markdown."""
    roof, name = one["roofline"], Path(run["edge"]).name
    step, sent = roof["step_s"], sum(one["collectives"].values()) / 1e9
    hbm = one["hbm_bytes_per_chip"]
    cells = [
        name if one["program"] != "specialize" else f"{Path(run['cloud']).name}, for {name}",
        run["topology"],
        one["program"],
        one["batch"],
        f"{one['mesh']['data']} x {one['mesh']['tensor']}",
        f"{number(one['peak_gib'])} of {run['chip']['usable_gib']:g}"
        + ("" if one["fits"] else ", **does not fit**"),
        f"{one['flops_per_chip'] / 1e9:,.1f}",
        number(hbm and hbm / 1e9),
        "?" if "refused" in one else f"{sent:.2f}",
        number(step and 1e3 * step),
        roof["bound_by"] or "?",
        "?" if step is None else f"{one['batch'] / step:,.0f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |\n"


def number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def collectives(program: dict[str, Any]) -> str:
    if "refused" in program:
        return "?"
    sent = program["collectives"].items()
    return ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sent) or "none"


if __name__ == "__main__":
    main()
