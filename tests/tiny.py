"""Small random models and generators on disk, for tests that compare with transformers.

Random weights are large (std 0.2 and more) and norms, biases and rope bases are odd on purpose: at
the usual 0.02 a wrong rope base or a swapped norm moves the logits less than the tolerance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from lorage_jax.config import GeneratorConfig
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import Generator, trained_leaves
from lorage_jax.generator.router import statistics_leaves
from lorage_jax.hf.load import load_model
from lorage_jax.models.leaves import Leaf

transformers.utils.logging.disable_progress_bar()

FAMILIES = (
    *("llama", "qwen2", "gemma", "gemma2", "granite", "olmo2", "opt", "phi3"),
    *("mistral", "qwen3", "gemma3_text", "smollm3"),
)
VOCAB = 264
WINDOW = 6

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 777.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PARTIAL_ROPE = {"rope_type": "default", "rope_theta": 777.0, "partial_rotary_factor": 0.75}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 777.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "truncate": False,
    "attention_factor": 1.3,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 777.0, "factor": 4.0}

# All variants of a family's arithmetic, by name: (family, fields of its config).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-rope3": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR_ROPE}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": False}),
    "gemma": ("gemma", {}),
    "gemma-untied": ("gemma", {"tie_word_embeddings": False}),
    "gemma2": ("gemma2", {}),
    "gemma2-untied": ("gemma2", {"tie_word_embeddings": False}),
    "granite": ("granite", {}),
    "olmo2": ("olmo2", {}),
    "opt": ("opt", {}),
    "opt-untied": ("opt", {"tie_word_embeddings": False}),
    "phi3": ("phi3", {}),
    "mistral": ("mistral", {}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen3": ("qwen3", {}),
    "qwen3-yarn": (
        "qwen3",
        {
            "attention_bias": True,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "rope_parameters": YARN_ROPE,
        },
    ),
    "gemma3_text": ("gemma3_text", {}),
    "gemma3-untied": (
        "gemma3_text",
        {"tie_word_embeddings": False, "final_logit_softcapping": None, "attention_bias": True},
    ),
    "smollm3": ("smollm3", {}),
    "smollm3-sliding": (
        "smollm3",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "phi3-partial": ("phi3", {"rope_parameters": PARTIAL_ROPE, "sliding_window": None}),
}
TOLERANCE = dict.fromkeys(FAMILIES, 2e-4) | {"gemma2": 5e-4}


def hf_config(family: str, **overrides: Any) -> Any:
    """A transformers config: width 48 (not heads x head_dim), grouped queries, small window."""
    fields: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "rms_norm_eps": 3e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
        "tie_word_embeddings": family.startswith("gemma"),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "qwen2":
        fields |= {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    if family == "mistral":
        fields |= {"sliding_window": WINDOW}
    if family == "qwen3":
        fields |= {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    if family == "gemma3_text":
        fields |= {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 20,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": LINEAR_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 55.0},
            },
        }
    if family == "smollm3":
        fields |= {"no_rope_layer_interval": 2}
    if family == "gemma2":
        fields |= {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 3.0,
        }
    if family == "granite":
        fields |= {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.4,
            "logits_scaling": 1.7,
        }
    if family == "phi3":
        fields |= {"sliding_window": WINDOW}
    if family == "opt":
        names = {"intermediate_size": "ffn_dim", "initializer_range": "init_std"}
        lacking = {"num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters"}
        fields = {names.get(k, k): v for k, v in fields.items() if k not in lacking}
    return transformers.AutoConfig.for_model(family, **(fields | overrides))


def make_tiny(
    family: str,
    folder: str | Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str = "1GB",
    tokenizer: bool = True,
    **overrides: Any,
) -> Any:
    """Saves a random model (safetensors) with a byte tokenizer; returns the torch model.

    `overrides` are fields of the transformers config. `max_shard_size="20KB"` gives shards.
    """
    torch.manual_seed(seed)
    model = torch_model(hf_config(family, **overrides)).to(getattr(torch, dtype))
    model.save_pretrained(str(folder), max_shard_size=max_shard_size)
    if tokenizer:
        byte_tokenizer().save_pretrained(str(folder))
    return model


def torch_model(config: Any) -> Any:
    """A random float32 torch model in which no norm is the identity and no bias is zero."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(".bias"):
                value.normal_(0.0, 0.3)
            elif "norm" in name:
                value.normal_(0.0 if config.model_type.startswith("gemma") else 1.0, 0.3)
    return model.float().eval()


