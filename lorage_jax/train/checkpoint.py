"""Checkpoints of a run: state, resolved config and data position, committed as one step.

A step is a folder `<step>/` that orbax writes under a temporary name and renames when complete, so
a killed save leaves no step behind. The state is stored as a flat dict of arrays,
`trained.router.w` -> array: its structure comes from the abstract state, and a mismatch is reported
by leaf. This is the only file that imports orbax.
"""

from __future__ import annotations

import base64
import gc
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath  # comes with orbax, which takes buckets by it
from orbax.checkpoint import v1 as ocp

from lorage_jax.errors import TrainingError, bullets
from lorage_jax.train.resume import COMMITTED, advice, unreadable

# orbax logs its progress line by line, and one full disk in a thousand lines of tracebacks,
# all through absl's logger. What matters comes as an exception, too, which `_attempt` reports.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in Path(record.pathname).parts)

ABSENT = "(absent)"
NONE = "null"
# Not in the checkpoints of earlier versions.
LATER = ("cloud_arithmetic", "edge_arithmetic", "cloud_chat_template", "edge_chat_template")
CHANGED = " If the data were changed on purpose: --resume-data changed."
DISK = "Check the disk and its permissions."
SHARED_WRITE = 2**24  # bytes of an array that each of its replicas then writes, at least

T = TypeVar("T")


