"""Prompts and queries packed into a few rows, one after the other."""

import jax
import numpy as np
import pytest

from lorage_jax.config import DataConfig, Source
from lorage_jax.data.batches import Encoder, Group
from lorage_jax.data.packing import balanced, pack
from lorage_jax.data.templates import cloud_prompt, edge_prompt, edge_target
from lorage_jax.errors import ConfigError

SOURCE = Source("synthetic", "synthetic")
WORDS = "sun cat oil egg tree bird stone lake".split()


def groups(count, queries, seed=0):
    rng = np.random.default_rng(seed)

    def text(most):
        return " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))

    return [
        Group(text(60), tuple((text(12), text(4)) for _ in range(queries - i % 2)), i)
        for i in range(count)
    ]


def test_rows_are_balanced():
    """Every row has as many texts and about as many tokens, and none is lost."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        lengths = np.minimum(2048, rng.lognormal(5, 1, 64)).astype(int) + 1
        placed = balanced(lengths.tolist(), 8)
        assert [len(row) for row in placed] == [8] * 8
        assert sorted(i for row in placed for i in row) == list(range(64))
        sums = [lengths[row].sum() for row in placed]
        assert max(sums) <= max(lengths.max() + 8 * np.median(lengths), 1.1 * np.mean(sums))


def test_texts_stand_one_behind_the_other():
    texts = [[1] * 5, [2] * 3, [3], [4] * 2]
    order, arrays = pack(texts, 2, smallest=8, largest=100, pad=9)
    assert order.tolist() == [[0, 2], [1, 3]]
    assert arrays["tokens"].tolist() == [[1] * 5 + [3, 9, 9], [2] * 3 + [4] * 2 + [9] * 3]
    assert arrays["mask"].tolist() == [[True] * 6 + [False] * 2, [True] * 5 + [False] * 3]
    assert arrays["text"].tolist() == [[0] * 5 + [1, 0, 0], [0] * 3 + [1] * 2 + [0] * 3]
    assert arrays["positions"].tolist() == [[0, 1, 2, 3, 4, 0, 0, 0], [0, 1, 2, 0, 1, 0, 0, 0]]
    assert pack([[1] * 9], 1, smallest=8, largest=9, pad=9)[1]["tokens"].shape == (1, 9)
    # Few lengths: 16, 20, 24, 28, 32, 40, ...
    assert pack([[1] * 33], 1, smallest=16, largest=100, pad=9)[1]["tokens"].shape == (1, 40)


def test_every_text_is_found_again(cloud, edge):
    """Each with its own prompt and answer; a group without a query has a filler."""
    config = DataConfig((SOURCE,), 8, 3, min_bucket=16, packed_rows=2)
    encoder, asked = Encoder(config, cloud, edge), groups(8, 3)
    batch = encoder.batch([encoder.tokens(group) for group in asked])
    (prompts,), (queries,) = batch.prompts, batch.queries
    assert {len(x) for x in jax.tree.leaves((prompts, queries))} == {2}
    by_id = {group.index: group for group in asked}
    ordered = [by_id[i] for i in batch.group_ids.tolist()]
    assert sorted(by_id) == sorted(batch.group_ids.tolist())

    def texts(rows, row, count):
        for number in range(count):
            here = rows.mask[row] & (rows.text[row] == number)
            positions = rows.positions[row][here]
            assert positions.tolist() == list(range(len(positions)))
            yield rows.tokens[row][here], here

    for row in range(2):
        shown = [cloud.decode(ids[1:]) for ids, _ in texts(prompts, row, 4)]
        assert shown == [cloud_prompt(g.system) for g in ordered[4 * row : 4 * row + 4]]
    found = []
    for row in range(2):
        for number, (ids, here) in enumerate(texts(queries, row, 12)):
            owner = int(queries.owner[row, number])
            answer = queries.loss_mask[row][here]
            if not answer.any():
                assert len(ids) == 1
                continue
            assert ids[-1] == edge.eos_token_id
            found.append((owner, edge.decode(ids[~answer]), edge.decode(ids[answer][:-1])))
    assert not (queries.loss_mask & ~queries.mask).any()
    wanted = [
        (number, edge_prompt(user), edge_target(target))
        for number, group in enumerate(ordered)
        for user, target in group.queries
    ]
    assert sorted((n, a.strip(), b.strip()) for n, a, b in found) == sorted(
        (n, a, b.strip()) for n, a, b in wanted
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"packed_rows": 3}, "packed_rows is 3; expected a divisor of the 8 prompts"),
        ({"packed_rows": 0}, "packed_rows is 0"),
        ({"packed_rows": 2, "prompt_chunks": 2}, "set only one of them"),
    ],
)
def test_bad_settings(values, says):
    with pytest.raises(ConfigError, match=says):
        DataConfig((SOURCE,), 8, **values)
