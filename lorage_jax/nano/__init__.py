"""The bundled nano pair: a cloud, an edge and their generator, a few MB, trained on built-in data.

README.md in this folder says how they were made, with sizes and licence. The name `nano` means the
generator: `lorage specialize --generator nano`, and in Python `lg.load_generator("nano")`.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
CLOUD, EDGE, GENERATOR = FOLDER / "cloud", FOLDER / "edge", FOLDER / "generator"
NAME = "nano"
