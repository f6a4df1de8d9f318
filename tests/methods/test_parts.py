"""Folders of trained parts belong to the weights, config and turns of their edge and cloud."""

import dataclasses
import shutil

import numpy as np
import pytest

from lorage_jax.config import DataConfig, ExperimentConfig, Source
from lorage_jax.data.templates import TemplateKind, question
from lorage_jax.errors import WeightsError
from lorage_jax.generator.store import check_identity
from lorage_jax.hf.load import load_model
from lorage_jax.methods.direct import DirectSettings
from lorage_jax.methods.parts import (
    parts_kind,
    read_manifest,
    reading,
    speaking,
    trained_parts,
)
from tests.data.test_chat_templates import CHATML, GEMMA, with_template

KIND = parts_kind("test", "a test")


@pytest.fixture(scope="module")
def models(pair):
    found = zip(("cloud", "edge"), map(load_model, pair), strict=True)
    chat = with_template(CHATML)
    turns = TemplateKind("chat").on(chat)
    return {name: one.replace(tokenizer=chat, template=turns) for name, one in found}


@pytest.fixture
def folder(models, tmp_path):
    data = DataConfig((Source("x.jsonl"),))
    config = ExperimentConfig("cloud", "edge", "out", data, 100)
    made = trained_parts(KIND, config, DirectSettings(), models, {"a": np.zeros(3, np.float32)})
    made.write(tmp_path / "parts")
    return tmp_path / "parts"


def test_a_cloud_of_the_hub_is_recorded_by_its_name(models, tmp_path):
    """As a generator records it, so that another machine can fetch it."""
    source = tmp_path / "models--org--cloud" / "snapshots" / "1"
    shutil.copytree(models["cloud"].source, source)
    named = models | {"cloud": models["cloud"].replace(source=source)}
    config = ExperimentConfig("cloud", "edge", "out", DataConfig((Source("x.jsonl"),)), 100)
    trained_parts(KIND, config, DirectSettings(), named, {"a": np.zeros(3, np.float32)}).write(
        tmp_path / "parts"
    )
    places = read_manifest(KIND, tmp_path / "parts", models["edge"])["cloud"]
    assert places["hub"] == "org/cloud" and places["path"] == str(source)
    assert (tmp_path / "parts" / places["relative"]).resolve() == source


def test_another_config_is_refused(folder, models):
    values = read_manifest(KIND, folder, models["edge"])
    check_identity(models["cloud"], values, "cloud")
    for role, refuse in (
        ("edge", lambda model: read_manifest(KIND, folder, model)),
        ("cloud", lambda model: check_identity(model, values, "cloud")),
    ):
        config = dataclasses.replace(models[role].config, rope_theta=5.0)
        with pytest.raises(WeightsError, match=r"rope_theta is 5.0; .*777.0"):
            refuse(models[role].replace(config=config))


def test_the_turns_are_those_of_training(folder, models):
    values, edge = read_manifest(KIND, folder, models["edge"]), models["edge"]
    right = edge.template.ids(question("hi"))
    changed = edge.replace(tokenizer=with_template(GEMMA), template=None)
    assert speaking(changed, values).template.ids(question("hi")) == right
    grown = with_template(CHATML)
    grown.add_tokens(["twice"])
    with pytest.raises(WeightsError, match="does not tokenize as in training"):
        speaking(edge.replace(tokenizer=grown), values)
    old = {key: value for key, value in values.items() if key not in ("turns", "chat_template")}
    assert speaking(changed, old).template.ids(question("hi")) != right


def test_the_cloud_reads_as_in_training(folder, models):
    values, cloud = read_manifest(KIND, folder, models["edge"]), models["cloud"]
    right = cloud.template.read("Say hi.")
    other = with_template(GEMMA)
    assert reading(cloud.replace(tokenizer=other), values).on(other).read("Say hi.") == right
    grown = with_template(CHATML)
    grown.add_tokens(["hi"])
    with pytest.raises(WeightsError, match="does not tokenize as in training"):
        reading(cloud.replace(tokenizer=grown), values)
    values["cloud"] = {key: values["cloud"][key] for key in ("fingerprint", "config")}
    assert reading(cloud.replace(tokenizer=grown), values).source is None  # of earlier versions
