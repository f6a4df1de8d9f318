"""`~` means the home folder in every path, where a shell has not replaced it already."""

import json
import os
import shutil
from pathlib import Path

import pytest

import lorage_jax as lg
from lorage_jax.commands.adapted import load_adapted
from lorage_jax.compilation import keep_programs
from lorage_jax.config import Corpus, DataConfig, ExperimentConfig, PretrainConfig, Source
from lorage_jax.data.records import read_bytes
from lorage_jax.data.written_tasks import task_files
from lorage_jax.errors import ConfigError
from lorage_jax.evaluate.local_tasks import TaskData
from lorage_jax.files.outputs import write_file
from lorage_jax.generator.store import read_values, recorded_path
from lorage_jax.hf.family import family_decoder
from lorage_jax.methods.lora import read_lora
from tests.commands.world import lorage
from tests.tiny import make_generator


@pytest.fixture
def home(pair, tmp_path, monkeypatch):
    """A home folder with cloud and edge; the working folder is another one."""
    for name, folder in zip(("cloud", "edge"), pair, strict=True):
        shutil.copytree(folder, tmp_path / "home" / name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield tmp_path / "home"
    assert not list((tmp_path / "elsewhere").iterdir())  # nor a folder that is called ~


def test_python(home):
    made = make_generator(home / "cloud", home / "edge")
    lg.save_generator(made, "~/generator")
    values = read_values("~/generator")
    assert values["cloud"]["relative"] == "../cloud"
    assert recorded_path(values, "edge", Path("~/generator")) == home / "edge"
    assert lg.load_generator("~/generator", cloud="~/cloud").fingerprint == made.fingerprint
    edge, card = lg.load_model("~/edge"), lg.specialize(made, "Say it twice.")
    card.save("~/card.json")
    assert (lg.load_card("~/card.json").gates == card.gates).all()
    lg.export_adapter(made.pool, card, edge, "~/adapter")
    lg.load_adapter("~/adapter", edge)
    assert load_adapted(Path("~/edge"), "float32", ["~/adapter=0.5"]).loras
    lg.export_merged(lg.merge(edge, made.pool, card), "~/merged", base="~/edge")
    with pytest.raises(lg.LorageError, match=f"{home}/lora is not a folder"):
        read_lora("~/lora", edge)
    (home / "tasks").mkdir()
    (home / "tasks" / "a.jsonl").write_text("")
    assert task_files("~/tasks") == [home / "tasks" / "a.jsonl"]
    assert TaskData("~/tasks").folder == home / "tasks"


def test_configurations(home):
    source = Source("~/train.jsonl")
    assert source.path == f"{home}/train.jsonl" and Source("org/name").path == "org/name"
    config = ExperimentConfig("~/cloud", "org/edge", "~/run", DataConfig((source,)), 100)
    assert (config.cloud, config.edge, config.out, config.init) == (
        *(f"{home}/cloud", "org/edge"),
        *(f"{home}/run", ""),
    )
    sizes = {"width": 8, "layers": 1, "heads": 1, "kv_heads": 1, "ffn_width": 8}
    model = family_decoder("llama", vocab_size=300, **sizes)
    corpora = (Corpus(Source("~/prose.jsonl", "text"), 4, 2),)
    begun = PretrainConfig(model, "~/run", corpora, 100, init="~/model")
    assert (begun.out, begun.init) == (f"{home}/run", f"{home}/model")


def test_a_user_who_is_not_there_is_one_message(home, capfd, monkeypatch):
    says = "~nobodyhere/x: the home folder ~nobodyhere is not known here; expected the path in full"
    for call in (
        lambda: lg.load_model("~nobodyhere/x"),
        lambda: lg.load_generator("~nobodyhere/x"),
        lambda: lg.load_card("~nobodyhere/x"),
        lambda: read_bytes("~nobodyhere/x"),
        lambda: task_files("~nobodyhere/x"),
        lambda: TaskData("~nobodyhere/x"),
        lambda: Source("~nobodyhere/x"),
        lambda: write_file("~nobodyhere/x", "", overwrite=False),
    ):
        with pytest.raises(ConfigError, match=says):
            call()
    for words in (
        ("eval", "--model", "~/edge", "--data", "~nobodyhere/x", "--tasks", "piqa"),
        ("generate", "--model", "~nobodyhere/x", "--input", "hi"),
        ("train", "~nobodyhere/x"),
    ):
        assert lorage(*words) == 1
        error = capfd.readouterr().err
        assert says in error and "Traceback" not in error
    monkeypatch.setenv("LORAGE_CACHE", "~nobodyhere/x")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    keep_programs()  # without a cache
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_commands(home, capfd):
    (home / "input.txt").write_text("hi")
    given = ("--input", "hi", "--max-new-tokens", "1", "--json", "~/said.json")
    assert lorage("generate", "--model", "~/edge", "--system", "~/input.txt", *given) == 0
    assert "output" in json.loads((home / "said.json").read_text())
    assert lorage("generate", "--model", "~/edge", "--input", "~/edge", "--max-new-tokens", 1) == 0
    assert lorage("report", "~/none.json", "~/said.json", "--out", "~/report") == 1
    assert f"{home}/none.json" in capfd.readouterr().err
    assert lorage("train", "~/none.py") == 1  # a path that nothing further down expands
    assert f"there is no experiment file {home}/none.py" in capfd.readouterr().err
