"""Several processes as one: joining them, failing together, and gathering what they hold.

JAX runs one process a host (TPU) or one a GPU, each with its own devices; every process runs the
same program, and process 0 alone writes and prints. A process that dies takes the others down
within HEARTBEAT seconds.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lorage_jax.errors import ConfigError, LorageError, OutputError

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
LEAVING = 20  # seconds that a process waits at its end for the others
JOINING = 300  # seconds until all processes must have come
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--num-processes", "--process-id")
# How many processes a launcher started. One is no cluster: JAX would hide all devices but the first
LAUNCHED = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# The same of what this process is part of, not of what the user may yet start.
STARTED = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def initialise(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others, before any backend is made; alone, does nothing.

    What is not given comes from VARIABLES, else from what JAX knows of TPU pods (Cloud and GKE),
    SLURM and Open MPI. ConfigError when these say half of it, or the others do not come.
    """
    if jax.distributed.is_initialized():
        return
    given = _given(coordinator, num_processes, process_id)
    if given is None and not _may_be_cluster():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    settings = {"cluster_detection_method": "deactivate"} if given else {}
    try:
        jax.distributed.initialize(
            *(given or ()),
            initialization_timeout=JOINING,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=LEAVING,
            **settings,
        )
    except (ValueError, OSError):
        if given:
            raise
        # JAX found no cluster, or TPUs without anybody to ask: this process is alone.
    except RuntimeError as error:
        if not given and "must be called before" in str(error):
            return  # a session that has used JAX already; JAX asks this before all else
        where = f"process {given[2]} of {given[1]} at {given[0]}" if given else "this process"
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"{where} could not join the others: {reason}. Start all processes with the same "
            f"address, reachable from every host, within {JOINING} s, and before anything uses JAX."
        ) from None


def alone(command: str) -> None:
    """ConfigError where a launcher started several processes of a command that runs in one.

    Each would do all of it, and write into the others' folder.
    """
    env = os.environ
    counts = {name: env.get(name, "1") for name in STARTED}
    counts["TPU_WORKER_HOSTNAMES"] = str(env.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1)
    for name, count in counts.items():
        if count not in ("", "0", "1"):
            raise ConfigError(
                f"{command} runs in one process, but {count} were started, by {name}. Start it "
                "once; it drives all devices of its machine. Only `lorage train` runs in several."
            )


def _given(*flags: Any) -> tuple[str, int, int] | None:
    """(address of process 0, processes, which one this is), by flags or variables; None: neither.

    JAX's own address variable alone is left to JAX.
    """
    found = [
        flag if flag is not None else os.environ.get(name)
        for flag, name in zip(flags, VARIABLES, strict=True)
    ]
    if found[1] is None and found[2] is None and flags[0] is None:
        return None
    for value, flag, name in zip(found, FLAGS, VARIABLES, strict=True):
        if value is None:
            raise ConfigError(
                f"{flag} (or {name}) is missing; several processes need {', '.join(FLAGS)}, all "
                "three: the address HOST:PORT of process 0, how many there are, and which this is."
            )
    address, numbers = str(found[0]), found[1:]
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
    """Whether JAX should look for one. A lone pod of Kubernetes is none, unless it has TPUs."""
    env = os.environ
    for name in LAUNCHED:
        if name in env:
            return env[name] not in ("0", "1")
    hosts = env.get("TPU_WORKER_HOSTNAMES", "localhost")
    alone = "JOB_COMPLETION_INDEX" not in env and hosts == "localhost"
    return "KUBERNETES_SERVICE_HOST" not in env or not alone


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def together() -> Iterator[None]:
    """What one process finds wrong, all raise: none waits for one that has left.

    No collective may run inside.
    """
    if jax.process_count() == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    told = gather_texts("" if error is None else str(error) or type(error).__name__)
    if error is not None:
        raise error
    for number, message in enumerate(told):
        if message:
            raise LorageError(f"process {number} of {len(told)} stopped: {message}")


def check_same(what: dict[str, Any], advice: str) -> None:
    """ConfigError, naming fields and process, unless every process brings the same values."""
    texts = {name: repr(value) for name, value in what.items()}
    told = [gather_texts(text) for text in texts.values()]
    for name, values in zip(texts, told, strict=True):
        for number, value in enumerate(values):
            if value != values[0]:
                raise ConfigError(
                    f"{name} is {value[:100]} on process {number}, {values[0][:100]} on process 0. "
                    + advice
                )


def check_shared(folder: Path) -> None:
    """OutputError when a process does not see what process 0 writes to `folder`."""
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
                    f"{folder} is another folder on this host than on that of process 0. "
                    "Checkpoints of several processes need one that all share: a network file "
                    "system, or a bucket (gs://...)."
                )
    finally:
        if is_main():
            (folder / name).unlink()


def gather_texts(text: str) -> list[str]:
    """The text of every process, by their numbers."""
    data = np.frombuffer(text.encode(), np.uint8)
    if jax.process_count() == 1:
        return [text]
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(data.size)))
    row = np.zeros(max(1, int(sizes.max())), np.uint8)
    row[: data.size] = data
    rows = multihost_utils.process_allgather(row)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def spread(rows: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process holds whole, each device fed its own part."""
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def to_host(tree: Any) -> Any:
    """Whole numpy arrays of a tree spread over the processes, leaf by leaf; all must call."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)
