"""Time per request: the specialised edge and the edge with its prompt do the same work."""

import copy
import dataclasses

import numpy as np
import pytest

from lorage_jax.data.templates import (
    PlainTemplate,
    edge_prompt,
    edge_prompt_with_system,
    encode,
    encode_target,
)
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.world import seconds
from lorage_jax.world.samples import draw_world
from lorage_jax.world.seconds import request_seconds

WORDS = draw_world(4, 3, seed=1)[1]


def test_requests_are_timed_alike(models, monkeypatch):
    """Same rows and number of new tokens for both, no eos; the merged edge reads no prompt."""
    edge, generator = models
    seen = []
    monkeypatch.setattr(seconds, "generate", lambda *args, **kw: seen.append((*args, kw)))
    found = request_seconds(edge, generator, [WORDS], rows=5, repeats=4)["words/paraphrase"]
    assert len(seen) == 4 * (1 + 4)  # with a warm-up
    lengths = [len(encode_target(edge.tokenizer, r.target)) for r in WORDS.records]
    assert {kw["max_new_tokens"] for _, _, kw in seen} == {round(np.mean(lengths))}
    turns = PlainTemplate(edge.tokenizer, 1)
    seen = [(model, [turns.text(one) for one in asked], more) for model, asked, more in seen]
    (group,) = (g for g in WORDS.groups if seen[0][1][0].endswith(edge_prompt(g[0].user)))
    asked = [group[i] for i in (0, 1, 2, 0, 1)]
    special = merge(edge, generator.pool, specialize(generator, group[0].system))
    for model, texts, _ in seen:
        merged = model.card is not None
        assert model.config.eos_ids == () and model.tokenizer.eos_token_id is None
        expected = [
            edge_prompt(r.user) if merged else edge_prompt_with_system(r.system, r.user)
            for r in asked
        ]
        assert texts in (expected, expected[:1])
        weights = (special if merged else edge).params["layers"]["up"]
        np.testing.assert_array_equal(model.params["layers"]["up"], weights)
    assert edge.tokenizer.eos_token_id == 2 and edge.config.eos_ids == (2,)
    for kind in ("batch", "single"):
        one = found[kind]
        assert one["ratio"] == pytest.approx(one["in_context"] / one["lora_gen"])
    # Seconds are per request, also in a batch.
    times = {
        f"{k}_{w}": [x]
        for k, x in (("batch", 10.0), ("single", 4.0))
        for w in ("in_context", "lora_gen")
    }
    monkeypatch.setattr(seconds, "in_turn", lambda actions, repeats: times)
    found = request_seconds(edge, special, [WORDS], rows=5)["words/paraphrase"]
    assert (found["batch"]["lora_gen"], found["single"]["lora_gen"]) == (2.0, 4.0)


def test_endless_models_write_on(models):
    edge = models[0]
    row = encode(edge.tokenizer, edge_prompt("cat dog"), bos=True)
    (answer,) = generate_tokens(seconds.endless(edge), [row], max_new_tokens=5)
    assert len(answer) == 5
    ended = edge.replace(config=dataclasses.replace(edge.config, eos_ids=(2, answer[0])))
    tokenizer = copy.deepcopy(edge.tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(answer[0])
    for model in (ended, edge.replace(tokenizer=tokenizer)):
        assert generate_tokens(model, [row], max_new_tokens=5) == [[]]
        endless = seconds.endless(model)
        assert generate_tokens(endless, [row], max_new_tokens=5) == [answer]
