"""Measures lorage beside transformers, peft and lm-eval on a real model: results/speed.{json,md}.

    python experiments/speed/table.py                        # everything
    python experiments/speed/table.py prefill_1 train        # these rows only; others are kept
    python experiments/speed/table.py --dtypes bfloat16 --repeats 3 --out /tmp/speed

Hardware: two CPU cores that do nothing else. Wall time: about an hour. The model is
SmolLM2-135M-Instruct in $LORAGE_MODELS (by default ~/.cache/lorage-models); --model names another.
Records for scoring are ARC-Easy's in $LORAGE_DATA (by default ../shared/data).

Every row but `generator` is one `lorage bench ... --model`, which times both libraries in turn.
`generator` has no other library: its step is timed in turn with that of an earlier version, which
is checked out beside this one. Finished rows go into speed.json at once, and speed.md is made from
it, so the command continues where it was interrupted (`--again` measures anew).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorage_jax.bench.peers import threads
from lorage_jax.bundled import kept_models
from lorage_jax.files.outputs import write_file
from lorage_jax.provenance import provenance

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
MODELS = kept_models()
DATA = Path(os.environ.get("LORAGE_DATA", ROOT.parent / "shared" / "data"))
RECORDS = DATA / "commonsense" / "arc_easy" / "test.jsonl.gz"
BEFORE = "9d72a80"  # the last version whose step wrote activations transposed and converted weights
UNKNOWN_BEFORE = ("_model_name_or_path", "unk_token_id")  # harmless fields that it refuses
DTYPES = ("float32", "bfloat16")

# Row -> (what it is, arguments of `lorage bench`).
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "prefill_1": ("a prompt of 200 tokens", ("prefill", "--prompt-tokens", "200")),
    "prefill_16": (
        "16 prompts of 200 tokens",
        ("prefill", "--prompt-tokens", "200", "--batch", "16"),
    ),
    "decode_1": (
        "a token after 200",
        ("decode", "--prompt-tokens", "200", "--new-tokens", "32"),
    ),
    "decode_16": (
        "a token after 200 in each of 16 rows",
        ("decode", "--prompt-tokens", "200", "--new-tokens", "32", "--batch", "16"),
    ),
    "score": (
        "50 questions of ARC-Easy, four choices each",
        ("score", "--records", str(RECORDS), "--questions", "50"),
    ),
    "train": (
        "a step of a LoRA of rank 8, 8 rows of 256 tokens",
        ("train", "--rows", "8", "--input-tokens", "256", "--rank", "8"),
    ),
    "train_no_remat": (
        "the same, with all activations kept",
        ("train", "--rows", "8", "--input-tokens", "256", "--rank", "8", "--remat", "none"),
    ),
}
GENERATOR = "generator"
GENERATOR_WHAT = "a generator's step: 2 prompts of 256 tokens, 4 queries of 128 each"
# The least ratio that the project holds to.
GOALS = {
    "bfloat16": {
        "prefill_1": 0.95,
        "prefill_16": 1.3,
        "decode_1": 1.7,
        "decode_16": 2.0,
        "score": 2.0,
        "train": 1.3,
        GENERATOR: 1.8,
    },
    # What it was when float32 was first measured: never slower than that.
    "float32": {"prefill_1": 1.6, "decode_1": 2.1, "score": 4.2, "train": 2.1, GENERATOR: 1.25},
}


def measure(row: str, model: Path, dtype: str, repeats: int, noisy: bool) -> dict[str, Any]:
    """The result of one row, from a process of its own; `noisy` keeps that of a busy machine."""
    if row == GENERATOR:
        return generator_steps(model, dtype, repeats)
    arguments = ["--model", str(model), "--dtype", dtype, "--repeats", str(repeats)]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "result.json"
        command = [*_python("-m", "lorage_jax.cli"), "bench", *ROWS[row][1], *arguments]
        subprocess.run([*command, "--json", str(file)], check=True, env=_environment(ROOT))
        result: dict[str, Any] = json.loads(file.read_text("utf-8"))
    del result["provenance"]  # the table has its own
    # The other library is missing, or the machine is busy.
    if result["ratio"] is None or ("note" in result and not noisy):
        raise SystemExit(f"{row}: {result['note']} (--noisy keeps figures of a busy machine.)")
    return result


def generator_steps(model: Path, dtype: str, repeats: int) -> dict[str, Any]:
    """Seconds of a generator's step now and at BEFORE, in turn, and their ratio."""
    times: dict[str, list[float]] = {"now": [], "before": []}
    with _checkout(BEFORE) as earlier, _shape(model) as shape:
        steppers = {
            "now": _stepper(ROOT, shape, dtype),
            "before": _stepper(earlier, shape, dtype),
        }
        try:
            for stepper in steppers.values():
                if _answer(stepper) != "ready":
                    raise SystemExit("experiments/speed/generator_step.py failed.")
            for number in range(repeats):
                for name in times if number % 2 == 0 else reversed(list(times)):
                    times[name].append(float(_answer(steppers[name], "step")))
        finally:
            for stepper in steppers.values():
                stepper.stdin.close()
                stepper.wait()
    now, before = (statistics.median(times[name]) for name in ("now", "before"))
    return {
        "lorage": {"seconds": now},
        "before": {"seconds": before, "commit": BEFORE},
        "ratio": before / now,
        "largest_spread_within_one": max(max(each) / min(each) for each in times.values()),
    }


