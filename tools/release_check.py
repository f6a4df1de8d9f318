"""Builds the wheel, installs it into a fresh environment, and runs the quickstart from there.

    python tools/release_check.py [--keep FOLDER] [--python PYTHON]

Fails with a message if the wheel lacks package data or holds tests, if its version is not that of
CHANGELOG.md and CITATION.cff, or if the prompt makes no difference in the quickstart. Takes about
two minutes, most of which is pip's.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "lorage_jax/py.typed",
    "lorage_jax/nano/README.md",
    "lorage_jax/nano/cloud/model.safetensors",
    "lorage_jax/nano/edge/model.safetensors",
    "lorage_jax/nano/generator/generator.safetensors",
    "lorage_jax/smollm2/generator/generator.safetensors",
)


def main() -> None:
    """Runs all checks, in a temporary folder unless --keep names one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for the wheel and the environment")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        check(options.keep or Path(temporary), options.python)


def check(work: Path, python: str) -> None:
    """Builds, inspects, installs and runs, below `work`."""
    version = declared_version()
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # modules that are gone would stay
    run([python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(work), str(ROOT)], ROOT)
    wheel = work / f"lorage_jax-{version}-py3-none-any.whl"
    inspect(wheel)
    run([python, "-m", "venv", "--clear", str(work / "venv")], work)
    scripts = work / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run([str(scripts / "python"), "-m", "pip", "install", "-q", str(wheel)], work)
    place = "import lorage_jax, pathlib; print(pathlib.Path(lorage_jax.__file__).resolve())"
    found = run([str(scripts / "python"), "-c", place], work).strip()
    if not Path(found).is_relative_to((work / "venv").resolve()):
        raise SystemExit(f"imported {found}, not the installed wheel")
    run([str(scripts / "lorage"), "--help"], work)
    words = ["quickstart", "--out", "quickstart", "--overwrite", "--json", "quickstart.json"]
    print(run([str(scripts / "lorage"), *words], work))
    report = json.loads((work / "quickstart.json").read_text("utf-8"))
    match = report["exact_match"]
    if not match["lora_gen"] > match["shuffled"]:
        raise SystemExit(f"the quickstart's prompt made no difference: {match}")
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, installed and run")


def declared_version() -> str:
    """The version in setup.cfg. Fails unless CHANGELOG.md and CITATION.cff agree."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version = setup["metadata"]["version"]
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    cited = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    for name, match in (("CHANGELOG.md", first), ("CITATION.cff", cited)):
        if match is None or match[1] != version:
            found = "none" if match is None else match[1]
            raise SystemExit(f"setup.cfg has version {version}, {name} {found}")
    return version


def inspect(wheel: Path) -> None:
    """Fails unless the wheel holds the package, its data, and nothing else."""
    names = zipfile.ZipFile(wheel).namelist()
    if missing := [name for name in NEEDED if name not in names]:
        raise SystemExit(f"{wheel.name} lacks {', '.join(missing)}")
    tops = {name.split("/")[0] for name in names}
    if strangers := [top for top in tops if top != "lorage_jax" and ".dist-info" not in top]:
        raise SystemExit(f"{wheel.name} also holds {', '.join(sorted(strangers))}")
    if tests := [name for name in names if "test" in Path(name).name]:
        raise SystemExit(f"{wheel.name} holds tests: {', '.join(tests)}")


def run(command: list[str], folder: Path) -> str:
    """The output of a command in `folder`, without the checkout on its path. Fails if it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
