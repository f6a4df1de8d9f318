"""Folders that leave the house: what changes, what is copied bit for bit, what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lorage_jax.config import GeneratorConfig, MeshConfig
from lorage_jax.errors import ConfigError, OutputError, WeightsError
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.card import load_card
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.generator.peft import load_adapter
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.sharding import Layout, make_mesh
from tests.tiny import VOCAB, make_generator, make_tiny, padded_batch, torch_logits

FFN = ("gate_proj", "up_proj", "down_proj")

# peft asks transformers in a way that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def tensors(folder):
    out = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory, cloud_dir):
    """A sharded bfloat16 edge with all kinds of files beside it, a generator, a card, a merge."""
    folder = tmp_path_factory.mktemp("edge") / "edge"
    make_tiny("qwen2", folder, dtype="bfloat16", max_shard_size="20KB")
    (folder / "LICENSE.txt").write_text("Free as in tests.")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "README.md").write_text("# Another model")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    edge = load_model(folder, "float32")
    gen = make_generator(cloud_dir, folder)
    card = specialize(gen, "You are a pirate.")
    return folder, edge, gen, card, merge(edge, gen.pool, card)


def test_only_the_ffn_changes(world, tmp_path):
    """A sharded bfloat16 base: same files, same index, same dtype, one cast of W + dW."""
    folder, _, _, card, merged = world
    out = tmp_path / "out"
    export_merged(merged, out)
    before, after = tensors(folder), tensors(out)
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert after[name].dtype == torch.bfloat16
        if name.split(".")[-2] in FFN:
            layer, leaf = int(name.split(".")[2]), name.split(".")[-2].removesuffix("_proj")
            want = np.array(merged.params["layers"][leaf][layer]).T.copy()
            assert bits(after[name]) == bits(torch.tensor(want).to(torch.bfloat16))
            assert bits(after[name]) != bits(tensor)
        else:
            assert bits(after[name]) == bits(tensor), name
    shards = {path.name for path in folder.glob("*.safetensors*")}
    assert len(shards) > 3
    expected = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "LICENSE.txt",
        "chat_template.jinja",
    }  # without additional_chat_templates, which are not the trained turns
    assert names(out) == shards | expected | {"README.md", "lorage.json"}
    for name in expected - {"chat_template.jinja"} | {"model.safetensors.index.json"}:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert (out / "chat_template.jinja").read_text() == merged.template.jinja()
    assert len(list(tmp_path.iterdir())) == 1  # nothing temporary is left

    manifest = json.loads((out / "lorage.json").read_text())
    assert manifest["format"] == "lorage-merged/1"
    assert manifest["base"]["dtype"] == "bfloat16"
    assert manifest["base"]["fingerprint"] == card.edge
    assert manifest["generator"] == card.generator
    assert manifest["templates"] and manifest["lorage_jax"]
    again = load_card(out)
    np.testing.assert_array_equal(again.gates, card.gates)
    assert (again.edge, again.generator) == (card.edge, card.generator)
    assert load_model(out).fingerprint != card.edge


def test_named_templates_travel_with_an_untouched_model_alone(world, tmp_path):
    """transformers would take a base's `tool_use` instead of the trained turns."""
    folder, edge, _, _, merged = world
    export_merged(edge, tmp_path / "own")
    assert "additional_chat_templates/rag.jinja" in names(tmp_path / "own")
    assert "additional_chat_templates/rag.jinja" in names(folder)
    named = folder.parent / "named"
    shutil.copytree(folder, named)
    (named / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    export_merged(merged, tmp_path / "out", base=named)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(asked, tools=[{"name": "x"}], tokenize=False)
    assert "User: hi" in text


def test_a_cast_everywhere(world, tmp_path):
    """dtype= casts all tensors, the config's field and the index's total size."""
    folder, _, _, _, merged = world
    export_merged(merged, tmp_path / "out", dtype="float32")
    before, after = tensors(folder), tensors(tmp_path / "out")
    for name, tensor in after.items():
        assert tensor.dtype == torch.float32
        if name.split(".")[-2] not in FFN:
            assert bits(tensor) == bits(before[name].float())
    fields, base_fields = (
        json.loads((f / "config.json").read_text()) for f in (tmp_path / "out", folder)
    )
    assert fields.pop("dtype") == "float32" and base_fields.pop("dtype") == "bfloat16"
    assert fields == base_fields
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    total = sum(t.numel() * 4 for t in after.values())
    assert index["metadata"]["total_size"] == total
    tokens, mask = padded_batch(2, 12)
    want = np.asarray(forward(merged, tokens, mask))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "out"), attn_implementation="eager"
    )
    assert loaded.dtype == torch.float32
    got = torch_logits(loaded, tokens, mask)
    np.testing.assert_allclose(got[mask], want[mask], atol=2e-4)


