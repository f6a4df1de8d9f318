"""Streamed text: the pieces add up, whatever the tokenizer does between two tokens."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from lorage_jax.data.templates import encode
from lorage_jax.errors import ConfigError
from lorage_jax.infer.text import (
    BYTE_TOKEN,
    UNKNOWN,
    GrowingTexts,
    Stops,
    before_stops,
    continuation,
    cut,
    may_be_stop,
    stop_strings,
)
from tests.tiny import byte_tokenizer


def sentencepiece_tokenizer():
    """Like LLaMA 2's: a space before every text, byte tokens for unknown characters."""
    words = ["▁", "a", "b", "c", "▁a", "▁b", "ab", "."]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {"bytes": byte_tokenizer(), "sentencepiece": sentencepiece_tokenizer()}


def grow(tokenizer, prompt, ids, stops, chunk):
    """The pieces of one row, read every `chunk` tokens, and its text."""
    pieces = []
    stops = Stops.of(tokenizer, list(stops))
    texts = GrowingTexts(tokenizer, [prompt], stops, lambda row, piece: pieces.append(piece))
    for end in range(chunk, len(ids) + chunk, chunk):
        if texts.update([ids[:end]], [end >= len(ids)])[0]:
            break
    return pieces, texts.texts[0]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_continuation_is_what_follows_the_prompt(kind):
    tokenizer = TOKENIZERS[kind]
    whole = encode(tokenizer, "a b ab äöü 😀 c", bos=True)
    for at in range(2, len(whole)):
        prompt = tokenizer.decode(whole[:at], skip_special_tokens=True)
        if "\N{REPLACEMENT CHARACTER}" in prompt:
            continue
        assert prompt + continuation(tokenizer, whole[:at], whole[at:]) == "a b ab äöü 😀 c"


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("stops", [(), ("😀",), ("b a", "ab.", "b. a"), ("ö",)])
def test_pieces_add_up_and_do_not_depend_on_the_chunk(kind, stops):
    tokenizer, rng = TOKENIZERS[kind], random.Random(0)
    for prompt_text in ("a b", "ab 😀"):
        prompt = encode(tokenizer, prompt_text, bos=True)
        for _ in range(30):
            parts = rng.choices(["a", " b", "ab", ".", "😀", "ö", " a", "  "], k=12)
            ids = encode(tokenizer, "".join(parts), bos=False)
            for _ in range(rng.randrange(3)):  # break some characters
                ids.insert(rng.randrange(len(ids) + 1), rng.randrange(3, 259))
            expected = cut(continuation(tokenizer, prompt, ids), stops)[0]
            for chunk in (1, 2, 3, 8, 100):
                pieces, text = grow(tokenizer, prompt, ids, stops, chunk)
                assert text == expected
                assert "".join(pieces) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("stop", ["</s>b", "a</s>", "<s></s>", "b<s>a", "</s>.</s>"])
def test_stops_of_special_tokens_and_text(kind, stop):
    """They are found in the text with special tokens, which the answer is without."""
    tokenizer, rng = TOKENIZERS[kind], random.Random(1)
    prompt, found = encode(tokenizer, "a.", bos=True), 0
    for _ in range(60):
        ids = rng.choices([1, 2, *tokenizer.convert_tokens_to_ids(["a", "b", "."])], k=14)
        whole = tokenizer.decode([*prompt, *ids]).removeprefix(tokenizer.decode(prompt))
        expected = whole.partition(stop)[0].replace("<s>", "").replace("</s>", "")
        for chunk in (1, 3, 100):
            pieces, text = grow(tokenizer, prompt, ids, [stop, "never"], chunk)
            assert text == expected
            assert "".join(pieces) == text
        found += stop in whole
        ends = (n for n in range(1, 15) if stop in tokenizer.decode(ids[:n]))
        kept = ids[: next(ends, 14)]
        right = tokenizer.decode(kept, skip_special_tokens=True), stop in tokenizer.decode(ids)
        assert before_stops(tokenizer, ids, [stop]) == right
    assert found > 1


