"""Tiny models of two families, and the formula of their arithmetic."""

from lorage_jax.hf.family import family_decoder

TOKENS = 24


def tiny(family, layers):
    """A head size that is not width / heads; for Gemma, alternating windows."""
    fields = {"tied_head": family == "gemma2", "head_dim": 16}
    if family == "gemma2":
        sliding = ((True, False) * layers)[:layers]
        fields |= {"window": 6, "sliding": sliding, "attn_softcap": 4.0}
    sizes = {"vocab_size": 97, "width": 48, "heads": 4, "kv_heads": 2, "ffn_width": 80}
    return family_decoder(family, layers=layers, **sizes, **fields)


def projections(config):
    """MACs per token of one layer's matrices."""
    heads = 2 * config.heads + 2 * config.kv_heads
    return config.width * (heads * config.head_dim + 3 * config.ffn_width)


def attention(config, tokens):
    """Scores and weighted values of one layer, over all pairs."""
    return 2 * tokens**2 * config.heads * config.head_dim


def layers_macs(config, tokens):
    return config.layers * (tokens * projections(config) + attention(config, tokens))
