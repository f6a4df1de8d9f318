"""Renders a page as one self-contained HTML file, or as Markdown with pictures next to it.

All text is escaped here, where it becomes markup.
"""

from __future__ import annotations

import base64
import html
import re
import struct

from lorage_jax.report.page import (
    Block,
    Bullets,
    Cell,
    Code,
    Page,
    Paragraph,
    Picture,
    Row,
    Table,
)
from lorage_jax.report.pictures import DPI

WIDE = 9  # columns from which a standard error goes below its number
SHORT = 14  # rows up to which a table is kept on one printed page

STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111; background: #fff;
  font: 1rem/1.5 Charter, "Bitstream Charter", Cambria, Georgia, serif; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #999; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.82rem; margin: 1.2rem 0 0.2rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 0.4rem; font-size: 0.9rem; }
th, td { padding: 0.15rem 0.5rem; text-align: right; vertical-align: baseline; }
th.text, td.text { text-align: left; }
td { overflow-wrap: break-word; }
td.text + td.text { overflow-wrap: anywhere; }
table { min-width: 26rem; }
td:not(.text):has(small) { white-space: nowrap; }
table.wide td:not(.text) small { display: block; }
thead th { border-top: 1.5px solid #111; border-bottom: 1px solid #111; vertical-align: bottom; }
tbody { border-bottom: 1.5px solid #111; }
tr.group th { text-align: left; font-style: italic; font-weight: normal; padding-top: 0.5rem; }
tr.ours { font-weight: bold; background: #f0f0f0; }
td small { font-weight: normal; color: #444; white-space: nowrap; }
p.note { font-size: 0.8rem; margin: 0.2rem 0; color: #333; }
p.warning { border-left: 4px solid #111; padding-left: 0.8rem; font-weight: bold; }
ul.words { font-size: 1.05rem; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: 0.9rem; }
pre { font-size: 0.78rem; white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6;
  padding: 0.5rem; }
@media screen and (max-width: 40rem) {
  td.text + td.text { min-width: 6.5rem; }
}
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; }
  body { color: #ddd; background: #14171a; }
  thead th, tbody { border-color: #ccc; }
  tr.ours, pre { background: #252a30; }
  td small, p.note { color: #aaa; }
  p.warning { border-color: #ddd; }
  figure img { background: #fff; }
}
@media print {
  body { max-width: none; margin: 0; font-size: 10pt; }
  table { font-size: 7.5pt; }
  th, td { padding: 0.1rem 0.25rem; }
  tr, figure, pre, .short { break-inside: avoid; }
  h2, caption { break-after: avoid; }
}
"""


def to_html(page: Page) -> str:
    """The page as one HTML file, with inline style, pictures as data and no script."""
    body = [f"<h1>{_html(page.title)}</h1>"]
    for section in page.sections:
        body.append(f"<section>\n<h2>{_html(section.title)}</h2>")
        body += [_html_block(block) for block in section.blocks]
        body.append("</section>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_html(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def to_markdown(page: Page) -> str:
    """The page as Markdown, which refers to each picture as NAME.png in the same folder."""
    parts = [f"# {_markdown(page.title)}"]
    for section in page.sections:
        parts.append(f"## {_markdown(section.title)}")
        parts += [_markdown_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Replaces control characters, broken code points and marks that change text direction."""
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]",
        "\ufffd",
        text.replace("\r\n", "\n"),
    )


# HTML


def _html(text: str) -> str:
    return html.escape(plain(text), quote=True)


def _html_block(block: Block) -> str:
    match block:
        case Table():
            return _html_table(block)
        case Paragraph(text, kind):
            return f'<p class="{kind}">{_html(text)}</p>'
        case Bullets(items, kind):
            lines = "".join(f"<li>{_html(item)}</li>\n" for item in items)
            return f'<ul class="{kind}">\n{lines}</ul>'
        case Code(text):
            return f"<pre>{_html(text)}</pre>"
        case Picture(_, png, caption, alt):
            data = base64.b64encode(png).decode()
            return (
                f'<figure><img width="{_width(png)}" src="data:image/png;base64,{data}" '
                f'alt="{_html(alt)}">\n'
                f"<figcaption>{_html(caption)}</figcaption></figure>"
            )


def _html_table(table: Table) -> str:
    def css(column: int) -> str:
        return ' class="text"' if column < table.text_columns else ""

    head = "".join(
        f'<th scope="col"{css(i)}>{_html(name)}</th>' for i, name in enumerate(table.columns)
    )
    rows = "\n".join(_html_row(row, len(table.columns), css) for row in table.rows)
    notes = "".join(f'\n<p class="note">{_html(note)}</p>' for note in table.notes)
    wide = ' class="wide"' if len(table.columns) >= WIDE else ""
    short = " short" if len(table.rows) <= SHORT else ""
    return (
        f'<div class="scroll{short}"><table{wide}>\n<caption>{_html(table.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>{notes}"
    )


def _width(png: bytes) -> int:
    """Width in CSS pixels (1/96 inch) of a PNG at its original size, from the file's header."""
    (pixels,) = struct.unpack(">I", png[16:20])
    return round(pixels * 96 / DPI)


def _html_row(row: Row, columns: int, css) -> str:
    if row.kind == "group":
        label = _html(row.cells[0].text)
        return f'<tr class="group"><th scope="rowgroup" colspan="{columns}">{label}</th></tr>'
    cells = "".join(f"<td{css(i)}>{_html_cell(cell)}</td>" for i, cell in enumerate(row.cells))
    return f'<tr class="{row.kind}">{cells}</tr>'


def _html_cell(cell: Cell) -> str:
    note = f" <small>{_html(cell.note)}</small>" if cell.note else ""
    return _html(cell.text) + note


# Markdown


def _markdown(text: str) -> str:
    """The text as one line, with all markup escaped."""
    text = " ".join(plain(text).split())
    text = html.escape(text, quote=False)
    text = re.sub(r"([\\`*|\[\]~$])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # arc_challenge is not emphasis


def _markdown_line(text: str) -> str:
    """The text at the start of a line, where some first characters make headings and lists."""
    text = re.sub(r"^(#|[+-](?=\s|$)|[=-]+$)", r"\\\1", _markdown(text))
    return re.sub(r"^(\d+)([.)](?=\s|$))", r"\1\\\2", text)


def _markdown_block(block: Block) -> str:
    match block:
        case Table():
            return _markdown_table(block)
        case Paragraph(text, kind):
            return f"> **{_markdown(text)}**" if kind == "warning" else _markdown_line(text)
        case Bullets(items, _):
            return "\n".join(f"- {_markdown_line(item)}" for item in items)
        case Code(text):
            text = plain(text)
            longest = max((len(run) for run in re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}text\n{text}\n{fence}"
        case Picture(name, _, caption, alt):
            return f"![{_markdown(alt)}]({name}.png)\n\n{_markdown_line(caption)}"


def _markdown_table(table: Table) -> str:
    marks = ["---" if i < table.text_columns else "---:" for i in range(len(table.columns))]
    lines = [_markdown_cells(table.columns), f"| {' | '.join(marks)} |"]
    lines += [_markdown_row(row, len(table.columns)) for row in table.rows]
    notes = "".join(f"\n\n{_markdown_line(note)}" for note in table.notes)
    return f"**{_markdown(table.caption)}**\n\n" + "\n".join(lines) + notes


def _markdown_row(row: Row, columns: int) -> str:
    texts = [" ".join(filter(None, (cell.text, cell.note))) for cell in row.cells]
    texts += [""] * (columns - len(texts))
    escaped = [_markdown(text) if text else "" for text in texts]
    if row.kind == "group":
        escaped[0] = f"*{escaped[0]}*"
    elif row.kind == "ours":
        escaped[0] = f"**{escaped[0]}**"
    return f"| {' | '.join(escaped)} |"


def _markdown_cells(texts: tuple[str, ...]) -> str:
    return f"| {' | '.join(_markdown(text) if text else '' for text in texts)} |"
