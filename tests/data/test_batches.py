import itertools

import jax
import numpy as np
import pytest

from lorage_jax.config import DataConfig, Source
from lorage_jax.data.batches import Encoder, Group, pad_id, padded_length
from lorage_jax.data.packing import pack
from lorage_jax.data.templates import cloud_prompt, edge_prompt, edge_target
from lorage_jax.errors import ConfigError, DataError
from tests.tiny import byte_tokenizer


def _config(**values):
    source = Source(path="synthetic", kind="synthetic")
    return DataConfig(sources=(source,), **{"min_bucket": 8, "queries_per_prompt": 3, **values})


GROUPS = (
    Group("Sort the words by the alphabet.", (("sun cat", "cat sun"), ("oil", "oil")), 7),
    Group("Count.", (("a b", "2"), ("", "0"), ("sun cat oil egg " * 5, "20")), 11),
)


def _batch(cloud, edge, **values):
    encoder = Encoder(_config(**values), cloud, edge)
    return encoder.batch([encoder.tokens(group) for group in GROUPS])


def test_shapes_and_types(cloud, edge):
    batch = _batch(cloud, edge)
    s, t = batch.prompts[0].tokens.shape[1], batch.queries[0].tokens.shape[1]
    expected = [
        ("prompts[0].tokens", (2, s), np.int32),
        ("prompts[0].mask", (2, s), bool),
        ("queries[0].tokens", (6, t), np.int32),
        ("queries[0].mask", (6, t), bool),
        ("queries[0].loss_mask", (6, t), bool),
        ("group_ids", (2,), np.int64),
    ]
    arrays = jax.tree_util.tree_leaves_with_path(batch.replace(truncated=None, texts=()))
    found = [(jax.tree_util.keystr(path)[1:], x.shape, x.dtype) for path, x in arrays]
    assert found == [(name, shape, np.dtype(dtype)) for name, shape, dtype in expected]
    assert batch.group_ids.tolist() == [7, 11] and batch.truncated == 0
    assert len(batch.texts) == 2


def test_prompts_are_padded_on_the_left(cloud, edge):
    batch = _batch(cloud, edge)
    assert not batch.prompts[0].mask[1, 0] and batch.prompts[0].mask[:, -1].all()
    for group, ids, mask in zip(
        GROUPS, batch.prompts[0].tokens, batch.prompts[0].mask, strict=True
    ):
        assert (np.diff(mask.astype(int)) >= 0).all()
        assert (ids[~mask] == cloud.pad_token_id).all()
        assert ids[mask][0] == cloud.bos_token_id
        assert cloud.decode(ids[mask][1:]) == cloud_prompt(group.system)


def test_chunks_sort_prompts_by_length_and_rows_follow(cloud, edge):
    long = Group("word " * 60, (("long " * 9, "b"), ("c", "d")), 3)
    middle = Group("word " * 20, (("e", "f"),), 4)
    alphabet, count = GROUPS
    groups = [long, alphabet, count, middle]
    encoder = Encoder(_config(prompt_chunks=2), cloud, edge)
    batch = encoder.batch([encoder.tokens(group) for group in groups])
    assert batch.group_ids.tolist() == [11, 7, 4, 3]
    short, wide = (chunk.tokens for chunk in batch.prompts)
    assert short.shape[0] == wide.shape[0] == 2 and short.shape[1] < wide.shape[1]
    systems = [
        cloud.decode(ids[mask][1:])
        for chunk in batch.prompts
        for ids, mask in zip(chunk.tokens, chunk.mask, strict=True)
    ]
    assert systems == [cloud_prompt(g.system) for g in (count, alphabet, middle, long)]
    queries = batch.queries[1].tokens[3][batch.queries[1].mask[3]]
    assert edge.decode(queries).startswith("User: long")
    rows = [chunk.tokens.shape for chunk in batch.queries]
    assert rows == [(6, 64), (6, 32)]
    assert [chunk.loss_mask.shape for chunk in batch.queries] == rows


