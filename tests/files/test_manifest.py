"""Manifests: required fields, and uniform errors."""

import json

import pytest

from lorage_jax.errors import WeightsError
from lorage_jax.files.manifest import MANIFEST, Kind, manifest_of, write_manifest

FIELDS = {"size": int, "edge": dict, "edge.a": str}
KIND = Kind("lorage-x/1", "an x", "a folder of y", FIELDS)
GOOD = {"format": "lorage-x/1", "size": 3, "edge": {"a": "b"}}


def test_a_manifest_is_read_with_its_files(tmp_path):
    (tmp_path / "file").write_text("x")
    write_manifest(tmp_path, GOOD)
    values = KIND.read(tmp_path)
    assert values.items() >= GOOD.items() and values["files"] == ["file", MANIFEST]
    assert manifest_of(tmp_path) == values


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"format": "lorage-x/2"},
            "is not an x: expected format 'lorage-x/1', found 'lorage-x/2'.",
        ),
        ({"size": "3"}, "is damaged: size is '3'; expected int."),
        ({"edge": None}, "is damaged: edge is None; expected dict."),
        ({"edge": {}}, "is damaged: edge.a is missing; expected str."),
    ],
)
def test_a_wrong_field_is_named(tmp_path, changes, says):
    (tmp_path / MANIFEST).write_text(json.dumps(GOOD | changes))
    with pytest.raises(WeightsError) as error:
        KIND.read(tmp_path)
    assert str(error.value) == f"{tmp_path} {says}"


@pytest.mark.parametrize(("text", "says"), [("[1]", "found 'list'"), ("{", "cannot be read")])
def test_other_json(tmp_path, text, says):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(WeightsError, match=says):
        KIND.read(tmp_path)
    assert manifest_of(tmp_path) == {}


def test_no_manifest_at_all(tmp_path):
    with pytest.raises(WeightsError, match=r"holds no lorage\.json; expected a folder of y"):
        KIND.read(tmp_path)
    with pytest.raises(WeightsError, match="is not a folder; expected a folder of y"):
        KIND.read(tmp_path / "nowhere")
    assert manifest_of(tmp_path / "nowhere") == {}
