"""Documents for pretraining: shared prompts, branches, targets and masks, packing, resuming."""

import dataclasses
import json
from collections import Counter
from random import Random

import jax
import numpy as np
import pytest
from transformers import Qwen2Tokenizer

from lorage_jax.config import Corpus, OptimizerConfig, PretrainConfig, Source
from lorage_jax.data.documents import Document, Documents, pack_documents
from lorage_jax.data.templates import (
    cloud_prompt,
    edge_prompt,
    edge_prompt_with_system,
    edge_target,
    encode,
    encode_target,
)
from lorage_jax.data.tokenizer import train_tokenizer
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.hf.family import family_decoder
from lorage_jax.world.source import SYNTHETIC_EPOCH

WORDS = Source("synthetic", "synthetic", name="words")
GROUP = ("Write the last word.", (("bird cat tree", "tree"), ("a b", "b"), ("red sun", "sun")))


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def tokenizer(request):
    return train_tokenizer(["Write the last word.", "User: a\nAssistant: b"], 300, request.param)


def document(system, queries, index=0, blind=False):
    prompts = (edge_prompt(u) if blind else edge_prompt_with_system(system, u) for u, _ in queries)
    targets = (target for _, target in queries)
    return Document(tuple(zip(prompts, targets, strict=True)), index)


def pretrain_config(*corpora, **changes):
    shape = {"vocab_size": 320, "width": 16, "layers": 1, "heads": 2, "kv_heads": 1}
    return PretrainConfig(
        model=family_decoder("llama", ffn_width=16, **shape),
        out="unused",
        corpora=corpora,
        steps=100,
        optimizer=OptimizerConfig(warmup_steps=0),
        **changes,
    )


def sequences(tokenizer, document):
    """(ids, number of prompt tokens) of every text, as inference would read it."""
    for prompt, answer in document.texts:
        asked = encode(tokenizer, prompt, bos=True)
        yield asked + encode_target(tokenizer, answer), len(asked)


def visible(batch, row, text, branch):
    """The slots that a branch attends to, in order of position."""
    slots = np.flatnonzero(batch.queries[0].mask[row] & (batch.queries[0].text[row] == text))
    slots = [s for s in slots if batch.queries[0].branch[row, s] in (0, branch)]
    assert [batch.queries[0].positions[row, s] for s in slots] == list(range(len(slots)))
    return np.array(slots)


def check_branch(batch, row, text, branch, ids, known):
    slots = visible(batch, row, text, branch)
    assert batch.queries[0].tokens[row, slots].tolist() == ids[:-1]
    own = slots[batch.queries[0].branch[row, slots] == branch]
    shared = slots[: len(slots) - len(own)]
    before, fork = shared[:-1], shared[-1:]
    assert batch.queries[0].targets[row, own].tolist() == ids[1 + len(shared) :]
    assert batch.queries[0].targets[row, before].tolist() == ids[1 : 1 + len(before)]
    assert batch.queries[0].loss_mask[row, [*before, *own]].all()
    assert not batch.queries[0].loss_mask[row, fork].any()
    is_answer = np.arange(1, len(ids)) >= known
    assert batch.queries[0].answer_mask[row, slots].tolist() == is_answer.tolist()


@pytest.mark.parametrize("blind", [False, True])
def test_every_branch_reads_its_whole_text(tokenizer, blind):
    one = document(*GROUP, blind=blind)
    batch = pack_documents(tokenizer, [one], 1, 200)
    texts = list(sequences(tokenizer, one))
    for branch, (ids, known) in enumerate(texts, 1):
        check_branch(batch, 0, 0, branch, ids, known)
    trunk = int((batch.queries[0].branch == 0)[batch.queries[0].mask].sum())
    first = [ids for ids, _ in texts]
    assert all(ids[:trunk] == first[0][:trunk] for ids in first)
    assert len({ids[trunk] for ids in first}) > 1  # no longer prefix is shared
    assert batch.queries[0].mask.sum() == trunk + sum(len(ids) - 1 - trunk for ids in first)
    shared = encode(tokenizer, "User:" if blind else cloud_prompt(GROUP[0]), bos=True)
    assert trunk >= len(shared)
    # eos is a target at the end of every answer, and nowhere else.
    ends = batch.queries[0].targets == tokenizer.eos_token_id
    assert (
        ends.sum() == 3 and (batch.queries[0].answer_mask & batch.queries[0].loss_mask)[ends].all()
    )
    assert not batch.queries[0].loss_mask[~batch.queries[0].mask].any()
    shown = tokenizer.decode(batch.queries[0].tokens[0][batch.queries[0].mask[0]])
    assert (GROUP[0] in shown) is not blind