def settled(tokenizer, prompt, ids, marks):
    """All but byte tokens at the end, decoded as a whole."""
    end = len(ids)
    while end and BYTE_TOKEN.fullmatch(tokenizer.convert_ids_to_tokens(ids[end - 1])):
        end -= 1
    return continuation(tokenizer, prompt, ids[:end], marks).rstrip(UNKNOWN)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("stop", [[], ["<s>q"]])
def test_what_has_settled_is_the_beginning_of_the_whole(kind, stop):
    """Token by token or in chunks, over characters in parts, stray bytes and special tokens."""
    tokenizer, rng = TOKENIZERS[kind], random.Random(2)
    parts = [encode(tokenizer, text, bos=False) for text in ("😀", "ö", "日本", "a", " b", "  ")]

    def draw(count, odd):
        ids = []
        while len(ids) < count:
            ids += [rng.randrange(1, 259)] if rng.random() < odd else rng.choice(parts)
        return ids[:count]

    stops = Stops.of(tokenizer, stop)
    for odd in (0, 0.2, 0.6, 1):
        for _ in range(20):
            prompt, ids, end = draw(rng.randrange(1, 12), odd), draw(40, odd), 0
            texts = GrowingTexts(tokenizer, [prompt], stops, None)
            while (end := end + rng.choice([1, 1, 2, 8])) < len(ids):
                texts.update([ids[:end]], [False])
                found = settled(tokenizer, prompt, ids[:end], stops.marks)
                kept = found[: len(found) - may_be_stop(found, stops.texts)]
                assert texts.texts[0] == stops.unmarked(kept)
            texts.update([ids], [True])
            assert texts.texts[0] == continuation(tokenizer, prompt, ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_long_answer_is_decoded_in_short_parts(kind, monkeypatch):
    """Neither the prompt nor the whole answer is decoded for every chunk."""
    tokenizer, decoded = TOKENIZERS[kind], []
    prompt = encode(tokenizer, "a b" * 300, bos=True)
    ids = encode(tokenizer, "ab ö 😀." * 40, bos=False)
    whole, decode = continuation(tokenizer, prompt, ids), tokenizer.decode

    def counted(row, **settings):
        decoded.append(len(row))
        return decode(row, **settings)

    monkeypatch.setattr(tokenizer, "decode", counted)
    pieces, text = grow(tokenizer, prompt, ids, ["never"], 1)
    assert "".join(pieces) == text == whole
    assert sum(decoded) < 60 * len(ids) + 8 * len(prompt)


def test_without_stop_strings_no_special_tokens_are_looked_up():
    assert Stops.of(None, ()) == Stops.of(None, None) == Stops()


def test_streaming_does_not_wait_without_need():
    tokenizer = TOKENIZERS["bytes"]
    prompt = encode(tokenizer, "x", bos=True)
    pieces, _ = grow(tokenizer, prompt, encode(tokenizer, "aä-stop-", bos=False), ("stop",), 1)
    assert pieces == ["a", "ä", "-"]


def test_cut_takes_what_is_complete_first():
    assert cut("one two three", ()) == ("one two three", False)
    assert cut("one two three", ("three", "two")) == ("one ", True)
    assert cut("xabYY and more", ("abYY and", "YY")) == ("xab", True)
    assert cut("abc", ("bc", "abc")) == ("", True)  # both complete at once: the longer
    assert may_be_stop("text ab", ("abc", "x")) == 2
    assert may_be_stop("text", ("abc",)) == 0


def test_stop_strings():
    assert stop_strings("end") == ("end",)
    assert stop_strings(["a", "b"]) == ("a", "b")
    for bad in ("", ["a", ""], [3]):
        with pytest.raises(ConfigError, match="non-empty"):
            stop_strings(bad)
