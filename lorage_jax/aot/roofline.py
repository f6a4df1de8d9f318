"""The roofline model: the least time that a program can take on a chip."""

from __future__ import annotations

from typing import Any

from lorage_jax.chips import Chip


def roofline(
    chip: Chip, *, flops: float, hbm: float, ici: float, dcn: float, model_flops: float
) -> dict[str, Any]:
    """The time of one run on one chip, if it waited for a single resource only, in seconds.

    Args:
        flops: floating-point operations per chip.
        hbm, ici, dcn: bytes per chip, moved over HBM, interconnect and data-centre network.
        model_flops: `flops` without recomputed activations.

    Returns:
        Seconds per resource. `step_s`, the largest, is a lower bound: it assumes that everything
        else overlaps with it and that all links of the interconnect are used. `predicted_mfu`, the
        share of the peak rate that `model_flops` reach in that time, is an upper bound.
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
