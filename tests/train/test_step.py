"""The compiled train step: placement on a mesh."""

import re

from lorage_jax.config import (
    DataConfig,
    GeneratorConfig,
    MeshConfig,
    OptimizerConfig,
    Source,
)
from lorage_jax.hf.family import family_decoder
from lorage_jax.sharding import make_mesh
from tests.programs import step_program


def test_weights_come_to_the_rows_layer_by_layer():
    """On an FSDP mesh no device holds all rows of an activation, nor all layers of a weight whole,
    nor logits of all slots.
    """
    sizes = {"vocab_size": 88, "heads": 4, "kv_heads": 2}
    cloud = family_decoder("llama", width=64, layers=5, ffn_width=96, **sizes)
    edge = family_decoder("llama", width=48, layers=3, ffn_width=104, tied_head=True, **sizes)
    step, arguments, _ = step_program(
        cloud,
        edge,
        make_mesh(MeshConfig(1, 8, 1)),
        prompts=(16, 20),
        queries=(16, 131),
        data=DataConfig((Source("x"),), prompts_per_batch=16),
        generator=GeneratorConfig(rank=4, cloud_rank=4),
        optimizer=OptimizerConfig(warmup_steps=1),
        steps=2,
        dtype="float32",
        remat="full",
    )
    text = step.lower(*arguments).compile().as_text()
    shapes = set(re.findall(r"f32\[([\d,]+)\]", text))
    assert {"2,23,64", "2,130,48", "2,64,88"} <= shapes  # two rows per device; a chunk's logits
    assert {"5,8,96", "3,6,104"} <= shapes  # an eighth of every layer
    for whole in ("16,23,64", "16,130,48", "5,64,96", "3,48,104", "2,130,88"):
        assert whole not in shapes
