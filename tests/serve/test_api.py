"""The server as the official OpenAI client sees it, against the merged model in Python."""

import asyncio
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lorage_jax.infer.chat import chat
from lorage_jax.infer.forward import forward
from lorage_jax.infer.generate import generate
from lorage_jax.infer.slots import decode
from lorage_jax.infer.text import Stops
from lorage_jax.serve.answers import Answer, Form
from lorage_jax.serve.job import Job
from tests.serve.server import PROMPTS, WORDS
from tests.serve.test_bad_requests import send

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def cards(api):
    """The names of the models of all PROMPTS, made online."""
    made = {}
    for name, system in PROMPTS.items():
        body = json.dumps({"system": system, "name": name}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{api.url}/v1/cards", body)) as found:
            assert found.status == 201
            made[name] = json.load(found)
    assert [one["model"] for one in made.values()] == [f"edge:{name}" for name in PROMPTS]
    return made


def ask(api, model, words, **settings):
    messages = [{"role": "user", "content": words}]
    return api.client.chat.completions.create(model=model, messages=messages, **settings)


def test_chats_under_several_cards_at_once(api, cards, merged):
    """48 concurrent requests over three cards and the base."""
    jobs = [(name, words) for name in (*PROMPTS, None) for words in WORDS for _ in range(2)]
    with ThreadPoolExecutor(16) as pool:
        found = list(
            pool.map(lambda job: ask(api, f"edge:{job[0]}" if job[0] else "edge", job[1]), jobs)
        )
    for (name, words), answer in zip(jobs, found, strict=True):
        wanted = chat(merged[name], words)
        assert answer.choices[0].message.content == wanted, (name, words)
    texts = {(name, words): one.choices[0].message.content for (name, words), one in
             zip(jobs, found, strict=True)}  # fmt: skip
    assert texts["bars", WORDS[0]] == "| STAR | CITY | KING | FROG |"
    assert len({texts[name, WORDS[0]] for name in merged}) == 4


def test_the_fields_of_an_answer(api, cards, nano_pair):
    answer = ask(api, "bars", WORDS[0])  # the card's name alone
    tokenizer, template = nano_pair[1].tokenizer, nano_pair[1].template
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.model == "bars" and abs(answer.created - time.time()) < 60
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.role, choice.index) == ("stop", "assistant", 0)
    assert answer.usage.prompt_tokens == len(template.prompt(WORDS[0]))
    text = template.lead + "| STAR | CITY | KING | FROG |"
    given = tokenizer.encode(text, add_special_tokens=False)
    assert answer.usage.completion_tokens == len(given)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(given)
    cut = ask(api, "edge:upper", "city king frog", max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2


def test_a_stream_joins_to_the_answer(api, cards, merged):
    how = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(api, "edge:bars", WORDS[3], **how))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {one.object for one in chunks} == {"chat.completion.chunk"}
    *parts, end, usage = chunks
    assert "".join(one.choices[0].delta.content or "" for one in parts) == chat(
        merged["bars"], WORDS[3]
    )
    assert end.choices[0].finish_reason == "stop" and not end.choices[0].delta.content
    assert usage.choices == [] and usage.usage.completion_tokens > 5


