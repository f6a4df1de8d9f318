"""The report's gates, and the page as a file: escaped, complete, self-contained."""

import base64
import functools
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from lorage_jax.errors import DataError
from lorage_jax.report.gates import collapsed, distances, usage
from lorage_jax.report.page import Bullets, Code, Page, Paragraph, Section
from lorage_jax.report.paper import TABLE_2
from lorage_jax.report.pictures import Point, _scatter
from lorage_jax.report.render import to_markdown
from tests.report.example import (
    Html,
    evaluation,
    flops,
    make_card,
    markdown_tables,
    origin,
    rendered,
    table,
    tools,
)

DASH = "\u2013"
EVIL = "<script>alert(1)</script> | `x` *y* [z](http://evil) & \"q\" 'p' _u_ $m$"


@pytest.fixture
def pages(tmp_path):
    """pages(name=values, ...) -> (HTML, Markdown) of a report on these files."""
    return functools.partial(rendered, tmp_path)


def both(pages, **files):
    html, markdown = pages(**files)
    return Html(html).tables, markdown_tables(markdown)


# Gates


def test_usage_sums_to_k_and_is_of_the_right_expert(pages):
    card = make_card([{0: 0.7, 1: 0.3}, {0: 0.2, 3: 0.8}, {0: 0.5, 2: 0.5}, {0: 0.9, 3: 0.1}])
    np.testing.assert_allclose(usage(card.gates), [1, 0.25, 0.25, 0.5])
    assert usage(card.gates).sum() == 2.0
    for tables in both(pages, one=card.to_dict()):
        cells = list(table(tables, "Expert usage")["one.json"].values())[1:]
        assert cells == ["1.00", "0.25", "0.25", "0.50", "2.00"]


def test_router_collapse_is_said_in_words(pages):
    fine = make_card([{0: 0.95, 1: 0.05}, {1: 0.5, 2: 0.5}])
    other = make_card([{1: 0.95, 0: 0.05}, {1: 0.5, 2: 0.5}])
    same = make_card([{0: 0.89, 1: 0.11}, {2: 0.5, 3: 0.5}])
    assert collapsed(np.stack([fine.gates, other.gates])) == []  # each prompt has its favourite
    ((layer, expert, share),) = collapsed(np.stack([fine.gates, same.gates]))
    assert (layer, expert, round(share, 3)) == (0, 0, 0.92)
    for text in pages(a=fine.to_dict(), b=same.to_dict()):
        assert "Warning, router collapse: in 1 of 2 layers" in text
        assert "over 2 prompts (layer 0: expert 0 with 92%)" in text
    for text in pages(a=fine.to_dict(), b=other.to_dict()):
        assert "Warning" not in text and "No layer gives more than 90% " in text


def test_gates_that_ignore_the_prompt_are_said_in_words(pages):
    one, two = (make_card([{0: 0.5, 1: 0.5}, {1: 0.5 + x, 2: 0.5 - x}]) for x in (0, 0.01))
    for text in pages(a=one.to_dict(), b=two.to_dict()):
        assert "the gates hardly depend on the prompt" in text


def test_nearest_prompts(pages):
    """Four cards: b shares a's first layer, c its second in part, d nothing."""
    cards = {
        "a": make_card([{0: 1.0}, {0: 1.0}], prompt="Prompt of a."),
        "b": make_card([{0: 1.0}, {1: 1.0}]),
        "c": make_card([{1: 1.0}, {0: 0.6, 1: 0.8}]),
        "d": make_card([{3: 1.0}, {3: 1.0}]),
        "z": make_card([{0: 1.0}, {0: 1.0}], generator="sha256:another"),
    }
    matrix = distances(np.stack([cards[name].gates for name in "abcd"]))
    expected = [[0, 0.5, 0.7, 1], [0.5, 0, 0.6, 1], [0.7, 0.6, 0, 1], [1, 1, 1, 0]]
    np.testing.assert_allclose(matrix, expected, atol=1e-6)
    html, markdown = pages(**{name: card.to_dict() for name, card in cards.items()})
    for tables in (Html(html).tables, markdown_tables(markdown)):
        row = table(tables, "Nearest")["a.json"]
        assert list(row.values()) == [
            "a.json",
            "Prompt of a.",
            "b.json 0.500",
            "c.json 0.700",
            "d.json 1.000",
        ]
        assert table(tables, "Nearest")["b.json"]["nearest"] == "a.json 0.500"
    assert "Generator 2 of 2: sha256:another" in html and "There is only one card" in html


