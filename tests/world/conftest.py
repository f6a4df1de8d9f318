"""A tiny edge and generator that read prompts of the built-in world."""

import pytest

from lorage_jax.hf.load import load_model
from tests.tiny import make_generator, make_tiny


@pytest.fixture(scope="package")
def models(tmp_path_factory):
    """(edge, generator); the cloud's config differs from the edge's."""
    root = tmp_path_factory.mktemp("world")
    sizes = {"num_hidden_layers": 2, "max_position_embeddings": 4096}
    make_tiny("llama", root / "cloud", seed=1, hidden_size=32, **sizes)
    make_tiny("llama", root / "edge", seed=2, **sizes)
    return load_model(root / "edge"), make_generator(root / "cloud", root / "edge")
