"""What is wrong with a request gets one message in OpenAI's form, and the server goes on."""

import json
import logging
import shutil
import socket
import urllib.error
import urllib.request

import pytest

from lorage_jax import nano
from lorage_jax.hf.load import load_model
from lorage_jax.serve.service import Limits, Service
from tests.serve.server import running

CHAT = {"model": "edge", "messages": [{"role": "user", "content": "moon"}], "max_tokens": 2}
TEXT = {"model": "edge", "prompt": "moon", "max_tokens": 2}


def send(url, body=None, method=None, key=None):
    """(status, JSON) of a request; bytes are sent as they are."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": key} if key else {})
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, json.loads(found.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        ("chat/completions", b"{", 400, None, "not JSON"),
        ("chat/completions", b"", 400, None, "not JSON"),
        ("chat/completions", b"\xff\xfe", 400, None, "not JSON"),
        ("chat/completions", b"[" * 100_000, 400, None, "not JSON"),
        ("chat/completions", [1], 400, None, "expected a JSON object"),
        ("chat/completions", CHAT | {"model": None}, 400, "model", "missing"),
        ("chat/completions", CHAT | {"model": 3}, 400, "model", "expected a text"),
        ("chat/completions", CHAT | {"model": "edge:none"}, 404, "model", "edge:none"),
        ("chat/completions", CHAT | {"model": "../x"}, 404, "model", "../x"),
        ("chat/completions", CHAT | {"messages": []}, 400, "messages", "empty"),
        ("chat/completions", CHAT | {"messages": "hi"}, 400, "messages", "a list"),
        ("chat/completions", CHAT | {"messages": ["hi"]}, 400, "messages", "messages[0]"),
        ("chat/completions", CHAT | {"messages": [{"role": "tool", "content": "x"}]}, 400,
         "messages", "role"),
        ("chat/completions", CHAT | {"messages": [{"role": "user", "content": None}]}, 400,
         "messages", "content"),
        ("chat/completions", CHAT | {"messages": [{"role": "user", "content": "\ud800"}]}, 400,
         "messages", "Unicode"),
        ("chat/completions", CHAT | {"messages": [{"role": "user", "content":
         [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "messages", "type text"),
        ("chat/completions", CHAT | {"messages": [{"role": "assistant", "content": "moon"}]}, 400,
         "messages", "'assistant'; expected the user's"),
        ("chat/completions", CHAT | {"messages": [{"role": "system", "content": "moon"}]}, 400,
         "messages", "'system'; expected the user's"),
        ("chat/completions", CHAT | {"messages": [{"role": "user", "content": " "}]}, 400,
         "messages", "message is empty"),
        ("chat/completions", CHAT | {"n": 2}, 400, "n", "not supported"),
        ("chat/completions", CHAT | {"n": True}, 400, "n", "not supported"),
        ("chat/completions", CHAT | {"tools": [{"type": "function"}]}, 400, "tools",
         "not supported"),
        ("chat/completions", CHAT | {"response_format": {"type": "json_object"}}, 400,
         "response_format", "not supported"),
        ("chat/completions", CHAT | {"presence_penalty": 0.5}, 400, "presence_penalty",
         "not supported"),
        ("chat/completions", CHAT | {"max_tokens": 0}, 400, "max_tokens", "expected 1"),
        ("chat/completions", CHAT | {"max_tokens": "9"}, 400, "max_tokens", "whole number"),
        ("chat/completions", CHAT | {"max_tokens": True}, 400, "max_tokens", "whole number"),
        ("chat/completions", CHAT | {"max_tokens": 100_000}, 400, "max_tokens", "context"),
        ("chat/completions", CHAT | {"temperature": -1}, 400, "temperature", "temperature"),
        ("chat/completions", CHAT | {"temperature": "hot"}, 400, "temperature", "a number"),
        ("chat/completions", CHAT | {"temperature": 10**400}, 400, "temperature", "is inf"),
        ("chat/completions", CHAT | {"top_p": -0.1}, 400, "top_p", "top_p"),
        ("chat/completions", CHAT | {"repetition_penalty": 1.1}, 400, "repetition_penalty",
         "not supported except as 1"),
        ("chat/completions", CHAT | {"min_p": 0.1}, 400, "min_p", "not supported"),
        ("chat/completions", CHAT | {"stop_token_ids": [7]}, 400, "stop_token_ids",
         "not supported"),
        ("completions", TEXT | {"ignore_eos": True}, 400, "ignore_eos", "not supported"),
        ("completions", TEXT | {"min_tokens": 1}, 400, "min_tokens", "not supported"),
        ("completions", TEXT | {"guided_json": {}}, 400, "guided_json", "leave it out"),
        ("completions", TEXT | {"skip_special_tokens": False}, 400, "skip_special_tokens",
         "not supported except as true"),
        ("chat/completions", CHAT | {"stop": [""]}, 400, "stop", "none empty"),
        ("chat/completions", CHAT | {"stop": list("abcde")}, 400, "stop", "at most 4"),
        ("chat/completions", CHAT | {"stream": "yes"}, 400, "stream", "true or false"),
        ("chat/completions", CHAT | {"top_logprobs": 3}, 400, "top_logprobs", "logprobs"),
        ("chat/completions", CHAT | {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs",
         "0 to 20"),
        ("completions", TEXT | {"prompt": ""}, 400, "prompt", "not empty"),
        ("completions", TEXT | {"prompt": [[]]}, 400, "prompt", "not empty"),
        ("completions", TEXT | {"prompt": {}}, 400, "prompt", "token ids"),
        ("completions", TEXT | {"prompt": [5, 10**9]}, 400, "prompt", "vocabulary"),
        ("completions", TEXT | {"prompt": [-1]}, 400, "prompt", "vocabulary"),
        ("completions", TEXT | {"prompt": ["a"] * 65}, 400, "prompt", "at most 64"),
        ("completions", TEXT | {"prompt": "a " * 5000}, 400, "max_tokens", "context"),
        ("completions", TEXT | {"prompt": "a " * 5000, "max_tokens": None}, 400, "prompt",
         "context"),
        ("completions", TEXT | {"model": "edge:auto"}, 400, None, "needs a chat"),
        ("completions", TEXT | {"echo": True}, 400, "echo", "not supported"),
        ("cards", {}, 400, "system", "missing"),
        ("cards", {"system": "  "}, 400, "system", "empty"),
        ("cards", {"system": 5}, 400, "system", "a text"),
        ("cards", {"system": "word " * 5000}, 400, "system", "Shorten"),
        ("cards", {"system": "x", "name": "../../etc/passwd"}, 400, "name", "letters"),
        ("cards", {"system": "x", "name": "auto"}, 400, "name", "auto"),
        ("cards", {"system": "x", "name": "a" * 65}, 400, "name", "1 to 64"),
        ("cards", {"card": {"format": "lorage-card/1"}}, 400, "card", "card"),
        ("cards", {"card": {}, "system": "x"}, 400, "system", "both card and system"),
    ],
)  # fmt: skip
def test_one_message(api, path, body, status, param, words):
    found, answer = send(f"{api.url}/v1/{path}", body)
    assert found == status, answer
    assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    assert words in answer["error"]["message"] and answer["error"]["param"] == param
    assert len(answer["error"]["message"]) < 400
    assert "Traceback" not in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("chat/completions", {"stop": list("abcd")}),
        ("chat/completions", {"logprobs": True, "top_logprobs": 20}),
        ("completions", {"logprobs": 20}),
        ("completions", {"prompt": ["a"] * 64, "max_tokens": 1}),
        ("chat/completions", {"n": 1, "tools": [], "presence_penalty": 0.0, "tool_choice": "auto"}),
        ("completions", {"repetition_penalty": 1.0, "min_p": 0, "min_tokens": 0,
                         "ignore_eos": False, "stop_token_ids": [], "guided_json": None,
                         "skip_special_tokens": True}),
        ("chat/completions", {"messages": [{"role": "user", "content": "sun"}, {"role": "assistant",
                              "content": None}, {"role": "user", "content": "moon"}]}),
    ],
)  # fmt: skip
def test_the_largest_and_the_neutral_values_are_taken(api, path, more):
    body = (CHAT if path.startswith("chat") else TEXT) | more
    status, answer = send(f"{api.url}/v1/{path}", body)
    assert status == 200, answer
    assert len(answer["choices"]) == (64 if "prompt" in more else 1)


def test_a_request_may_fill_the_context(nano_service, nano_pair):
    room = 32 - len(nano_pair[1].template.prompt("moon"))
    with running(nano_service(context=32)) as url:
        assert send(f"{url}/v1/chat/completions", CHAT | {"max_tokens": room})[0] == 200
        status, answer = send(f"{url}/v1/chat/completions", CHAT | {"max_tokens": room + 1})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_an_answer_of_unnamed_length_ends_with_the_context(nano_service, nano_pair):
    """Sixteen tokens of a continuation, unless fewer have room; an answer of a chat likewise."""
    body = {"model": "edge", "logprobs": 0, "prompt": [7] * 22}
    with running(nano_service(context=32)) as url:
        status, answer = send(f"{url}/v1/completions", body)
        assert status == 200 and 0 < answer["usage"]["completion_tokens"] <= 10
        assert send(f"{url}/v1/completions", body | {"max_tokens": 11})[0] == 400
        status, answer = send(f"{url}/v1/completions", body | {"prompt": [7] * 4})
        assert status == 200 and answer["usage"]["completion_tokens"] <= 16


def test_a_text_without_tokens_is_the_requests_mistake(api, monkeypatch):
    monkeypatch.setattr("lorage_jax.serve.service.encode_marked", lambda tokenizer, text: [])
    status, answer = send(f"{api.url}/v1/completions", TEXT)
    assert (status, answer["error"]["param"]) == (400, "prompt")
    assert "prompt 0 has no tokens" in answer["error"]["message"]


def test_the_smallest_top_p_is_the_most_likely_token(api):
    greedy = send(f"{api.url}/v1/completions", TEXT | {"max_tokens": 6})[1]
    for seed in range(3):
        more = {"max_tokens": 6, "temperature": 2.0, "top_p": 0, "seed": seed}
        status, answer = send(f"{api.url}/v1/completions", TEXT | more)
        assert status == 200 and answer["choices"][0]["text"] == greedy["choices"][0]["text"]


def test_settings_of_the_folder_that_are_not_obeyed_are_told_at_the_start(
    nano_pair, tmp_path, caplog
):
    folder = shutil.copytree(nano.EDGE, tmp_path / "edge")
    settings = {"no_repeat_ngram_size": 2, "do_sample": True, "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    service = Service(nano_pair[0], load_model(folder), tmp_path / "cards", Limits())
    with caplog.at_level(logging.WARNING):
        service.start()
    service.stop()
    assert "asks for no_repeat_ngram_size=2, which" in caplog.text


def test_the_server_is_alive_after_all_of_it(api):
    status, answer = send(f"{api.url}/v1/chat/completions", CHAT | {"frobnicate": 1, "user": "me"})
    assert status == 200 and answer["choices"][0]["message"]["role"] == "assistant"


def test_unknown_models_have_openai_s_code(api):
    answer = send(f"{api.url}/v1/chat/completions", CHAT | {"model": "gpt-4"})[1]
    assert answer["error"]["code"] == "model_not_found" and "gpt-4" in answer["error"]["message"]


def test_unknown_paths_and_methods(api):
    assert send(f"{api.url}/v1/nothing")[0] == 404
    status, answer = send(f"{api.url}/v1/chat/completions")
    assert status == 405 and "error" in answer
    assert send(f"{api.url}/v1/cards/nobody")[0] == 404
    assert send(f"{api.url}/v1/cards/nobody", method="DELETE")[0] == 404


def test_bodies_over_the_limit_are_not_read(nano_service):
    service = nano_service(body=2000)
    with running(service) as url:
        status, answer = send(f"{url}/v1/chat/completions", b" " * 2001)
        assert (status, answer["error"]["code"]) == (413, "body_too_large")
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(5):
                raw.sendall(b"200\r\n" + b" " * 512 + b"\r\n")
            assert b" 413 " in raw.recv(1000)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as raw:
            raw.sendall(b"nonsense\r\n\r\n")
            assert b" 400 " in raw.recv(1000)
        whole = json.dumps(CHAT).encode().ljust(2000)
        assert send(f"{url}/v1/chat/completions", whole)[0] == 200


def test_a_full_queue_is_429(nano_service):
    service = nano_service(slots=1, queue=2)
    with running(service) as url:
        status, answer = send(f"{url}/v1/completions", TEXT | {"prompt": ["a", "b", "c"]})
        assert status == 429 and answer["error"]["code"] == "queue_full"
        assert send(f"{url}/v1/completions", TEXT | {"prompt": ["a", "b"]})[0] == 200


def test_an_api_key_is_asked_for(nano_service):
    with running(nano_service(), key="secret") as url:
        status, answer = send(f"{url}/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert send(f"{url}/v1/models", key="Bearer wrong")[0] == 401
        assert send(f"{url}/v1/chat/completions", CHAT, key="Bearer secret")[0] == 200
        assert send(f"{url}/health")[0] == 200


def test_an_api_key_of_any_letters(nano_service):
    """Sent as UTF-8, as curl does, or in the encoding of headers where it has the letters."""
    with running(nano_service(), key="schlüssel") as url:
        for sent, wanted in (
            ("schlüssel".encode(), 200),
            ("schlüssel".encode("latin-1"), 200),
            (b"schlussel", 401),
            (b"schl?ssel", 401),
        ):
            assert send(f"{url}/v1/models", key=b"Bearer " + sent)[0] == wanted, sent
