"""Names of bundled generators, and models that are found by the name of their folder."""

import json
import shutil
from pathlib import Path

import pytest

from lorage_jax import nano, smollm2
from lorage_jax.bundled import generator_folder, kept_models
from lorage_jax.errors import WeightsError
from lorage_jax.generator.store import load_generator, read_values, recorded_path


def test_a_folder_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert generator_folder(Path("nano")) == nano.GENERATOR
    assert generator_folder(Path("smollm2")) == smollm2.GENERATOR
    assert generator_folder(Path("other")) == Path("other")
    (tmp_path / "smollm2").mkdir()
    assert generator_folder(Path("smollm2")) == Path("smollm2")


def test_models_are_kept_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAGE_MODELS", str(tmp_path))
    assert kept_models() == tmp_path
    monkeypatch.setenv("LORAGE_MODELS", "")
    assert kept_models() == Path.home() / ".cache" / "lorage-models"


def test_a_moved_model_is_found_among_the_kept_ones(tmp_path, monkeypatch):
    """Its weights are compared as ever: a folder of the name alone is not enough."""
    moved = tmp_path / "elsewhere" / "generator"
    shutil.copytree(nano.GENERATOR, moved)
    monkeypatch.setenv("LORAGE_MODELS", str(tmp_path / "models"))
    with pytest.raises(WeightsError, match=r"LORAGE_MODELS has no cloud.*--cloud"):
        recorded_path(read_values(moved), "cloud", moved)
    shutil.copytree(nano.CLOUD, tmp_path / "models" / "cloud")
    assert load_generator(moved).cloud.source == tmp_path / "models" / "cloud"
    shutil.rmtree(tmp_path / "models" / "cloud")
    shutil.copytree(nano.EDGE, tmp_path / "models" / "cloud")
    with pytest.raises(WeightsError, match="is not the cloud"):
        load_generator(moved)


def test_the_real_generator_is_small_and_names_no_place():
    files = [path for path in smollm2.GENERATOR.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    values = json.loads((smollm2.GENERATOR / "lorage.json").read_text("utf-8"))
    for role in ("cloud", "edge"):
        assert values[role]["relative"] == smollm2.MODEL and "path" not in values[role]
