"""Chats of several turns: rows, lengths, batches, and which answers have a loss."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
from transformers import AutoTokenizer

from lorage_jax.config import Corpus, DataConfig, Source
from lorage_jax.data.batches import Encoder, Group
from lorage_jax.data.documents import Documents
from lorage_jax.data.pipeline import make_dataset
from lorage_jax.data.records import Record, Skipped, to_record
from lorage_jax.data.templates import (
    NEWEST,
    ChatTemplate,
    TemplateKind,
    alternating,
    chat_prompt,
    fit_chat,
    fit_query,
)
from lorage_jax.errors import ConfigError, DataError
from tests.data.test_chat_templates import CHATML, with_template
from tests.data.test_documents import pretrain_config
from tests.tiny import byte_tokenizer

TEXTS = ("Hi, who are you?", "A clerk.", "Since when?", "1851.", "Will you copy this?", "No.")
# A model that thinks aloud, and whose template leaves that out of earlier turns, after Qwen3.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def messages(*roles_and_texts):
    return {"messages": [{"role": r, "content": c} for r, c in roles_and_texts]}


def chat_row(system="Be brief.", texts=TEXTS):
    turns = [(one["role"], one["content"]) for one in alternating(texts)]
    return messages(("system", system), *turns)


def answers(tokenizer, tokens, loss_mask):
    """The texts of the runs of tokens with a loss, their ends included."""
    edges = np.flatnonzero(np.diff([0, *map(int, loss_mask), 0]))
    return [tokenizer.decode(tokens[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_earlier_turns_belong_to_the_query():
    record = to_record(chat_row(), "f:1")
    assert record == Record("Be brief.", TEXTS[4], TEXTS[5], TEXTS[:4])
    assert record.query == TEXTS
    named = {"system": "system", "user": "human", "assistant": "gpt"}
    row = [{"from": named[m["role"]], "value": m["content"]} for m in chat_row()["messages"]]
    assert to_record({"conversations": row}, "f:1") == record


@pytest.mark.parametrize(
    "roles",
    [
        ("system", "user", "assistant", "user"),
        ("system", "user", "user", "assistant"),
        ("system", "user", "assistant", "assistant"),
        ("system", "assistant", "user", "assistant"),
        ("system", "user", "assistant", "system", "user", "assistant"),
        ("user", "assistant", "user", "assistant"),
        ("system", "user", "tool", "assistant"),
        ("system",),
    ],
)
def test_chats_in_which_turns_do_not_alternate_are_bad_rows(roles):
    row = messages(*((role, "x") for role in roles))
    with pytest.raises(DataError, match=f"f:1: messages has the roles {', '.join(roles)}; expect"):
        to_record(row, "f:1")
    skipped = Skipped(1)
    assert skipped.attempt(partial(to_record, row, "f:1")) is None
    assert "1 row cannot be used" in skipped.summary


@pytest.mark.parametrize("folder", ["models/stories260K", "tokenizers/llama2", "tokenizers/qwen2"])
def test_all_answers_of_plain_turns(folder, shared):
    """The rows decode to the turns, with a loss at every answer and its eos, and nowhere else."""
    tokenizer = AutoTokenizer.from_pretrained(shared / folder)
    template, end = NEWEST.on(tokenizer), tokenizer.eos_token
    for texts in (TEXTS, ("a", ". It is.", "b", "é?", "c", "x\n\ny  z"), ("q", "1", "r", ")s")):
        found, cut = fit_chat(template, texts, 200, "all")
        learnt = answers(tokenizer, found.tokens, found.loss_mask)
        assert [one.strip() for one in learnt] == [f"{text}{end}" for text in texts[1::2]]
        whole = chat_prompt(texts[:-1]).replace("\n\nUser", f"{end}\n\nUser") + f" {texts[-1]}{end}"
        shown = tokenizer.decode(found.tokens).removeprefix(tokenizer.bos_token or "").strip()
        assert shown.replace(f"{end} \n", f"{end}\n") == whole and not cut
        last, _ = fit_chat(template, texts, 200, "last")
        assert last.tokens == found.tokens
        assert answers(tokenizer, last.tokens, last.loss_mask) == learnt[-1:]


def test_an_answer_in_other_tokens_keeps_its_loss():
    """In a chat, `b` and the template's newline may be one token, which no answer ends with."""
    tokenizer = byte_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, backend["pre_tokenizer"]["use_regex"] = backend["model"], False
    model["vocab"]["Ċb"] = len(model["vocab"])  # a line break and b
    model["merges"].append(["Ċ", "b"])
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(backend))
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHATML
    template = ChatTemplate(tokenizer)
    chat = alternating(("hi", "bad", "why", "so"))
    found = template.conversation(chat)
    asked = template.ids(chat[:1])
    assert found.tokens[: len(asked)] != asked  # its last line break is in a token of the answer
    learnt = answers(tokenizer, found.tokens, found.loss_mask)
    assert learnt == ["\nbad<|im_end|>", "so<|im_end|>"]
    assert template.keeps_answers


