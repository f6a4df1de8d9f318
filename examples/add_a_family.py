"""A model family that lorage_jax does not know yet: Seed-OSS, in one `register` call.

    python examples/add_a_family.py [OUT]

Writes a small random model of it, loads it, and compares its logits with transformers', if torch is
installed. In the package, the call would be a file of `hf/families/` (docs/add_a_family.md).
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.hf.family import Family, activation, family_decoder, register
from lorage_jax.hf.save import save_model
from lorage_jax.models.presets import random_model

register(
    Family(
        "seed_oss",  # model_type in config.json
        "SeedOssForCausalLM",  # the class in transformers
        read=lambda get: {
            "qkv_bias": bool(get("attention_bias", True)),
            "out_bias": bool(get("attention_out_bias", False)),
        },
        reads=frozenset({"attention_out_bias"}),
        write=lambda config: {
            "hidden_act": activation(config),
            "attention_bias": config.qkv_bias,
            "attention_out_bias": config.out_bias,
            "mlp_bias": config.ffn_bias,
        },
    )
)


def main(out: Path) -> float | None:
    tokenizer = lg.load_model(nano.EDGE).tokenizer  # any will do for random weights
    sizes = {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 24, "ffn_width": 96}
    config = family_decoder("seed_oss", vocab_size=len(tokenizer), qkv_bias=True, **sizes)
    save_model(random_model(config, "float32").replace(tokenizer=tokenizer), out, overwrite=True)

    tokens = np.arange(1, 13, dtype=np.int32)[None]
    logits = np.asarray(lg.forward(lg.load_model(out), tokens))
    if importlib.util.find_spec("torch") is None:
        return None
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(out)(torch.tensor(tokens, dtype=torch.long))
    difference = float(np.abs(theirs.logits.detach().numpy() - logits).max())
    print(f"largest difference to transformers' logits: {difference:.1e}")
    return difference


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/seed_oss"))