def _stepper(checkout: Path, model: Path, dtype: str) -> Any:
    script = Path(__file__).with_name("generator_step.py")
    return subprocess.Popen(
        [*_python(str(script)), str(model), dtype],
        env=_environment(checkout),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _answer(stepper: Any, request: str | None = None) -> str:
    if request is not None:
        stepper.stdin.write(f"{request}\n")
        stepper.stdin.flush()
    return stepper.stdout.readline().strip()


@contextmanager
def _shape(model: Path) -> Iterator[Path]:
    """A folder with the configuration of `model` as BEFORE reads it; the weights are random."""
    config = json.loads((model / "config.json").read_text("utf-8"))
    kept = {name: value for name, value in config.items() if name not in UNKNOWN_BEFORE}
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "config.json").write_text(json.dumps(kept), "utf-8")
        yield Path(temporary)


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """A work tree of `commit`, removed afterwards."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkout"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _environment(checkout: Path) -> dict[str, str]:
    """Imports the package from `checkout`, whatever is installed."""
    return os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}


def markdown(table: dict[str, Any]) -> str:
    """The page of a table: a section for each dtype."""
    machine = table["provenance"]["machine"]
    lines = [
        f"# Speed beside transformers, peft and lm-eval: {table['model']}",
        "",
        f"Measured on {machine['threads']} threads of {machine['cpu']} by "
        f"`{table['provenance']['command']}`. Both sides of a row did the same work on the same "
        f"tokens in the same run, in turn; figures are medians of {table['repeats']}. *Ratio* is "
        "their time over ours: above 1, lorage is faster. *Matmul* is the share of the machine's "
        "measured rate of matrix products, *others* the share of the CPU that other processes "
        "used. Compilation is left out; the table's JSON has it.",
    ]
    for dtype, rows in table["results"].items():
        lines += [
            "",
            f"## {dtype}",
            "",
            "| work | lorage | matmul | other library | matmul | ratio | goal | spread | others |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
            *(_line(row, rows[row], dtype) for row in (*ROWS, GENERATOR) if row in rows),
        ]
    return "\n".join(lines) + "\n"


def _line(row: str, result: dict[str, Any], dtype: str) -> str:
    ours, goal = result["lorage"], GOALS[dtype].get(row)
    if row == GENERATOR:
        theirs = result["before"]
        other = f"{_seconds(theirs['seconds'])} (lorage at {theirs['commit']})"
        what, shares = GENERATOR_WHAT, ("", "")
    else:
        theirs = result["transformers"]
        other = f"{_seconds(theirs['seconds'])} ({theirs['library']})"
        what = ROWS[row][0]
        shares = (f"{ours['matmul_share']:.0%}", f"{theirs['matmul_share']:.0%}")
    others = result.get("cpu_share_of_others")
    return (
        f"| {what} | {_seconds(ours['seconds'])} | {shares[0]} | {other} | {shares[1]} | "
        f"**{result['ratio']:.2f}** | {'' if goal is None else goal} | "
        f"{result['largest_spread_within_one']:.2f} | {'' if others is None else f'{others:.0%}'} |"
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"


def main(arguments: Sequence[str]) -> None:
    names = [*ROWS, GENERATOR]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", nargs="*", help=f"any of {', '.join(names)}; by default all")
    parser.add_argument("--model", type=Path, default=MODELS / "SmolLM2-135M-Instruct")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="measure finished rows anew")
    parser.add_argument("--noisy", action="store_true", help="also keep figures of a busy machine")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for speed.json, speed.md")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.rows) - set(names)):
        parser.error(f"there is no row {', '.join(unknown)}; expected {', '.join(names)}")
    file, model = options.out / "speed.json", options.model.expanduser()
    table: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    if table.get("model", model.name) != model.name:
        raise SystemExit(f"{file} is of {table['model']}; give --out for {model.name}.")
    origin = provenance(["python", "experiments/speed/table.py", *arguments])
    origin["machine"]["threads"] = threads()
    table = {
        "kind": "speed",
        "model": model.name,
        "repeats": options.repeats,
        "provenance": origin,
        "results": table.get("results", {}),
    }
    for dtype in options.dtypes:
        for row in options.rows or names:
            found = table["results"].setdefault(dtype, {})
            if row in found and not (options.again or options.rows):
                continue
            print(f"== {row}, {dtype}", flush=True)
            found[row] = measure(row, model, dtype, options.repeats, options.noisy)
            write_file(file, json.dumps(table, indent=1) + "\n", overwrite=True)
            write_file(options.out / "speed.md", markdown(table), overwrite=True)


if __name__ == "__main__":
    main(sys.argv[1:])
