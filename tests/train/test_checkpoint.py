import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lorage_jax.errors import TrainingError
from lorage_jax.train.checkpoint import Checkpoints

CONFIG = {"out": "runs/a", "seed": 0, "optimizer": {"betas": (0.9, 0.99)}, "sources": [{"p": "x"}]}
ROOT = Path(__file__).parents[2]


def make_state(seed: int = 0):
    """All that a state may hold: nested dicts, optax tuples, None, empty nodes, scalars, bf16."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "pool": {"a": jax.random.normal(keys[0], (8, 6)), "b": jax.random.normal(keys[1], (6, 8))},
        "half": jax.random.normal(keys[2], (8, 4)).astype(jnp.bfloat16),
        "nothing": None,
        "empty": {},
        "no_rank": jnp.zeros((8, 0)),
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3))
    )
    return {
        "params": params,
        "optimizer": optax.MultiSteps(optimizer, 2).init(params),
        "stats": (),
        "step": jnp.int32(7),
        "rng": jax.random.PRNGKey(seed + 5),
    }


def abstract(state, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def saved(tmp_path):
    with Checkpoints(tmp_path / "ck", keep=3) as checkpoints:
        checkpoints.save(10, make_state(), CONFIG, {"next": 5})
        yield checkpoints


def test_round_trip_is_bit_exact(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path / "ck", keep=3) as checkpoints:
        checkpoints.save(10, state, CONFIG, {"next": 5, "inner": [1, None, "x"]})
    with Checkpoints(tmp_path / "ck", keep=3) as checkpoints:
        restored, data_state, step = checkpoints.restore(abstract(state), CONFIG)
        assert checkpoints.config()["optimizer"] == {"betas": [0.9, 0.99]}
    assert_same(restored, state)
    assert isinstance(restored["optimizer"], optax.MultiStepsState)
    assert (data_state, step) == ({"next": 5, "inner": [1, None, "x"]}, 10)


@pytest.mark.parametrize("data_state", [b"\x00\xff" * 9, {}, {"a": {"b": 1.5}}, None])
def test_kinds_of_data_state(tmp_path, data_state):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)}, {}, data_state)
        assert checkpoints.restore({"w": jnp.ones(2)}, {})[1] == data_state


def test_numpy_and_python_scalars_may_be_leaves(tmp_path):
    state = {"a": np.int32(3), "b": np.arange(4.0, dtype=np.float32), "c": np.float32(2)}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {}, None)
        restored, _, _ = checkpoints.restore(jax.tree.map(jnp.asarray, state), {})
    assert_same(restored, jax.tree.map(jnp.asarray, state))


def test_restores_onto_the_shardings_asked_for(tmp_path):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    both = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[5])
    array = jax.random.normal(jax.random.key(0), (8, 16))
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step, (before, after) in enumerate([(rows, both), (both, one), (one, rows)]):
            checkpoints.save(step, {"w": jax.device_put(array, before)}, {}, None)
            state, _, _ = checkpoints.restore(abstract({"w": array}, after), {})
            assert state["w"].sharding == after
            np.testing.assert_array_equal(state["w"], array)


def test_arrays_may_be_donated_right_after_save(tmp_path):
    step = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)
    arrays = [jnp.full((1 << 20,), float(i)) for i in range(8)]
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, arrays, {}, None)
        jax.block_until_ready([step(w) for w in arrays])
        restored, _, _ = checkpoints.restore(abstract([jnp.zeros(1 << 20)] * 8), {})
    for i, array in enumerate(restored):
        assert (array == i).all()


def test_small_replicas_are_not_cut(tmp_path, caplog):
    """Else orbax compiles a program per shape and device."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    state = jax.device_put({"w": jnp.ones((64, 48))}, NamedSharding(mesh, PartitionSpec()))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            checkpoints.save(1, state, {}, None)
        jax.jit(lambda x: x + 3)(1)
    assert "Compiling jit(<lambda>)" in caplog.text  # is told at all
    assert "slice" not in caplog.text


