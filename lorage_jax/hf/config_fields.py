"""The fields of config.json that a family's model in transformers reads.

A field that it does not read is ignored, as there. A field that it reads and the decoder does not
compute is refused, unless its value has no effect.
"""

from __future__ import annotations

import json
from typing import Any

from lorage_jax.hf.family import Family

# Read by `hf/config.py` for all families that have them.
READ = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act hidden_activation max_position_embeddings "
    "rms_norm_eps tie_word_embeddings rope_parameters attention_bias mlp_bias sliding_window "
    "layer_types query_pre_attn_scalar final_logit_softcapping attn_logit_softcapping "
    "bos_token_id eos_token_id pad_token_id".split()
)
# Read for training, for fresh weights, or to choose between ways to compute the same.
WITHOUT_EFFECT = frozenset(
    "attention_dropout dropout resid_pdrop embd_pdrop layerdrop activation_dropout "
    "initializer_range init_std use_cache pretraining_tp".split()
)
# Read only to make another field, which is read here: layer_types, or rope_parameters.
DERIVED = frozenset("use_sliding_window max_window_layers rope_theta rope_scaling".split())
# Read by what all models of transformers share, so that no family declares them -> the values that
# have no effect.
SHARED: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "is_encoder_decoder": (None, False),
    "per_layer_config": (None, {}),
}
# The same, read here.
SHARED_READ = frozenset({"head_dim"})
# Declared by families -> the values that have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {"use_bidirectional_attention": (None, False)}


class Declared:
    """The fields that a family's config class declares, with their defaults."""

    def __init__(self, family: Family, hf: Any):
        """`hf`: a config object of the family's class in transformers."""
        from transformers import PreTrainedConfig

        self.family = family
        defaults, base = vars(type(hf)()), vars(PreTrainedConfig())
        self.names = frozenset(defaults) | SHARED_READ | family.reads
        # Private fields hold the config object's own state.
        own = {name for name in defaults if name not in base and not name.startswith("_")}
        self.defaults = {name: defaults[name] for name in own}

    def problems(self, raw: dict[str, Any]) -> list[str]:
        """Describes every field of a config.json that has an effect which is not computed."""
        return [
            f"field {name!r} = {json.dumps(value)[:80]} is not supported"
            for name, value in raw.items()
            if self._has_effect(name, value)
        ]

    def _has_effect(self, name: str, value: Any) -> bool:
        family = self.family
        if name in SHARED:
            return value not in SHARED[name]
        if name not in self.defaults or name in family.reads | set(family.names.values()):
            return False
        if name in READ | WITHOUT_EFFECT | DERIVED:
            return False
        return value not in NEUTRAL.get(name, (self.defaults[name],))
