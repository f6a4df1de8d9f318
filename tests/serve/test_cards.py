"""Cards online: made, kept, found again, deleted, sent to devices."""

import asyncio
import dataclasses
import io
import itertools
import json
import zipfile

import numpy as np
import pytest

from lorage_jax.buckets import bucket
from lorage_jax.generator.card import card_from_dict, load_card
from lorage_jax.generator.generator import prompt_tokens, specialize
from lorage_jax.infer.chat import chat
from lorage_jax.serve.cards import AT_ONCE, CardMaker, CardShelf
from lorage_jax.serve.errors import Failed, RequestError
from tests.serve.server import PROMPTS, WORDS, running
from tests.serve.test_bad_requests import send

pytest.importorskip("starlette")


def download(url):
    import urllib.request

    with urllib.request.urlopen(url, timeout=120) as found:
        return found.read(), found.headers


def test_a_card_is_that_of_specialize_and_is_kept(api, nano_pair):
    status, made = send(f"{api.url}/v1/cards", {"system": PROMPTS["bars"], "name": "kept"})
    assert status == 201
    assert {k: made[k] for k in ("id", "object", "model")} == {
        "id": "kept", "object": "card", "model": "edge:kept"}  # fmt: skip
    wanted = specialize(nano_pair[0], PROMPTS["bars"])
    found = card_from_dict(made["card"], "the answer")
    np.testing.assert_allclose(found.gates, wanted.gates, atol=1e-6)
    assert found.edge == wanted.edge and found.generator == wanted.generator
    on_disk = load_card(api.service.shelf.folder / "kept.json")
    np.testing.assert_array_equal(on_disk.gates, found.gates)
    assert send(f"{api.url}/v1/cards/kept")[1]["card"] == made["card"]
    assert "kept" in [one["id"] for one in send(f"{api.url}/v1/cards")[1]["data"]]


def test_a_name_is_given_once(api):
    first = send(f"{api.url}/v1/cards", {"system": PROMPTS["upper"], "name": "once"})
    again = send(f"{api.url}/v1/cards", {"system": PROMPTS["upper"], "name": "once"})
    assert first[0] == again[0] == 201 and first[1] == again[1]
    status, answer = send(f"{api.url}/v1/cards", {"system": PROMPTS["bars"], "name": "once"})
    assert (status, answer["error"]["code"]) == (409, "card_exists")
    assert send(f"{api.url}/v1/cards/once")[1] == first[1]


def test_the_same_prompt_or_the_same_gates_but_for_rounding_are_the_same_card(
    nano_service, nano_pair, tmp_path
):
    """In a pass of four prompts a card has other roundings than alone."""
    shelf, card = nano_service(tmp_path).shelf, specialize(nano_pair[0], PROMPTS["upper"])
    sent = dataclasses.replace(card, pool=None)
    shelf.put("one", sent)
    kept = shelf.get("one")
    rounded = dataclasses.replace(sent, gates=card.gates * np.float32(1 + 1e-6))
    changed = dataclasses.replace(sent, gates=card.gates[:, ::-1].copy())
    assert shelf.put("one", rounded) is kept
    assert shelf.put("one", dataclasses.replace(changed, pool=card.pool)) is kept
    for other in (changed, specialize(nano_pair[0], PROMPTS["bars"])):
        with pytest.raises(RequestError, match="another card 'one'; delete") as caught:
            shelf.put("one", other)
        assert caught.value.status == 409
    np.testing.assert_array_equal(load_card(tmp_path / "one.json").gates, card.gates)


def test_space_around_a_prompt_makes_no_other_card(api, nano_pair):
    one, two = (specialize(nano_pair[0], PROMPTS["upper"] + end) for end in ("", " \n"))
    assert one.about == two.about
    for end in ("", " \n"):
        made = send(f"{api.url}/v1/cards", {"system": PROMPTS["upper"] + end})
        assert made[1]["id"] == f"c-{one.about['prompt_sha256'][:16]}"


def test_a_damaged_card_can_be_deleted_and_its_name_is_not_free_before(nano_service, tmp_path):
    asked = {"system": PROMPTS["upper"], "name": "cut"}
    with running(nano_service(tmp_path)) as url:
        (tmp_path / "cut.json").write_text("{")
        status, answer = send(f"{url}/v1/cards", asked)
        assert (status, answer["error"]["param"]) == (409, "name")
        assert "cannot be used" in answer["error"]["message"]
        assert send(f"{url}/v1/cards/cut", method="DELETE")[0] == 200
        assert send(f"{url}/v1/cards", asked)[0] == 201
        assert send(f"{url}/v1/cards/..%2Fcut", method="DELETE")[0] == 404


def test_without_a_name_a_card_is_called_by_its_prompt(api):
    one, two = (send(f"{api.url}/v1/cards", {"system": PROMPTS["upper"]})[1] for _ in range(2))
    other = send(f"{api.url}/v1/cards", {"system": PROMPTS["reverse"]})[1]
    assert one["id"] == two["id"] != other["id"]


