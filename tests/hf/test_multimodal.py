"""A model for images and text: its text part on every road, its vision tower as it was."""

import json
import logging
import shutil

import numpy as np
import peft
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from lorage_jax.errors import WeightsError
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.merge import merge
from lorage_jax.generator.peft import load_adapter
from lorage_jax.hf.config import model_config, read_config
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from lorage_jax.hf.save import save_model
from lorage_jax.infer.forward import forward
from tests.tiny import (
    byte_tokenizer,
    hf_config,
    make_generator,
    padded_batch,
    random_card,
    torch_logits,
    torch_model,
)

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

# peft asks transformers in a way that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def load_torch(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), attn_implementation="eager"
    ).eval()


def spelled_as_now(name):
    """The name of a tensor in a file that follows transformers 5's modules."""
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return name if name.startswith("lm_head") else f"model.{name}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(folder with today's files on the Hub, the same tensors by their modules, torch model)."""
    root = tmp_path_factory.mktemp("multimodal")
    config = transformers.Gemma3Config(
        text_config=hf_config("gemma3_text", final_logit_softcapping=None).to_dict(),
        vision_config=VISION,
        mm_tokens_per_image=4,
        eos_token_id=[2, 9],
    )
    model = torch_model(config)
    model.save_pretrained(str(root / "hub"))
    byte_tokenizer().save_pretrained(str(root / "hub"))
    shutil.copytree(root / "hub", root / "modules")
    tensors = load_file(root / "hub" / "model.safetensors")
    renamed = {spelled_as_now(name): tensor for name, tensor in tensors.items()}
    assert not set(renamed) & set(tensors)
    save_file(renamed, root / "modules" / "model.safetensors", {"format": "pt"})
    return root / "hub", root / "modules", model


def test_the_text_part_is_loaded_and_the_rest_is_told(folders, caplog, tmp_path):
    hub, modules, base = folders
    tokens, mask = padded_batch(2, 20)
    want = torch_logits(base, tokens, mask)
    for folder in (hub, modules):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = load_model(folder)
        assert "tensors of the vision tower" in caplog.text and str(folder) in caplog.text
        assert model.config.eos_ids == (2, 9)
        got = np.asarray(forward(model, tokens, mask))
        np.testing.assert_allclose(got[mask], want[mask], atol=2e-4)
    save_model(model, tmp_path / "text")
    assert read_config(tmp_path / "text")["model_type"] == "gemma3_text"
    got = torch_logits(load_torch(tmp_path / "text"), tokens, mask)
    np.testing.assert_allclose(got[mask], want[mask], atol=2e-4)


@pytest.mark.parametrize("which", [0, 1])
def test_merged_and_adapter_keep_the_whole_model(folders, cloud_dir, tmp_path, which):
    folder = folders[which]
    edge = load_model(folder)
    generator = make_generator(cloud_dir, folder)
    card = random_card(generator)
    merged = merge(edge, generator.pool, card)
    tokens, mask = padded_batch(2, 20)
    want = np.asarray(forward(merged, tokens, mask))
    export_merged(merged, tmp_path / "merged")
    got = torch_logits(load_torch(tmp_path / "merged"), tokens, mask)
    np.testing.assert_allclose(got[mask], want[mask], atol=2e-4)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "merged"))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert set(before) == set(after) and len(changed) == 3 * edge.config.layers
    assert all(".mlp." in name and "vision" not in name for name in changed)

    export_adapter(generator.pool, card, edge, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(load_torch(folder), str(tmp_path / "adapter")).eval()
    got = torch_logits(adapted, tokens, mask)
    np.testing.assert_allclose(got[mask], want[mask], atol=2e-4)
    again = np.asarray(forward(load_adapter(tmp_path / "adapter", edge), tokens, mask))
    np.testing.assert_allclose(again[mask], want[mask], atol=2e-4)


def test_a_vision_tower_alone_is_no_language_model(folders, tmp_path):
    vision = read_config(folders[0])["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(vision))
    with pytest.raises(WeightsError, match=r"SigLIP is the vision tower .* for its text part"):
        model_config(tmp_path)


def test_a_tensor_of_neither_part_is_named(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["audio_tower.weight"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"audio_tower\.weight .* is not part of a gemma3_text"):
        load_model(tmp_path / "m")
