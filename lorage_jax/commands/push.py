"""`lorage push`: a folder that lorage_jax wrote, to the Hugging Face Hub."""

from __future__ import annotations

from typing import Any

from lorage_jax.commands.conversions import Push
from lorage_jax.files.hub import push


def run(options: Push) -> dict[str, Any]:
    """Uploads the folder and returns the address of the commit."""
    address = push(options.folder, options.repository, private=options.private)
    print(f"Pushed: {address}")
    return {"repository": options.repository, "commit": address}