class Checkpoints:
    """The checkpoints under `folder`; saving keeps the last `keep` and the one of the lowest loss.

    `folder`: a path, or a bucket's gs://... On a pod, all processes call.

    Saving is asynchronous: `save` returns when the arrays are copied off the devices (they may be
    donated at once); the next `save`, `latest`, `restore`, `wait` and `close` wait for the disk
    and raise TrainingError if it failed. Nothing is written before the first `save`.
    """

    def __init__(self, folder: str | Path, keep: int):
        if keep < 1:
            raise TrainingError(f"keep is {keep}; expected 1 or more checkpoints.")
        self.folder = epath.Path(folder) if is_url(folder) else Path(folder).absolute()
        self.keep = keep
        self._orbax: ocp.training.Checkpointer | None = None
        self._writing = False

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(
        self,
        step: int,
        state: Any,
        config: dict[str, Any],
        data_state: dict[str, Any] | bytes | None,
        loss: float | None = None,
    ) -> None:
        """Starts saving `step`. `state`: a pytree of arrays; `config`: the resolved config.

        `data_state`: the data iterator's (JSON values or bytes), the same on every process.
        `loss`: what `best` goes by; without one, a step is not kept for its loss.
        TrainingError: the step is not later than those there, or an earlier save failed.
        """
        self.wait()
        if not self._writing:
            # What killed saves left is removed by a writer only: it may be another's live save.
            self._close()
            self._orbax = self._open(cleanup=True)
            self._writing = True
        listed = [checkpoint.step for checkpoint in self._manager.checkpoints]
        if listed and step <= max(listed):
            raise TrainingError(
                f"{self.folder} already holds step {max(listed)}; step {step} cannot follow it. "
                "Continue from the latest step, or train into another folder."
            )
        arrays = {
            name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
            for name, leaf in _flat(state).items()
            if np.size(leaf)  # orbax refuses arrays without elements; restore makes them anew
        }
        parts = {"state": arrays, "config": _json(config), "data": _pack(data_state)}
        self._attempt(
            f"The checkpoint of step {step} could not be written",
            DISK,
            # force: when to save is the training loop's decision
            lambda: self._manager.save_checkpointables_async(
                step, parts, force=True, metrics=None if loss is None else {"loss": loss}
            ),
        )

    def wait(self) -> None:
        """Waits until the running save is on disk. Raises TrainingError if it failed."""
        if self._orbax is not None and self._writing:
            self._attempt("A checkpoint could not be written", DISK, self._orbax.wait)

    def close(self) -> None:
        """Waits, then releases threads. Safe to call twice."""
        try:
            self.wait()
        finally:
            self._close()

    def steps(self) -> list[int]:
        """The complete steps, ascending."""
        self.wait()
        if self._orbax is None:
            # Looking must not create the folder. On a pod all processes must go the same way.
            if jax.process_count() == 1 and not self._attempt(
                "The folder cannot be read", DISK, self.folder.is_dir
            ):
                return []
            self._orbax = self._open(cleanup=False)
        else:
            self._orbax.reload()
        listed = sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)
        # orbax lists any folder with a number; a committed step has this file.
        return [step for step in listed if (self.folder / str(step) / COMMITTED).is_file()]

    def latest(self) -> int | None:
        """The last complete step, or None."""
        return max(self.steps(), default=None)

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The config saved with `step` (default: the latest). TrainingError if there is none."""
        return self._load(self._resolve(step), "config", None)

    def restore(
        self,
        abstract_state: Any,
        config: dict[str, Any],
        step: int | None = None,
        ignore: Iterable[str] = (),
        renamed: Mapping[str, str] | None = None,
    ) -> tuple[Any, dict[str, Any] | bytes | None, int]:
        """(state, data_state, step) of `step` (default: the latest).

        `abstract_state`: the state's tree with jax.ShapeDtypeStruct leaves (or arrays); arrays come
        back with the shardings given there, whatever they were saved with. `ignore`: dotted
        fields of `config` that may differ from the saved ones (`out`, `data.sources`). `renamed`:
        top fields of the state, by their names in checkpoints of earlier versions.
        TrainingError: no such checkpoint, another config, other leaves, or unreadable files.
        """
        step = self._resolve(step)
        self._check_config(step, config, ignore)
        saved = self._saved_leaves(step)
        wanted = _as_saved(_flat(abstract_state), saved, renamed or {})
        self._check_leaves(step, saved, wanted)
        targets = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))
            for name, leaf in wanted.items()
        }
        stored = {name: leaf for name, leaf in targets.items() if leaf.size}
        loaded, data = self._load(step, "state", stored), self._load(step, "data", None)
        leaves = [
            loaded[name] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
            for name, leaf in targets.items()
        ]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
        return state, _unpack(data), step

    def _open(self, cleanup: bool) -> ocp.training.Checkpointer:
        if damaged := self._attempt("The folder cannot be read", DISK, self._unreadable):
            raise TrainingError(
                f"The checkpoint of step {damaged[0]} is damaged: its metrics cannot be read "
                f"({self.folder}). {advice(self.folder, damaged[0])}"
            )
        registry = ocp.handlers.local_registry()
        for name in ("config", "data"):  # else a dict would be taken for a pytree of arrays
            registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
        context = ocp.Context()
        context.checkpointables_options.registry = registry
        # Devices with the same array write a part each, cut by a program per shape: not for less.
        context.array_options.saving.min_slice_bytes_for_replica_parallel = SHARED_WRITE
        policies: Any = ocp.training.preservation_policies
        folder: Any = self.folder
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["loss"],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        return self._attempt(
            "The folder cannot be used for checkpoints",
            DISK,
            lambda: ocp.training.Checkpointer(
                folder,
                context=context,
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(self.keep), best]
                ),
                cleanup_tmp_directories=cleanup,
            ),
        )

    def _unreadable(self) -> list[int]:
        return unreadable(self.folder)

    @property
    def _manager(self) -> ocp.training.Checkpointer:
        """The checkpointer that `save` or `steps` opened."""
        assert self._orbax is not None
        return self._orbax

    def _close(self) -> None:
        if self._orbax is not None:
            orbax, self._orbax, self._writing = self._orbax, None, False
            orbax.close()

    def _resolve(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise TrainingError(f"{self.folder} holds no complete checkpoint.")
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps))
            raise TrainingError(f"{self.folder} holds no checkpoint of step {step}; found {there}.")
        return steps[-1] if step is None else step

    def _load(self, step: int, part: str, what: Any) -> Any:
        return self._attempt(
            f"The checkpoint of step {step} is damaged: its {part} cannot be read",
            advice(self.folder, step),
            lambda: self._manager.load_checkpointables(step, {part: what})[part],
        )

    def _check_config(self, step: int, config: dict[str, Any], ignore: Iterable[str]) -> None:
        before = self.config(step)
        saved, given = _fields(before), _fields(_json(config))
        ignored = (*ignore, *(name for name in LATER if name not in before))
        lines = [
            f"{name}: saved {saved.get(name, ABSENT)}, now {given.get(name, ABSENT)}"
            for name in sorted(saved.keys() | given.keys())
            # A setting that a version did not have yet is None, by which nothing changes.
            if saved.get(name, NONE) != given.get(name, NONE)
            and not any(name == field or name.startswith(field + ".") for field in ignored)
        ]
        if lines:
            raise TrainingError(
                f"{self.folder}: step {step} was saved with another config:\n"
                f"{bullets(lines)}\nUse the saved values, or train into another folder."
                + CHANGED
                * any(line.startswith("data_contents:") for line in lines)
            )

    def _saved_leaves(self, step: int) -> dict[str, str]:
        """Dotted name -> dtype and shape of every array that was saved."""

        def describe() -> dict[str, str]:
            metadata = self._manager.checkpointables_metadata(step).metadata["state"]
            if metadata is None:
                raise ValueError("the description of its arrays is damaged")
            return {name: _kind(leaf) for name, leaf in metadata.items()}

        return self._attempt(
            f"The checkpoint of step {step} is damaged: its state cannot be read",
            advice(self.folder, step),
            describe,
        )

    def _check_leaves(self, step: int, saved: dict[str, str], wanted: dict[str, Any]) -> None:
        """Checks names, shapes and dtypes before reading arrays, as orbax would cast silently."""
        here = {name: _kind(leaf) for name, leaf in wanted.items() if np.size(leaf)}
        lines = [
            f"{name}: saved {saved.get(name, ABSENT)}, expected {here.get(name, ABSENT)}"
            for name in sorted(saved.keys() | here.keys())
            if saved.get(name) != here.get(name)
        ]
        if lines:
            raise TrainingError(
                f"{self.folder}: step {step} does not fit this model and optimizer:\n"
                f"{bullets(lines)}"
            )

    def _attempt(self, what: str, advice: str, action: Callable[[], T]) -> T:
        """Runs `action`; any error of orbax or tensorstore becomes one TrainingError."""
        try:
            return action()
        except Exception as error:
            reason = _root(error)
        # Out of the except block, so that the error and the tasks it holds can go: half-done
        # reads print a page each when they are collected.
        with _hushed():
            gc.collect()
        raise TrainingError(f"{what} ({self.folder}): {reason}. {advice}")


def is_url(folder: str | Path) -> bool:
    """True for the name of a bucket, which must not become a Path: that would merge its slashes."""
    return "://" in str(folder)


def _root(error: BaseException) -> str:
    """The first line of the innermost cause: the outer ones tell of orbax's handlers."""
    while inner := error.__cause__ or (not error.__suppress_context__ and error.__context__):
        error = inner
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".")


