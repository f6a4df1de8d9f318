"""The tests' own tools: shapes are checked, and kept programs are bounded."""

import os

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError

from lorage_jax import ops
from tests import program_cache, shape_checks


def test_a_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError, match="rms_norm"):
        ops.rms_norm(jnp.ones((2, 3)), jnp.ones(4), 1e-5, 0.0)


def test_what_is_worth_a_check():
    def of_arrays(x: Float[Array, "B"]) -> None: ...

    def of_texts(x: str) -> None: ...

    made = set()
    assert [shape_checks.worth_a_check(of_arrays, made) for _ in range(2)] == [True, False]
    assert not shape_checks.worth_a_check(of_texts, made)
    assert shape_checks.worth_a_check(ops.rms_norm, made)  # not a closure: always
    assert shape_checks.worth_a_check(ops.rms_norm, made)


def test_programs_read_longest_ago_go_first(tmp_path):
    for age, name in enumerate(("new", "old", "oldest")):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 2000 + age))
    program_cache.prune(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old"}
    program_cache.prune(tmp_path, 250)
    assert len(list(tmp_path.iterdir())) == 2
    program_cache.prune(tmp_path / "none", 0)
