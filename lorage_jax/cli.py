"""The `lorage` command: parses (`commands.options`), runs, reports.

A mistake of the user ends in one message and exit code 1, without a traceback.
"""

from __future__ import annotations

import json as json_module
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import tyro

from lorage_jax import libtpu
from lorage_jax.commands.options import Command, Eval
from lorage_jax.errors import LorageError, Preempted
from lorage_jax.files.outputs import check_file, write_file
from lorage_jax.provenance import provenance

DESCRIPTION = """A system prompt in, a specialised small language model out (LoRA-Gen).

Start with: lorage quickstart --out quickstart
"""


def main(args: list[str] | None = None) -> int:
    """Parses, runs, reports. Exit code 0 only when what was asked for was done."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character gets a substitute
            stream.reconfigure(errors="backslashreplace")
    libtpu.keep_quiet()
    words = sys.argv[1:] if args is None else args
    command = tyro.cli(Command, args=_plain(words), prog="lorage", description=DESCRIPTION)
    try:
        with _cleaning_up_on_sigterm():
            if command.json is not None:
                check_file(command.json, overwrite=True)  # before the long work
            result = command.run()
            if command.json is not None and result is not None:  # None: another process has it
                origin = provenance(["lorage", *words])
                text = json_module.dumps(result | {"provenance": origin}, indent=1) + "\n"
                write_file(command.json, text, overwrite=True)
                if isinstance(command, Eval):
                    command.finish()
            sys.stdout.flush()
    except BrokenPipeError:  # `lorage ... | head`: nobody reads on, so nothing more is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Preempted as error:
        return _failed(str(error), code=128 + signal.SIGTERM)
    except KeyboardInterrupt:
        return _failed("interrupted.", code=130)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise  # a defect of ours: the traceback is what a report needs
        return _failed(message)
    return 0


def _plain(args: list[str]) -> list[str]:
    """`--resume auto`, as other trainers call it, is our --resume: begin when there is none."""
    return [
        word
        for before, word in zip(["", *args], args, strict=False)
        if (before, word) != ("--resume", "auto")
    ]


def _failed(message: str, code: int = 1) -> int:
    print(f"lorage: {message}", file=sys.stderr)
    return code


def _message(error: Exception) -> str | None:
    """What the user can mend, in words; None for anything else."""
    if isinstance(error, LorageError):
        return str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        first = (str(error).splitlines() or ["no details"])[0]
        return f"not enough memory ({first[:200]}). Use smaller models or batches, or bfloat16."
    if "Gloo" in str(error) or "oordination service" in str(error):
        reason = str(error).splitlines()[0][:200].rstrip(".")
        return f"the other processes are gone ({reason}). See their messages; then --resume."
    if isinstance(error, OSError):
        at = f"{error.filename}: " if error.filename else ""
        return f"{at}{error.strerror or error}."
    return None


@contextmanager
def _cleaning_up_on_sigterm() -> Iterator[None]:
    """SIGTERM, as schedulers send it, ends like Ctrl-C: half-made folders are removed."""
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