def byte_tokenizer() -> Any:
    """One token per byte, with <pad> 0, <s> 1, </s> 2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def renamed(tokenizer: Any, names: dict[int, str], special: str) -> Any:
    """A copy of a byte tokenizer in which tokens have other names, one of them a special token's.

    A name that another token has is exchanged.
    """
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = values["model"]["vocab"]
    for number, name in names.items():
        old = next(text for text, i in vocab.items() if i == number)
        vocab[old] = vocab.pop(name, VOCAB + number)
        vocab[name] = number
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(values)),
        **{kind: getattr(tokenizer, kind) for kind in ("bos_token", "eos_token", "pad_token")},
    )
    made.add_tokens([special], special_tokens=True)
    assert {i: made.convert_ids_to_tokens(i) for i in names} == names
    return made


def make_generator(
    cloud_dir: str | Path,
    edge_dir: str | Path,
    config: GeneratorConfig | None = None,
    *,
    seed: int = 0,
    strength: float = 0.4,
    dtype: str = "float32",
) -> Generator:
    """A generator with all trained parts random and non-zero, so that its cards change the edge.

    `strength` is the std of the experts' b.
    """
    config = config or GeneratorConfig(top_k=2, rank=4, alpha=8.0, cloud_rank=4)
    cloud, edge = load_model(cloud_dir, dtype), load_model(edge_dir, dtype)
    rng = np.random.default_rng(seed)
    sizes = {"meta": 1.0, "adapters": 0.1, "router": 0.4, "pool": strength}

    def draw(name: str, leaf: Leaf) -> jax.Array:
        if leaf.init == "kaiming":  # f1, f2 and every LoRA's a
            size = leaf.inputs**-0.5
        else:
            size = sizes[name]
        noise = size * rng.standard_normal(leaf.shape)
        return jnp.asarray(noise + (leaf.init == "ones"), jnp.float32)

    leaves = trained_leaves(config, cloud.config, edge.config)
    trained = {
        name: jax.tree.map(lambda leaf, name=name: draw(name, leaf), tree)
        for name, tree in leaves.items()
    }
    statistics = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 0.9, leaf.shape), jnp.float32),
        statistics_leaves(config, edge.config.layers),
    )
    return Generator(
        config=config,
        cloud=cloud,
        edge=edge.config,
        edge_fingerprint=edge.fingerprint,
        trained=trained,
        statistics=statistics,
        edge_source=Path(edge_dir),
    )


def make_encoder(folder: Path) -> Path:
    """A sentence encoder of width 16 for texts of at most 16 tokens, with random weights."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "say", "it", "twice", "shout", "the", "words"]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(end, vocab[end]) for end in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(words), intermediate_size=32, **sizes)
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def random_card(generator: Generator, seed: int = 0) -> Card:
    """A card without a prompt: top-K gates drawn at random, none of them near 0 or 1."""
    config, rng = generator.config, np.random.default_rng(seed)
    gates = np.zeros((generator.edge.layers, config.experts), np.float32)
    for row in gates:
        open_ = rng.choice(config.experts, config.top_k, replace=False)
        weights = rng.uniform(0.3, 0.7, config.top_k)
        row[open_] = weights / weights.sum()
    return Card(gates, generator.fingerprint, generator.edge_fingerprint)


def torch_logits(model: Any, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Float32 logits of a torch model; positions count the real tokens of each row."""
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask, bool)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(np.asarray(tokens), dtype=torch.long),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            position_ids=torch.tensor(positions),
        )
    return out.logits.float().numpy()


def padded_batch(rows: int = 3, length: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens and mask: the first row is full, the others padded left or right in turn."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, VOCAB - 5, (rows, length)).astype(np.int32)
    mask = np.ones((rows, length), bool)
    for row in range(1, rows):
        pad = slice(0, 7 + row) if row % 2 else slice(length - 7 - row, length)
        mask[row, pad] = False
    tokens[~mask] = 0
    return tokens, mask