def test_keeps_the_last(tmp_path):
    with Checkpoints(tmp_path / "ck", keep=2) as checkpoints:
        for step in (1, 2, 30, 4000):
            checkpoints.save(step, {"w": jnp.full(3, step)}, {}, None)
        assert checkpoints.steps() == [30, 4000] and checkpoints.latest() == 4000
        state, _, step = checkpoints.restore({"w": jnp.zeros(3, int)}, {}, step=30)
        assert step == 30 and (state["w"] == 30).all()
        with pytest.raises(TrainingError, match="no checkpoint of step 2; found 30, 4000"):
            checkpoints.restore({"w": jnp.zeros(3, int)}, {}, step=2)
    assert sorted(p.name for p in (tmp_path / "ck").iterdir()) == ["30", "4000"]
    with pytest.raises(TrainingError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


def test_keeps_the_best_too(tmp_path):
    losses = {1: 3.0, 2: 1.5, 3: 2.0, 4: 2.5, 5: 1.75}
    with Checkpoints(tmp_path / "ck", keep=2) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, {"w": jnp.full(3, step)}, {}, None, loss)
        assert checkpoints.steps() == [2, 4, 5]  # 2 is the best
    with Checkpoints(tmp_path / "ck", keep=2) as checkpoints:
        assert checkpoints.latest() == 5
        assert (checkpoints.restore({"w": jnp.zeros(3, int)}, {}, step=2)[0]["w"] == 2).all()
        checkpoints.save(6, {"w": jnp.full(3, 6)}, {}, None)  # without a loss, so not a candidate
        checkpoints.save(7, {"w": jnp.full(3, 7)}, {}, None, 1.0)
        assert checkpoints.steps() == [6, 7]  # 7 is the best


def test_steps_only_grow(saved):
    for step in (10, 9):
        with pytest.raises(TrainingError, match=f"holds step 10; step {step} cannot follow"):
            saved.save(step, make_state(), CONFIG, None)
    assert saved.steps() == [10]


def test_looking_writes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "typo", keep=1)
    assert checkpoints.latest() is None and checkpoints.steps() == []
    with pytest.raises(TrainingError, match="typo holds no complete checkpoint"):
        checkpoints.restore({}, {})
    with pytest.raises(TrainingError, match="no complete checkpoint"):
        checkpoints.config()
    checkpoints.close()
    checkpoints.close()
    assert not list(tmp_path.iterdir())


def test_a_setting_that_is_new_and_none_is_no_other_config(saved):
    """Checkpoints of older versions lack new settings, which change nothing while unset."""
    config = saved.config()
    assert saved.restore(abstract(make_state()), config | {"new": None})[2] == 10
    with pytest.raises(TrainingError, match=r"new: saved \(absent\), now 3"):
        saved.restore(abstract(make_state()), config | {"new": 3})


def test_another_arithmetic_is_refused_once_it_is_known(saved):
    values = saved.config() | {"edge_arithmetic": {"rope_theta": 5.0}}
    assert saved.restore(abstract(make_state()), values)[2] == 10  # 0.1.0 did not record it
    saved.save(11, make_state(), values, None)
    assert saved.restore(abstract(make_state()), values)[2] == 11
    other = values | {"edge_arithmetic": {"rope_theta": 6.0}}
    with pytest.raises(TrainingError, match=r"edge_arithmetic.rope_theta: saved 5.0, now 6.0"):
        saved.restore(abstract(make_state()), other)


def test_another_config_is_refused_by_field(saved):
    other = {"out": "runs/b", "seed": 1, "optimizer": {}, "sources": [{"p": "x"}, {"p": "y"}]}
    with pytest.raises(TrainingError) as caught:
        saved.restore(abstract(make_state()), other)
    message = str(caught.value)
    for line in (
        'out: saved "runs/a", now "runs/b"',
        "seed: saved 0, now 1",
        "optimizer.betas.0: saved 0.9, now (absent)",
        'sources.1.p: saved (absent), now "y"',
    ):
        assert line in message
    assert "sources.0.p" not in message
    ignore = ("out", "seed", "optimizer", "sources.1")
    assert saved.restore(abstract(make_state()), other, ignore=ignore)[2] == 10
    with pytest.raises(TrainingError, match=r"sources\.1\.p"):
        saved.restore(abstract(make_state()), other, ignore=("out", "seed", "optimizer", "source"))


def test_another_state_is_refused_by_leaf(saved):
    """Also for dtypes, which orbax would cast."""
    state = make_state()
    state["step"] = jnp.float32(7)
    state["params"]["pool"]["a"] = jnp.zeros((8, 7))
    state["params"]["new"] = jnp.zeros(3)
    del state["rng"]
    with pytest.raises(TrainingError) as caught:
        saved.restore(abstract(state), CONFIG)
    message = str(caught.value)
    for line in (
        "step: saved int32[], expected float32[]",
        "params.pool.a: saved float32[8, 6], expected float32[8, 7]",
        "params.new: saved (absent), expected float32[3]",
        "rng: saved uint32[2], expected (absent)",
    ):
        assert line in message
    assert "pool.b" not in message


