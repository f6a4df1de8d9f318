"""A bundled generator for a real pretrained model: SmolLM2-135M-Instruct, which is its own cloud.

README.md in this folder says how it was made and what it scores. The model itself is not bundled:
its folder, `SmolLM2-135M-Instruct`, is looked for in $LORAGE_MODELS.
"""

from __future__ import annotations

from pathlib import Path

GENERATOR = Path(__file__).parent / "generator"
README = Path(__file__).with_name("README.md")
MODEL = "SmolLM2-135M-Instruct"
NAME = "smollm2"