def test_stop_texts_end_an_answer_also_in_a_stream(api, cards, merged):
    whole = chat(merged["upper"], WORDS[0])
    stop = whole[8:12]
    answer = ask(api, "upper", WORDS[0], stop=stop)
    assert answer.choices[0].message.content == whole[:8]
    assert answer.choices[0].finish_reason == "stop"
    parts = list(ask(api, "upper", WORDS[0], stop=["nowhere", stop], stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in parts) == whole[:8]
    assert parts[-1].choices[0].finish_reason == "stop"


def test_seeds_and_sampling_are_those_of_the_library(api, cards, merged):
    how = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    found = [ask(api, "reverse", WORDS[1], **how).choices[0].message.content for _ in range(2)]
    assert found[0] == found[1] == chat(merged["reverse"], WORDS[1], **how)
    others = {
        ask(api, "edge", WORDS[1], temperature=2.0).choices[0].message.content for _ in range(4)
    }
    assert len(others) > 1  # without a seed, another one every time
    top = ask(api, "edge", WORDS[1], temperature=2.0, seed=3, extra_body={"top_k": 1})
    assert top.choices[0].message.content == chat(merged[None], WORDS[1])


def test_log_probabilities(api, cards, merged, nano_pair):
    edge = nano_pair[1]
    answer = ask(api, "upper", "city king", logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert "".join(one.token for one in content) == edge.template.lead + chat(
        merged["upper"], "city king"
    )
    ids = edge.template.prompt("city king")
    given = [edge.tokenizer.encode(one.token, add_special_tokens=False) for one in content]
    row = ids + [one for part in given for one in part]
    logits = np.asarray(forward(merged["upper"], row)[0], np.float64)[len(ids) - 1 : -1]
    values = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for one, own, expected in zip(content, row[len(ids) :], values, strict=True):
        assert one.logprob == pytest.approx(expected[own], abs=1e-3)
        best = [each.logprob for each in one.top_logprobs]
        np.testing.assert_allclose(best, np.sort(expected)[::-1][:3], atol=1e-3)
        assert bytes(one.bytes) == one.token.encode()
    chunks = list(ask(api, "upper", "city king", logprobs=True, stream=True))
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs
                for one in chunk.choices[0].logprobs.content]  # fmt: skip
    assert [one.token for one in streamed] == [one.token for one in content]
    assert streamed[0].top_logprobs == []


def test_each_token_is_spelled_once(api, monkeypatch):
    """However many answers have it among their likeliest; an answer without tokens has none."""
    tokenizer, spelled = api.service.tokenizer, []
    decode = tokenizer.decode

    def recorded(ids, **settings):
        if "skip_special_tokens" not in settings:
            spelled.extend(ids)
        return decode(ids, **settings)

    monkeypatch.setattr(tokenizer, "decode", recorded)
    api.service.spell.cache_clear()
    for _ in range(2):
        ask(api, "edge", "moon", logprobs=True, top_logprobs=20, max_tokens=8)
        api.client.completions.create(model="edge", prompt="moon", logprobs=20, max_tokens=8)
    assert len(spelled) == len(set(spelled)) > 20
    form = Form("edge", False, 20, api.service.spell)
    answer = Answer(Job([1], 1, lambda _: None), tokenizer, Stops(), reason="stop")
    assert form.whole([answer])["choices"][0]["logprobs"] == {
        "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}  # fmt: skip


def test_long_work_is_done_beside_the_thread_that_answers_all_connections(api, monkeypatch):
    """Texts become tokens, and log-probabilities JSON, while others' streams go on."""
    inside = []

    def watch(owner, name):
        own = getattr(owner, name)

        def watched(*args, **settings):
            inside.append((name, asyncio.events._get_running_loop() is not None))
            return own(*args, **settings)

        monkeypatch.setattr(owner, name, watched)

    watch(api.service.edge.tokenizer, "encode")
    watch(api.service.generator.cloud.tokenizer, "encode")
    watch(Form, "whole")
    ask(api, "edge", "moon", max_tokens=2, logprobs=True)
    api.client.completions.create(model="edge", prompt="moon", max_tokens=2, logprobs=0)
    send(f"{api.url}/v1/cards", {"system": "Write the words on the moon."})
    assert {name for name, _ in inside} == {"encode", "whole"}
    assert not any(on_loop for _, on_loop in inside)


def test_the_system_message_becomes_the_card(api, merged):
    made = api.service.maker.made
    messages = [
        {"role": "system", "content": PROMPTS["bars"]},
        {"role": "user", "content": WORDS[0]},
    ]
    for _ in range(2):
        answer = api.client.chat.completions.create(model="edge:auto", messages=messages)
        assert answer.choices[0].message.content == chat(merged["bars"], WORDS[0])
    assert api.service.maker.made <= made + 1
    in_context = api.client.chat.completions.create(model="edge", messages=messages)
    assert in_context.choices[0].message.content == chat(merged[None], messages)
    assert in_context.usage.prompt_tokens > answer.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="system message"):
        ask(api, "edge:auto", WORDS[0])


def test_continuations_of_texts_and_of_ids(api, cards, merged, nano_pair):
    edge = nano_pair[1]
    texts = ["User: city king\nAssistant:", "User: moon\nAssistant:"]
    found = api.client.completions.create(model="edge:upper", prompt=texts, max_tokens=12)
    assert [one.text for one in found.choices] == generate(
        merged["upper"], texts, max_new_tokens=12
    )
    assert [one.index for one in found.choices] == [0, 1] and found.object == "text_completion"
    ids = edge.template.prompt("city king")
    one = api.client.completions.create(model="upper", prompt=ids, max_tokens=12, logprobs=2)
    assert one.choices[0].text == generate(merged["upper"], [ids], max_new_tokens=12)[0]
    scores = one.choices[0].logprobs
    assert "".join(scores.tokens) == one.choices[0].text
    assert len(scores.token_logprobs) == len(scores.top_logprobs) == len(scores.tokens)
    assert scores.text_offset[:2] == [0, len(scores.tokens[0])]
    parts = list(
        api.client.completions.create(model="upper", prompt=texts, max_tokens=12, stream=True)
    )
    for i in range(2):
        text = "".join(one.choices[0].text for one in parts if one.choices[0].index == i)
        assert text == found.choices[i].text


def test_models_are_the_base_and_the_cards(api, cards):
    listed = {one.id: one for one in api.client.models.list()}
    assert {"edge", "edge:auto", *(f"edge:{name}" for name in PROMPTS)} <= set(listed)
    assert listed["edge:upper"].parent == "edge" and listed["edge"].parent is None
    assert api.client.models.retrieve("edge:upper").id == "edge:upper"
    with pytest.raises(openai.NotFoundError, match="nobody"):
        api.client.models.retrieve("edge:nobody")


def test_messages_in_parts_and_of_the_developer(api, merged):
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": PROMPTS["upper"]}]},
        {"role": "user", "content": [{"type": "text", "text": "city "}, {"type": "text",
                                      "text": "king"}]},
    ]  # fmt: skip
    answer = api.client.chat.completions.create(model="edge:auto", messages=messages)
    assert answer.choices[0].message.content == chat(merged["upper"], "city king")


