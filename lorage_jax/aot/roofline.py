"""The least time a program can take on a chip, by arithmetic, HBM and interconnect."""

from __future__ import annotations

from typing import Any

from lorage_jax.chips import Chip


def roofline(
    chip: Chip, *, flops: float, hbm: float, ici: float, dcn: float, model_flops: float
) -> dict[str, Any]:
    """Seconds of one run on one chip, if each resource were all it waits for.

    `flops` and bytes are a chip's own. `step_s` is the largest: everything else is taken to hide
    behind it, and the interconnect to use all its links, so that it is a lower bound.
    `predicted_mfu`: of `model_flops`, which no activation computed twice is in, in that time; an
    upper bound.
    """
    seconds = {
        "compute_s": flops / chip.flops,
        "hbm_s": hbm / chip.hbm,
        "ici_s": ici / chip.ici,
        "dcn_s": dcn / chip.dcn,
    }
    bound = max(seconds, key=seconds.__getitem__)
    step = seconds[bound]
    return seconds | {
        "step_s": step,
        "bound_by": bound.removesuffix("_s"),
        "predicted_mfu": model_flops / chip.flops / step if step else 0.0,
    }
