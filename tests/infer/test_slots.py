"""Slots: rows that start and end at different times get what they would get alone, merged."""

import dataclasses

import jax
import numpy as np
import pytest

from lorage_jax.generator.merge import merge
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.infer.sample import Sampling
from lorage_jax.infer.slots import (
    ALTERNATIVES,
    CHUNK,
    NO_TOKEN,
    PackedPrompts,
    Requests,
    decode,
    insert,
    new_slots,
    prefill,
    release,
    resize,
)
from tests.infer.rows import with_eos
from tests.tiny import make_generator, random_card

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(3, 250, n).tolist() for n in (5, 17, 2, 30, 9, 11)]  # a window is 6
LENGTHS = [30, 3, 17, 9, 1, 22]
CARDS = [0, 1, None, 1, 0, None]
ROWS = 3


class Engine:
    """The programs in the order of a server, with ROWS rows."""

    def __init__(self, model, generator, penalty=None, scored=False):
        self.model, self.pool, self.decoding = model, generator.pool, generator.pool.for_decoding()
        self.cards = [random_card(generator, seed) for seed in range(2)]
        self.penalty = None if penalty is None else np.float32(penalty)
        self.scored, self.rows, self.state = scored, {}, None
        self.outputs, self.scores = {}, {}

    def start(self, placed, sampling=None, ends=()):
        """Reads prompts together, and puts them into rows: {prompt's number: row}."""
        sampling = sampling or Sampling()

        def each(value, kind):
            return np.full(ROWS, value, kind)

        gates = np.zeros((ROWS, self.model.config.layers, self.pool.count), np.float32)
        most, rows = each(1, np.int32), each(99, np.int32)  # beyond the last row
        for i, (number, row) in enumerate(placed.items()):
            most[i], rows[i] = LENGTHS[number], row
            if CARDS[number] is not None:
                gates[i] = self.cards[CARDS[number]].gates
        requests = Requests(
            gates=gates,
            most=most,
            ends=np.tile(np.asarray([*ends, *[NO_TOKEN] * (2 - len(ends))], np.int32), (ROWS, 1)),
            temperature=each(sampling.temperature, np.float32),
            top_k=each(sampling.top_k, np.int32),
            top_p=each(sampling.top_p, np.float32),
            seed=each(sampling.seed, np.uint32),
        )
        prompts = PackedPrompts.of([PROMPTS[number] for number in placed], ROWS, 64)
        read = prefill(*self._given(), prompts, requests, self.penalty)
        if self.state is None:
            self.state = new_slots(read, ROWS, 64)
        self.state = insert(self.state, read, rows)
        for i, (number, row) in enumerate(placed.items()):
            self.rows[row] = number
            self.outputs[number] = [int(read.first.tokens[i])]
            self.scores[number] = [jax.tree.map(lambda x: x[i : i + 1], read.first)]  # noqa: B023

    def _given(self):
        return self.model.config, self.scored, self.model.params, self.decoding

    def step(self, limit=CHUNK):
        """One chunk; rows that have ended are free."""
        self.state, chosen, counts = decode(
            *self._given(), self.state, np.int32(limit), self.penalty
        )
        chosen, counts = jax.device_get((chosen, counts))
        left = np.asarray(self.state.left)
        for row, number in list(self.rows.items()):
            self.outputs[number] += chosen.tokens[row, : counts[row]].tolist()
            if self.scored:
                self.scores[number].append(jax.tree.map(lambda x: x[row, : counts[row]], chosen))  # noqa: B023
            if left[row] == 0:
                del self.rows[row]

    def run(self, order, **settings):
        """Requests that arrive while others run, into whichever row is free."""
        waiting = list(order)
        while waiting or self.rows:
            free = [row for row in (2, 0, 1) if row not in self.rows]
            if waiting and free:
                numbers, waiting = waiting[: len(free)], waiting[len(free) :]
                self.start(dict(zip(numbers, free, strict=False)), **settings)
            self.step(3)
        return self.outputs


SLOW_OPT = pytest.param("opt", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["qwen2", "gemma2", SLOW_OPT])
def served(request, tiny, cloud_dir):
    """An edge with a window, with scaled embeddings and caps, or with learned positions."""
    folder = tiny(request.param)[0]
    return load_model(folder), make_generator(cloud_dir, folder)


@pytest.fixture(scope="module")
def qwen2(tiny, cloud_dir):
    folder = tiny("qwen2")[0]
    return load_model(folder), make_generator(cloud_dir, folder)


