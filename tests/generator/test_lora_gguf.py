"""A card's LoRA as a GGUF file, applied by the real llama.cpp beside its base."""

import dataclasses
import json

import gguf
import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.config import GeneratorConfig
from lorage_jax.data.templates import question
from lorage_jax.errors import ConfigError, OutputError, WeightsError
from tests.llamacpp.models import THIRDS, tiny_folder
from tests.llamacpp.server import LlamaServer, log_softmax
from tests.tiny import VOCAB, make_generator, random_card

PROMPTS = (
    "Reverse the words. Put a comma between words.",
    "Write all the words in upper case. Put bars on each side of words.",
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The nano edge, its generator, two cards, and a server with the base and both LoRAs."""
    root = tmp_path_factory.mktemp("served")
    edge, generator = lg.load_model(nano.EDGE), lg.load_generator(nano.GENERATOR)
    cards = lg.specialize(generator, list(PROMPTS))
    lg.export_gguf(edge, root / "edge.gguf", "f32")
    files = [root / "reverse.gguf", root / "bars.gguf"]
    for card, file in zip(cards, files, strict=True):
        lg.export_lora_gguf(generator.pool, card, edge, file)
    return edge, generator, cards, files, LlamaServer(root / "edge.gguf", files)


def chosen(number):
    """The adapter of a request; the other's scale is 0."""
    return [{"id": i, "scale": float(i == number)} for i in range(2)]


def test_a_request_with_a_card_is_the_merged_model(served):
    edge, generator, cards, _, server = served
    tokens = edge.template.prompt("city king frog star")
    size, base = edge.config.vocab_size, None
    for number, model in enumerate(
        [lg.merge(edge, generator.pool, card) for card in cards] + [edge]
    ):
        expected = log_softmax(np.asarray(lg.forward(model, np.asarray([tokens])))[0, -1])
        found = server.log_probabilities(tokens, size, lora=chosen(number))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert base is None or np.abs(found - base).max() > 0.1  # the cards differ
        base = found


def test_the_card_is_read_from_the_file(served):
    _, _, cards, files, _ = served
    assert lg.load_card(files[1]).to_dict() == cards[1].to_dict()
    with pytest.raises(WeightsError, match="holds no card"):
        lg.load_card(files[1].with_name("edge.gguf"))
    with pytest.raises(WeightsError, match="is a LoRA adapter for llama"):
        lg.load_model(files[1])


def test_a_request_with_a_card_answers_as_the_merged_model(served):
    edge, generator, cards, _, server = served
    for number, card in enumerate(cards):
        special = lg.merge(edge, generator.pool, card)
        for asked in ("city king frog star", "bird table stone"):
            options = {"messages": question(asked), "temperature": 0, "lora": chosen(number)}
            found = server.post("/v1/chat/completions", **options)["choices"][0]["message"]
            assert found["content"].strip() == lg.chat(special, asked).strip()


def test_the_card_is_in_the_file(served):
    edge, _, cards, files, server = served
    reader = gguf.GGUFReader(files[0])
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert keys["general.architecture"] == "qwen2" and keys["general.type"] == "adapter"
    assert json.loads(keys["lorage.card"]) == cards[0].to_dict()
    assert keys["lorage.edge"] == edge.fingerprint == cards[0].edge
    assert keys["lorage.generator"] == cards[0].generator
    names = [adapter["task_name"] for adapter in server.get("/lora-adapters")]
    assert names == ["reverse", "bars"]


@pytest.mark.parametrize("family", ["llama", "phi3"])  # phi3 fuses gate and up
@pytest.mark.parametrize("combine", ["factors", "products"])
def test_families_and_ways_to_combine(tmp_path, cloud_dir, family, combine):
    fields = THIRDS | {"sliding_window": None} if family == "phi3" else {}
    tiny_folder(tmp_path / "edge", family, **fields)
    config = GeneratorConfig(top_k=2, rank=4, alpha=8.0, cloud_rank=4, combine=combine)
    generator = make_generator(cloud_dir, tmp_path / "edge", config)
    edge, card = lg.load_model(tmp_path / "edge", "float32"), random_card(generator)
    lg.export_gguf(edge, tmp_path / "edge.gguf", "f32")
    lg.export_lora_gguf(generator.pool, card, edge, tmp_path / "lora.gguf")
    tokens = np.random.default_rng(0).integers(3, VOCAB - 5, 30)
    server = LlamaServer(tmp_path / "edge.gguf", [tmp_path / "lora.gguf"])
    found = server.log_probabilities(tokens, VOCAB, lora=[{"id": 0, "scale": 1.0}])
    logits = lg.forward(edge, tokens[None], gates=[card], pool=generator.pool)
    np.testing.assert_allclose(found, log_softmax(np.asarray(logits)[0, -1]), atol=2e-4)


def test_files_of_another_edge_and_files_that_exist_are_refused(served, tmp_path):
    edge, generator, cards, _, _ = served
    other = dataclasses.replace(cards[0], edge="sha256:0")
    with pytest.raises(WeightsError, match="edge"):
        lg.export_lora_gguf(generator.pool, other, edge, tmp_path / "x.gguf")
    with pytest.raises(ConfigError, match="expected one of f32"):
        lg.export_lora_gguf(generator.pool, cards[0], edge, tmp_path / "x.gguf", "q3")
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        lg.export_lora_gguf(generator.pool, cards[0], edge, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_text() == "mine"
    lg.export_gguf(edge, tmp_path / "edge.gguf", "f32")
    read, base = edge.replace(source=tmp_path / "edge.gguf"), (tmp_path / "edge.gguf").read_bytes()
    with pytest.raises(OutputError, match="which is read"):
        lg.export_lora_gguf(generator.pool, cards[0], read, read.source, overwrite=True)
    assert read.source.read_bytes() == base
