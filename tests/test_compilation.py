"""The persistent cache of the commands: where it is, and when it is off."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lorage_jax import compilation, nano

JAX_VARIABLES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)


@pytest.fixture
def place(monkeypatch, tmp_path):
    """place(value of LORAGE_CACHE) -> JAX's folder afterwards, or None; home is tmp_path."""
    for name in (*JAX_VARIABLES, compilation.VARIABLE):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what keep_programs writes
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(value=None):
        if value is not None:
            monkeypatch.setenv(compilation.VARIABLE, str(value))
        compilation.keep_programs()
        found = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        return None if found is None else Path(found)

    return call


def test_it_is_in_the_users_cache(place, tmp_path):
    folder = place()
    assert folder.parent == tmp_path / ".cache" / "lorage_jax" and folder.is_dir()


def test_a_folder_of_ones_own(place, tmp_path):
    assert place(tmp_path / "mine").parent == tmp_path / "mine"


def test_off(place, tmp_path):
    assert place("off") is None and not (tmp_path / ".cache").exists()


def test_jaxs_own_setting_stays(place, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    assert place() == Path("/elsewhere") and not (tmp_path / ".cache").exists()


def test_a_folder_that_cannot_be_made(place, tmp_path):
    (tmp_path / "file").write_text("")
    assert place(tmp_path / "file") is None


def test_a_command_leaves_its_programs_without_a_word(tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in JAX_VARIABLES}
    env |= {"LORAGE_CACHE": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    words = "import sys; from lorage_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    generate = ["generate", "--model", str(nano.EDGE), "--input", "frog", "--max-new-tokens", "1"]
    done = subprocess.run(
        [sys.executable, "-c", words, *generate], env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.glob("jax-*/*cache*"))


def test_programs_are_counted_once_and_only_within_the_block():
    @jax.jit
    def inner(x):
        return jnp.where(x > 0, jnp.sin(x), x)

    @jax.jit
    def outer(x):
        return inner(x) + inner(2 * x)

    small, large = jnp.ones(3), jnp.ones(5)
    began = time.perf_counter()
    with compilation.Compilations() as found:
        outer(small), outer(small)
        assert found.programs == 1
        outer(large)
    wall = time.perf_counter() - began
    outer(jnp.ones(7))
    assert found.programs == 2 and 0 < found.seconds <= wall
    assert found.figures() == {"programs": 2, "seconds": found.seconds}


def test_phases_within_phases_count_once():
    """Functions that a function calls are traced while it is."""
    found = compilation.Compilations()
    for start, end in ((1.0, 2.0), (2.5, 3.0), (0.0, 4.0), (5.0, 6.0)):
        found._record("/jax/core/compile/jaxpr_trace_duration", start, end)
    found._record("/jax/checkpoint/read", 10.0, 20.0)
    assert (found.programs, found.seconds) == (0, 5.0)
    found._record("/jax/core/compile/backend_compile_duration", 6.0, 8.0, fun_name="f")
    assert (found.programs, found.seconds) == (1, 7.0)


def test_the_text():
    text = compilation.compilation_text
    assert text(1, 3.14) == "compiled 1 program in 3.1 s"
    assert text(2, 3.14) == "compiled 2 programs in 3.1 s"
    assert text(1, 3.14, most=4) == "compiled 1 of at most 4 programs in 3.1 s"
    assert text(1, 3.14, most=1) == "compiled 1 of at most 1 program in 3.1 s"
