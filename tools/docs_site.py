"""Hooks of `mkdocs build`: the pages that the site makes by itself, and links out of docs/.

Pages of docs/ link to files beside docs/, such as `../experiments/results/nano.md`, so that the
links work in the repository. On the site these files, and all results, are below `repository/`.
`commands.md`, the reference of the command line, is made from the command's own `--help`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError  # pyright: ignore[reportMissingImports]
from mkdocs.structure.files import File, Files  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "experiments/results"
LINK = re.compile(r"\]\(([^)#\s]+)((?:#[^)\s]*)?)\)")
LOADED = re.compile(
    r"<(?:link[^>]+stylesheet|script|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]*"
)
WIDTH = 80  # columns of the help texts


def on_files(files: Files, config: Any) -> Files:
    """Adds the results, the files that pages link to, and the reference of the command line."""
    wanted = {path for path in (ROOT / RESULTS).rglob("*") if path.suffix in (".md", ".png")}
    wanted |= {ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"}
    for file in list(files):
        if file.src_uri.endswith(".md") and file.abs_src_path is not None:
            wanted |= set(_linked(Path(file.abs_src_path)))
    for path in sorted(wanted):  # pages among them link to further files
        wanted |= set(_linked(path)) if path.suffix == ".md" else set()
    for path in sorted(wanted):
        name = f"repository/{path.relative_to(ROOT).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, "commands.md", content=command_reference()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lets links to files of the repository point below `repository/`."""
    uri = page.file.src_uri
    inside = uri.startswith("repository/")
    home = (ROOT / uri.removeprefix("repository/") if inside else ROOT / "docs" / uri).parent

    def moved(match: re.Match[str]) -> str:
        path = _inside(home / match[1])
        if path is None:
            return match[0]
        docs = ROOT / "docs"
        place = (
            path.relative_to(docs)
            if docs in path.parents
            else Path("repository") / path.relative_to(ROOT)
        )
        link = os.path.relpath(place, Path(uri).parent)
        return f"]({link}{match[2]})"

    return LINK.sub(moved, markdown)


def on_post_build(config: Any) -> None:
    """Fails if a page loads anything from another place."""
    for page in Path(config.site_dir).rglob("*.html"):
        if found := LOADED.search(page.read_text("utf-8")):
            raise PluginError(f"{page.name} loads something from elsewhere: {found[0][:200]}")


def command_reference() -> str:
    """`lorage COMMAND --help` of every command, as one page."""
    from lorage_jax.cli import RUNNERS
    from lorage_jax.commands.bench import options as bench

    usual = [one.__name__.lower() for one in RUNNERS if one.__module__ != bench.__name__]
    measured = [one.__name__.lower() for one in RUNNERS if one.__module__ == bench.__name__]
    text = "# Command line\n\nAs `lorage COMMAND --help` prints it.\n"
    for words in [[], *([one] for one in usual), *(["bench", one] for one in measured)]:
        text += f"\n## lorage {' '.join(words)}".rstrip() + f"\n\n```text\n{_help(words)}\n```\n"
    return text


def _help(words: list[str]) -> str:
    from lorage_jax import cli

    os.environ["COLUMNS"] = str(WIDTH)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).strip()
    if "usage: lorage" not in text:
        raise RuntimeError(f"lorage {' '.join(words)} --help printed no usage: {text[:200]!r}")
    return text


def _linked(page: Path) -> list[Path]:
    """The files of the repository, outside docs/, that a page links to."""
    found = [_inside(page.parent / match[1]) for match in LINK.finditer(page.read_text("utf-8"))]
    return [path for path in found if path is not None and ROOT / "docs" not in path.parents]


def _inside(path: Path) -> Path | None:
    path = Path(os.path.normpath(path))
    return path if path.is_file() and ROOT in path.parents else None
