"""Model cards in the Hub's format: the README.md beside every generator and export.

A card of the Hub begins with a YAML head, which says what the folder is made from and how it is
loaded; the text is for people. It is not a `Card`, the gates of a prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorage_jax.files.hub import HUB_NAME

README = "README.md"
METHOD = "[LoRA-Gen](https://arxiv.org/abs/2506.11638)"
SCORES = """None were measured when this folder was written. A score means little without its
controls, another task's prompt and the mean gates of all prompts: `lorage eval --generator
GENERATOR` asks both."""


def portable_name(folder: Path) -> str:
    """A name of a model folder that means the same on other machines.

    The Hub's name if the folder knows it: from `_name_or_path` in config.json, or from its place in
    a cache of the Hub (`models--org--name`). Otherwise the folder's own name, without its path.
    """
    folder = folder.absolute()
    try:
        known = json.loads((folder / "config.json").read_text("utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        known = None
    if isinstance(known, str) and HUB_NAME.fullmatch(known) and not Path(known).exists():
        return known
    for part in reversed(folder.parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def licence_of(folder: Path | None) -> str | None:
    """The licence that the head of a model folder's README names; None if there is none."""
    try:
        text = "" if folder is None else (folder / README).read_text("utf-8")
    except (OSError, ValueError):
        return None
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.-]+)", head[1], re.MULTILINE) if head else None
    return found[1] if found else None


def write_hub_card(
    folder: Path,
    title: str,
    parts: Mapping[str, str],
    *,
    bases: Sequence[Path | None],
    library: str,
    relation: str | None = None,
) -> None:
    """Writes README.md into a folder that is being made.

    Args:
        folder: the folder.
        title: the heading of the page.
        parts: text by heading; a part with the heading "" stands below the title.
        bases: the folders of the models that it needs or was made from.
        library: the Hub's name of the library that loads it.
        relation: the Hub's word for what it is to its base: adapter or finetune.
    """
    names = [portable_name(base) for base in dict.fromkeys(bases) if base is not None]
    licences = {licence_of(base) for base in bases}
    head: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["lora-gen", "lorage_jax"],
    }
    if known := [name for name in names if HUB_NAME.fullmatch(name)]:
        head["base_model"] = known
        if relation is not None:
            head["base_model_relation"] = relation
    if relation is not None and len(licences) == 1 and None not in licences:
        head["license"] = licences.pop()
    yaml = "".join(f"{name}: {json.dumps(value)}\n" for name, value in head.items())
    text = f"---\n{yaml}---\n\n# {title}\n"
    for heading, part in parts.items():
        text += (f"\n## {heading}\n" if heading else "") + f"\n{part.strip()}\n"
    (folder / README).write_text(text, "utf-8")


def with_part(text: str, heading: str, part: str) -> str:
    """The page with another text under a heading, which is added at the end if it is not there."""
    new = f"## {heading}\n\n{part.strip()}\n"
    old = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if old is None:
        return f"{text.rstrip()}\n\n{new}".lstrip()
    rest = text[old.end() :]
    return text[: old.start()] + new + (f"\n{rest}" if rest else "")


def licence_text(bases: Mapping[str, Path | None]) -> str:
    """One sentence per model, by its role, for the part on licences."""
    said = []
    for role, base in bases.items():
        found = licence_of(base)
        name = "unknown" if base is None else f"`{portable_name(base)}`"
        said.append(f"The {role}, {name}: {found or 'its folder names no licence'}.")
    return "\n".join(said)


def origin(card: Any) -> str:
    """How a card's LoRA came about, as the page of an export says it."""
    usual = f"computed from a system prompt by {METHOD}; nothing was trained for the prompt"
    return card.about.get("origin", usual)


def describe_card(card: Any) -> str:
    """The facts of a card, for the page of an export; `card` is a `generator.card.Card`."""
    digest, tokens = card.about.get("prompt_sha256"), card.about.get("cloud_tokens")
    rows = [
        ("generator", card.generator),
        ("edge", card.edge),
        ("gates", f"{len(card.gates)} layers of {len(card.gates[0])} experts"),
        *([("SHA-256 of the system prompt", digest)] if digest else []),
        *([("its length", f"{tokens} tokens of the cloud")] if tokens else []),
    ]
    return "| | |\n|---|---|\n" + "".join(f"| {name} | `{value}` |\n" for name, value in rows)