@contextmanager
def _hushed() -> Iterator[None]:
    hook, asyncio_log = sys.unraisablehook, logging.getLogger("asyncio")
    before = asyncio_log.disabled
    sys.unraisablehook, asyncio_log.disabled = (lambda _: None), True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook, asyncio_log.disabled = hook, before


def _flat(tree: Any) -> dict[str, Any]:
    """Dotted name -> leaf, in the tree's order. None and empty nodes have no leaves."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in pairs}
    if len(flat) != len(pairs):
        raise ValueError("two leaves of the state have the same dotted name")
    return flat


def _as_saved(
    wanted: dict[str, Any], saved: dict[str, str], renamed: Mapping[str, str]
) -> dict[str, Any]:
    """`wanted` by the names that an earlier version gave its leaves, where it did save them so."""
    names = {}
    for name in wanted:
        first, dot, rest = name.partition(".")
        older = renamed.get(first, first) + dot + rest
        names[name] = older if name not in saved and older in saved else name
    return {names[name]: leaf for name, leaf in wanted.items()}


def _kind(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    sharding = getattr(leaf, "sharding", None)
    return sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _json(config: Any) -> Any:
    """The values as they come back from disk: tuples are lists."""
    return json.loads(json.dumps(config))


def _fields(value: Any, name: str = "") -> dict[str, str]:
    """Dotted field -> its value as JSON. Empty dicts and lists are values."""
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        inner = ((f"{name}.{key}" if name else str(key), item) for key, item in items)
        return {k: v for key, item in inner for k, v in _fields(item, key).items()}
    return {name: json.dumps(value)}


def _pack(data_state: dict[str, Any] | bytes | None) -> dict[str, Any]:
    if isinstance(data_state, bytes):
        return {"bytes": base64.b64encode(data_state).decode()}
    return {"json": _json(data_state)}


def _unpack(packed: dict[str, Any]) -> dict[str, Any] | bytes | None:
    return base64.b64decode(packed["bytes"]) if "bytes" in packed else packed["json"]
