"""The `lorage` command: parse the options, run the command, report errors.

A user error ends in one message and exit code 1, without a traceback.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro

from lorage_jax import compilation, libtpu, platforms
from lorage_jax.commands import conversion_options, experiment_options, options, places
from lorage_jax.commands.bench import options as bench
from lorage_jax.errors import LorageError, Preempted
from lorage_jax.fields import home_path
from lorage_jax.provenance import provenance, versions

DESCRIPTION = """A system prompt in, a specialised small language model out (LoRA-Gen).

Start with: lorage quickstart --out quickstart. The version: lorage --version
"""


# Options class -> module below `lorage_jax.commands`. A module has `run(options)`, which returns
# the result for --json, or None if another process writes it. It may also have `finish(options)`,
# which runs once the result is on disk.
RUNNERS: dict[type, str] = {
    options.Quickstart: "quickstart",
    experiment_options.Pretrain: "pretrain",
    experiment_options.Train: "train",
    experiment_options.Compile: "compile",
    options.Specialize: "specialize",
    conversion_options.Adapters: "adapters",
    conversion_options.Export: "export",
    conversion_options.Import: "import_gguf",
    experiment_options.Compare: "compare",
    options.Generate: "generate",
    options.Serve: "serve",
    options.Eval: "eval",
    options.Inspect: "inspect",
    conversion_options.Retarget: "retarget",
    conversion_options.Push: "push",
    options.Report: "report",
    bench.Merge: "bench.merge",
    bench.Prefill: "bench.prefill",
    bench.Decode: "bench.decode",
    bench.Export: "bench.export",
    bench.Flops: "bench.flops",
    bench.Latency: "bench.latency",
    bench.Memory: "bench.memory",
    bench.Score: "bench.score",
    bench.Specialize: "bench.specialize",
    bench.Train: "bench.train",
}

Command = Annotated[
    options.Quickstart
    | experiment_options.Pretrain
    | experiment_options.Train
    | experiment_options.Compile
    | options.Specialize
    | conversion_options.Adapters
    | conversion_options.Export
    | conversion_options.Import
    | experiment_options.Compare
    | options.Generate
    | options.Serve
    | options.Eval
    | options.Inspect
    | conversion_options.Retarget
    | conversion_options.Push
    | options.Report
    | bench.Bench,
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.OmitArgPrefixes,
]


def main(args: list[str] | None = None) -> int:
    """Runs one command and returns its exit code, 0 for success."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # replace what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    libtpu.keep_quiet()
    compilation.keep_programs()
    words = sys.argv[1:] if args is None else args
    if words == ["--version"]:
        print(f"lorage {versions()['lorage_jax']}")
        return 0
    try:
        command = tyro.cli(Command, args=_plain(words), prog="lorage", description=DESCRIPTION)
        with _cleaning_up_on_sigterm(), _warnings_told():
            chosen = command.measurement if isinstance(command, bench.Bench) else command
            _run(_at_home(chosen), words)
            sys.stdout.flush()
    except BrokenPipeError:  # `lorage ... | head`: the reader is gone, so write nothing more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Preempted as error:
        return _failed(str(error), code=128 + signal.SIGTERM)
    except KeyboardInterrupt:
        return _failed("interrupted.", code=130)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise  # a bug of ours: keep the traceback
        return _failed(message)
    return 0


class _Warnings(logging.Handler):
    """Tells a warning of the package as the command line tells its errors."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"lorage: {self.format(record)}", file=sys.stderr)


@contextmanager
def _warnings_told() -> Iterator[None]:
    """While a command runs, warnings of the package are lines of its own."""
    log, handler = logging.getLogger("lorage_jax"), _Warnings(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _run(command: Any, words: list[str]) -> None:
    """Runs the command's module and writes its result to the file of `--json`."""
    path: Path | None = command.json
    if path is not None:
        places.check_place(path, places.RESULT, command)  # before the long work
    module = importlib.import_module(f"lorage_jax.commands.{RUNNERS[type(command)]}")
    if path is None:
        module.run(command)
        return
    with compilation.Compilations() as compiled:
        result: dict[str, Any] | None = module.run(command)
    if result is None:
        return
    origin = provenance(["lorage", *words]) | {"compiled": compiled.figures()}
    text = json.dumps(result | {"provenance": origin}, indent=1)
    places.write_result(path, text + "\n", places.RESULT)
    if hasattr(module, "finish"):
        module.finish(command)


def _at_home(command: Any) -> Any:
    """The command with `~` replaced in its paths, where the shell left it (`--out=~/runs`)."""
    changes = {}
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if isinstance(value, Path):
            changes[field.name] = home_path(value)
        elif isinstance(value, tuple) and value and all(isinstance(one, Path) for one in value):
            changes[field.name] = tuple(home_path(one) for one in value)
    return dataclasses.replace(command, **changes)


def _plain(args: list[str]) -> list[str]:
    """Drops `auto` from `--resume auto`, the spelling of other trainers, which means --resume."""
    return [
        word
        for before, word in zip(["", *args], args, strict=False)
        if (before, word) != ("--resume", "auto")
    ]


def _failed(message: str, code: int = 1) -> int:
    print(f"lorage: {message}", file=sys.stderr)
    return code


def _message(error: Exception) -> str | None:
    """The message for an error that the user can fix; None for any other."""
    if isinstance(error, LorageError):
        return str(error)
    if (platform := platforms.unusable(error)) is not None:
        return platform
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        first = (str(error).splitlines() or ["no details"])[0]
        return f"not enough memory ({first[:200]}). Use smaller models or batches, or bfloat16."
    if "Gloo" in str(error) or "oordination service" in str(error):
        reason = str(error).splitlines()[0][:200].rstrip(".")
        return (
            f"lost contact with the other processes ({reason}). Check their messages, then "
            "continue with --resume."
        )
    if isinstance(error, OSError):
        at = f"{error.filename}: " if error.filename else ""
        return f"{at}{error.strerror or error}."
    return None


@contextmanager
def _cleaning_up_on_sigterm() -> Iterator[None]:
    """Handles SIGTERM, which schedulers send, like Ctrl-C: partial output is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
