"""Costs of a request: counts of the programs themselves, against formulas."""

import jax
import numpy as np
import pytest

from lorage_jax import nano
from lorage_jax.buckets import bucket
from lorage_jax.compare.costs import method_costs
from lorage_jax.data.templates import question
from lorage_jax.hf.load import load_model
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.in_context_cached import InContextCached, shared_ids
from lorage_jax.methods.loramoe import LoraMoe, LoraMoeSettings
from lorage_jax.world.samples import draw_world
from lorage_jax.world.seconds import median_group

SAMPLE = draw_world(3, 2, seed=1, families=("words",))[0]


@pytest.fixture(scope="module")
def edge():
    return load_model(nano.EDGE)


@pytest.fixture(scope="module")
def found(edge):
    settings = LoraMoeSettings()
    trained = LoraMoe.first(edge.config, settings, jax.random.PRNGKey(0))
    moe = LoraMoe(LoraMoe.routed(trained, settings, "x"), edge.template)
    methods = {
        "bare": Bare(),
        "cached": InContextCached.load(edge),
        "loramoe": moe,
    }
    return method_costs(methods, edge, SAMPLE)


def lengths(edge):
    """Tokens of the request without and with its prompt, and tokens that it writes."""
    record = median_group(edge, SAMPLE)[0]
    ids = (edge.template.ids(question(record.user, s)) for s in (None, record.system))
    answers = [len(edge.template.answer(r.target)) for r in SAMPLE.records]
    return *map(len, ids), round(np.mean(answers))


def test_arithmetic_is_that_of_the_tokens(edge, found):
    """Twice the multiply-accumulates by formula, and little elementwise work beside them."""
    config, (own, whole, new) = edge.config, lengths(edge)
    weights = sum(
        edge.params["layers"][n][0].size for n in ("q", "k", "v", "o", "gate", "up", "down")
    )
    heads = config.heads * config.head_dim

    def macs(read, front=0):
        head = config.width * config.vocab_size * new  # at the last slot, and at each new token
        slots = read + new - 1
        attention = 2 * config.layers * heads * slots * (front + read + new)
        return config.layers * weights * slots + head + attention

    # The prompt's keys and values are not computed again, but attended to.
    front = len(shared_ids(edge.template, median_group(edge, SAMPLE)[0].system))
    bare, cached = (found[name]["flops_per_request"] for name in ("bare", "cached"))
    assert bare / 2 / macs(own) == pytest.approx(1.05, abs=0.06)
    assert cached / 2 / macs(whole - front, bucket(front, per_octave=4)) == pytest.approx(
        1.05, abs=0.06
    )
    experts = 6 * (3 * 8 * 4 * (128 + 256) + 8 * (2 * 128 + 256)) * (own + new - 1)
    extra = found["loramoe"]["flops_per_request"] - bare
    assert extra / 2 == pytest.approx(experts, rel=0.25)


def test_memory_is_what_is_held(edge, found):
    config, (own, whole, new) = edge.config, lengths(edge)
    slot = 2 * config.layers * config.kv_heads * config.head_dim * 4  # bytes, float32
    cache = {name: one["cache_bytes"] for name, one in found.items()}
    assert cache["bare"] == cache["loramoe"] == slot * (own + new)
    assert cache["cached"] == slot * (whole + new)
    held = {name: one["parameter_bytes"] for name, one in found.items()}
    params = sum(x.nbytes for x in jax.tree.leaves(edge.params))
    assert held["bare"] == held["cached"] == params
    assert held["loramoe"] == params + 4 * 245_760  # its trained values, float32
