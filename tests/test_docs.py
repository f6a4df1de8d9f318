"""The documentation: links lead somewhere, quoted code is the code, the reference is whole."""

import configparser
import re
from pathlib import Path

import pytest

import lorage_jax as lg
from lorage_jax import nano

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
GENERATED = {"docs/commands.md"}  # tools/docs_site.py makes it
SOURCE = re.compile(r'```python title="([^"]+)"\n(.*?)```', re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for link in links:
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if str(target.relative_to(ROOT)) in GENERATED:
            continue
        assert target.is_file(), f"{page.name} links to {link}, which is not there"
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target), f"{page.name}: {link} has no such heading"


def test_quoted_code_is_the_code():
    quotes = [match for page in PAGES for match in SOURCE.findall(page.read_text("utf-8"))]
    assert len(quotes) >= 8
    for file, code in quotes:
        assert code in (ROOT / file).read_text("utf-8"), f"{file} no longer has:\n{code}"


def test_the_reference_names_the_whole_python_face():
    shown = re.findall(r"^::: lorage_jax\.(\w+)$", (ROOT / "docs/python.md").read_text(), re.M)
    assert sorted(shown) == lg.__all__


def test_the_navigation_names_every_page():
    named = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} | {"commands.md"}
    assert named == pages


def test_the_readme_is_short_and_its_badges_and_figures_are_true():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options"]["python_requires"] == ">=3.11,<3.14"
    assert "3.11 to 3.13" in (ROOT / "docs/badges/python.svg").read_text()
    assert setup["metadata"]["license"] in (ROOT / "docs/badges/license.svg").read_text()
    jax = re.search(r"^jax>=(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert jax and jax[1] in (ROOT / "docs/badges/jax.svg").read_text()
    measured = (ROOT / "experiments/results/real/instructions.md").read_text("utf-8")
    rows = re.findall(r"^\| (\**(?:edge|specialised|control).*?) \|$", text, re.MULTILINE)
    assert len(rows) >= 6
    for row in rows:
        cells = [re.sub(r"\*", "", cell).strip() for cell in row.split("|")]
        found = [line for line in measured.splitlines() if cells[0] in line and "|" in line]
        assert found and all(cell in found[0] for cell in cells[1:]), row


def test_the_bundled_generators_say_what_the_results_say():
    """Every row of scores in their model cards is a row of the results."""
    sources = {
        "nano": (ROOT / "docs/results.md").read_text("utf-8"),
        "smollm2": (ROOT / "experiments/results/real/instructions.md").read_text("utf-8"),
    }
    for name, results in sources.items():
        text = (ROOT / "lorage_jax" / name / "generator" / "README.md").read_text("utf-8")
        rows = [line for line in text.splitlines() if re.match(r"\| \w.*\d", line)]
        assert len(rows) >= 5
        for row in rows[1 if name == "smollm2" else 0 :]:
            first, *cells = [cell.strip() for cell in row.strip("|").split("|")]
            found = [line.replace("*", "") for line in results.splitlines() if first in line]
            assert any(all(cell in line for cell in cells) for line in found), row


def test_many_cards_in_one_batch():
    """The guide's lines, with the nano pair."""
    page = (ROOT / "docs/python.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(cards = .*?)```", page, re.DOTALL)
    edge, gen = lg.load_model(nano.EDGE), lg.load_generator("nano")
    names = {"lg": lg, "gen": gen, "edge": edge, "tokens": [[5, 6, 7], [8, 9, 10]]}
    exec(code, names)
    texts = [text.strip() for text in names["texts"]]
    assert texts == ["oil, cat, sun", "| STAR | CITY | KING | FROG |"]
    assert names["logits"].shape == (2, 3, edge.config.vocab_size)
