"""Scoring against the full forward pass, one request at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lorage_jax.config import MeshConfig
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.files.journal import Journal
from lorage_jax.generator.merge import merge
from lorage_jax.hf.load import load_model
from lorage_jax.infer import score as module
from lorage_jax.infer.forward import forward
from lorage_jax.infer.place import place
from lorage_jax.infer.score import Score, fit, score
from lorage_jax.sharding import Layout, make_mesh
from tests.tiny import FAMILIES, make_generator, random_card


def questions(count=12, choices=4, seed=0, longest=40):
    """Requests of `count` contexts with up to `choices` continuations each, all shuffled."""
    rng = np.random.default_rng(seed)

    def draw(n):
        return rng.integers(3, 250, n).tolist()

    pairs = []
    for _ in range(count):
        context = draw(rng.integers(1, longest))
        pairs += [(context, draw(rng.integers(1, 9))) for _ in range(rng.integers(1, choices + 1))]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def expected(model, context, continuation):
    """The same by the plain forward pass, one request per row."""
    row = [*context, *continuation]
    size = 64 if len(row) <= 64 else 272  # two shapes, for the tests' sake
    tokens = row + [0] * (size - len(row))
    mask = np.arange(size) < len(row)
    logits = jax.nn.log_softmax(forward(model, tokens, mask)[0].astype(jnp.float32))
    at = range(len(context) - 1, len(row) - 1)
    value = sum(float(logits[i, token]) for i, token in zip(at, continuation, strict=True))
    greedy = all(int(logits[i].argmax()) == t for i, t in zip(at, continuation, strict=True))
    return Score(value, greedy)


def assert_close(found, wanted):
    assert [one.greedy for one in found] == [one.greedy for one in wanted]
    values = [[one.loglikelihood for one in scores] for scores in (found, wanted)]
    np.testing.assert_allclose(*values, atol=2e-3)


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny("llama")[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_forward_pass(tiny, family):
    """Contexts reach past the sliding window of qwen2 and gemma2, through the shared rows."""
    one = load_model(tiny(family)[0])
    requests = questions(8)
    assert_close(score(one, requests), [expected(one, *request) for request in requests])


def test_a_greedy_continuation_is_told(model):
    context, answer = [5, 9, 17], []
    for _ in range(4):
        answer.append(int(forward(model, [*context, *answer])[0, -1].argmax()))
    wrong = [*answer[:-1], (answer[-1] + 1) % 200]
    found = score(model, [(context, answer), (context, wrong)])
    assert [one.greedy for one in found] == [True, False]


def test_choices_of_a_question_share_a_row_and_do_not_see_each_other(model, monkeypatch):
    rows = []
    run = module._Runner.__call__
    monkeypatch.setattr(
        module._Runner, "__call__", lambda self, batch: rows.extend(batch) or run(self, batch)
    )
    context = list(range(10, 60))
    requests = [(context, [7 + k, *range(100, 105)]) for k in range(4)]
    together = score(model, requests)
    assert [len(row.continuations) for row in rows] == [4]
    assert rows[0].length == 50 + 4 * 5  # the context once, without the last token
    alone = [score(model, [request])[0] for request in requests]
    assert_close(together, alone)


def test_a_question_with_too_many_choices_for_a_row_gets_more_rows(model, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_ROW", 30)
    requests = [([5] * 10, [k, k + 1, k + 2]) for k in range(20)]
    rows = module._rows([(i, tuple(c), tuple(t), 0, None) for i, (c, t) in enumerate(requests)])
    assert len(rows) > 1 and max(row.length for row in rows) <= 30
    assert_close(score(model, requests), [expected(model, *request) for request in requests])


def test_few_programs_and_small_batches(model, monkeypatch):
    """Batch by batch or all at once gives the same, in few shapes."""
    requests, shapes = questions(60, seed=3), set()
    fill = module._fill
    monkeypatch.setattr(
        module,
        "_fill",
        lambda arrays, row: (
            shapes.add((arrays["tokens"].size, arrays["at"].size)) or fill(arrays, row)
        ),
    )
    whole = score(model, requests, batch_tokens=8192)
    assert len(shapes) == 1
    shapes.clear()
    assert_close(score(model, requests, batch_tokens=512), whole)
    assert 1 < len(shapes) <= 6


def test_batches_suit_the_platform(model, monkeypatch):
    """On a CPU, small ones are faster; more than that has to be asked for."""
    sizes = []
    run = module._Runner.__call__
    monkeypatch.setattr(
        module._Runner,
        "__call__",
        lambda self, batch: sizes.append(self.batch_tokens) or run(self, batch),
    )
    requests = questions(2, seed=4)
    score(model, requests)
    score(model, requests, batch_tokens=300)
    assert set(sizes) == {module.CPU_BATCH_TOKENS, 300}
    assert module.default_batch_tokens("tpu") == module.BATCH_TOKENS > module.CPU_BATCH_TOKENS


def test_the_head_in_parts_changes_nothing(model, monkeypatch):
    requests = questions(10, seed=5)
    whole = score(model, requests)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 1 << 11)
    module._program.cache_clear()
    assert_close(score(model, requests), whole)
    module._program.cache_clear()


def test_rows_are_spread_over_all_devices(model):
    runner = module._Runner(model, None, None, 512)
    requests = [(i, tuple(range(5, 20)), (i, 3), 0, None) for i in range(8)]
    rows = [row for one in requests for row in module._rows([one])]
    logprobs, _ = runner(rows)
    assert runner.devices == len(jax.devices()) == 8
    assert logprobs.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert {shard.data.shape[0] for shard in logprobs.addressable_shards} == {1}


def test_a_sharded_model_stays_where_it_is(tiny, model):
    folder = tiny("llama")[0]
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = load_model(folder, layout=Layout(mesh))
    before = jax.tree.map(lambda x: x.sharding, sharded.params)
    assert jax.tree.map(lambda x: x.sharding, place(sharded).params) == before
    requests = questions(6, seed=7)
    assert_close(score(sharded, requests), score(model, requests))


def test_many_specialisations_in_one_batch(pair):
    """Each request under its own card gives what the edge merged with that card gives."""
    generator = make_generator(*pair)
    edge = load_model(pair[1])
    cards = [random_card(generator, seed) for seed in range(3)]
    requests = [(context, answer) for context, answer in questions(5, 1) for _ in cards]
    gates = cards * 5
    found = score(edge, requests, gates=gates, pool=generator.pool)
    merged = [merge(edge, generator.pool, card) for card in cards]
    wanted = [expected(merged[i % 3], *request) for i, request in enumerate(requests)]
    assert_close(found, wanted)
    base = score(edge, requests)
    assert max(abs(a.loglikelihood - b.loglikelihood) for a, b in zip(found, base, strict=True)) > 1
    assert_close(score(edge, requests[:3], gates=cards[0], pool=generator.pool),
                 [expected(merged[0], *request) for request in requests[:3]])  # fmt: skip


# Resuming after a kill


class Killed(Exception):
    pass


def test_finished_requests_are_not_run_again(model, tmp_path, monkeypatch):
    requests = questions(24, seed=9)
    wanted = score(model, requests)
    asked, batches = [], []
    run = module._Runner.__call__

    def stops(self, batch):
        batches.append(batch)
        if len(batches) == 3:  # the first is on disk, the second still on the device
            raise Killed
        return run(self, batch)

    monkeypatch.setattr(module._Runner, "__call__", stops)
    path = tmp_path / "progress"
    with pytest.raises(Killed):
        score(model, requests, batch_tokens=256, journal=Journal.open(path))
    with path.open("a") as file:
        file.write('{"key": "half a li')  # as left by a kill during a write
    finished = len(Journal.open(path))
    assert 0 < finished < len(requests)

    asked = []
    monkeypatch.setattr(
        module._Runner,
        "__call__",
        lambda self, batch: asked.extend(i for r in batch for i in r.asked) or run(self, batch),
    )
    assert_close(score(model, requests, batch_tokens=256, journal=Journal.open(path)), wanted)
    assert len(asked) == len(requests) - finished

    asked = []
    assert score(model, requests, journal=Journal.open(path)) == score(
        model, requests, journal=Journal.open(path)
    )
    assert asked == []


def test_the_journal_of_one_model_does_not_serve_another(model, tiny, tmp_path, pair):
    requests = questions(3)
    journal = Journal.open(tmp_path / "progress")
    first = score(model, requests, journal=journal)
    other = load_model(tiny("qwen2")[0])
    assert_close(
        score(other, requests, journal=journal), [expected(other, *one) for one in requests]
    )
    generator = make_generator(*pair)
    edge = load_model(pair[1])
    merged = merge(edge, generator.pool, random_card(generator))
    plain = score(edge, requests, journal=journal)
    special = score(merged, requests, journal=journal)  # the same folder's weights, and an adapter
    assert plain != special and first != plain


def test_the_journal_tells_a_changed_config_from_the_old_one(model):
    """The fingerprint covers only the weights; config.json may have been edited since."""
    journal = Journal()
    requests = [([5, 9, 17, 30], [7, 8])]
    before = score(model, requests, journal=journal)
    turned = model.replace(config=dataclasses.replace(model.config, rope_theta=5.0))
    after = score(turned, requests, journal=journal)
    assert before != after
    assert_close(after, [expected(turned, *request) for request in requests])


def test_a_request_asked_twice_is_run_once(model, monkeypatch):
    asked = []
    run = module._Runner.__call__
    monkeypatch.setattr(
        module._Runner,
        "__call__",
        lambda self, batch: asked.extend(i for r in batch for i in r.asked) or run(self, batch),
    )
    found = score(model, [([5, 6], [7]), ([5, 6], [7]), ([5, 6], [8])])
    assert len(asked) == 2 and found[0] == found[1] != found[2]


# Invalid requests


def test_a_context_that_is_too_long_loses_its_start(model):
    """As in lm-eval; the very last token is not read, so it needs no position."""
    context, answer = list(range(3, 203)) * 2, [9, 10, 11]
    kept, same, cut = fit(context, answer, 256, 0, 264)
    assert cut and same == (9, 10, 11) and list(kept) == context[-254:]
    assert not fit(context[:254], answer, 256, 0, 264)[2]
    found = score(model, [(context, answer)])[0]
    assert_close([found], [expected(model, context[-254:], answer)])


def test_a_continuation_that_is_too_long_is_scored_on_its_end(model):
    answer = list(range(3, 203)) * 2
    assert fit([7, 8], answer, 256, 0, 264) == (tuple(answer[143:144]), tuple(answer[144:]), True)
    found = score(model, [([7, 8], answer)])[0]
    assert_close([found], [expected(model, answer[143:144], answer[144:])])


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (([], [5]), "request 1 has an empty context"),
        (([5], []), "request 1 has an empty continuation"),
        (([5], [264]), "vocabulary is 0 to 263"),
        (([-1], [5]), "vocabulary is 0 to 263"),
    ],
)
def test_bad_requests_are_told(model, request_, says):
    with pytest.raises(DataError, match=says):
        score(model, [([5], [6]), request_])


def test_gates_must_be_one_for_each_request(model, pair):
    generator = make_generator(*pair)
    edge = load_model(pair[1])
    with pytest.raises(ConfigError, match="2 gates for 1 requests"):
        score(edge, [([5], [6])], gates=[random_card(generator)] * 2, pool=generator.pool)


def test_no_requests_no_scores(model, pair):
    assert score(model, []) == []
    assert score(load_model(pair[1]), [], gates=[], pool=make_generator(*pair).pool) == []