def alone(engine, number, **settings):
    """A request by itself, its card merged."""
    model = engine.model
    if CARDS[number] is not None:
        model = merge(model, engine.pool, engine.cards[CARDS[number]])
    model = with_eos(model, *settings.pop("ends", ()))
    return generate_tokens(model, [PROMPTS[number]], max_new_tokens=LENGTHS[number], **settings)[0]


def test_staggered_requests_of_several_cards_equal_merged_weights_one_by_one(served):
    engine = Engine(*served)
    outputs = engine.run(range(6))
    for number in range(6):
        assert outputs[number] == alone(engine, number), f"request {number}"
    assert len({tuple(row[:3]) for row in outputs.values()}) > 3  # no two are the same by chance


def test_draws_depend_on_the_seed_and_not_on_the_row(qwen2):
    sampling = Sampling(temperature=0.9, top_p=0.9, seed=11)
    engine = Engine(*qwen2)
    outputs = engine.run([3, 5, 0, 2], sampling=sampling)
    for number in (0, 2, 3, 5):
        assert outputs[number] == alone(engine, number, sampling=sampling)
    assert outputs[0] != alone(engine, 0)


def test_greedy_and_drawn_rows_share_a_batch(qwen2):
    engine, drawn = Engine(*qwen2), Sampling(temperature=1.2, seed=3)
    engine.start({0: 0})
    engine.start({2: 1}, sampling=drawn)
    engine.start({5: 2}, sampling=dataclasses.replace(drawn, top_k=5))
    while engine.rows:
        engine.step()
    assert engine.outputs[0] == alone(engine, 0)
    assert engine.outputs[2] == alone(engine, 2, sampling=drawn)
    assert engine.outputs[5] == alone(engine, 5, sampling=dataclasses.replace(drawn, top_k=5))


def test_an_end_token_frees_its_row_alone(qwen2):
    engine = Engine(*qwen2)
    whole = alone(engine, 0)
    end = whole[7]
    engine.start({0: 1}, ends=(end,))
    engine.start({2: 2})
    while engine.rows:
        engine.step()
    cut = whole.index(end)
    assert engine.outputs[0] == whole[: cut + 1]
    assert engine.outputs[2] == alone(engine, 2)


def test_a_chunk_ends_when_enough_rows_are_free(qwen2):
    engine = Engine(*qwen2)
    for number, row in ((0, 0), (1, 1), (3, 2)):  # of 30, 3 and 9 tokens
        engine.start({number: row})
    given = engine._given()
    for freed, wanted in ((1, [2, 2, 2]), (1, [6, 0, 6])):
        engine.state, _, counts = decode(
            *given, engine.state, np.int32(CHUNK), None, np.int32(freed)
        )
        assert counts.tolist() == wanted


def test_a_released_row_is_free_and_the_others_go_on_in_another_size(qwen2):
    engine = Engine(*qwen2)
    for number, row in ((0, 0), (5, 1), (2, 2)):
        engine.start({number: row})
    engine.step(4)
    engine.state = release(engine.state, np.asarray([True, False, False]))
    del engine.rows[0]
    engine.state = resize(engine.state, np.asarray([2, 3, 3, 1, 3], np.int32), 96)
    engine.rows = {0: engine.rows[2], 3: engine.rows[1]}
    assert (engine.state.rows, engine.state.room) == (5, 96)
    engine.start({3: 4})
    while engine.rows:
        engine.step()
    for number in (2, 3, 5):
        assert engine.outputs[number] == alone(engine, number)
    assert len(engine.outputs[0]) == 5  # nothing since its release


def test_a_repetition_penalty_counts_prompt_and_answer(qwen2):
    engine = Engine(*qwen2, penalty=1.7)
    outputs = engine.run([0, 3, 2])
    sampling = Sampling(repetition_penalty=1.7)
    for number in (0, 2, 3):
        assert outputs[number] == alone(engine, number, sampling=sampling)
    assert outputs[0] != alone(engine, 0)


def test_log_probabilities_are_those_of_the_full_forward_pass(qwen2):
    engine = Engine(*qwen2, scored=True)
    outputs = engine.run([5, 0])
    row = PROMPTS[0] + outputs[0]
    gates = np.asarray(engine.cards[CARDS[0]].gates)
    logits = forward(engine.model, row, gates=gates, pool=engine.pool)[0]
    wanted = np.asarray(jax.nn.log_softmax(logits))[len(PROMPTS[0]) - 1 : -1]
    own, best = (
        np.concatenate([np.asarray(getattr(part, name)) for part in engine.scores[0]])
        for name in ("logprobs", "their_logprobs")
    )
    np.testing.assert_allclose(own, wanted[np.arange(len(own)), outputs[0]], atol=1e-4)
    np.testing.assert_allclose(best, -np.sort(-wanted)[:, :ALTERNATIVES], atol=1e-4)
