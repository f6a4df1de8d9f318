"""Says what a folder looks like whose tensors are not those of the model in its config.json."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from lorage_jax import rotary
from lorage_jax.config import ModelConfig
from lorage_jax.files.safetensors import Tensors
from lorage_jax.hf import tables

HEAD = "lm_head.weight"
FREQUENCIES = "rotary_emb.inv_freq"
FREQUENCY_ERROR = 0.01  # relative; such buffers were saved in bfloat16, too
UNUSED = ("v_head.",)  # a value head of reinforcement learning; the language model lacks it
# Parts of names -> what the folder is, and what to do.
LOOKS = (
    (
        r"\.lora_[AB]\b|\.lora_magnitude_vector|\.base_layer\.",
        "These are the names of a model inside peft: merge the adapter (merge_and_unload), then "
        "save_pretrained; or save the adapter alone and load it with load_adapter.",
    ),
    (
        r"\.experts\.|block_sparse_moe|mlp\.router\.",
        "These are the names of a mixture of experts, which is not computed here.",
    ),
    (
        r"\b(vision_tower|vision_model|visual|vision_encoder|multi_modal_projector|audio_tower)\b",
        "These are parts of a multimodal model: save its language model alone.",
    ),
    (
        r"^(layers\.\d+\.attention\.w[qkvo]|tok_embeddings|output)\.",
        "These are the names of Meta's own format: convert it with transformers "
        "(convert_llama_weights_to_hf.py), or fetch the Hugging Face release.",
    ),
    (
        r"^(transformer\.)?(h\.\d+\.|wte\.|wpe\.)",
        "These are the names of GPT-2: config.json belongs to another model.",
    ),
    (r"\bgpt_neox\.", "These are the names of GPT-NeoX: config.json belongs to another model."),
    (
        r"\b(encoder\.layer|embeddings\.word_embeddings)\b",
        "These are the names of BERT, which is not a language model of this kind.",
    ),
    (
        r"\bmlp\.gate_up_proj\b|\bself_attn\.qkv_proj\b",
        "These are the fused projections of Phi-3: config.json belongs to another model.",
    ),
    (
        r"\bself_attn\.[qk]_norm\b",
        "Norms of q and k belong to Qwen3, Gemma 3 or OLMo 2: config.json belongs to another "
        "model.",
    ),
    (
        r"\b[qkvo]_proj\.bias$",
        "Biases of attention need `attention_bias: true` in a config.json of llama.",
    ),
    (
        r"\b(gate|up|down)_proj\.bias$",
        "Biases of the FFN need `mlp_bias: true` in a config.json of llama.",
    ),
    (
        r"^(score|classifier|qa_outputs|reward_head)\.",
        "This is the head of a classifier or reward model, not of a language model.",
    ),
    (r"\b(optimizer|exp_avg|ema)\b", "These are parts of a training state, not of a model."),
)


def is_unused(config: ModelConfig, checkpoint: Tensors, name: str) -> bool:
    """True if a tensor beside the model's changes nothing: as transformers does not use it.

    A stored buffer of rope frequencies counts only if it holds those that config.json asks for.
    """
    if name.endswith(FREQUENCIES):
        found = np.asarray(checkpoint.read(name), np.float32)
        return any(
            found.shape == want.shape and np.allclose(found, want, rtol=FREQUENCY_ERROR, atol=0)
            for scaling in (None, config.rope_scaling)
            for want in [rotary.frequencies(config.rotary_dim, config.rope_theta, scaling)]
        )
    return name.startswith(UNUSED)


def describe_missing(
    config: ModelConfig, checkpoint: Tensors, missing: int, expected: int
) -> str | None:
    """Diagnoses a folder that lacks some of the model's tensors; None if nothing is known."""
    names, own = checkpoint.names(), tables.tensor_shapes(config)
    if missing == 1 and HEAD not in checkpoint and not config.tied_head:
        extra = next((look for name in names if name not in own and (look := _look(name))), None)
        return extra or (
            f"Only {HEAD} is missing: the folder was saved without a head (AutoModel), or its head "
            "is tied. Save it with AutoModelForCausalLM, or set `tie_word_embeddings: true` if the "
            "model was trained so."
        )
    looks = next((look for name in names if (look := _look(name))), None)
    if looks is not None and missing >= expected - 2:
        return looks
    layers = {int(n) for name in names for n in re.findall(r"\.layers\.(\d+)\.", name)}
    if missing and layers and max(layers) + 1 != config.layers:
        return (
            f"The file has {max(layers) + 1} layers, and num_hidden_layers in config.json is "
            f"{config.layers}."
        )
    if missing < expected - 2:
        return None
    return (
        f"No tensor has a name that a {config.family} has; the file begins with "
        f"{', '.join(names[:3]) or 'nothing'}. Save the model with save_pretrained of "
        "AutoModelForCausalLM."
    )


def describe_leftover(config: ModelConfig) -> Callable[[str], str | None]:
    """A function that says where a tensor beside the model's comes from; None if unknown."""

    def describe(name: str) -> str | None:
        if name.endswith(FREQUENCIES):
            return (
                f"{FREQUENCIES} holds other rope frequencies than rope_theta and the scaling in "
                "config.json give: config.json belongs to another model, or was edited."
            )
        layer = re.search(r"\blayers\.(\d+)\.", name)
        if layer and int(layer[1]) >= config.layers:
            return (
                f"Layers from {config.layers} on are beyond num_hidden_layers in config.json: "
                "it was edited, or these layers predict further tokens (MTP). Remove them from "
                "the file, or correct config.json."
            )
        return _look(name)

    return describe


def _look(name: str) -> str | None:
    return next((look for pattern, look in LOOKS if re.search(pattern, name)), None)
