"""Joining the other processes: by options, by variables, or by what JAX finds."""

import pytest

from lorage_jax import distributed
from lorage_jax.errors import ConfigError


@pytest.fixture
def alone(monkeypatch):
    """No launcher's variables are set; records what JAX is asked to join, None for detection."""
    launchers = (*distributed.LAUNCHED, *distributed.STARTED, "TPU_WORKER_HOSTNAMES")
    for name in (*distributed.VARIABLES, *launchers, "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    asked = []

    def initialize(**settings):
        place = [settings[name] for name in ("coordinator_address", "num_processes", "process_id")]
        found = settings["cluster_detection_method"] is None
        assert found is (place == [None, None, None])
        asked.append(None if found else tuple(place))

    monkeypatch.setattr(distributed.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(distributed.jax.distributed, "initialize", initialize)
    return asked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_NUM_PROCESSES", "2"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("TPU_WORKER_HOSTNAMES", "host-0,host-1"),
    ],
)
def test_what_runs_in_one_process_refuses_several(alone, monkeypatch, name, value):
    monkeypatch.setenv("SLURM_NTASKS", "2")  # of an allocation, without a job step
    distributed.alone("lorage specialize")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"but 2 were started, by {name}"):
        distributed.alone("lorage specialize")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("host:1", 2, None), "--process-id .* is missing"),
        ((None, 2, 0), "--coordinator .* is missing"),
        (("host:1", None, None), "--num-processes .* is missing"),
        (("host", 2, 0), "'host'; expected HOST:PORT"),
        (("host:x", 2, 0), "expected HOST:PORT"),
        (("host:1", 2, 2), "process id 2 of 2; expected 0 to 1"),
        (("host:1", 0, 0), "process id 0 of 0"),
    ],
)
def test_half_a_cluster_is_refused(alone, flags, says):
    with pytest.raises(ConfigError, match=says):
        distributed.initialise(*flags)
    assert not alone


def test_flags_before_variables_before_what_jax_finds(alone, monkeypatch):
    distributed.initialise()
    assert alone.pop() is None  # JAX detects a TPU pod
    for name, count in (("SLURM_NTASKS", "1"), ("OMPI_COMM_WORLD_SIZE", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, count)
            distributed.initialise()
            assert not alone
            patch.setenv(name, "2")
            distributed.initialise()
            assert alone.pop() is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "x")
    distributed.initialise()
    assert not alone
    for name, value in zip(distributed.VARIABLES, ("a:1", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    distributed.initialise()
    assert alone.pop() == ("a:1", 4, 3)
    distributed.initialise("b:2", None, 0)
    assert alone.pop() == ("b:2", 4, 0)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "many")
    with pytest.raises(ConfigError, match="'3' of 'many'; expected whole numbers"):
        distributed.initialise()


def test_a_session_that_used_jax_is_alone(monkeypatch):
    for name in (*distributed.VARIABLES, *distributed.LAUNCHED, "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.jax.device_count() == 8
    distributed.initialise()
    assert not distributed.jax.distributed.is_initialized()
    with pytest.raises(ConfigError, match=r"process 1 of 2 at localhost:1 could not join.*before"):
        distributed.initialise("localhost:1", 2, 1)


@pytest.mark.parametrize("main", [True, False])
def test_only_the_main_process_prints(monkeypatch, capsys, main):
    monkeypatch.setattr(distributed, "is_main", lambda: main)
    with distributed.only_main_prints():
        print("inside")
    print("after")
    assert capsys.readouterr().out.split() == ["inside"] * main + ["after"]
