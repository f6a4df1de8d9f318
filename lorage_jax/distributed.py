"""Runs in several processes: they join, fail together, and exchange and gather data.

JAX runs one process per host (TPU) or per GPU, each with its own devices. Every process runs the
same program; only process 0 writes and prints. If a process dies, the others end within HEARTBEAT
seconds.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lorage_jax.errors import ConfigError, LorageError, OutputError

T = TypeVar("T")
HEARTBEAT = 30  # seconds without a heartbeat after which a process counts as dead
LEAVING = 20  # seconds that a process waits for the others before it exits
JOINING = 300  # seconds within which all processes must join
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--num-processes", "--process-id")
# Launchers' numbers of processes. If it is 1, cluster detection is skipped: JAX would use only one
# device.
LAUNCHED = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# Numbers of processes of the job step that this process belongs to, not of the whole allocation.
STARTED = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def initialise(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others; does nothing if there is only one.

    Must be called before JAX creates a backend. Arguments that are None are read from VARIABLES or
    detected by JAX, on TPU pods (Cloud and GKE), SLURM and Open MPI.

    Args:
        coordinator: HOST:PORT of process 0, reachable from every host.
        num_processes: number of processes.
        process_id: number of this process, from 0.

    Raises ConfigError if only some of these are known, or if not all processes join in time.
    """
    if jax.distributed.is_initialized():
        return
    given = _given(coordinator, num_processes, process_id)
    if given is None and not _may_be_cluster():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address, count, number = given or (None, None, None)
    try:
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=count,
            process_id=number,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=JOINING,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=LEAVING,
        )
    except (ValueError, OSError):
        if given:
            raise
        # JAX found no cluster, or TPUs without a metadata server: this process is alone.
    except RuntimeError as error:
        if not given and "must be called before" in str(error):
            return  # this process has used JAX already, which JAX checks first
        where = f"process {number} of {count} at {address}" if given else "this process"
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"{where} could not join the others: {reason}. Start all processes with the same "
            f"address, reachable from every host, within {JOINING} s, and before anything uses JAX."
        ) from None


def alone(command: str) -> None:
    """Raises ConfigError if a launcher started several processes of a single-process command.

    Each would do all the work and write to the same folder.
    """
    env = os.environ
    counts = {name: env.get(name, "1") for name in STARTED}
    counts["TPU_WORKER_HOSTNAMES"] = str(env.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1)
    for name, count in counts.items():
        if count not in ("", "0", "1"):
            raise ConfigError(
                f"{command} runs in one process, but {count} were started, by {name}. Start it "
                "once; it drives all devices of its machine."
            )


def _given(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int] | None:
    """(address of process 0, number of processes, number of this one), from flags or variables.

    None if neither is set, or only JAX's own address variable, which JAX then reads.
    """
    flags = (coordinator, num_processes, process_id)
    found = [
        os.environ.get(name, "") if flag is None else str(flag)
        for flag, name in zip(flags, VARIABLES, strict=True)
    ]
    if not found[1] and not found[2] and coordinator is None:
        return None
    for value, flag, name in zip(found, FLAGS, VARIABLES, strict=True):
        if not value:
            raise ConfigError(
                f"{flag} (or {name}) is missing; several processes need {', '.join(FLAGS)}, all "
                "three: HOST:PORT of process 0, the number of processes, and this one's number."
            )
    address, *numbers = found
    if not address.rpartition(":")[2].isdecimal() or not address.rpartition(":")[0]:
        raise ConfigError(f"the coordinator is {address!r}; expected HOST:PORT of process 0.")
    try:
        count, number = map(int, numbers)
    except ValueError:
        raise ConfigError(
            f"process {numbers[1]!r} of {numbers[0]!r}; expected whole numbers."
        ) from None
    if not 0 <= number < count:
        raise ConfigError(f"process id {number} of {count}; expected 0 to {count - 1}.")
    return address, count, number


def _may_be_cluster() -> bool:
    """True if JAX should detect a cluster: not for a single Kubernetes pod without TPUs."""
    env = os.environ
    for name in LAUNCHED:
        if name in env:
            return env[name] not in ("0", "1")
    hosts = env.get("TPU_WORKER_HOSTNAMES", "localhost")
    alone = "JOB_COMPLETION_INDEX" not in env and hosts == "localhost"
    return "KUBERNETES_SERVICE_HOST" not in env or not alone


def is_main() -> bool:
    """True in the one process that writes and prints."""
    return jax.process_index() == 0


@contextmanager
def only_main_prints() -> Iterator[None]:
    """In other processes than the main one, what the block prints goes nowhere."""
    if is_main():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def together() -> Iterator[None]:
    """If one process fails, all raise, so that none hangs in a collective.

    The others raise LorageError with its message. The block must not run collectives.
    """
    if jax.process_count() == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    messages = gather_texts("" if error is None else str(error) or type(error).__name__)
    if error is not None:
        raise error
    for number, message in enumerate(messages):
        if message:
            raise LorageError(f"process {number} of {len(messages)} stopped: {message}")


def on_main(work: Callable[[], T]) -> T | None:
    """The result of `work` in the main process, and None in the others, which wait for it.

    If it fails, all raise. `work` must not run collectives.
    """
    with together():
        return work() if is_main() else None


def check_same(what: dict[str, Any], advice: str) -> None:
    """Raises ConfigError, naming field and process, if processes have different values."""
    gathered = {name: gather_texts(repr(value)) for name, value in what.items()}
    for name, values in gathered.items():
        for number, value in enumerate(values):
            if value != values[0]:
                raise ConfigError(
                    f"{name} is {value[:100]} on process {number}, {values[0][:100]} on process 0. "
                    + advice
                )


def check_shared(folder: Path) -> None:
    """Raises OutputError if a process does not see what process 0 writes to `folder`."""
    if jax.process_count() == 1:
        return
    probe = ""
    with together():
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            probe = f".shared-{secrets.token_hex(4)}"
            (folder / probe).touch()
    name = gather_texts(probe)[0]
    try:
        with together():
            if not (folder / name).exists():
                raise OutputError(
                    f"{folder} is not the same folder on this host and on that of process 0. "
                    "Checkpoints of several processes need a folder that all share: on a network "
                    "file system, or in a bucket (gs://...)."
                )
    finally:
        if is_main():
            (folder / name).unlink()


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, in process order; all processes must call it."""
    data = np.frombuffer(text.encode(), np.uint8)
    if jax.process_count() == 1:
        return [text]
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(data.size)))
    row = np.zeros(max(1, int(sizes.max())), np.uint8)
    row[: data.size] = data
    rows = multihost_utils.process_allgather(row)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def spread(rows: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Distributes an array that every process holds whole: each device gets its own part."""
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def to_host(tree: Any) -> Any:
    """Gathers a tree that is sharded over processes, leaf by leaf, into whole numpy arrays.

    All processes must call it. Arrays that lie on this process's devices stay as they are.
    """

    def gathered(x: Any) -> Any:
        own = not isinstance(x, jax.Array) or x.is_fully_addressable
        return x if own else multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(gathered, tree)
