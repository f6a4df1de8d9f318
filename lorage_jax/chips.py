"""Peak rates and memory sizes of accelerators, from data sheets: dense bfloat16.

PEAK_FLOPS maps JAX's `device_kind` to FLOP/s per device.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB, GIB = 1 << 20, 1 << 30  # bytes


@dataclass(frozen=True)
class Chip:
    """One TPU chip, from the system architecture pages of Cloud TPU.

    `flops` is the bfloat16 peak in FLOP/s. Bandwidths are in bytes/s: `hbm`; `ici`, sent over all
    links to neighbours; `dcn`, the chip's share of its slice's data-centre network.
    """

    name: str
    flops: float
    hbm_gib: float
    usable_gib: float  # available to a program, according to the compiler
    hbm: float
    ici: float
    dcn: float
    axes: int  # number of dimensions of a slice's shape
    pod: int  # chips in the largest slice
    accelerator: str  # an accelerator type of this generation, for initialising libtpu
    kind: str  # JAX's device_kind
    config: str | None = None  # libtpu setting for one device per chip, if one is needed


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32, 30.75, 1228e9, 300e9, 6.25e9, 3, 4096, "v4-8", "TPU v4", "megacore"),
        Chip("v5e", 197e12, 16, 15.75, 819e9, 200e9, 3.125e9, 2, 256, "v5litepod-8", "TPU v5 lite"),
        Chip("v5p", 459e12, 95.74, 95.74, 2765e9, 600e9, 6.25e9, 3, 8960, "v5p-8", "TPU v5"),
        Chip("v6e", 918e12, 32, 31.25, 1640e9, 400e9, 12.5e9, 2, 256, "v6e-8", "TPU v6 lite"),
    )
}

GPU_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}

PEAK_FLOPS = {chip.kind: chip.flops for chip in CHIPS.values()} | GPU_FLOPS
