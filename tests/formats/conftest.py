"""The files of older versions, and the values that those versions computed."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def old() -> Path:
    """The folder of old files; read only."""
    return Path(__file__).parent / "old"


@pytest.fixture(scope="session")
def expected(old) -> dict:
    """Gates, logits, losses and scores as version 0.1.0 computed them."""
    return json.loads((old / "expected.json").read_text("utf-8"))