def test_cards_of_an_evaluation_are_named_by_their_task(pages):
    card = make_card([{0: 1.0}]).to_dict()
    values = evaluation(cards={"piqa": card, "boolq": make_card([{1: 1.0}]).to_dict()})
    for tables in both(pages, scores=values, again=evaluation(cards={"piqa": card})):
        assert set(table(tables, "Expert usage")) == {
            "piqa (scores.json)",
            "boolq",
            "piqa (again.json)",
        }


# The page as a file


def test_pictures_are_inside_the_html_and_decode(pages):
    html, markdown = pages(scores=evaluation(), card=make_card([{0: 1.0}]).to_dict())
    references = Html(html).references
    assert len(references) == 2
    for reference in references:
        head, data = reference.split(",", 1)
        assert head == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        image.load()
        assert min(image.size) > 100 and len(image.getcolors(1 << 24)) > 10
    assert "](accuracy-latency.png)" in markdown and "](gates-1-1.png)" in markdown


@pytest.mark.parametrize("ours", [(40.0, 55.0), (20.0, 55.2), (3000.0, 51.0)])
def test_labels_cover_neither_each_other_nor_a_point(ours):
    points = [
        Point(f"{p.model[:5]} {p.method}", p.model, p.method, p.milliseconds, p.average)
        for p in TABLE_2
    ]
    points += [Point("ours: specialised", "ours", "LoRA-Gen", *ours)]
    points += [Point("ours: prompt in the context", "ours", "base", ours[0] * 2, ours[1])]
    figure = _scatter(points, {"ours"})
    figure.savefig(io.BytesIO(), format="png", dpi=figure.dpi)
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    at = [axes.transData.transform((p.milliseconds, p.accuracy)) for p in points]
    assert [text.get_text() for text in axes.texts] == [point.label for point in points]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert not any(box.contains(*place) for place in at)
        assert axes.get_window_extent().x0 <= box.x0 and box.x1 <= axes.get_window_extent().x1
    frames = {line.get_marker() for line in axes.lines}
    assert len(frames) == 5  # one shape each for base, LoRA, LoRAMoE, MixLoRA and LoRA-Gen


def test_numbers_are_aligned_at_the_right(pages):
    html, markdown = pages(scores=evaluation(gpt4tools=tools()))
    assert '<td class="text">records (n)</td><td>100</td>' in html
    assert f"| --- |{' ---: |' * 11}\n" in markdown
    assert "th, td {" in html and "text-align: right" in html and "@media print" in html


def test_heatmaps_beyond_one_picture(pages):
    cards = {f"task{i}": make_card([{i % 4: 1.0}] * 3).to_dict() for i in range(9)}
    html, markdown = pages(scores=evaluation(tasks=("piqa",), cards=cards))
    assert "](gates-1-2.png)" in markdown and len(Html(html).references) == 3


def evil_files():
    """Hostile text in every text field of the files."""
    values = evaluation(
        cards={EVIL: make_card([{0: 1.0}], prompt=EVIL).to_dict()},
        gpt4tools=tools(),
        words=[EVIL],
        model={"edge": EVIL, "generator": EVIL, "tokenizer": EVIL},
        provenance=origin(f"lorage eval\n```\n{EVIL}") | {"date": EVIL},
    )
    values["arms"] |= {EVIL: values["arms"]["shuffled"]}
    values["arms"]["lora_gen"]["tasks"][EVIL] = {"acc": 0.5}
    values["gaps"][EVIL] = {EVIL: {"gap": 0.1}}
    bench = {"bench": EVIL, "shape": EVIL, EVIL: EVIL, "provenance": origin()}
    return {"scores": values, "flops": flops(shape=EVIL, layers=1), "bench": bench}