def test_the_base_dtype_asked_for_is_no_change(world, tmp_path):
    folder, _, _, _, merged = world
    export_merged(merged, tmp_path / "out", dtype="bfloat16")
    for name in ("config.json", "model.safetensors.index.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_a_cast_of_one_file(tiny, cloud_dir, tmp_path):
    """One file, float32 to bfloat16, the model on a mesh of eight devices."""
    folder, _ = tiny("gemma2")
    edge = load_model(folder, layout=Layout(make_mesh(MeshConfig(2, 2, 2))))
    gen = make_generator(cloud_dir, folder)
    merged = merge(edge, gen.pool, specialize(gen, "Be brief."))
    export_merged(merged, tmp_path / "out", dtype="bfloat16")
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    after = load_model(tmp_path / "out", "bfloat16")
    for leaf in ("gate", "up", "down"):
        want = np.asarray(merged.params["layers"][leaf]).astype(after.dtype)
        np.testing.assert_array_equal(np.asarray(after.params["layers"][leaf]), want)
    kept = np.asarray(edge.params["embed"]).astype(after.dtype)
    np.testing.assert_array_equal(np.asarray(after.params["embed"]), kept)


@pytest.mark.parametrize("variant", ["llama-bias", "opt", "phi3"])
def test_an_untouched_model_is_copied_bit_for_bit(tiny, tmp_path, variant):
    """No card: every weight survives the way in and out, transposes and all."""
    folder, _ = tiny(variant)
    export_merged(load_model(folder), tmp_path / "out")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    manifest = json.loads((tmp_path / "out" / "lorage.json").read_text())
    assert "card" not in manifest and "generator" not in manifest


def test_overwriting(world, tmp_path):
    _, edge, gen, card, merged = world
    out = tmp_path / "out"
    export_merged(merged, out)
    with pytest.raises(OutputError, match="not empty"):
        export_merged(merged, out)
    export_merged(merged, out, overwrite=True)
    export_adapter(gen.pool, card, edge, out, overwrite=True)
    assert names(out) > {"adapter_config.json", "adapter_model.safetensors", "lorage.json"}
    assert not names(out) & {"model.safetensors", "config.json"}
    (out / "thesis.txt").write_text("mine")
    for export in (
        lambda: export_merged(merged, out, overwrite=True),
        lambda: export_adapter(gen.pool, card, edge, out, overwrite=True),
    ):
        with pytest.raises(OutputError, match=r"thesis\.txt"):
            export()
    assert (out / "thesis.txt").read_text() == "mine"
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        export_merged(merged, tmp_path / "file", overwrite=True)


def test_a_failure_leaves_nothing(world, tmp_path, monkeypatch):
    """The disk fills up, or the power fails, in the middle: no folder, no rest."""
    *_, merged = world
    calls = []

    def full(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return original(*args)

    from lorage_jax.hf import export

    original = export.rewrite
    monkeypatch.setattr(export, "rewrite", full)
    with pytest.raises(OutputError, match="space"):
        export_merged(merged, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_base(world, tiny, tmp_path):
    folder, edge, _, _, merged = world
    make_tiny("qwen2", tmp_path / "twin", dtype="bfloat16", seed=1)
    for wrong, message in (
        (tmp_path / "twin", "not the base of this model"),
        (tiny("llama")[0], "another shape"),
        (tmp_path / "nowhere", "is not a folder"),
    ):
        with pytest.raises(WeightsError, match=message):
            export_merged(merged, tmp_path / "out", base=wrong)
    with pytest.raises(WeightsError, match="not the base"):
        export_merged(edge, tmp_path / "out", base=tmp_path / "twin")
    with pytest.raises(WeightsError, match="base="):
        export_merged(dataclasses.replace(merged, source=None), tmp_path / "out")
    with pytest.raises(ConfigError, match="int8"):
        export_merged(merged, tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()
    export_merged(dataclasses.replace(merged, source=None), tmp_path / "out", base=folder)


def test_another_card(world, tiny, cloud_dir, tmp_path):
    """A card of another generator, or for another edge: refused by merge, export and forward."""
    folder, edge, gen, card, merged = world
    other_gen = make_generator(cloud_dir, folder, seed=1)
    other_edge = load_model(tiny("qwen2")[0])
    tokens = np.zeros((1, 4), np.int32)
    for pool, model, message in (
        (other_gen.pool, edge, "made by generator"),
        (gen.pool, other_edge, "for the edge model"),
    ):
        for use in (
            lambda pool=pool, model=model: merge(model, pool, card),
            lambda pool=pool, model=model: export_adapter(pool, card, model, tmp_path / "a"),
            lambda pool=pool, model=model: forward(model, tokens, gates=card, pool=pool),
        ):
            with pytest.raises(WeightsError, match=message):
                use()
    assert not (tmp_path / "a").exists()
    with pytest.raises(WeightsError, match="already"):
        merge(merged, gen.pool, card)


@pytest.mark.parametrize("combine", ["factors", "products"])
def test_adapter_on_a_bfloat16_base(world, cloud_dir, tmp_path, combine):
    """What the PEFT folder says, and that PEFT's own merge gives our merged weights."""
    folder, edge, _, _, _ = world
    config = GeneratorConfig(rank=4, alpha=6.0, cloud_rank=0, combine=combine, top_k=3)
    gen = make_generator(cloud_dir, folder, config)
    card = specialize(gen, "You are a pirate.")
    out = tmp_path / "adapter"
    export_adapter(gen.pool, card, edge, out)
    says = json.loads((out / "adapter_config.json").read_text())
    rank = 4 if combine == "factors" else 12
    assert (says["r"], says["lora_alpha"]) == (rank, 1.5 * rank)
    assert says["target_modules"] == list(FFN)
    assert says["base_model_name_or_path"] == folder.name
    assert (says["peft_type"], says["task_type"]) == ("LORA", "CAUSAL_LM")
    saved = load_file(out / "adapter_model.safetensors")
    assert len(saved) == edge.config.layers * 3 * 2
    assert {t.dtype for t in saved.values()} == {torch.float32}
    np.testing.assert_array_equal(load_card(out).gates, card.gates)

    base = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(out)).merge_and_unload()
    merged = merge(edge, gen.pool, card)
    for name, tensor in model.state_dict().items():
        if name.split(".")[-2] in FFN:
            layer, leaf = int(name.split(".")[2]), name.split(".")[-2].removesuffix("_proj")
            ours = np.asarray(merged.params["layers"][leaf][layer]).T
            np.testing.assert_allclose(tensor.numpy(), ours, atol=1e-5)
    back = load_adapter(out, edge)
    for leaf in ("gate", "up", "down"):
        ours = merged.params["layers"][leaf]
        np.testing.assert_allclose(back.params["layers"][leaf], ours, atol=1e-6)
        assert not np.array_equal(ours, edge.params["layers"][leaf])


def test_a_damaged_adapter(world, tmp_path):
    """Each problem of a PEFT folder is named; the model is left as it was."""
    _, edge, gen, card, _ = world
    out = tmp_path / "adapter"
    export_adapter(gen.pool, card, edge, out)
    tensors = load_file(out / "adapter_model.safetensors")
    first, second, *_ = sorted(tensors)
    tensors["what.weight"] = tensors.pop(first)
    tensors[second] = tensors[second].T.contiguous()
    save_file(tensors, out / "adapter_model.safetensors")
    with pytest.raises(WeightsError) as refused:
        load_adapter(out, edge)
    for part in (f"{first} is missing", "what.weight is not known", f"{second} has shape"):
        assert part in str(refused.value)
    (out / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="is not a PEFT folder"):
        load_adapter(out, edge)


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_an_adapter_for_other_weights(world, tmp_path):
    _, edge, gen, card, _ = world
    out = tmp_path / "adapter"
    export_adapter(gen.pool, card, edge, out)
    change(out / "lorage.json", base={"fingerprint": "sha256:" + "0" * 64})
    with pytest.raises(WeightsError, match="edge that it was made for"):
        load_adapter(out, edge)
    (out / "lorage.json").unlink()  # anybody's PEFT folder
    load_adapter(out, edge)


def test_tokens_beyond_the_vocabulary_are_refused(world):
    _, edge, *_ = world
    with pytest.raises(ConfigError, match=str(VOCAB)):
        forward(edge, [[1, VOCAB]])


@pytest.mark.parametrize("strength, says", [(1e-4, True), (1.0, False)])
def test_an_update_that_the_files_dtype_rounds_away(world, tmp_path, caplog, strength, says):
    """Merged in float32, exported to bfloat16 files: said in words; what is said helps."""
    folder, edge, gen, card, _ = world
    weak = gen.pool.replace(scale=gen.pool.scale * strength)
    export_merged(merge(edge, weak, card), tmp_path / "nearest")
    words = caplog.text
    caplog.clear()
    assert ("of the update of the weights" in words) == says
    if says:
        export_merged(merge(edge, weak, card), tmp_path / "wide", dtype="float32")
        narrow = merge(load_model(folder, "bfloat16"), weak, card)
        export_merged(narrow, tmp_path / "stochastic")
        assert not caplog.text
        base, near, drawn = (
            tensors(one) for one in (folder, tmp_path / "nearest", tmp_path / "stochastic")
        )
        moved = [
            sum(int((base[name] != found[name]).sum()) for name in base) for found in (near, drawn)
        ]
        assert moved[0] < moved[1]