def test_a_single_text_and_prose_are_one_branch(tokenizer):
    asked = document(GROUP[0], GROUP[1][:1])
    prose = Document((("It was a dark night.", ""),), 1)
    batch = pack_documents(tokenizer, [asked, prose], 1, 200)
    [(ids, known)] = sequences(tokenizer, asked)
    check_branch(batch, 0, 0, 1, ids, known)
    story = [*encode(tokenizer, "It was a dark night.", bos=True), tokenizer.eos_token_id]
    check_branch(batch, 0, 1, 1, story, 0)
    assert batch.group_ids.tolist() == [0, 1]


def test_equal_requests_are_kept_apart(tokenizer):
    """Their common prefix, even of answers, is stored once; each keeps a token of its own."""
    twice = document("Say yes.", (("go", "yes"), ("go", "yes"), ("go", "yes sir")))
    batch = pack_documents(tokenizer, [twice], 1, 200)
    for branch, (ids, _) in enumerate(sequences(tokenizer, twice), 1):
        slots = visible(batch, 0, 0, branch)
        assert batch.queries[0].tokens[0, slots].tolist() == ids[:-1]


def random_documents(count, seed=0):
    rng = Random(seed)
    words = ["tree", "sun", "red", "bird", "a"]
    return [
        document(
            " ".join(rng.choices(words, k=rng.randint(1, 12))),
            [(" ".join(rng.choices(words, k=n + 2)), rng.choice(words)) for n in range(3)],
            index,
        )
        for index in range(count)
    ]


def test_packing(tokenizer):
    """No slot is used twice, no text spans rows, and texts that do not fit are counted."""
    documents = random_documents(12)
    batch = pack_documents(tokenizer, documents, 4, 150)
    assert batch.queries[0].tokens.shape == (4, 150) and batch.queries[0].mask.dtype == bool
    wanted = {}
    for number, one in enumerate(documents):
        for branch, (ids, known) in enumerate(sequences(tokenizer, one), 1):
            wanted[tuple(ids)] = (number, branch, known)
    found = set()
    for row in range(4):
        used = batch.queries[0].mask[row]
        assert used[: used.sum()].all()  # from the left, without gaps
        assert (np.diff(batch.queries[0].text[row, used]) >= 0).all()
        for text in set(batch.queries[0].text[row, used].tolist()):
            for branch in (1, 2, 3):
                slots = visible(batch, row, text, branch)
                ids = (*batch.queries[0].tokens[row, slots].tolist(), tokenizer.eos_token_id)
                number, expected, known = wanted[ids]
                assert expected == branch
                check_branch(batch, row, text, branch, list(ids), known)
                found.add(number)
    assert 0 < len(found) < 12 and batch.truncated == 12 - len(found)
    assert batch.group_ids.tolist() == list(range(12))


def test_a_long_document_is_cut_and_counted_once(tokenizer):
    long, short = document("word " * 30, GROUP[1], 0), document(*GROUP, 1)
    batch = pack_documents(tokenizer, [long, short], 1, 60)
    assert batch.queries[0].mask.all() and batch.truncated == 2  # one cut, one left out
    [(ids, _), *_] = sequences(tokenizer, long)
    assert batch.queries[0].tokens[0].tolist() == ids[:60]
    assert pack_documents(tokenizer, [long, long], 1, 60).truncated == 2


# From sources