def test_nothing_in_a_file_becomes_markup(pages):
    html, markdown = pages(**evil_files())
    page = Html(html)
    harmless = Html(pages(**json.loads(json.dumps(evil_files()).replace("<script>", "x")))[0])
    assert page.tags == harmless.tags and "script" not in page.tags and page.handlers == []
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert page.text.count(EVIL) > 10
    assert "http-equiv" not in html and "@import" not in html and "url(" not in html
    outside, fenced = "", False  # of the code fence, in which nothing is markup
    for line in markdown.splitlines():
        if line.startswith("````"):
            fenced = not fenced
        elif not fenced:
            outside += line + "\n"
    assert not fenced and f"````text\nlorage eval\n```\n{EVIL}\n````" in markdown
    assert "<script" not in outside and "&lt;script&gt;" in outside
    assert re.search(r"\\\]\(http", outside) and not re.search(r"[^\\]\]\(http", outside)
    for rows in markdown_tables(outside).values():
        assert rows  # a bar in a text has not split a cell
    widths = {
        len(line.replace(r"\|", "").split("|"))
        for line in outside.split("Table 2 of")[1].split("\n\n")[1].splitlines()
    }
    assert len(widths) == 1


def test_text_that_no_file_can_hold(pages):
    words = ["a\ud800b\x00c\u202ed", "\u4f60\u597d \x1b[31m"]
    card = make_card([{0: 1.0}], prompt=words[0]).to_dict()
    for text in pages(scores=evaluation(words=words, cards={words[1]: card, words[0]: card})):
        text.encode("utf-8")
        assert "a\ufffdb\ufffdc\ufffdd" in text and "\u4f60\u597d" in text
        assert not {"\x00", "\x1b", "\u202e"} & set(text)


def test_lines_that_markdown_would_read_as_something_else():
    texts = ("# no heading", "- no item", "1. no list", "===", "+3.1 stays", "2.5 stays")
    page = Page("t", (Section("s", (*map(Paragraph, texts), Bullets(texts), Code("a ``` b"))),))
    lines = to_markdown(page).splitlines()
    for text in (
        r"\# no heading",
        r"\- no item",
        r"1\. no list",
        r"\===",
        "+3.1 stays",
        "2.5 stays",
    ):
        assert text in lines and f"- {text}" in lines
    assert lines[-3:] == ["````text", "a ``` b", "````"]


# Unreadable files


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": [1]}, "arms is not"),
        ({"arms": {"lora_gen": {"tasks": {"piqa": 3}}}}, "arms.lora_gen.tasks is not"),
        ({"gaps": {"shuffled": {"piqa": 0.1}}}, "gaps is not"),
        ({"words": "x"}, "words is not"),
        ({"gpt4tools": {"arms": {"a": 1}}}, "gpt4tools.arms.a"),
        ({"arms": {}}, "neither arms nor gpt4tools"),
        ({"cards": {"piqa": {"format": "x"}}}, "cards.piqa is not a card"),
        ({"provenance": {"format": "other/1"}}, "lorage-results/1"),
    ],
)
def test_a_damaged_evaluation_is_refused(pages, changes, says):
    with pytest.raises(DataError, match=says):
        pages(scores=evaluation(**changes))


@pytest.mark.parametrize("junk", [None, 3, "x", [1], {}, {"a": {"b": 1}}, True])
def test_junk_in_the_leaves_is_a_dash_and_no_crash(pages, junk):
    """Values that pass the shape check are shown as dashes or text."""
    values = evaluation(gpt4tools={"arms": {"lora_gen": {"official": junk}}, "gaps": junk})
    values["arms"]["lora_gen"] |= {"summary": junk}
    values["arms"]["lora_gen"]["tasks"]["piqa"] = dict.fromkeys(("acc", "n", "edge_tokens"), junk)
    values["gaps"]["shuffled"]["piqa"] = {"gap": junk, "significant": junk}
    values |= {"main": junk, "model": {"edge": junk, "parameters": junk}, "words": None}
    values["provenance"] |= {"git": junk, "machine": junk, "command": junk, "versions": junk}
    bench = {"bench": "flops", "layers": junk, "macs_with_prompt": junk, "shape": junk}
    html, _ = pages(scores=values, flops=bench, latency=bench | {"bench": "latency"})
    rows = table(Html(html).tables, "Table 2")
    assert rows["prompt in the context"]["PIQA (unseen)"].startswith("65.8")
    expected = "300.0" if type(junk) is int else DASH
    assert rows["specialised (LoRA-Gen)"]["PIQA (unseen)"] == expected