# uvloop's threads complain when their loop is abandoned.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "gone", "flipped"])
def test_damage_is_told_or_harmless(saved, how):
    """Every file of a checkpoint damaged in turn: an error, or the right values."""
    state = make_state()
    saved.wait()
    told = 0
    files = sorted(path for path in (saved.folder / "10").rglob("*") if path.is_file())
    for path in files:
        content = path.read_bytes()
        if how == "gone":
            path.unlink()
        else:
            flipped = bytes(byte ^ 255 for byte in content)
            path.write_bytes(content[: len(content) // 2] if how == "cut" else flipped)
        with Checkpoints(saved.folder, keep=3) as checkpoints:
            try:
                restored, data_state, _ = checkpoints.restore(abstract(state), CONFIG)
            except TrainingError as error:
                assert str(error).count("\n") == 0 and str(saved.folder) in str(error)
                told += 1
            else:
                assert_same(restored, state)
                assert data_state == {"next": 5}
        path.write_bytes(content)
    assert told >= 5


def test_half_written_steps_are_not_seen(saved):
    saved.wait()
    (saved.folder / "20").mkdir()
    (saved.folder / "30.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with Checkpoints(saved.folder, keep=1) as checkpoints:
        assert checkpoints.latest() == 10
        time.sleep(0.5)  # orbax cleans in the background
        assert (saved.folder / "30.orbax-checkpoint-tmp").exists(), "may be another's live save"
        # orbax would keep 20 as the last one and delete everything saved before it.
        with pytest.raises(TrainingError, match="already holds step 20"):
            checkpoints.save(15, make_state(), CONFIG, None)
        checkpoints.save(30, make_state(), CONFIG, None)
        assert checkpoints.steps() == [30]
    assert [path.name for path in saved.folder.iterdir()] == ["30"]


KILLED = """
import sys, jax, jax.numpy as jnp
from lorage_jax.train.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=1)
step = checkpoints.latest() or 0
state = {f"w{i}": jnp.zeros(1 << 18, jnp.int32) for i in range(8)}
while True:
    step += 1
    checkpoints.save(step, jax.tree.map(lambda w: w + step, state), {}, {"next": step})
    if step % 5 == 1:
        print(step, flush=True)
"""


def test_kill_9_during_save_leaves_a_valid_latest(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    state = {f"w{i}": jax.ShapeDtypeStruct((1 << 18,), jnp.int32) for i in range(8)}
    last = 0
    for delay in (0.0, 0.013, 0.031):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "ck")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        for _ in range(2):
            assert process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with Checkpoints(tmp_path / "ck", keep=1) as checkpoints:
            restored, data_state, step = checkpoints.restore(state, {})
        assert step > last and data_state == {"next": step}
        assert all((leaf == step).all() for leaf in restored.values())
        last = step


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        small = {"w": jnp.ones(100)}
        big = {"w": jax.random.normal(jax.random.key(0), (2 << 20,))}
        checkpoints = Checkpoints(disk / "ck", keep=2)
        checkpoints.save(1, small, {}, None)
        for _ in range(2):
            with pytest.raises(TrainingError, match=r"could not be written.*No space left"):
                checkpoints.save(2, big, {}, None)
                checkpoints.wait()
        assert checkpoints.latest() == 1
        assert (checkpoints.restore(abstract(small), {})[0]["w"] == 1).all()
        checkpoints.save(2, small, {}, None)  # now that there is space again
        assert checkpoints.steps() == [1, 2]
        checkpoints.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match="cannot be used for checkpoints"):
        Checkpoints(tmp_path / "file" / "ck", keep=1).save(1, {"w": jnp.ones(2)}, {}, None)


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="would ask the network")
def test_a_bucket_keeps_its_name(tmp_path, monkeypatch):
    """Without the packages for buckets, one line says so, and no folder gs: appears here."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=r"\(gs://bucket/run\).*gcsfs") as caught:
        Checkpoints("gs://bucket/run", keep=1).latest()
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_orbax_is_quiet(tmp_path, caplog, capfd):
    with caplog.at_level(logging.INFO), Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"w": jnp.ones(3)}, {}, None)
        checkpoints.restore({"w": jnp.ones(3)}, {})
    assert [record.message for record in caplog.records if record.name == "absl"] == []
    assert capfd.readouterr() == ("", "")
