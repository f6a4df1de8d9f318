"""A platform that JAX cannot use is one message; other errors are not touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorage_jax import cli, libtpu, platforms


def raised(text):
    """The error of a statement in JAX's file of platforms."""
    with pytest.raises(Exception) as caught:
        exec(compile(text, "site-packages/jax/_src/xla_bridge.py", "exec"))
    return caught.value


def test_an_unknown_platform_is_one_line(tmp_path):
    (tmp_path / "prompt.txt").write_text("Be brief.")
    words = ["specialize", "--generator", "nano", "--prompt", "prompt.txt", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "lorage_jax.cli", *words],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "foo", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    start = "lorage: JAX_PLATFORMS is 'foo', but JAX cannot use that (Backend 'foo' is not in "
    assert done.stderr.startswith(start) and "Unset JAX_PLATFORMS" in done.stderr
    assert not (tmp_path / "out").exists()


def test_platforms_without_a_device(monkeypatch):
    monkeypatch.setattr(libtpu, "installed", lambda: True)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    message = cli._message(raised("assert False"))
    assert message is not None and "'cuda', but JAX cannot use that (it found no such" in message
    assert "tpu. Unset JAX_PLATFORMS, or install" in message
    failed = "raise RuntimeError(\"Unable to initialize backend 'tpu': locked. {}\")"
    hint = "(set JAX_PLATFORMS='' to automatically choose an available backend)"
    message = platforms.unusable(raised(failed.format(hint)))
    assert message is not None and "(locked)" in message and "automatically" not in message
    monkeypatch.delenv("JAX_PLATFORMS")
    hint = "(you may need to uninstall the failing plugin package, or set JAX_PLATFORMS=cpu)"
    message = platforms.unusable(raised(failed.format(hint)))
    assert message is not None and message.startswith("JAX cannot use its devices (locked).")
    assert message.endswith("Set JAX_PLATFORMS=cpu to compute on the CPU.")


def test_other_errors_are_not_about_platforms():
    for error in (AssertionError(), RuntimeError("Unable to start"), raised("1 / 0")):
        assert platforms.unusable(error) is None and cli._message(error) is None