def stream(config, tokenizer, count=3, seed=0, parts=True):
    batches = iter(Documents(config, seed, parts).batches(tokenizer))
    return [next(batches) for _ in range(count)]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def prose(tmp_path):
    path = tmp_path / "prose.jsonl"
    texts = [f"Chapter {n}. " + "It rained, and nobody came. " * (5 + n) for n in range(4)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return str(path), texts


def mixed(prose, **changes):
    return pretrain_config(
        Corpus(WORDS, documents=4, rows=2, row_tokens=400, queries=3),
        Corpus(Source(prose, "text", weight=0.5), documents=3, rows=2, row_tokens=20),
        **changes,
    )


def test_blind_documents_lack_the_prompt():
    for blind in (0.0, 1.0):
        documents = Documents(pretrain_config(Corpus(WORDS, 4, 2, 400, blind=blind)), 0)
        texts = documents.texts(20)
        assert len(texts) == 80
        assert all(t.startswith("User: " if blind else "System: ") for t in texts)
    documents = Documents(pretrain_config(Corpus(WORDS, 4, 2, 400, blind=0.3)), 0)
    share = np.mean([text.startswith("User: ") for text in documents.texts(300)])
    assert 0.2 < share < 0.4


def test_prose_is_covered_once_an_epoch(prose):
    path, texts = prose
    config = pretrain_config(Corpus(Source(path, "text"), 3, 2, row_tokens=20))
    documents = Documents(config, 0)
    count = sum(-(-len(text) // 120) for text in texts)
    pieces = documents.texts(count)
    assert sorted(map(len, pieces))[-1] == 120  # 6 characters per token
    assert sum(map(len, pieces)) == sum(map(len, texts))
    assert set(pieces) == {t[at : at + 120] for t in texts for at in range(0, len(t), 120)}
    assert documents.describe(1) == f"{path}:1, character 120"
    with pytest.raises(DataError, match="no document"):
        documents.describe(count)


def test_every_token_of_prose_is_learnt_where_pieces_are_longer_than_rows(tmp_path, tokenizer):
    """In as many epochs as the longest piece has rows; whatever fits is read as ever."""
    path = tmp_path / "prose.jsonl"
    texts = ["".join(Random(n).choices("abcdefgh", k=300 + 50 * n)) for n in range(3)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    pieces = [text[at : at + 120] for text in texts for at in range(0, len(text), 120)]
    wanted = [[*encode(tokenizer, one, bos=True), tokenizer.eos_token_id][1:] for one in pieces]
    longest = -(-max(map(len, wanted)) // 20)
    assert longest > 2
    config = pretrain_config(Corpus(Source(str(path), "text"), 1, 1, row_tokens=20))
    targets: list[list[list[int]]] = [[] for _ in pieces]
    bos = encode(tokenizer, "", bos=True)
    for batch in stream(config, tokenizer, longest * len(pieces)):
        rows, [index] = batch.queries[0], batch.group_ids.tolist()
        targets[index].append(rows.targets[rows.loss_mask].tolist())
        assert rows.positions[rows.mask].tolist() == list(range(rows.mask.sum()))
        assert rows.tokens[0, : len(bos)].tolist() == bos and batch.truncated == 0
    for index, ids in enumerate(wanted):
        parts = -(-len(ids) // 20)
        assert len(targets[index]) == longest
        assert [one for part in targets[index][:parts] for one in part] == ids
        assert targets[index][parts:] == targets[index][: longest - parts]
    before = stream(config, tokenizer, 2 * len(pieces), parts=False)  # of earlier versions
    for batch in before:
        rows, [index] = batch.queries[0], batch.group_ids.tolist()
        assert rows.targets[rows.loss_mask].tolist() == targets[index][0]


def test_batches_follow_the_seed_and_resume(prose, tokenizer):
    config = mixed(prose[0])
    first = stream(config, tokenizer, 6)
    assert_same(first, stream(config, tokenizer, 6))
    other = stream(config, tokenizer, 6, seed=1)
    pairs = [(a.queries[0].tokens, b.queries[0].tokens) for a, b in zip(first, other, strict=True)]
    assert any((a != b).any() for a, b in pairs if a.shape == b.shape)
    assert {batch.queries[0].tokens.shape for batch in first} == {(2, 400), (2, 20)}
    batches = iter(Documents(config, 0, parts=True).batches(tokenizer))
    for _ in range(2):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    resumed = iter(Documents(config, 0, parts=True).batches(tokenizer))
    resumed.set_state(state)
    assert_same([next(resumed) for _ in range(4)], first[2:])


def test_documents_are_found_again(prose, tokenizer):
    documents = Documents(mixed(prose[0]), 0)
    batches = iter(documents.batches(tokenizer))
    for batch in (next(batches) for _ in range(6)):
        places = [documents.describe(int(i)) for i in batch.group_ids]
        kind = "synthetic/train:" if batch.queries[0].tokens.shape[1] == 400 else prose[0]
        assert all(place.startswith(kind) for place in places)


def test_instruction_rows_share_their_prompt(data_file, tokenizer):
    config = pretrain_config(Corpus(Source(str(data_file)), 2, 1, 100, queries=2, blind=0.0))
    [batch] = stream(config, tokenizer, 1)
    texts = Documents(config, 0).texts(2)
    assert len(texts) == 4 and all(text.startswith("System: Say ") for text in texts)
    assert batch.queries[0].branch.max() == 2
    assert edge_target("0 0") == " 0 0" and batch.truncated == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"txt": "a"}', r"prose\.jsonl:2: the field text is missing; found txt"),
        ('{"text": 3}', r"prose\.jsonl:2: the field text is a number"),
        ('{"text": " "}', r"prose\.jsonl:2: the field text is empty"),
        ('{"text": "\\ud800"}', r"prose\.jsonl:2: .*unpaired surrogate"),
        ("{", r"prose\.jsonl:2: is not JSON"),
    ],
)
def test_bad_prose(tmp_path, line, says):
    path = tmp_path / "prose.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(DataError, match=says):
        Documents(pretrain_config(Corpus(Source(str(path), "text"), 1, 1)), 0)


def test_prose_without_a_usable_row_is_told(tmp_path):
    path = tmp_path / "prose.jsonl"
    path.write_text('{"text": " "}\n')
    source = Source(str(path), "text", skip_bad_rows=3)
    with pytest.raises(DataError, match=r"prose\.jsonl: no row can be used"):
        Documents(pretrain_config(Corpus(source, 1, 1)), 0)


def test_bad_sources(tmp_path, tokenizer):
    missing = Source(str(tmp_path / "none.jsonl"), "text")
    with pytest.raises(DataError, match="no such file"):
        Documents(pretrain_config(Corpus(missing, 1, 1)), 0)
    tight = Corpus(WORDS, 1, 1, row_tokens=16)
    with pytest.raises(ConfigError, match=r"row_tokens is 16, but .* Raise row_tokens"):
        Documents(pretrain_config(tight), 0).batches(tokenizer)
    with pytest.raises(ConfigError, match="rows is 0"):
        dataclasses.replace(tight, rows=0)
    with pytest.raises(ConfigError, match="row_tokens is 4096; the model has 2048"):
        pretrain_config(dataclasses.replace(tight, row_tokens=4096))


def test_corpora_come_and_go_by_step():
    """Easy tasks only, then both, then words only; every stage continues its corpora."""
    easy, words = (
        Corpus(Source("synthetic", "synthetic", name=name), 2, 2, 160, 1, steps=steps)
        for name, steps in (("easy", (0, 6)), ("words", (3, None)))
    )
    config = pretrain_config(easy, words)
    assert config.stages() == [0, 3, 6]
    documents = Documents(config, 0)
    tokenizer = train_tokenizer(documents.texts(40), 400, False, Qwen2Tokenizer().backend_tokenizer)
    stream = iter(documents.batches(tokenizer))
    batches = [next(stream) for _ in range(12)]
    ids = [batch.group_ids.tolist() for batch in batches]
    is_words = [min(i) >= SYNTHETIC_EPOCH for i in ids]
    assert is_words[:3] == [False] * 3
    assert set(is_words[3:6]) == {False, True} and is_words[6:] == [True] * 6
    assert len({tuple(i) for i in ids}) == 12  # nothing is repeated
    again = iter(documents.batches(tokenizer))
    again.set_state({"next_index": 5})
    assert next(again).group_ids.tolist() == ids[5]


def test_corpora_keep_their_weights_in_every_stage():
    settings = (("easy", 1, (0, 4)), ("words", 1, (4, None)), ("objects", 3, (4, None)))
    sources = [Source("synthetic", "synthetic", name=name, weight=n) for name, n, _ in settings]
    corpora = (
        Corpus(source, 2, 2, 160, 1, steps=steps)
        for source, (_, _, steps) in zip(sources, settings, strict=True)
    )
    config = pretrain_config(*corpora)
    documents = Documents(config, 0)
    tokenizer = train_tokenizer(documents.texts(40), 400, False, Qwen2Tokenizer().backend_tokenizer)
    stream = iter(documents.batches(tokenizer))
    found = [int(next(stream).group_ids[0]) // SYNTHETIC_EPOCH for _ in range(4 + 16)]
    assert found[:4] == [0] * 4 and Counter(found[4:]) == {1: 4, 2: 12}


@pytest.mark.parametrize("steps", [(2, 2), (-1, None), (5, 3)])
def test_impossible_steps_of_a_corpus(steps):
    with pytest.raises(ConfigError, match="expected \\(first, end\\)"):
        Corpus(Source("synthetic", "synthetic"), 2, 2, steps=steps)


def test_a_step_without_corpus_is_refused():
    late = Corpus(Source("synthetic", "synthetic"), 2, 2, steps=(3, None))
    with pytest.raises(ConfigError, match="no corpus is used at step 0"):
        pretrain_config(late)
