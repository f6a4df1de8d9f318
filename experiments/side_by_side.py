"""Trains and asks the rows of a comparison side by side, each in a process of its own.

    python experiments/side_by_side.py experiments/real/methods.py --at-once 12
    python experiments/side_by_side.py experiments/nano/compare.py --seeds 3 --at-once 2 --pin

One GPU has room for many small runs, whose programs compile on all cores of its host; on a CPU,
`--pin` gives each process cores of its own. Finished rows are kept in the folder of the comparison,
so that `lorage compare` with the same experiment only puts the table together, and a second call
goes on where the first one stopped. What a row prints is in its `logs`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lorage_jax.commands.experiment import load_experiment
from lorage_jax.compare.measure import measured
from lorage_jax.compare.parts import all_parts
from lorage_jax.compilation import keep_programs
from lorage_jax.config import CompareConfig


def main() -> None:
    options = parsed()
    keep_programs()
    config = load_experiment(options.experiment, CompareConfig)
    rows = options.methods.split(",") if options.methods else list(config.methods)
    parts = all_parts(config, rows, options.seeds)
    if options.part is not None:
        part = next(part for part in parts if part.name == options.part)
        measured(config, part)
        return
    parts.sort(key=lambda part: part.seed)  # whole tables of one seed first
    kept = config.figures_folder
    todo = [part for part in parts if not (kept / f"{part.name}.json").exists()]
    waiting = {part.name: part.experiment.out if part.experiment else part.name for part in todo}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # stops the parts, too
    if not run(waiting, Path(config.base.out) / "logs", options):
        raise SystemExit(1)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", help="as of lorage compare")
    parser.add_argument("--methods", help="rows separated by commas; by default all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2, help="processes")
    parser.add_argument("--seconds", type=float, help="stop what is not finished after this time")
    parser.add_argument("--pin", action="store_true", help="share the cores among the processes")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.at_once < 1:
        parser.error(f"--at-once is {options.at_once}; expected 1 or more")
    return options


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a part; its training saves the step that it is at, if it does so within a minute."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(waiting: dict[str, str], logs: Path, options: argparse.Namespace) -> bool:
    """Starts the parts in their order, `at_once` at a time, and says how each ended.

    `waiting` has the folder of each part's run; those of the same folder run one after another.
    True if all of them are done. None outlives an interruption.
    """
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, tuple[subprocess.Popen[bytes], int, float]] = {}
    try:
        return _run(dict(waiting), running, logs, options)
    finally:
        for process, *_ in running.values():
            stop(process)


def _run(
    waiting: dict[str, str],
    running: dict[str, tuple[subprocess.Popen[bytes], int, float]],
    logs: Path,
    options: argparse.Namespace,
) -> bool:
    began, failed, folders = time.monotonic(), False, dict(waiting)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share a GPU's memory
    places = list(range(options.at_once))
    while waiting or running:
        late = options.seconds is not None and time.monotonic() - began > options.seconds
        while places and not late:
            busy = {folders[name] for name in running}
            name = next((one for one, folder in waiting.items() if folder not in busy), None)
            if name is None:
                break
            del waiting[name]
            place = places.pop(0)
            running[name] = start(name, place, logs, options), place, time.monotonic()
        for name, (process, place, since) in list(running.items()):
            if late:
                stop(process)
            if process.poll() is not None:
                del running[name]
                places.append(place)
                end = "done" if process.returncode == 0 else f"ended with {process.returncode}"
                failed |= process.returncode != 0
                print(f"{name}: {end} after {time.monotonic() - since:.0f} s", flush=True)
        if late:
            print(f"The time is up; not begun: {', '.join(waiting) or 'none'}.", flush=True)
            return False
        time.sleep(0.5)
    return not failed


def start(
    name: str, place: int, logs: Path, options: argparse.Namespace
) -> subprocess.Popen[bytes]:
    """The process of one part; with `pin`, on its share of the cores."""
    command = [sys.executable, __file__, options.experiment, "--part", name]
    command += ["--seeds", str(options.seeds)]
    if options.methods:
        command += ["--methods", options.methods]
    with (logs / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    if options.pin:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(process.pid, share(cores, place, options.at_once))
    return process


def share(cores: list[int], place: int, at_once: int) -> list[int]:
    """The cores of one of `at_once` places: some of its own, or one with others if they are few."""
    return cores[place::at_once] or [cores[place % len(cores)]]


if __name__ == "__main__":
    main()
