"""A teacher's rows: the same queries after their prompts, and the slots that predict the same."""

import numpy as np
import pytest

from lorage_jax.config import DataConfig, Source
from lorage_jax.data.batches import Encoder, Group
from lorage_jax.data.shown import ShownEncoder, paired
from lorage_jax.data.templates import Conversation, edge_prompt_with_system, encode

SOURCE = Source("synthetic", "synthetic")
WORDS = "sun cat oil egg tree bird stone lake".split()


def groups(count, queries, seed=0):
    """Of different lengths; every second group lacks a query."""
    rng = np.random.default_rng(seed)

    def text(most):
        return " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))

    return [
        Group(text(30), tuple((text(12), text(4)) for _ in range(queries - i % 2)), i)
        for i in range(count)
    ]


def made(encoder, asked):
    return encoder.batch([encoder.tokens(group) for group in asked])


def teacher_texts(batch):
    """For each slot of the teacher's rows, (chunk, flat index) -> the ids of its text up to it."""
    found = {}
    for number, rows in enumerate(batch.shown):
        count, slots = rows.tokens.shape
        for row in range(count):
            text = rows.text[row] if rows.text is not None else np.zeros(slots, int)
            for slot in range(slots):
                here = (text == text[slot]) & rows.mask[row] & (np.arange(slots) <= slot)
                found[number, row * slots + slot] = rows.tokens[row][here].tolist()
    return found


@pytest.mark.parametrize(
    "layout", [{}, {"prompt_chunks": 4}, {"packed_rows": 2}], ids=["whole", "chunks", "packed"]
)
def test_partners_predict_the_same_token(cloud, edge, layout):
    """Behind the same prompt and question, every target of the student has a partner."""
    config = DataConfig((SOURCE,), 8, 3, 512, 256, min_bucket=16, **layout)
    encoder, asked = ShownEncoder(config, cloud, edge), groups(8, 3)
    batch = made(encoder, asked)
    assert batch.truncated == 0
    texts, seen = teacher_texts(batch), set()
    openings = {
        tuple(encode(edge, edge_prompt_with_system(group.system, user), bos=True))
        for group in asked
        for user, _ in group.queries
    }
    for number, (rows, partners) in enumerate(zip(batch.queries, batch.partners, strict=True)):
        assert partners.shape == rows.tokens.shape and partners.dtype == np.int32
        wanted = np.zeros_like(rows.loss_mask)
        wanted[:, :-1] = rows.loss_mask[:, 1:]
        np.testing.assert_array_equal(partners >= 0, wanted)
        flat = batch.shown[number].tokens.reshape(-1)
        for row, slot in np.argwhere(wanted):
            place = int(partners[row, slot])
            assert (number, place) not in seen
            seen.add((number, place))
            assert flat[place + 1] == rows.tokens[row, slot + 1]
            first = slot
            while rows.loss_mask[row, first]:  # within the answer
                first -= 1
            text = texts[number, place]
            answer = rows.tokens[row, first + 1 : slot + 1].tolist()
            assert text[len(text) - len(answer) :] == answer
            opening = tuple(text[: len(text) - len(answer)])
            assert opening in openings
            question = edge.decode(rows.tokens[row][: first + 1]).split("User:")[-1]
            assert edge.decode(opening).endswith(question)
    assert len(seen) == sum(rows.loss_mask.sum() for rows in batch.queries)


@pytest.mark.parametrize("layout", [{}, {"packed_rows": 2}], ids=["whole", "packed"])
def test_the_student_reads_what_it_read(cloud, edge, layout):
    """And the teacher what the edge reads in context."""
    config = DataConfig((SOURCE,), 8, 3, 512, 256, min_bucket=16, **layout)
    found = made(ShownEncoder(config, cloud, edge), groups(8, 3))
    plain = made(Encoder(config, cloud, edge), groups(8, 3))
    told = made(Encoder(config, cloud, edge, in_context=True), groups(8, 3))
    assert plain.shown == plain.partners == ()
    pairs = [
        *zip(found.rows, plain.rows, strict=True),
        *zip(found.shown, told.queries, strict=True),
    ]
    for ours, theirs in pairs:
        for name in ("tokens", "mask", "text", "positions"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_most_shapes(cloud, edge):
    config = DataConfig((SOURCE,), 8, 3, 32, 32, min_bucket=16)  # 2 of prompts, 2 of queries
    assert ShownEncoder(config, cloud, edge).most_shapes() == 4 * 3
    assert ShownEncoder(config, cloud, edge).most_shapes(reads_prompts=False) == 2 * 3


def test_cut_texts_have_fewer_partners(cloud, edge):
    """An answer loses its end: the student's targets are the first of the teacher's."""
    config = DataConfig((SOURCE,), 2, 1, 64, 40, min_bucket=16)
    encoder = ShownEncoder(config, cloud, edge)
    asked = [Group("Say it.", (("go", "bird " * 30),), 0), Group("Say it.", (("a", "cat"),), 1)]
    batch = made(encoder, asked)
    (rows,), (partners,), (shown,) = batch.queries, batch.partners, batch.shown
    assert batch.truncated == 1
    first = encoder.tokens(asked[0])
    (count,), (whole,) = (
        [sum(x.loss_mask) for x in found] for found in (first.queries, first.shown)
    )
    assert (partners[0] >= 0).sum() == rows.loss_mask[0].sum() == count < whole
    flat = shown.tokens.reshape(-1)
    for slot in np.flatnonzero(partners[0] >= 0):
        assert flat[partners[0, slot] + 1] == rows.tokens[0, slot + 1]


def test_answers_are_paired_from_the_last():
    query = Conversation([1, 5, 6, 2, 7, 8], [False, True, True, False, True, True])
    shown = Conversation(
        [3, 4, 4, 1, 5, 9, 2, 7, 8, 8],
        [False, True, False, False, True, True, False, True, True, True],
    )
    assert sorted(paired(query, shown)) == [(1, 4), (4, 7), (5, 8)]
    other = Conversation([3, 6], [False, True])
    assert list(paired(query, other)) == []
