"""The scheduler: every request gets the tokens that it would get alone, whatever else runs."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from lorage_jax.generator.generator import specialize
from lorage_jax.infer.generate import eos_ids, generate_tokens
from lorage_jax.infer.sample import Sampling
from lorage_jax.infer.slots import decode, prefill
from tests.infer.rows import with_eos
from tests.serve.server import PROMPTS, WORDS

pytest.importorskip("starlette")

from lorage_jax.serve.errors import Busy, Stopping
from lorage_jax.serve.requests import MOST_STOPS
from lorage_jax.serve.scheduler import Job, Scheduler, row_sizes


class Client:
    """A job, and what it was given."""

    def __init__(self, ids, most, **settings):
        self.tokens, self.end, self.ended = [], None, threading.Event()
        self.job = Job(ids, most, self.take, **settings)

    def take(self, piece):
        assert not self.ended.is_set(), "nothing comes after the last piece"
        self.tokens += piece.tokens
        if piece.last:
            self.end = piece.reason or piece.error
            self.ended.set()


@pytest.fixture(scope="module")
def cards(nano_pair):
    found = specialize(nano_pair[0], list(PROMPTS.values()))
    return {None: None, **dict(zip(PROMPTS, found, strict=True))}


@pytest.fixture
def scheduler(nano_pair):
    generator, edge = nano_pair
    made = Scheduler(edge, generator.pool, slots=4, queue=64)
    made.start()
    yield made
    made.stop()


def request(edge, name, words, cards, most=24, **settings):
    """A client's question under a card."""
    ends = (*eos_ids(edge), *edge.template.ends)
    gates = None if cards[name] is None else np.asarray(cards[name].gates)
    return Client(edge.template.prompt(words), most, gates=gates, ends=ends, **settings)


def test_requests_over_cards_and_the_base_equal_merged_weights(scheduler, nano_pair, merged, cards):
    """More requests than slots, in an order that mixes cards, lengths and draws."""
    edge, asked = nano_pair[1], []
    for i in range(24):
        name, words = list(merged)[i % 4], WORDS[i % len(WORDS)]
        sampling = Sampling(temperature=0.8, seed=i) if i % 3 == 0 else Sampling()
        most = 5 + 7 * (i % 4)
        client = request(edge, name, words, cards, most, sampling=sampling)
        scheduler.submit(client.job)
        asked.append((name, words, most, sampling, client))
        time.sleep(0.002 * (i % 3))
    for name, words, most, sampling, client in asked:
        assert client.ended.wait(120)
        how = {"max_new_tokens": most, "sampling": sampling, "ends": edge.template.ends}
        wanted = generate_tokens(merged[name], [edge.template.prompt(words)], **how)[0]
        assert client.tokens == wanted, (name, words)
        assert client.end == ("length" if len(wanted) == most else "stop")
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    counts = scheduler.counts
    assert counts.prompts == 24 and counts.failed == 0
    assert counts.chunks < sum(len(one[-1].tokens) for one in asked) / 2  # they shared steps


def test_the_last_of_several_goes_on_in_a_smaller_state(scheduler, nano_pair, merged):
    edge, prompts = nano_pair[1], [nano_pair[1].template.prompt(words) for words in WORDS[:4]]
    clients = [Client(ids, most) for ids, most in zip(prompts, (3, 3, 3, 120), strict=True)]
    scheduler.submit(*(one.job for one in clients))
    assert clients[-1].ended.wait(60)
    assert scheduler._state is None or scheduler._state.rows == 1
    wanted = generate_tokens(with_eos(edge), [prompts[-1]], max_new_tokens=120)[0]
    assert clients[-1].tokens == wanted


def test_a_cancelled_request_frees_its_row(scheduler, nano_pair, cards):
    edge = nano_pair[1]
    base = edge.config.max_positions - 20
    long = [Client(edge.template.prompt("moon"), min(base, 200)) for _ in range(6)]
    for one in long:
        scheduler.submit(one.job)
    while scheduler.running < 4:
        time.sleep(0.001)
    for one in long:
        scheduler.cancel(one.job)
    after = request(edge, "upper", WORDS[0], cards)
    scheduler.submit(after.job)
    assert after.ended.wait(60)
    assert scheduler.counts.cancelled == 6
    assert not any(one.ended.is_set() for one in long)