def test_health_and_metrics(api, cards):
    with urllib.request.urlopen(f"{api.url}/health") as found:
        health = json.load(found)
    assert health["status"] == "ok" and health["edge"] == api.service.edge.fingerprint
    ask(api, "upper", "moon")
    with urllib.request.urlopen(f"{api.url}/metrics") as found:
        text = found.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['lorage_requests_total{path="/v1/chat/completions",status="200"}']) >= 1
    assert float(values["lorage_generated_tokens_total"]) > 0
    assert float(values["lorage_first_token_seconds_count"]) > 0
    assert values["lorage_slots"] == "4"


def test_a_vanished_client_frees_its_slot(api, cards, monkeypatch):
    """Of a stream, and of an answer that is waited for; both take longer than it takes to leave."""

    def slowly(*args):
        time.sleep(0.02)
        return decode(*args)

    monkeypatch.setattr("lorage_jax.serve.scheduler.decode", slowly)
    before = api.service.scheduler.counts.cancelled
    stream = api.client.completions.create(
        model="edge", prompt="User: moon\nAssistant:", max_tokens=200, stream=True
    )
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        api.client.with_options(timeout=0.05).completions.create(
            model="edge", prompt=["User: moon\nAssistant:"] * 8, max_tokens=200
        )
    for _ in range(500):
        if api.service.scheduler.counts.cancelled - before >= 2 and not (
            api.service.scheduler.running or api.service.scheduler.waiting
        ):
            break
        time.sleep(0.01)
    assert api.service.scheduler.counts.cancelled - before >= 2
    assert (api.service.scheduler.running, api.service.scheduler.waiting) == (0, 0)
