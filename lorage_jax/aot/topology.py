"""TPU slices by name, and abstract devices to compile for.

`libtpu` contains the TPU compiler, which runs on any x86-64 machine and needs no TPU.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from lorage_jax import libtpu
from lorage_jax.chips import CHIPS, Chip
from lorage_jax.errors import ConfigError

EXAMPLES = "v5e:2x4, v5e:16x16, v6e:2x4, v5p:2x2x1, v4:2x2x2, v5e:2x4*2 (two slices)"


@dataclass(frozen=True)
class Topology:
    """`slices` slices of `shape` chips each."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def name(self) -> str:
        """The name, as `parse_topology` reads it."""
        shape = "x".join(map(str, self.shape))
        return f"{self.chip.name}:{shape}" + (f"*{self.slices}" if self.slices > 1 else "")


def parse_topology(name: str) -> Topology:
    """Parses names like `v5e:2x4`, or `v5e:2x4*2` for two slices.

    Raises ConfigError for an unknown generation, or a shape that it does not have.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})(?:\*(\d+))?", name.strip())
    if not found or found[1] not in CHIPS:
        raise ConfigError(
            f"there is no topology {name!r}; expected GENERATION:SHAPE, with {', '.join(CHIPS)} as "
            f"generation, as in {EXAMPLES}."
        )
    shape, slices = tuple(map(int, found[2].split("x"))), int(found[3] or 1)
    chip = CHIPS[found[1]]
    if len(shape) != chip.axes or not 1 <= math.prod(shape) <= chip.pod or slices < 1:
        raise ConfigError(
            f"there is no topology {name!r}; a {chip.name} slice has {chip.axes} axes and 1 to "
            f"{chip.pod} chips, as in {EXAMPLES}."
        )
    return Topology(chip, shape, slices)


def tpu_devices(topology: Topology) -> list[Any]:
    """The abstract devices of a topology, to compile for; nothing can run on them.

    From here on, this process computes on its CPU, even if it has a TPU.

    Raises ConfigError if `libtpu` is not installed or does not know the topology.
    """
    if not libtpu.installed():
        raise ConfigError(
            "the TPU compiler is not installed; run `pip install libtpu` (or lorage_jax[tpu]). "
            "No TPU is needed."
        )
    os.environ |= libtpu.settings(topology.chip.accelerator)
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # other processes may be compiling, too
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # a program could not be read back
    options: dict[str, Any] = {}
    if topology.chip.config is not None:
        options["chip_config_name"] = topology.chip.config
    if math.prod(topology.shape) < 4:  # part of a host, which has four chips or more
        options["chips_per_host_bounds"] = (*topology.shape, 1, 1)[:3]
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    slice_name = Topology(topology.chip, topology.shape).name
    try:
        return list(topologies.get_topology_desc(slice_name, "tpu", **options).devices)
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:300].rstrip(". ")
        raise ConfigError(
            f"there is no topology {topology.name!r} ({reason}). Known to work: {EXAMPLES}."
        ) from None
