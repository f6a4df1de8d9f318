"""Answers in the trained turns: README's example gives the command line's answer."""

import inspect
import json
import shutil

import pytest
from transformers import AutoTokenizer

import lorage_jax as lg
from lorage_jax import cli, nano
from lorage_jax.data.templates import ChatTemplate, TemplateKind, question
from lorage_jax.errors import DataError
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.infer.place import place

PROMPT = (
    "Put bars on each side of words. Write all the words in upper case. Move the last word to "
    "first place."
)
ASKED = "city king frog star"


@pytest.fixture(scope="module")
def special():
    generator = lg.load_generator("nano")
    return lg.merge(lg.load_model(nano.EDGE), generator.pool, lg.specialize(generator, PROMPT))


def test_a_text_beyond_the_context_is_told_without_a_number_of_new_tokens(special):
    with pytest.raises(lg.LorageError, match=r"alone has \d+ tokens.*Shorten the prompt by at"):
        lg.chat(special, "word " * 5000)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ({"role": "user", "content": "x"}, r"single message belongs into a list: \[\{"),
        (b"ab", "messages is \"b'ab'\"; expected a text, or a list"),
        (None, "messages is 'None'; expected a text, or a list"),
        (" \n", "the user's text is empty"),
        (["x", ""], "the user's text is empty"),
        ([{"role": "system", "content": PROMPT}], "has the role 'system'; expected the user's"),
        ([*question("x"), {"role": "assistant", "content": "y"}], "has the role 'assistant'"),
    ],
)
def test_what_nobody_asked_is_refused(special, messages, says):
    with pytest.raises(DataError, match=says):
        inspect.unwrap(lg.chat)(special, messages, max_new_tokens=2)


def test_the_prompt_may_be_the_whole_task(special):
    """Training on records without a user's text has these turns."""
    for asked in (question(""), question("", PROMPT)):
        assert isinstance(lg.chat(special, asked, max_new_tokens=2), str)


@pytest.mark.parametrize("prompt", [b"ab", None, 5, [b"ab"], [None]])
def test_bytes_are_no_token_ids(special, prompt):
    with pytest.raises(DataError, match="expected text, a list of token ids, or messages"):
        inspect.unwrap(lg.generate)(special, prompt, max_new_tokens=2)


def test_an_empty_input_is_refused(special, tmp_path, capsys):
    lg.export_merged(special, tmp_path / "merged")
    assert cli.main(["generate", "--model", str(tmp_path / "merged"), "--input", " "]) == 1
    assert "the text of --input is empty" in capsys.readouterr().err


def test_chat_is_what_the_command_line_answers(special, tmp_path, capsys):
    pieces = []
    answer = lg.chat(special, ASKED, stream=lambda row, piece: pieces.append(piece))
    assert answer == "".join(pieces) == "| STAR | CITY | KING | FROG |"
    assert lg.chat(special, [ASKED, question("bird table")])[0] == answer
    folder = tmp_path / "merged"
    lg.export_merged(special, folder)
    out = tmp_path / "answer.json"
    asked = ["generate", "--model", str(folder), "--input", ASKED, "--json", str(out)]
    assert cli.main(asked) == 0
    assert json.loads(out.read_text())["output"] == answer
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    text = tokenizer.apply_chat_template(
        question(ASKED), add_generation_prompt=True, tokenize=False
    )
    again = lg.load_model(folder)
    assert lg.chat(again, ASKED) == answer
    ids = tokenizer(text).input_ids
    found = [lg.generate(again, one, max_new_tokens=32) for one in (text, ids, question(ASKED))]
    assert {one.strip() for one in found} == {answer}
    assert lg.generate(again, [ids, ids], max_new_tokens=32, stop=None) == found[:1] * 2


DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '[system]Be kind.' }}{% endif %}"
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def test_a_model_that_nobody_trained_answers_as_in_transformers(tiny, tmp_path):
    """With the template's default system message, also after an export without a card."""
    folder = shutil.copytree(tiny("llama")[0], tmp_path / "model")
    (folder / "chat_template.jinja").write_text(DEFAULT)
    model, tokenizer = lg.load_model(folder), AutoTokenizer.from_pretrained(str(folder))
    text = tokenizer.apply_chat_template(question("hi"), add_generation_prompt=True, tokenize=False)
    assert text == "[system]Be kind.[user]hi[assistant]"
    assert model.template.text(question("hi")) == text
    (ours,) = lg.generate(model, [tokenizer(text).input_ids], max_new_tokens=8)
    assert lg.chat(model, "hi", max_new_tokens=8) == ours
    lg.export_merged(model, tmp_path / "again")
    assert lg.load_model(tmp_path / "again").template.text(question("hi")) == text
    trained = TemplateKind("chat").on(model.tokenizer)
    assert "Be kind" not in trained.text(question("hi"))


def test_messages_end_with_their_turn(tiny, tmp_path, monkeypatch):
    """Texts and token ids in the same batch go on, as they may hold turns of their own."""
    folder = shutil.copytree(tiny("llama")[0], tmp_path / "model")
    (folder / "chat_template.jinja").write_text(DEFAULT)
    model = lg.load_model(folder)
    (whole,) = generate_tokens(model, [model.template.ids(question("hi"))], max_new_tokens=12)
    end = whole[5]
    monkeypatch.setattr(ChatTemplate, "ends", property(lambda self: (end,)))
    asked, ids = question("hi"), model.template.ids(question("hi"))
    own, bare = (model.tokenizer.decode(one) for one in (whole[: whole.index(end)], whole))
    assert len(own) < len(bare)
    for edge in (model, place(model)):  # on one device, and rows spread over eight
        assert lg.generate(edge, asked, max_new_tokens=12) == own
        assert lg.generate(edge, [asked, ids, asked], max_new_tokens=12) == [own, bare, own]
    pieces = ["", ""]

    def stream(row, piece):
        pieces[row] += piece

    assert lg.generate(model, [ids, asked], max_new_tokens=12, stream=stream) == [bare, own]
    assert pieces == [bare, own]