def test_a_card_without_name_and_prompt_is_called_by_its_gates(api, nano_pair):
    cards = specialize(nano_pair[0], [PROMPTS["upper"], PROMPTS["bars"]])
    for digest in ({}, {"prompt_sha256": None}, {"prompt_sha256": 5}):
        names = []
        for card in [*cards, cards[0]]:
            about = {k: v for k, v in card.about.items() if k != "prompt_sha256"} | digest
            sent = dataclasses.replace(card, about=about).to_dict()
            status, answer = send(f"{api.url}/v1/cards", {"card": sent})
            assert status == 201, answer
            names.append(answer["id"])
        assert names[0] == names[2] != names[1]
    sent = send(f"{api.url}/v1/cards", {"card": cards[0].to_dict()})[1]
    assert sent["id"] == f"c-{cards[0].about['prompt_sha256'][:16]}"


def test_cards_are_read_beside_the_thread_that_answers_all_connections(api, monkeypatch):
    """A slow disk must not stop the streams of others."""
    send(f"{api.url}/v1/cards", {"system": PROMPTS["upper"], "name": "disk"})
    get, inside = CardShelf.get, []

    def watched(self, name):
        inside.append(asyncio.events._get_running_loop() is not None)
        return get(self, name)

    monkeypatch.setattr(CardShelf, "get", watched)
    model = {"model": "edge:disk", "max_tokens": 2}
    assert send(f"{api.url}/v1/cards/disk")[0] == 200
    assert send(f"{api.url}/v1/models/edge:disk")[0] == 200
    assert send(f"{api.url}/v1/completions", {"prompt": "moon", **model})[0] == 200
    chat = {"messages": [{"role": "user", "content": "moon"}], **model}
    assert send(f"{api.url}/v1/chat/completions", chat)[0] == 200
    assert inside == [False] * 4


def test_a_deleted_card_is_gone(api):
    send(f"{api.url}/v1/cards", {"system": PROMPTS["upper"], "name": "short-lived"})
    assert send(f"{api.url}/v1/cards/short-lived", method="DELETE")[1]["deleted"] is True
    assert send(f"{api.url}/v1/cards/short-lived")[0] == 404
    body = {"model": "edge:short-lived", "messages": [{"role": "user", "content": "moon"}]}
    assert send(f"{api.url}/v1/chat/completions", body)[0] == 404


def test_cards_are_found_after_a_restart_and_when_another_server_makes_them(
    nano_service, merged, tmp_path
):
    folder = tmp_path / "cards"
    with running(nano_service(folder)) as url:
        send(f"{url}/v1/cards", {"system": PROMPTS["bars"], "name": "bars"})
    service, other = nano_service(folder), nano_service(folder)
    with running(service) as url, running(other) as second:
        body = {"model": "bars", "messages": [{"role": "user", "content": WORDS[0]}]}
        for _ in range(2):
            answer = send(f"{url}/v1/chat/completions", body)[1]
            assert answer["choices"][0]["message"]["content"] == chat(merged["bars"], WORDS[0])
        send(f"{second}/v1/cards", {"system": PROMPTS["upper"], "name": "late"})
        answer = send(f"{url}/v1/chat/completions", body | {"model": "edge:late"})[1]
        assert answer["choices"][0]["message"]["content"] == chat(merged["upper"], WORDS[0])
        send(f"{second}/v1/cards/late", method="DELETE")
        send(f"{second}/v1/cards", {"system": PROMPTS["reverse"], "name": "late"})
        answer = send(f"{url}/v1/chat/completions", body | {"model": "edge:late"})[1]
        assert answer["choices"][0]["message"]["content"] == chat(merged["reverse"], WORDS[0])
        send(f"{second}/v1/cards/bars", method="DELETE")
        assert send(f"{url}/v1/chat/completions", body)[0] == 404


def test_a_card_that_cannot_be_written_is_a_fault_of_the_server(nano_service, nano_pair, tmp_path):
    (tmp_path / "cards").touch()
    shelf = nano_service(tmp_path / "cards").shelf
    with pytest.raises(Failed, match="Not a directory") as caught:
        shelf.put("bars", specialize(nano_pair[0], PROMPTS["bars"]))
    assert (caught.value.status, caught.value.kind) == (507, "server_error")


