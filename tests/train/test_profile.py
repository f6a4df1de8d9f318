"""The traced steps; a trace ends whatever happens."""

import jax.numpy as jnp
import pytest

from lorage_jax.errors import ConfigError
from lorage_jax.train import profile
from lorage_jax.train.profile import Profile, parse_steps


def test_a_trace_is_written(tmp_path):
    with pytest.raises(KeyboardInterrupt), Profile(tmp_path / "failed", (2, 3)) as tracing:
        tracing.before(2)
        raise KeyboardInterrupt
    with Profile(tmp_path / "whole", (2, 3)) as tracing:  # the first one is finished
        for step in range(1, 5):
            tracing.before(step)
            tracing.after(step, jnp.ones(3) + step)
    assert list((tmp_path / "whole").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("asked", "ran", "traced"),
    [
        (None, range(1, 5), []),
        ((2, 3), range(1, 5), [2, 3]),
        ((3, 3), range(1, 5), [3]),
        ((2, 9), range(7, 11), [7, 8, 9]),  # resumed in between
    ],
)
def test_the_steps_asked_for(monkeypatch, tmp_path, asked, ran, traced):
    running, found = [], []
    monkeypatch.setattr(profile.jax.profiler, "start_trace", running.append)
    monkeypatch.setattr(profile.jax.profiler, "stop_trace", running.pop)
    with Profile(tmp_path, asked) as tracing:
        for step in ran:
            tracing.before(step)
            found += [step] * len(running)
            tracing.after(step, None)
    assert found == traced and not running


def test_start_and_stop():
    assert parse_steps("20:24") == (20, 24)
    for text in ("20", "0:3", "5:4", ":4", "5:", "a:b", "1:2:3", "-1:2"):
        with pytest.raises(ConfigError, match="expected START:STOP"):
            parse_steps(text)
