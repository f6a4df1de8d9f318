"""Specialised models written over the GGUF file of their base."""

import gguf
import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.data.templates import question
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.llamacpp.export import export_gguf
from lorage_jax.llamacpp.onto import export_onto_gguf
from tests.llamacpp.models import rewrite, tiny_folder
from tests.llamacpp.server import LlamaServer

PROMPT = "Reverse the words. Put a comma between words."


@pytest.fixture(scope="module")
def special():
    generator = lg.load_generator(nano.GENERATOR)
    return lg.merge(lg.load_model(nano.EDGE), generator.pool, lg.specialize(generator, PROMPT))


def contents(path):
    reader = gguf.GGUFReader(path)
    tensors = {one.name: (one.tensor_type.name, one.data.tobytes()) for one in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
def test_only_the_ffn_and_the_turns_change(special, tmp_path, kind):
    export_gguf(nano.EDGE, tmp_path / "base.gguf", kind)
    export_onto_gguf(special, tmp_path / "base.gguf", tmp_path / "onto.gguf")
    (before, keys), (after, others) = (contents(tmp_path / f"{n}.gguf") for n in ("base", "onto"))
    assert list(before) == list(after)
    changed = {name for name in before if before[name][1] != after[name][1]}
    assert changed == {name for name in before if ".ffn_" in name and "norm" not in name}
    assert all(before[name][0] == after[name][0] for name in before)  # types
    assert {name for name in keys if keys[name] != others.get(name)} <= {"tokenizer.chat_template"}
    assert set(keys) == set(others)


def test_the_end_of_the_trained_turns_is_added(special, tmp_path):
    """In the first place that is free; the base's own ends stay."""
    (end,) = special.template.ends
    places = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    export_gguf(nano.EDGE, tmp_path / "nano.gguf", "f32")
    for number, held in enumerate([{0: 5}, {0: 5, 1: 6}, {0: 5, 2: 6}, {0: end}, {0: 5, 1: end}]):
        base, out = (tmp_path / f"{name}{number}.gguf" for name in ("base", "onto"))
        rewrite(tmp_path / "nano.gguf", base, {places[at]: token for at, token in held.items()})
        export_onto_gguf(special, base, out)
        keys = contents(out)[1]
        found = {at: keys[place] for at, place in enumerate(places) if place in keys}
        free = next(at for at in range(3) if at not in held)
        assert found == (held if end in held.values() else held | {free: end})
    rewrite(
        tmp_path / "nano.gguf", tmp_path / "full.gguf", dict(zip(places, (5, 6, 7), strict=True))
    )
    with pytest.raises(ConfigError, match="4 tokens end a text"):
        export_onto_gguf(special, tmp_path / "full.gguf", tmp_path / "out.gguf")


def test_the_file_over_a_base_is_the_merged_one(special, tmp_path):
    export_gguf(nano.EDGE, tmp_path / "base.gguf", "f32")
    export_gguf(special, tmp_path / "whole.gguf", "f32")
    export_onto_gguf(special, tmp_path / "base.gguf", tmp_path / "onto.gguf")
    assert contents(tmp_path / "whole.gguf")[0] == contents(tmp_path / "onto.gguf")[0]
    options = {"messages": question("city king frog star"), "temperature": 0}
    answer = LlamaServer(tmp_path / "onto.gguf").post("/v1/chat/completions", **options)
    found = answer["choices"][0]["message"]["content"]
    assert found.strip() == lg.chat(special, "city king frog star").strip()


def test_files_of_other_models_are_refused(special, tmp_path):
    out = tmp_path / "x.gguf"

    def refuse(base, says):
        with pytest.raises(WeightsError, match=says):
            export_onto_gguf(special, base, out)
        assert not out.exists()

    tiny_folder(tmp_path / "llama", "llama")
    export_gguf(tmp_path / "llama", tmp_path / "llama.gguf", "f32")
    refuse(tmp_path / "llama.gguf", "it is a llama, expected a qwen2")
    edge = lg.load_model(nano.EDGE)
    norm = np.asarray(edge.params["final_norm"]) * 1.5
    other = edge.replace(params=edge.params | {"final_norm": norm})
    export_gguf(other, tmp_path / "other.gguf", "q8_0")
    refuse(tmp_path / "other.gguf", "output_norm.weight has other values")
    whole = (tmp_path / "other.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:1000])
    refuse(tmp_path / "cut.gguf", "cut.gguf is cut off or damaged")
    (tmp_path / "text.gguf").write_text("no model" * 100)
    refuse(tmp_path / "text.gguf", "is not a GGUF file")
    refuse(tmp_path / "none.gguf", "does not exist; expected a GGUF file")