def test_long_chats_lose_their_earliest_exchanges():
    template = NEWEST.on(byte_tokenizer())
    whole, cut = fit_chat(template, TEXTS, 500, "all")
    assert not cut
    for size in range(60, len(whole.tokens)):
        found, cut = fit_chat(template, TEXTS, size, "all")
        right = next(
            one
            for texts in (TEXTS[2:], TEXTS[4:])
            for one in [template.conversation(alternating(texts))]
            if len(one.tokens) <= size
        )
        assert cut and found == right
    found, cut = fit_chat(template, TEXTS, 30, "all")
    asked, answer, _ = fit_query(template, *TEXTS[4:], 30)
    assert cut and found.tokens == asked + answer and sum(found.loss_mask) == len(answer)


def test_a_system_prompt_in_front_is_never_cut():
    template = NEWEST.on(byte_tokenizer())
    for texts, size in ((TEXTS, 500), (TEXTS[2:], 120)):
        found, cut = fit_chat(template, TEXTS, size, "all", "Be brief.")
        assert found == template.conversation(alternating(texts, "Be brief."))
        assert cut == (texts != TEXTS) and len(found.tokens) <= size


def data(path, **values):
    return DataConfig((Source(str(path), skip_bad_rows=1),), 2, 2, min_bucket=8, **values)


@pytest.fixture
def rows(tmp_path):
    """Two system prompts; one has a chat of three turns beside a plain row."""
    path = tmp_path / "chats.jsonl"
    lines = [
        chat_row(),
        {"system": "Be brief.", "user": "Why?", "target": "So."},
        chat_row("Be long.", TEXTS[:4]),
        messages(("system", "x"), ("user", "x"), ("user", "x"), ("assistant", "x")),
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("packed", [None, 1])
@pytest.mark.parametrize("template", ["plain", "chat"])
def test_batches(rows, template, packed):
    edge = with_template(CHATML)
    config = data(rows, max_query_tokens=300, template=template, packed_rows=packed)
    end = "</s>" if template == "plain" else "<|im_end|>"
    both = [TEXTS[1::2], ("So.",), TEXTS[1:4:2]]
    for turns, right in (("last", [one[-1:] for one in both]), ("all", both)):
        config = dataclasses.replace(config, assistant_turns=turns)
        (queries,) = next(iter(make_dataset(config, edge, edge, seed=0))).queries
        loss = np.asarray(queries.loss_mask)
        rows_of = zip(queries.tokens, loss, strict=True)
        found = [text.strip() for ids, mask in rows_of for text in answers(edge, ids, mask)]
        assert sorted(found) == sorted(f"{text}{end}" for one in right for text in one)
        assert not (loss & ~queries.mask).any()
        shown = edge.decode(queries.tokens[queries.mask])
        assert all(text in shown for text in TEXTS)


def test_a_template_that_rewrites_answers_teaches_the_last_only(rows):
    edge = with_template(THINKING)
    chat = TemplateKind("chat").on(edge)
    assert not chat.keeps_answers and NEWEST.on(edge).keeps_answers
    config = data(rows, template="chat", assistant_turns="all")
    with pytest.raises(ConfigError, match=r"assistant_turns is all, but.*Use last\."):
        Encoder(config, edge, edge, TemplateKind("chat"))
    encoder = Encoder(data(rows, template="chat"), edge, edge, TemplateKind("chat"))
    (query,) = encoder.tokens(Group("Be brief.", (TEXTS,), 0)).queries
    learnt = answers(edge, query.tokens, query.loss_mask)
    assert learnt == ["<think>\n\n</think>\n\nNo.<|im_end|>"]


def test_chats_are_documents_of_pretraining(rows):
    source = Source(str(rows), skip_bad_rows=1)
    for blind in (0.0, 1.0):
        documents = Documents(pretrain_config(Corpus(source, 2, 1, 400, blind=blind)), 0)
        long = f"{chat_prompt(TEXTS[:3], None if blind else 'Be long.')} {TEXTS[3]}"
        assert long in documents.texts(3)
        assert long.count("User: ") == 2 and long.startswith("User" if blind else "System: Be long")
