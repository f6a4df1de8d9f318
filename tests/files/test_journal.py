"""Finished work is kept; files that are not journals are not touched."""

import pytest

from lorage_jax.errors import OutputError
from lorage_jax.files.journal import Journal, request_key


def test_a_key_tells_parts_and_their_borders_apart():
    keys = [
        request_key("ab", "c"),
        request_key("a", "bc"),
        request_key("abc"),
        request_key(b"abc"),
        request_key("c", "ab"),
        request_key(1),
        request_key("1"),
    ]
    assert len(set(keys)) == len(keys)
    assert request_key("ab", 1) == request_key("ab", 1)


def test_values_are_there_after_a_kill(tmp_path):
    path = tmp_path / "progress"
    journal = Journal.open(path)
    journal.add({"a": [1.5, True], "b": "text\nwith a line"})
    assert Journal.open(path).get("a") == [1.5, True]
    with path.open("a") as file:
        file.write('{"key": "c", "val')
    second = Journal.open(path)
    assert len(second) == 2 and second.get("c") is None
    second.add({"d": 4})
    third = Journal.open(path)
    assert third.get("b") == "text\nwith a line" and third.get("d") == 4
    third.remove()
    assert not path.exists()


def test_without_a_path_nothing_is_written(tmp_path):
    journal = Journal.open(None)
    journal.add({"a": 1})
    journal.remove()
    assert journal.get("a") == 1 and not list(tmp_path.iterdir())


def test_another_file_is_left_alone(tmp_path):
    path = tmp_path / "scores.json"
    for text in ('{"results": 1}\n', "my notes\n\n", "{\n", '{"format": "lorage'[:-1] + "x"):
        path.write_text(text)
        with pytest.raises(OutputError, match="not a record of finished requests"):
            Journal.open(path)
        assert path.read_text() == text


def test_half_a_header_is_begun_afresh(tmp_path):
    path = tmp_path / "new" / "progress"  # a missing folder is created
    Journal.open(path).add({"a": 1})
    whole = path.read_text()
    path.write_text(whole[:9])
    journal = Journal.open(path)
    journal.add({"a": 1})
    assert path.read_text() == whole and Journal.open(path).get("a") == 1