def test_a_full_queue_is_an_error_and_takes_none(nano_pair):
    scheduler = Scheduler(nano_pair[1], None, slots=1, queue=2)  # its thread does not run
    jobs = [Client([5, 6, 7], 4).job for _ in range(3)]
    with pytest.raises(Busy, match="at most 2"):
        scheduler.submit(*jobs)
    assert scheduler.waiting == 0
    scheduler.submit(*jobs[:2])
    with pytest.raises(Busy):
        scheduler.submit(jobs[2])


def test_a_fault_is_reported_to_its_requests_and_the_next_ones_are_served(
    scheduler, nano_pair, cards, monkeypatch, caplog
):
    edge = nano_pair[1]
    from lorage_jax.serve import scheduler as module

    def broken(*_):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(module, "decode", broken)
    lost = request(edge, "upper", WORDS[0], cards)
    scheduler.submit(lost.job)
    assert lost.ended.wait(60) and isinstance(lost.end, RuntimeError)
    assert "the device is gone" in caplog.text
    monkeypatch.undo()
    found = request(edge, "upper", WORDS[0], cards)
    scheduler.submit(found.job)
    assert found.ended.wait(60) and found.end == "stop"


def test_an_edge_of_many_ends_takes_the_most_stops(nano_pair):
    """Five ends of its own, those of its template, and as many as a request may add."""
    generator, edge = nano_pair
    own = dataclasses.replace(edge.config, eos_ids=tuple(range(9, 14)))
    model = edge.replace(config=own)
    scheduler = Scheduler(model, generator.pool, slots=2, queue=8)
    ends = {*eos_ids(model), *edge.template.ends, *range(20, 20 + MOST_STOPS)}
    assert len(ends) > 8
    client = Client(edge.template.prompt("moon"), 4, ends=tuple(sorted(ends)))
    scheduler.submit(client.job)
    scheduler.start()
    assert client.ended.wait(60) and client.end in ("stop", "length")
    scheduler.stop()


def test_after_warm_nothing_is_compiled(nano_pair, monkeypatch):
    """Prompts alone and together, short ones and those that are read by themselves."""
    monkeypatch.setattr("lorage_jax.serve.scheduler.READ_TOKENS", 32)
    generator, edge = nano_pair
    scheduler = Scheduler(edge, generator.pool, slots=2, queue=8)
    scheduler.warm(66)
    compiled = prefill._cache_size(), decode._cache_size()
    scheduler.start()
    for lengths in ([1], [30], [40], [64], [1, 1], [20, 12], [3, 60]):
        clients = [Client([0] * length, min(9, 66 - length)) for length in lengths]
        scheduler.submit(*(one.job for one in clients))
        assert all(one.ended.wait(60) and one.end == "length" for one in clients)
    scheduler.stop()
    assert (prefill._cache_size(), decode._cache_size()) == compiled


def test_stop_ends_what_runs(nano_pair):
    generator, edge = nano_pair
    scheduler = Scheduler(edge, generator.pool, slots=1, queue=8)
    scheduler.start()
    clients = [Client(edge.template.prompt("moon"), 100) for _ in range(3)]
    scheduler.submit(*(one.job for one in clients))
    scheduler.stop()
    assert not scheduler.alive
    assert all(one.ended.wait(10) for one in clients)
    assert all(isinstance(one.end, Stopping) or one.end == "length" for one in clients)
    assert isinstance(clients[-1].end, Stopping)
    with pytest.raises(Stopping):
        scheduler.submit(Client([5], 1).job)


def test_an_idle_scheduler_holds_no_cache(scheduler, nano_pair, cards):
    client = request(nano_pair[1], "upper", WORDS[0], cards)
    scheduler.submit(client.job)
    assert client.ended.wait(60)
    for _ in range(200):
        if scheduler._state is None:
            break
        time.sleep(0.01)
    assert scheduler._state is None


def test_the_numbers_of_rows():
    assert row_sizes(16) == [1, 4, 16]
    assert row_sizes(1) == [1]
    assert row_sizes(10) == [1, 4, 10]
