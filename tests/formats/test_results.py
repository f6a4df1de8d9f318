"""`lorage report` and the nano table read result files of older versions."""

import json

import pytest

from lorage_jax import cli
from lorage_jax.report.world import combine
from lorage_jax.world.scores import from_json


@pytest.fixture
def report(old, tmp_path):
    """report(names...) -> the Markdown page that `lorage report` makes from these old files."""

    def make(*names):
        files = [str(old / name) for name in names]
        assert cli.main(["report", *files, "--out", str(tmp_path / "report")]) == 0
        return (tmp_path / "report" / "report.md").read_text("utf-8")

    return make


def arms(page, first, columns):
    """Rows of the page with a score, starting at the one that contains `first`."""
    rows = [line for line in page.splitlines() if line.startswith("|")]
    start = next(i for i, line in enumerate(rows) if first in line)
    return rows[start : start + columns]


def test_scores_with_their_controls(report):
    page = report("eval.json")
    found = arms(page, "71.0", 7)  # seven arms, ten points apart
    assert found[0].startswith("| **")  # ours
    for number, line in enumerate(found):
        assert f"{71 - 10 * number}.0" in line and f"{72 - 10 * number}.0" in line
    for number in range(4):  # gaps to the controls, in points
        assert f"+{3.1 + 0.5 * number:.1f}" in page


def test_tool_use(report):
    page = report("gpt4tools.json")
    for first in (82, 83):  # by the official scorer, by the strict one
        found = arms(page, f"| {first}.0", 8)
        assert found[0].startswith("| **")
        assert all(f"| {first - 10 * n}.0" in line for n, line in enumerate(found))
    for number in range(4):
        assert f"+{4.2 + 0.5 * number:.1f}" in page


def test_benches_cards_and_other_results(report):
    page = report("bench_flops.json", "special/card.json", "specialize.json")
    assert "4.708e+11" in page and "3.03x" in page
    assert "| special | 0.00 | 1.00 | 1.00 | 0.00 | 2.00 |" in page
    assert "unmerged_vs_reloaded" in page


def test_parts_of_the_nano_table(old, expected):
    names = ("base", "seed0", "seed1", "lora0", "time")
    parts = {n: json.loads((old / f"nano_{n}.json").read_text("utf-8"))["result"] for n in names}
    seeds, base, lora = (
        [from_json(parts[name]) for name in names]
        for names in (("seed0", "seed1"), ("base",), ("lora0",))
    )
    table = combine(seeds, base[0], lora, parts["time"])
    assert set(table["splits"]) == set(expected["nano"])
    for split, means in expected["nano"].items():
        methods = table["splits"][split]["methods"]
        # The order is that of the table; names of methods have changed since.
        assert [one["mean"] for one in methods.values()] == pytest.approx(list(means.values()))
    for split, time in parts["time"].items():
        found = table["seconds_per_request"][split]
        for kind in ("batch", "single"):  # the names of arms have changed here, too
            assert list(found.pop(kind).values()) == list(time.pop(kind).values())
        assert found == time
