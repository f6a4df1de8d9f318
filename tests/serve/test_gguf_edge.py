"""`lorage serve` with an edge in a GGUF file, which is another model than its folder."""

import dataclasses

import pytest

from lorage_jax import nano
from lorage_jax.cli import main
from lorage_jax.hf.load import load_model
from lorage_jax.infer.chat import chat
from tests.serve.server import PROMPTS, WORDS, running
from tests.serve.test_bad_requests import send

pytest.importorskip("gguf")

from lorage_jax.llamacpp.export import export_gguf
from lorage_jax.serve.service import Limits, Service


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """The nano edge's file, in f32: its weights, exactly."""
    path = tmp_path_factory.mktemp("edge") / "edge.gguf"
    export_gguf(nano.EDGE, path, "f32")
    return path


def test_a_file_is_served_under_a_generator_of_it(edge, nano_pair, merged, tmp_path):
    model = load_model(edge)
    generator = dataclasses.replace(nano_pair[0], edge_fingerprint=model.fingerprint)
    with running(Service(generator, model, tmp_path, Limits(slots=4))) as url:
        status, made = send(f"{url}/v1/cards", {"system": PROMPTS["bars"], "name": "bars"})
        assert status == 201 and made["card"]["edge"] == model.fingerprint
        for name, card in (("edge:bars", "bars"), ("edge", None)):
            body = {"model": name, "messages": [{"role": "user", "content": WORDS[0]}]}
            status, answer = send(f"{url}/v1/chat/completions", body)
            assert status == 200
            assert answer["choices"][0]["message"]["content"] == chat(merged[card], WORDS[0])


def test_a_file_instead_of_the_folder_of_training_is_refused(edge, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["serve", "--generator", "nano", "--edge", str(edge), "--port", "0"]
    assert main([*words, "--port-file", "port"]) == 1
    errors = capsys.readouterr().err
    assert f"{edge} is not the edge this generator was trained with" in errors
    assert "are two models" in errors and "Traceback" not in errors
    assert not (tmp_path / "port").exists()