def test_queries_are_prompt_major_and_padded_on_the_right(cloud, edge):
    batch = _batch(cloud, edge)
    for row in range(6):
        ids, mask = batch.queries[0].tokens[row], batch.queries[0].mask[row]
        loss = batch.queries[0].loss_mask[row]
        assert mask.any() and (np.diff(mask.astype(int)) <= 0).all()
        assert not (loss & ~mask).any()
        queries = GROUPS[row // 3].queries
        if row % 3 >= len(queries):
            continue
        user, target = queries[row % 3]
        assert ids[loss][-1] == edge.eos_token_id
        assert edge.decode(ids[mask & ~loss]) == edge_prompt(user)
        # The tokens of the loss mask decode to the target, those of the row to the whole turn.
        assert edge.decode(ids[loss][:-1]).strip() == target
        assert edge.decode(ids[mask][:-1]) == edge_prompt(user) + edge_target(target)


def test_a_small_group_is_filled_with_rows_without_loss(cloud, edge):
    batch = _batch(cloud, edge)
    assert batch.queries[0].loss_mask.any(axis=1).tolist() == [True, True, False, True, True, True]
    assert batch.queries[0].mask[2].sum() == 1
    assert (batch.queries[0].tokens[2] == edge.eos_token_id).all()


def test_truncation_is_counted_and_leaves_the_targets(cloud, edge):
    batch = _batch(cloud, edge, max_prompt_tokens=10, max_query_tokens=24)
    assert batch.truncated == 2  # the first prompt, the last query
    assert batch.prompts[0].tokens.shape[1] == 10 and batch.queries[0].tokens.shape[1] == 24
    (queries,) = batch.queries
    assert edge.decode(queries.tokens[5][queries.loss_mask[5]][:-1]).strip() == "20"
    text = cloud.decode(batch.prompts[0].tokens[0], skip_special_tokens=True)
    assert len(text) > 8 and cloud_prompt(GROUPS[0].system).startswith(text)


@pytest.mark.parametrize(
    ("length", "size"), [(1, 8), (8, 8), (9, 16), (17, 32), (33, 48), (48, 48)]
)
def test_bucket(length, size):
    assert padded_length(length, 8, 48) == size


def test_shapes_are_few(cloud, edge):
    batch = _batch(cloud, edge)
    assert {batch.prompts[0].tokens.shape[1], batch.queries[0].tokens.shape[1]} <= {
        8,
        16,
        32,
        64,
    }


def test_the_edge_reads_the_prompt_in_context(cloud, edge):
    """Each query follows its system prompt; the prompt is cut before any question is."""
    encoder = Encoder(_config(), cloud, edge, in_context=True)
    group = GROUPS[0]
    made = encoder.tokens(group)
    for query, (user, target) in zip(made.queries, group.queries, strict=True):
        asked, answer = encoder.turns.prompt(user, group.system), encoder.turns.answer(target)
        assert query.tokens == asked + answer
        assert query.loss_mask == [False] * len(asked) + [True] * len(answer)
    learnt = sum(sum(query.loss_mask) for query in made.queries)
    assert encoder.batch([made]).queries[0].loss_mask.sum() == learnt
    tight = Encoder(_config(max_prompt_tokens=12), cloud, edge, in_context=True).tokens(group)
    assert tight.truncated == 2  # the cloud's and the edge's
    (short, long), bare = (one.queries[0] for one in (tight, made)), group.queries[0][0]
    added = short.loss_mask.count(False) - len(encoder.turns.prompt(bare))
    assert 0 < added <= 12
    assert sum(short.loss_mask) == sum(long.loss_mask)


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("sizes", [(8, 40, 24), (16, 12, 64), (13, 13, 14)])
def test_how_many_shapes_there_can_be(cloud, edge, sizes, chunks):
    smallest, prompt, query = sizes
    lengths = [range(1, prompt + 1), range(1, query + 1)]
    prompts, queries = ({padded_length(n, smallest, max(each)) for n in each} for each in lengths)
    found = {
        (tuple(sorted(one)), other)
        for one in itertools.product(prompts, repeat=chunks)
        for other in itertools.product(queries, repeat=chunks)
    }
    config = _config(
        prompts_per_batch=2,
        prompt_chunks=chunks,
        min_bucket=smallest,
        max_prompt_tokens=prompt,
        max_query_tokens=query,
    )
    encoder = Encoder(config, cloud, edge)
    assert encoder.most_shapes() == len(found)
    assert encoder.most_shapes(reads_prompts=False) == len(queries) ** chunks


def test_how_many_shapes_packed_rows_can_have(cloud, edge):
    def lengths(texts, longest):
        sums = range(texts, texts * longest + 1)
        sizes = ([(n + i) // texts for i in range(texts)] for n in sums)
        rows = (pack([[0] * n for n in each], 1, 8, texts * longest, 0) for each in sizes)
        return {arrays["tokens"].shape for _, arrays in rows}

    config = _config(
        prompts_per_batch=4,
        queries_per_prompt=2,
        packed_rows=2,
        min_bucket=8,
        max_prompt_tokens=20,
        max_query_tokens=12,
    )
    queries = len(lengths(4, 12))
    encoder = Encoder(config, cloud, edge)
    assert encoder.most_shapes() == len(lengths(2, 20)) * queries
    with_prompts = Encoder(config, cloud, edge, in_context=True)
    assert with_prompts.most_shapes(reads_prompts=False) == len(lengths(4, 12 + 20)) > queries


def test_room_for_the_template_is_needed(cloud, edge):
    with pytest.raises(ConfigError, match="max_query_tokens is 4; the template alone takes"):
        Encoder(_config(max_query_tokens=4), cloud, edge)


def test_text_without_tokens_names_the_group(cloud, edge):
    class Blind:
        pad_token_id = bos_token_id = eos_token_id = None

        def encode(self, text, **_):
            return []

    with pytest.raises(DataError, match=r"group 7, .*'Sort the words.* without tokens"):
        Encoder(_config(), Blind(), edge).tokens(GROUPS[0])


def test_a_pad_token_beyond_the_vocabulary_is_not_used():
    tokenizer = byte_tokenizer()
    assert pad_id(tokenizer) == 0
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == tokenizer.vocab_size
    assert pad_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert pad_id(tokenizer) == 0
