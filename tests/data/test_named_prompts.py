"""System prompts by name."""

import pytest

from lorage_jax.data.named_prompts import read_named_prompts
from lorage_jax.errors import DataError


def test_prompts_keep_their_order(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"name": "b.1", "system": "x"}\n\n{"name": "a_2-c", "system": "y z"}\n')
    found = read_named_prompts(path).items()
    assert [(name, one.system, one.where) for name, one in found] == [
        ("b.1", "x", f"{path}:1"),
        ("a_2-c", "y z", f"{path}:3"),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", ":2: "),
        ('{"name": "b"}', ":2: the field system is missing"),
        ('{"name": 3, "system": "x"}', ":2: the field name is"),
        ('{"name": "../a", "system": "x"}', r":2: the name is '\.\./a'; expected letters"),
        ('{"name": ".hidden", "system": "x"}', "with a letter or digit first"),
        ('{"name": "b", "system": " "}', ":2: the field system is empty"),
        ('{"name": "a", "system": "y"}', ":2: the name 'a' was there before"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"name": "a", "system": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match=says):
        read_named_prompts(path)
