"""Files and folders that may not be read: permissions are blamed, nothing is called damaged."""

import os
import re
import shutil
from pathlib import Path

import pytest

from lorage_jax.errors import WeightsError
from lorage_jax.files.manifest import Kind
from lorage_jax.files.safetensors import INDEX, SINGLE, Checkpoint
from lorage_jax.generator.card import load_card
from lorage_jax.hf.load import load_model
from lorage_jax.hf.peft import read_config

SAYS = "cannot be read: permission denied; change its permissions, or run as a user who may read it"


@pytest.fixture
def closed(monkeypatch):
    """closed(path): from now on, the system refuses to open this file or folder, even for root."""
    shut, opened, access = [], Path.open, os.access

    def refused(path):
        return any(Path(path).is_relative_to(one) for one in shut)

    def open_(path, *args, **options):
        if refused(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(os, "access", lambda path, mode: not refused(path) and access(path, mode))
    return shut.append


@pytest.mark.parametrize("name", ["", "config.json", "generation_config.json"])
def test_a_model_or_its_config(tiny, tmp_path, closed, name):
    shutil.copytree(tiny("llama")[0], tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text("{}")
    closed(tmp_path / "model" / name)
    with pytest.raises(WeightsError, match=f"^{re.escape(str(tmp_path / 'model' / name))} {SAYS}"):
        load_model(tmp_path / "model")


def test_weights_need_not_be_fetched_again(tiny, tmp_path, closed):
    shutil.copytree(tiny("llama")[0], tmp_path / "model")
    closed(tmp_path / "model" / SINGLE)
    with pytest.raises(WeightsError, match=f"  - {SINGLE}: {SAYS}$"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / SINGLE).rename(tmp_path / "model" / INDEX)
    closed(tmp_path / "model" / INDEX)
    with pytest.raises(WeightsError, match=rf"{re.escape(INDEX)} {SAYS}\.$"):
        load_model(tmp_path / "model")


def test_cards_adapters_and_manifests(tmp_path, closed):
    for name, read in (
        ("card.json", load_card),
        ("adapter_config.json", lambda path: read_config(path.parent)),
        ("adapter_model.safetensors", Checkpoint.open_file),
        ("lorage.json", lambda path: Kind("x", "a model", "a folder").read(path.parent)),
    ):
        (tmp_path / name).touch()
        closed(tmp_path / name)
        with pytest.raises(WeightsError, match=f"(?s){name}.* {SAYS}"):
            read(tmp_path / name)
    closed(tmp_path)  # a file of it is not the one to blame
    with pytest.raises(WeightsError, match=f"^{re.escape(str(tmp_path))} {SAYS}"):
        load_card(tmp_path / "card.json")
