"""Measures the goals of speed on one GPU: training, merging, generating, scoring, specialising.

    python experiments/speed/gpu.py --json gpu.json

Hardware: one GPU of 80 GB (an H100 or larger); no network. Wall time: at most 200 s, compilation
included; parts that do not fit are skipped, and `--parts` asks for them alone. `--tiny` runs the
same code on small shapes anywhere, CPUs included. The package may be installed or on PYTHONPATH;
torch and transformers are needed for the parts beside them, lm-eval for `score`.

Weights are random and of real shapes, made on the device. Every part has a limit of its own, and
runs in a process that is stopped with it; the file is written after every part, with each figure's
goal. Errors are kept as the traceback of their part. A short table is printed last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_parts import PARTS, Figures, Setting

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 195  # of a whole run
START = 60  # seconds that a process may take until its first part begins


def run_parts(names: Sequence[str], file: Path, folder: Path, deadline: float, tiny: bool) -> None:
    """Runs parts in this process and writes each result; announces a part before it begins."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    beside_torch = PARTS[names[0]][0]
    if beside_torch:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    else:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    from lorage_jax.compilation import keep_programs

    keep_programs()
    import gc

    from lorage_jax.provenance import provenance

    update(file, provenance=provenance(["python", "experiments/speed/gpu.py"]))
    setting = Setting(tiny, folder)
    for name in names:
        if time.time() > deadline:
            return
        began = time.time()
        update(file, running={"part": name, "since": began})
        try:
            result = PARTS[name][2](setting)
        except Exception:
            result = {"error": traceback.format_exc()}
        gc.collect()
        record(file, name, {"wall_seconds": time.time() - began, **result})


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text("utf-8"))


def update(file: Path, **fields: Any) -> None:
    """Changes fields of the JSON file, which is whole at any time."""
    temporary = file.with_name(file.name + ".new")
    whole = (read(file) if file.exists() else {"kind": "gpu", "parts": {}}) | fields
    temporary.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    temporary.replace(file)


def record(file: Path, name: str, result: Figures) -> None:
    update(file, running=None, parts=read(file)["parts"] | {name: result})


def supervise(
    names: Sequence[str], file: Path, deadline: float, command: Callable[[Sequence[str]], list[str]]
) -> None:
    """Runs all parts in processes of their own kind, until the deadline.

    A process that ends before its parts are done, or exceeds a part's limit, costs that part.
    """
    log = file.with_suffix(".log")
    while pending := [name for name in names if name not in read(file)["parts"]]:
        if time.time() > deadline:
            for name in pending:
                record(file, name, {"skipped": "no time was left"})
            return
        kind = PARTS[pending[0]][0]
        same = [name for name in pending if PARTS[name][0] == kind]
        group = same[: next((i for i, n in enumerate(pending) if PARTS[n][0] != kind), len(same))]
        update(file, running=None)
        began = time.time()
        with log.open("a", encoding="utf-8") as output:
            child = subprocess.Popen(command(group), stdout=output, stderr=subprocess.STDOUT)
            why = _watched(child, file, began, deadline)
        for name in [name for name in group if name not in read(file)["parts"]][:1]:
            if child.returncode == 0:  # it saw the deadline
                break
            tail = log.read_text("utf-8", errors="replace")[-3000:]
            record(file, name, {"error": f"{why}\n{tail}"})


def _watched(child: Any, file: Path, began: float, deadline: float) -> str:
    """Waits for a process, which is stopped when its time is up; says how it ended."""
    while child.poll() is None:
        time.sleep(0.2)
        running = read(file).get("running")
        since, limit = began, START
        if running is not None:
            since, limit = running["since"], PARTS[running["part"]][1]
        elif any(read(file)["parts"]) and time.time() - began > START:
            since = time.time()  # between two parts
        if time.time() > deadline or time.time() - since > limit:
            child.kill()
            child.wait()
            late = "the run's time was up" if time.time() > deadline else f"over {limit} s"
            return f"stopped: {late}"
    return f"the process ended with code {child.returncode}"


def table(found: dict[str, Any]) -> str:
    """A line per figure with a goal, then the ceilings and what is missing."""
    origin = found.get("provenance", {})
    machine, versions = origin.get("machine", {}), origin.get("versions", {})
    lines = [f"{machine.get('device')}, jax {versions.get('jax')}, torch {versions.get('torch')}"]
    if found.get("tiny"):
        lines.append("tiny shapes: no figure says anything about speed")
    for name, part in found["parts"].items():
        if "error" in part:
            lines.append(f"FAILED  {name}: {part['error'].strip().splitlines()[-1][:150]}")
        if "skipped" in part:
            lines.append(f"skipped {name}: {part['skipped']}")
        for one in part.get("goals", ()):
            measured = "none" if one["measured"] is None else f"{one['measured']:.3g}"
            verdict = "met   " if one["met"] else "MISSED"
            lines.append(f"{verdict}  {measured:>7} (goal {one['goal']})  {one['what']}")
    ceiling = found["parts"].get("ceilings", {})
    if "matmul_flops_per_second" in ceiling:
        lines.append(
            f"bfloat16 products {ceiling['matmul_flops_per_second'] / 1e12:.1f} TFLOP/s, copies "
            f"{ceiling['copy_bytes_per_second'] / 1e9:.0f} GB/s"
        )
    took = ", ".join(
        f"{name} {part['wall_seconds']:.0f}"
        for name, part in found["parts"].items()
        if "wall_seconds" in part
    )
    return "\n".join([*lines, f"seconds: {took}"])


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file of the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole run")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for any machine")
    parser.add_argument("--inside", nargs=2, metavar=("FOLDER", "DEADLINE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        folder, deadline = options.inside
        run_parts(options.parts, options.json, Path(folder), float(deadline), options.tiny)
        return
    deadline = time.time() + options.seconds
    options.json.unlink(missing_ok=True)
    update(options.json, tiny=options.tiny)
    with tempfile.TemporaryDirectory() as folder:

        def command(names: Sequence[str]) -> list[str]:
            tiny = ["--tiny"] if options.tiny else []
            rest = ["--json", str(options.json), "--inside", folder, str(deadline), *tiny]
            return [sys.executable, __file__, "--parts", *names, *rest]

        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        supervise(options.parts, options.json, deadline, command)
    print(table(read(options.json)))


if __name__ == "__main__":
    main(sys.argv[1:])
