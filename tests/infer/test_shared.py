"""What many contexts begin with is read once, and the scores stay what they are."""

import numpy as np
import pytest

from lorage_jax.config import MeshConfig
from lorage_jax.files.journal import Journal
from lorage_jax.hf.load import load_model
from lorage_jax.infer import score as module
from lorage_jax.infer import shared
from lorage_jax.infer.score import score
from lorage_jax.infer.shared import common_beginnings, read_beginnings
from lorage_jax.sharding import Layout, make_mesh
from tests.infer.test_score import assert_close, expected

# With windows, learned positions, and layers without rope.
FAMILIES = ("llama", "gemma3_text", "opt", "smollm3")


def tasks(count=9, sizes=(20, 33), seed=0):
    """Requests of two tasks, with two choices each, all contexts of a task beginning alike."""
    rng = np.random.default_rng(seed)

    def draw(n):
        return tuple(rng.integers(3, 250, n).tolist())

    pairs = []
    for size in sizes:
        start = draw(size)
        for _ in range(count):
            context = start + draw(rng.integers(1, 12))
            pairs += [(context, draw(rng.integers(1, 5))) for _ in range(2)]
    pairs += [(draw(rng.integers(1, 40)), draw(2)) for _ in range(5)]
    return [pairs[i] for i in rng.permutation(len(pairs))]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(shared, "SHORTEST", 8)


@pytest.fixture
def slots(monkeypatch):
    """The lengths of the contexts that were read in rows."""
    seen, fill = [], module._fill
    monkeypatch.setattr(
        module, "_fill", lambda arrays, row: seen.append(len(row.context)) or fill(arrays, row)
    )
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_forward_pass(tiny, family, slots):
    model = load_model(tiny(family)[0])
    requests = tasks()
    assert_close(score(model, requests), [expected(model, *one) for one in requests])
    assert sum(size < 13 for size in slots) >= 18, "the beginnings were read again"


def test_a_context_that_is_nothing_but_the_beginning(model, slots):
    """Its last token is read, as it predicts the first of the answer."""
    start = tuple(range(10, 30))
    requests = [((*start, i), (7,)) for i in range(50, 50 + shared.FEWEST)] + [(start, (7, 8))]
    assert_close(score(model, requests), [expected(model, *one) for one in requests])
    assert 1 in slots


def test_a_sharded_model(tiny, model, slots):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = load_model(tiny("llama")[0], layout=Layout(mesh))
    requests = tasks(seed=1)
    assert_close(score(sharded, requests), score(model, requests))


def test_few_or_short_beginnings_are_not_worth_it(model):
    alike = [(*range(10, 18), i) for i in range(shared.FEWEST)]
    assert common_beginnings(alike) == {tuple(range(10, 18)): list(range(len(alike)))}
    assert common_beginnings(alike[1:] + alike[1:2]) == {}, "a context that is asked twice is one"
    assert common_beginnings([one[:8] for one in alike]) == {}, "nothing would be left to read"
    long = [(*one, *range(100, 108)) for one in alike]
    assert common_beginnings(long) == {}, "less than half of them is common"
    mixed = [(*one[:8], 99, *one[8:]) for one in alike] + [(5, *one) for one in alike]
    assert {start: len(group) for start, group in common_beginnings(mixed).items()} == {
        (*range(10, 18), 99): len(alike),
        (5, *range(10, 18)): len(alike),
    }
    found = read_beginnings(model, mixed, asked=[0])
    assert [one is None for one in found] == [False] * len(alike) + [True] * len(alike)


def test_a_journal_of_single_requests_serves_the_whole(model, tmp_path, monkeypatch):
    """How the rows were read is no part of a request."""
    journal, requests = Journal(tmp_path / "kept"), tasks()
    first = [score(model, [one], journal=journal)[0] for one in requests[:6]]
    assert score(model, requests, journal=journal)[:6] == first


def test_batches_leave_room_for_the_slots_in_front(model, monkeypatch):
    sizes, run = [], module._Runner.__call__
    monkeypatch.setattr(
        module._Runner, "__call__", lambda self, batch: sizes.append(len(batch)) or run(self, batch)
    )
    requests = [one for one in tasks(count=40, sizes=(200,)) if len(one[0]) > 200]
    score(model, requests, batch_tokens=1024)
    assert max(sizes) == 8, "2048 slots, of which every row has more than 200, over eight devices"
