"""The decoder against transformers' torch modules, rung by rung: norm to logits."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.llama import modeling_llama

from lorage_jax import ops, rotary
from lorage_jax.errors import ConfigError
from lorage_jax.hf.config import model_config
from lorage_jax.hf.family import get_family
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.models.cache import new_cache
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.layer import Layer, LayerInputs, causal_blocks
from tests.tiny import (
    LINEAR_ROPE,
    LLAMA3_ROPE,
    TOLERANCE,
    VARIANTS,
    VOCAB,
    WINDOW,
    YARN_ROPE,
    hf_config,
    padded_batch,
    torch_logits,
)


def normal(shape, seed=0, size=1.0):
    return (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_norm(family):
    module = (modeling_gemma2.Gemma2RMSNorm if "gemma" in family else modeling_llama.LlamaRMSNorm)(
        48, eps=3e-2
    )
    scale, x = normal((48,), 1), normal((2, 5, 48), 2, 0.3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(scale))
        want = module(torch.tensor(x)).numpy()
    got = ops.rms_norm(
        jnp.asarray(x), jnp.asarray(scale), 3e-2, get_family(family).fields.get("norm_offset", 0.0)
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_layer_norm():
    module = torch.nn.LayerNorm(48, eps=3e-2)
    scale, bias, x = normal((48,), 1), normal((48,), 2), normal((2, 5, 48), 3, 0.3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(scale))
        module.bias.copy_(torch.tensor(bias))
        want = module(torch.tensor(x + 2)).numpy()
    got = ops.layer_norm(jnp.asarray(x + 2), jnp.asarray(scale), jnp.asarray(bias), 3e-2)
    np.testing.assert_allclose(got, want, atol=1e-5)


PLAIN_YARN = {name: YARN_ROPE[name] for name in list(YARN_ROPE)[:4]}
SCALINGS = {
    "default": {"rope_type": "default", "rope_theta": 777.0},
    "linear": LINEAR_ROPE,
    "llama3": LLAMA3_ROPE,
    "yarn": YARN_ROPE,
    "yarn-plain": PLAIN_YARN,
    "yarn-mscale": PLAIN_YARN | {"mscale": 1.4, "mscale_all_dim": 0.3},
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_rope(tmp_path, kind):
    theirs = hf_config("llama", rope_parameters=SCALINGS[kind])
    theirs.save_pretrained(tmp_path)
    scaling = model_config(tmp_path).rope_scaling
    module = modeling_llama.LlamaRotaryEmbedding(theirs)
    q, k = normal((2, 9, 4, 16), 1), normal((2, 9, 2, 16), 2)
    positions = np.array([np.arange(9), [0, 3, 17, 31, 100, 255, 1000, 4000, 8191]])
    heads_first = [torch.tensor(x).transpose(1, 2) for x in (q, k)]
    cos, sin = module(heads_first[0], torch.tensor(positions))
    want = modeling_llama.apply_rotary_pos_emb(*heads_first, cos, sin)
    table = rotary.table(
        jnp.asarray(positions, jnp.int32),
        rotary.frequencies(16, 777.0, scaling),
        1.0 if scaling is None else scaling.attention_factor,
    )
    for ours, theirs in zip((q, k), want, strict=True):
        got = rotary.rotate(jnp.asarray(ours), *table)
        # Angles of thousands of radians amplify float32's rounding of the frequency.
        np.testing.assert_allclose(got[0], theirs.transpose(1, 2)[0], atol=2e-5)
        np.testing.assert_allclose(got[1], theirs.transpose(1, 2)[1], atol=5e-3)


@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_attention(cap, window):
    """Grouped queries, soft-cap, sliding window, padding."""
    q, k, v = normal((2, 11, 4, 16), 1, 2), normal((2, 11, 2, 16), 2, 2), normal((2, 11, 2, 16), 3)
    valid = np.ones((2, 11), bool)
    valid[1, :3] = False
    slot = np.arange(11)
    seen = (slot[None] <= slot[:, None]) & (slot[None] > slot[:, None] - (window or 99))
    allowed = seen[None] & valid[:, None]
    module = types.SimpleNamespace(num_key_value_groups=2, training=False)
    want, _ = modeling_gemma2.eager_attention_forward(
        module,
        *(torch.tensor(x).transpose(1, 2) for x in (q, k, v)),
        torch.tensor(np.where(allowed, 0.0, -1e30).astype(np.float32))[:, None],
        scaling=0.21,
        softcap=cap,
    )
    mask = ops.attention_mask(jnp.asarray(valid), jnp.asarray(slot), window)
    np.testing.assert_array_equal(mask, allowed)
    got = ops.attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), mask, 0.21, cap)
    np.testing.assert_allclose(np.asarray(got)[valid], want.numpy()[valid], atol=2e-5)


@pytest.mark.parametrize("variant", ["llama", "llama-bias", "gemma"])
def test_ffn(tiny, variant):
    folder, base = tiny(variant)
    model = load_model(folder)
    x = normal((2, 5, 48), 1)
    with torch.no_grad():
        want = base.model.layers[1].mlp(torch.tensor(x)).numpy()
    layer = Layer(model.config, jnp.float32, "factors", 1.0, 1.0, 0.0, layout=None, flash=False)
    weights = {name: w[1] for name, w in model.params["layers"].items()}
    inputs = LayerInputs(jnp.int32(1), jnp.asarray(False))
    got, sums = layer._ffn(weights, jnp.asarray(x), None, inputs)
    assert sums == {}  # without routers
    np.testing.assert_allclose(got, want, atol=2e-4)


@pytest.mark.parametrize(
    "variant", ["qwen2", "gemma2", "granite", "olmo2", "gemma3_text", "smollm3"]
)
def test_layers(tiny, variant):
    """The residual stream after every layer but the last, which torch returns after the norm."""
    folder, base = tiny(variant)
    model = load_model(folder)
    tokens = padded_batch(2, 20)[0] % (VOCAB - 5)
    with torch.no_grad():
        out = base(input_ids=torch.tensor(tokens, dtype=torch.long), output_hidden_states=True)
    decoder = Decoder(model.config)
    run = jax.jit(lambda params: decoder.apply({"params": params}, tokens, collect=20).layers)
    got = run(model.params)
    for layer in range(model.config.layers - 1):
        want = out.hidden_states[layer + 1].numpy()
        np.testing.assert_allclose(got[layer], want, atol=2e-4 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(tiny, variant):
    """Full, left- and right-padded rows that exceed the window, at every real token."""
    folder, base = tiny(variant)
    tokens, mask = padded_batch()
    want = torch_logits(base, tokens, mask)
    assert want[mask].std() > 0.5
    got = np.asarray(forward(load_model(folder), tokens, mask))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[mask], want[mask], atol=TOLERANCE[VARIANTS[variant][0]])


def test_learned_positions_end(tiny):
    """The last one counts, padding does not; a row beyond them is refused."""
    folder, base = tiny("opt")
    model, tokens = load_model(folder), np.arange(3, 260, dtype=np.int32)[None]
    want = torch_logits(base, tokens[:, 1:])
    mask = np.arange(257)[None] > 0
    np.testing.assert_allclose(forward(model, tokens, mask)[:, 1:], want, atol=2e-4)
    with pytest.raises(ConfigError, match="257 tokens; this model has learned 256 positions"):
        forward(model, tokens)


@pytest.mark.parametrize("variant", ["qwen2", "gemma2", "opt", "gemma3_text", "smollm3-sliding"])
def test_cached_decoding_is_the_full_forward(tiny, variant):
    """A left-padded prefill, then token by token: the same logits; no compile per step."""
    folder, _ = tiny(variant)
    model = load_model(folder)
    tokens, mask = padded_batch(2, 20)
    want = np.asarray(forward(model, tokens, mask))
    decoder = Decoder(model.config)

    @jax.jit
    def step(params, tokens, mask, cache):
        output = decoder.apply({"params": params}, tokens, mask, cache=cache)
        return output.logits, output.cache

    cache = new_cache(model.config, 2, 24, jnp.float32)
    logits, cache = step(model.params, tokens[:, :12], mask[:, :12], cache)
    np.testing.assert_allclose(logits[mask[:, :12]], want[:, :12][mask[:, :12]], atol=2e-4)
    for t in range(12, 20):
        logits, cache = step(model.params, tokens[:, t : t + 1], mask[:, t : t + 1], cache)
        np.testing.assert_allclose(logits[:, 0], want[:, t], atol=2e-4)
    assert int(cache.length) == 20
    assert step._cache_size() == 2


@pytest.mark.parametrize(
    ("platform", "length", "blocks"),
    [("cpu", 100, 1), ("cpu", 128, 2), ("cpu", 5000, 4), ("tpu", 5000, 1), ("gpu", 5000, 1)],
)
def test_only_a_cpu_attends_in_blocks(platform, length, blocks):
    """Programs for other devices stay as they are."""
    layout: Any = types.SimpleNamespace(platform=platform)
    assert causal_blocks(length, layout) == blocks
