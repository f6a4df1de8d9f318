"""Texts on the command line: repeated options, own questions, and piped input."""

import io
import json
import sys

import pytest

from lorage_jax.commands import generate, quickstart
from lorage_jax.errors import DataError
from lorage_jax.world import everyday
from lorage_jax.world import prompts as world_prompts
from tests.commands.world import lorage

KNOWN = "Reverse the words. Put a comma between words."


@pytest.mark.parametrize(
    "asked", ["--ask horse --ask box", "--ask horse box", "--ask=horse --ask box"]
)
def test_questions_may_be_repeated(tmp_path, monkeypatch, asked):
    """The first is the line of the README of smollm2."""
    found = []
    monkeypatch.setattr(quickstart, "_real", lambda _: (None, None))
    monkeypatch.setattr(quickstart, "load_generator", lambda *_, **__: None)

    def stop(generator, edge, system, records):
        found.extend(user for user, _ in records)
        raise DataError("enough")

    monkeypatch.setattr(quickstart, "_check_fits", stop)
    prompt = ("--real", "--prompt", "Name the plural of the noun.")
    assert lorage("quickstart", *prompt, *asked.split(), "--out", tmp_path / "mine") == 1
    assert found == ["horse", "box"]


@pytest.mark.parametrize("stops", ["--stop | --stop Q", "--stop | Q"])
def test_stops_may_be_repeated(world, monkeypatch, stops):
    found = []
    monkeypatch.setattr(generate, "generate", lambda *_, stop, **__: found.append(stop) or "")
    args = ("generate", "--model", world.root / "edge", "--input", "x", "--raw")
    assert lorage(*args, *stops.split()) == 0
    assert found == [("|", "Q")]


@pytest.mark.parametrize(
    ("system", "asked", "expected"),
    [
        (KNOWN, ("sun cat book", "sun"), ["book, cat, sun", "sun"]),
        (KNOWN, (" ",), [""]),
        ("Be kind.", ("sun cat",), [""]),
        (everyday.TASKS[0].wordings[0], ("child", "brouhaha"), ["children", ""]),
        (everyday.TASKS[3].wordings[0], ("42", "142", "x", ""), ["forty-two", "", "", ""]),
        (everyday.TASKS[4].wordings[0], ("a, b", "a b"), ["b", ""]),
        (everyday.TASKS[5].wordings[0], ("a, b, c", "a, b"), ["b", ""]),
    ],
)
def test_the_right_answers_to_questions_of_the_users_own(system, asked, expected):
    family = "words" if system in (KNOWN, "Be kind.") else everyday.FAMILY
    task = quickstart._task(0, system, family)
    records = quickstart._questions(task, 0, asked)
    assert records == list(zip(asked, expected, strict=True))
    other = quickstart._other(task, records, 0)
    if task.task and family == "words":
        assert all(other.answer(user) != target for user, target in records if target)


def test_questions_without_known_answers_are_told_as_such():
    tools = world_prompts.draw_prompts("paraphrase", 1, 2, "tools")[0]
    assert quickstart._questions(tools, 0, ("Hello.",)) == [("Hello.", "")]
    assert "your own questions" in quickstart._unscored({"task": tools.task})
    assert "not the wording of a built-in task" in quickstart._unscored({"task": ""})


@pytest.mark.parametrize(
    ("piped", "raw", "expected"),
    [
        (b" go 3\n", True, " go 3\n"),
        (b"go 3\r\n\n ", True, "go 3\r\n\n "),
        (b" go 3\n", False, " go 3"),
        (b"go\r\n\r\n", False, "go\n"),
        (b"\xef\xbb\xbfgo", False, "go"),
    ],
)
def test_a_piped_text(world, monkeypatch, tmp_path, piped, raw, expected):
    """With --raw it is continued as it is."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
    result = tmp_path / "result.json"
    args = ("generate", "--model", world.root / "edge", "--input", "-", "--max-new-tokens", 1)
    assert lorage(*args, "--json", result, *["--raw"] * raw) == 0
    assert json.loads(result.read_text())["input"] == expected