def test_damaged_and_foreign_cards_are_named_and_left_out(nano_service, nano_pair, tmp_path):
    card = specialize(nano_pair[0], PROMPTS["upper"])
    dataclasses.replace(card, edge="sha256:another").save(tmp_path / "foreign.json")
    card.save(tmp_path / "good.json")
    (tmp_path / "cut.json").write_text(json.dumps(card.to_dict())[:200])
    with running(nano_service(tmp_path)) as url:
        found = [one["id"] for one in send(f"{url}/v1/cards")[1]["data"]]
        assert found == ["good"]
        for name, words in (("foreign", "for the edge"), ("cut", "not a card")):
            body = {"model": name, "messages": [{"role": "user", "content": "moon"}]}
            status, answer = send(f"{url}/v1/chat/completions", body)
            assert status == 400 and words in answer["error"]["message"]
        sent = {"card": dataclasses.replace(card, edge="sha256:another").to_dict()}
        status, answer = send(f"{url}/v1/cards", sent)
        assert status == 400 and "for the edge" in answer["error"]["message"]
        status, answer = send(f"{url}/v1/cards", {"card": card.to_dict(), "name": "sent"})
        assert status == 201 and answer["card"]["gates"] == card.to_dict()["gates"]


@pytest.mark.parametrize(
    "facts",
    [
        {"created": float("nan")},
        {"created": "\ud800"},
        {"created": True},
        {"turns": []},
        {"note": [{"deep": float("inf")}]},
        {"note": "\ud800"},
    ],
)
def test_facts_that_no_answer_could_list_are_refused(api, nano_pair, facts):
    """Sent, or found in the folder: the listings go on, with the good cards."""
    card = specialize(nano_pair[0], PROMPTS["upper"])
    bad = dataclasses.replace(card, about=card.about | facts)
    status, answer = send(f"{api.url}/v1/cards", {"card": bad.to_dict(), "name": "facts"})
    assert (status, answer["error"]["param"]) == (400, "card")
    bad.save(api.service.shelf.folder / "found.json", overwrite=True)
    send(f"{api.url}/v1/cards", {"system": PROMPTS["bars"], "name": "fine"})
    for path in ("cards", "models"):
        status, answer = send(f"{api.url}/v1/{path}")
        names = {one["id"].removeprefix("edge:") for one in answer["data"]}
        assert status == 200 and "fine" in names and not names & {"facts", "found"}
    status, answer = send(f"{api.url}/v1/cards/found")
    assert (status, answer["error"]["code"]) == (400, "card_unusable")


def test_a_card_for_a_device(api, nano_pair, tmp_path):
    """The downloaded PEFT folder and LoRA GGUF are those of the library."""
    from lorage_jax.generator.adapter import export_adapter
    from lorage_jax.generator.lora_gguf import export_lora_gguf

    send(f"{api.url}/v1/cards", {"system": PROMPTS["bars"], "name": "device"})
    generator, edge = nano_pair
    card = api.service.shelf.get("device")
    packed, headers = download(f"{api.url}/v1/cards/device?format=peft")
    assert 'filename="device.zip"' in headers["Content-Disposition"]
    with zipfile.ZipFile(io.BytesIO(packed)) as file:
        file.extractall(tmp_path / "got")
    export_adapter(generator.pool, card, edge, tmp_path / "own")
    for name in ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"):
        got = tmp_path / "got" / "device" / name
        assert got.read_bytes() == (tmp_path / "own" / name).read_bytes(), name
    pytest.importorskip("gguf")
    data, _ = download(f"{api.url}/v1/cards/device?format=gguf")
    export_lora_gguf(generator.pool, card, edge, tmp_path / "device.gguf")
    assert data == (tmp_path / "device.gguf").read_bytes()
    status, answer = send(f"{api.url}/v1/cards/device?format=onnx")
    assert status == 400 and answer["error"]["param"] == "format"


def test_warm_covers_every_size_of_a_cloud_pass(nano_pair, monkeypatch):
    """Alone and together; a longer prompt than the cloud takes is not tried."""
    generator, passes = nano_pair[0], []

    def recorded(generator, prompts):
        passes.append((len(prompts), bucket(len(prompt_tokens(generator, prompts[0])))))

    monkeypatch.setattr("lorage_jax.serve.cards.specialize", recorded)
    room = generator.cloud.config.max_positions - generator.edge.layers
    for tokens in (0, 10, 100, 10**6):
        passes.clear()
        CardMaker(generator).warm(tokens)
        lengths = (len(generator.reads.read("a " * n)) for n in range(1, room))
        sizes = {bucket(n) for n in lengths if n <= min(tokens, room)}
        assert sorted(passes) == sorted(itertools.product(AT_ONCE, sizes))


def test_many_prompts_at_once_share_cloud_passes(api, nano_pair):
    from concurrent.futures import ThreadPoolExecutor

    systems = [f"Write all the words in upper case. Say it {n} times." for n in range(9)]
    with ThreadPoolExecutor(9) as pool:
        made = list(pool.map(lambda s: send(f"{api.url}/v1/cards", {"system": s})[1], systems))
    assert len({one["id"] for one in made}) == 9
    for system, one in zip(systems, made, strict=True):
        wanted = specialize(nano_pair[0], system)
        np.testing.assert_allclose(card_from_dict(one["card"], "it").gates, wanted.gates, atol=1e-5)
