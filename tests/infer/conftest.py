"""A tiny model."""

import pytest

from lorage_jax.hf.load import load_model
from tests.tiny import make_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    make_tiny("llama", folder)
    return load_model(folder)
