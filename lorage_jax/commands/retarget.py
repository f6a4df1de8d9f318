"""`lorage retarget`: a generator for other weights of its models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorage_jax.files.fingerprint import short
from lorage_jax.generator.retarget import retarget

if TYPE_CHECKING:
    from lorage_jax.commands.conversion_options import Retarget


def run(options: Retarget) -> dict[str, Any]:
    """Writes the folder and returns the identities of the new generator and its models."""
    made = retarget(
        options.generator,
        options.out,
        edge=options.edge,
        cloud=options.cloud,
        overwrite=options.overwrite,
    )
    print(f"Written: {options.out}, generator {short(made.fingerprint)}")
    print(
        f"It was not trained with these weights. What it does: lorage eval --generator "
        f"{options.out} --tasks FILE"
    )
    return {
        "out": str(options.out),
        "fingerprint": made.fingerprint,
        "cloud": made.cloud.fingerprint,
        "edge": made.edge_fingerprint,
        "retargeted_from": made.about["retargeted_from"],
    }
