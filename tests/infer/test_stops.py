"""Stop strings in which special tokens stand, alone or with text around them."""

import pytest

import lorage_jax as lg
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.infer.text import Stops, continuation
from tests.tiny import byte_tokenizer, renamed

PROMPT = [1, 70, 101, 44, 9]


@pytest.mark.parametrize("part", ["alone", "before text", "after text"])
def test_an_answer_ends_where_the_stop_begins(tiny, part):
    model = lg.load_model(tiny("llama")[0])
    (ids,) = generate_tokens(model, [PROMPT], max_new_tokens=24)
    at = 2
    names = {ids[at - 1]: "Q", ids[at]: "<|end|>", ids[at + 1]: "Z"}
    tokenizer = renamed(byte_tokenizer(), names, "<|end|>")
    begin, end = {"alone": (0, 1), "before text": (0, 2), "after text": (-1, 1)}[part]
    stop = tokenizer.decode(ids[at + begin : at + end])
    assert "<|end|>" in stop
    special, pieces = model.replace(tokenizer=tokenizer), []
    options = {"max_new_tokens": 24, "stop": ["never", stop]}
    text = lg.generate(special, PROMPT, **options)
    assert text == continuation(tokenizer, PROMPT, ids[: at + begin])
    assert text == lg.generate(special, PROMPT, stream=lambda _, p: pieces.append(p), **options)
    assert text == "".join(pieces)


def test_special_tokens_are_found_wherever_they_are_declared():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    assert "<|end|>" not in tokenizer.all_special_tokens
    number = tokenizer.convert_tokens_to_ids("<|end|>")
    assert Stops.of(tokenizer, "<|end|>") == Stops((number,), ("<|end|>",))
    mixed = Stops.of(tokenizer, ["<|end|>\nUser", "</s>", "x"])
    assert mixed.ids == (2,) and number in mixed.marks
    assert mixed.texts[:3] == ("<|end|>\nUser", "</s>", "x")
    assert mixed.texts[3] == f"{mixed.marks[number]}\nUser"
    assert Stops.of(tokenizer, None) == Stops()
