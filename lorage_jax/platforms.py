"""Platforms that JAX cannot compute on: what was asked for, and what is installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import traceback

from lorage_jax import libtpu

VARIABLE = "JAX_PLATFORMS"
_START = "Unable to initialize backend '[^']*': "
_FAILED = re.compile(_START + r"(.*?)(?: \((?:set|you may) .*)?$", re.MULTILINE)


def unusable(error: Exception) -> str | None:
    """The message for JAX's error that a platform cannot be used; None for any other error."""
    found = _FAILED.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None and not _nothing_started(error):
        return None
    reason = "it found no such device" if found is None else found[1][:200].rstrip(".")
    here = f"({reason}). Installed for JAX here: {', '.join(installed())}."
    if asked := os.environ.get(VARIABLE):
        return (
            f"{VARIABLE} is {asked!r}, but JAX cannot use that {here} Unset {VARIABLE}, or install "
            'what it asks for, such as pip install "jax[cuda12]" or "jax[tpu]".'
        )
    return f"JAX cannot use its devices {here} Set {VARIABLE}=cpu to compute on the CPU."


def installed() -> list[str]:
    """Platforms with an installed compiler; whether there are devices is not looked up."""
    packages = {one.name.replace("_", "-").lower() for one in importlib.metadata.distributions()}
    cuda = any(name.startswith("jax-cuda") and name.endswith("-pjrt") for name in packages)
    return ["cpu", *["cuda"] * cuda, *["tpu"] * libtpu.installed()]


def _nothing_started(error: Exception) -> bool:
    """True for the failed assertion with which JAX ends if none of the platforms has a device."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.endswith("xla_bridge.py")
    return ours and isinstance(error, AssertionError)
