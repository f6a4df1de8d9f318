"""The bundled pair: a cloud, an edge and their generator, a few MB, trained on built-in data.

README.md beside this file says how they were made, and gives sizes and licence.
The name `nano` stands for the generator: `lorage specialize --generator nano`, and in Python
`lg.load_generator("nano")`.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
CLOUD, EDGE, GENERATOR = FOLDER / "cloud", FOLDER / "edge", FOLDER / "generator"
NAME = "nano"


def generator_folder(path: Path) -> Path:
    """`path`, or the bundled generator for the name `nano` if no such folder exists here."""
    return GENERATOR if str(path) == NAME and not path.exists() else path
