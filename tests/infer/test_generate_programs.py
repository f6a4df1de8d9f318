"""The programs of generation: how many, what they donate, where their rows are."""

import jax
import pytest

from lorage_jax.config import MeshConfig
from lorage_jax.generator.merge import compiled_assemble, merge
from lorage_jax.hf.load import load_model
from lorage_jax.infer import generate as module
from lorage_jax.infer import score as score_module
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.infer.place import place
from lorage_jax.infer.sample import Sampling
from lorage_jax.infer.score import score
from lorage_jax.sharding import Layout, make_mesh
from tests.infer.rows import PROMPTS, with_eos
from tests.tiny import make_generator, random_card


def test_calls_within_a_bucket_share_a_program(model):
    model = with_eos(model)
    rows = [[1, 7, 9, 11, 13], [1, 8], [1, 9], [1, 10, 12], [1, 3]]  # a batch size of its own

    def run(length, steps, **more):
        more = {"sampling": Sampling(), **more}
        longer = [row + [20] * (length - len(row)) for row in rows]
        return generate_tokens(model, longer, max_new_tokens=steps, **more)

    before = module.compiled_start._cache_size()
    run(5, 17)
    run(16, 24)
    run(9, 20, sampling=Sampling(0.7, 5, 0.9, 4))
    run(9, 20, watch=lambda rows, ended: ended)
    assert module.compiled_start._cache_size() == before + 1
    run(17, 24)
    assert module.compiled_start._cache_size() == before + 2
    before = module.compiled_continue._cache_size()
    watch = lambda rows, ended: ended  # noqa: E731
    run(17, 24, watch=watch)
    once = module.compiled_continue._cache_size()
    assert once <= before + 1
    run(20, 22, watch=watch, sampling=Sampling(0.7))
    assert module.compiled_continue._cache_size() == once


def test_the_cache_is_donated(model):
    seen = []
    real = module.compiled_continue

    def spy(config, params, cache, *rest):
        out = real(config, params, cache, *rest)
        seen.append(cache.k.is_deleted() and cache.v.is_deleted())
        return out

    module.compiled_continue = spy
    try:
        generate_tokens(
            with_eos(model), PROMPTS, max_new_tokens=24, watch=lambda rows, ended: ended
        )
    finally:
        module.compiled_continue = real
    assert seen and all(seen)


def test_sharded_weights(tmp_path, model):
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices: jax_num_cpu_devices or XLA_FLAGS, see tests/conftest.py")
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    sharded = with_eos(load_model(model.source, layout=Layout(mesh)))
    assert len(sharded.params["layers"]["gate"].sharding.device_set) == 4
    expected = generate_tokens(with_eos(model), PROMPTS, max_new_tokens=20)
    assert generate_tokens(sharded, PROMPTS, max_new_tokens=20) == expected
    watch = lambda rows, ended: ended  # noqa: E731
    assert generate_tokens(sharded, PROMPTS, max_new_tokens=20, watch=watch) == expected
    before = module.compiled_start._cache_size(), module.compiled_continue._cache_size()
    assert generate_tokens(sharded, PROMPTS, max_new_tokens=20, watch=watch) == expected
    assert (module.compiled_start._cache_size(), module.compiled_continue._cache_size()) == before


def test_rows_are_spread_over_devices_that_hold_the_whole_model(model, monkeypatch):
    """Nothing moves between them; three rows are filled up to eight."""
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices: jax_num_cpu_devices or XLA_FLAGS, see tests/conftest.py")
    seen, real = [], module.compiled_start

    def watched(*args):
        seen.append((args, real(*args)))
        return seen[-1][1]

    expected = generate_tokens(with_eos(model), PROMPTS, max_new_tokens=10)
    monkeypatch.setattr(module, "compiled_start", watched)
    assert generate_tokens(place(with_eos(model)), PROMPTS, max_new_tokens=10) == expected
    ((args, (cache, progress)),) = seen
    assert progress.tokens.shape[0] == cache.k.shape[1] == 8
    assert {shard.data.shape[1] for shard in cache.k.addressable_shards} == {1}
    ended = []

    def watch(outputs, _):
        ended.append(len(outputs[0]))
        return [True] * len(outputs)

    generate_tokens(place(with_eos(model)), PROMPTS, max_new_tokens=24, watch=watch)
    assert len(ended) == 1  # rows that fill up the batch do not keep it going
    text = real.lower(*args).compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text


def test_prompts_are_padded_by_at_most_a_quarter(model, monkeypatch):
    lengths = []

    def stop(rows, length):
        lengths.append(length)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "left_pad", stop)
    for count in (33, 41, 49, 57, 64):
        with pytest.raises(KeyboardInterrupt):
            generate_tokens(model, [[7] * count], max_new_tokens=4)
    assert lengths == [40, 48, 56, 64, 64]


def test_generators_share_programs(pair):
    """Pools that differ in their experts and fingerprints: one program for each use."""
    edge = load_model(pair[1])
    made = [make_generator(*pair, seed=seed) for seed in (0, 1)]
    cards = [random_card(generator) for generator in made]
    assert cards[0].generator != cards[1].generator

    def programs():
        made = (one._cache_size() for one in (module.compiled_start, compiled_assemble))
        return *made, score_module._program.cache_info().currsize

    found, counts = [], []
    for generator, card in zip(made, cards, strict=True):
        beside = generate_tokens(edge, [[1, 7]], gates=card, pool=generator.pool, max_new_tokens=8)
        merge(edge, generator.pool, card)
        score(edge, [([1, 7], [9])], gates=card, pool=generator.pool)
        found.append(beside)
        counts.append(programs())
    assert found[0] != found[1] and counts[0] == counts[1]
