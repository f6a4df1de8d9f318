"""Methods of specialising an edge, one file each; `method.py` has their protocol.

>>> from lorage_jax.methods import registry
>>> registry["in_context"].what
'no adapter, the same system prompt in the edge\'s own context'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorage_jax.methods.method import Method

    registry: Mapping[str, type[Method]]  # all methods by name


def __getattr__(name: str) -> Any:
    """`registry`, complete: the files of this folder are imported when it is asked for."""
    if name != "registry":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lorage_jax.methods.method import METHODS, discover

    discover()
    return METHODS
