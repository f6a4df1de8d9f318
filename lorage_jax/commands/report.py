"""`lorage report`: turn result files and cards into one page, as HTML and as Markdown."""

from __future__ import annotations

from typing import Any

from lorage_jax.commands.options import Report
from lorage_jax.files.manifest import write_manifest
from lorage_jax.files.outputs import check_target, new_folder
from lorage_jax.report.build import build
from lorage_jax.report.inputs import read_inputs
from lorage_jax.report.render import to_html, to_markdown

HTML, MARKDOWN = "report.html", "report.md"


def run(options: Report) -> dict[str, Any]:
    """Writes the page into `--out`, prints its place and returns the paths.

    report.html needs no other file; report.md shows the PNG files in its folder.
    """
    out = options.out
    check_target(out, options.overwrite, *options.results)
    page = build(read_inputs(options.results))
    with new_folder(out, overwrite=options.overwrite) as temporary:
        (temporary / HTML).write_text(to_html(page), "utf-8")
        (temporary / MARKDOWN).write_text(to_markdown(page), "utf-8")
        for picture in page.pictures():
            (temporary / f"{picture.name}.png").write_bytes(picture.png)
        write_manifest(temporary, {"format": "lorage-report/1"})
    print(f"Report: {out / HTML} (one file, to view or print)\nMarkdown: {out / MARKDOWN}")
    return {
        "html": str(out / HTML),
        "markdown": str(out / MARKDOWN),
        "pictures": [str(out / f"{picture.name}.png") for picture in page.pictures()],
        "inputs": [str(path) for path in options.results],
    }
