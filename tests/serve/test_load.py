"""Two thousand mixed requests, clients that vanish, and signals in the middle."""

import asyncio
import random
import signal
from pathlib import Path

import pytest

from lorage_jax.infer.chat import chat
from tests.serve.server import PROMPTS, WORDS
from tests.serve.test_bad_requests import send
from tests.serve.test_command import start

httpx = pytest.importorskip("httpx")

AT_ONCE = 32


class Load:
    """Clients of a server, who count what they see.

    Attributes:
        right: the right answers by card and words.
        kept: names of cards that the server said it has, with their gates.
        seen: numbers of outcomes.
    """

    def __init__(self, right, seed):
        self.right, self.rng, self.kept, self.seen = right, random.Random(seed), {}, {}

    def count(self, what):
        self.seen[what] = self.seen.get(what, 0) + 1

    async def run(self, url, requests, during=None):
        """Sends requests, AT_ONCE at a time; `during` is called when half of them are sent."""
        gate, sent = asyncio.Semaphore(AT_ONCE), 0
        limits = httpx.Limits(max_connections=AT_ONCE)

        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

            async def one(number):
                nonlocal sent
                async with gate:
                    sent += 1
                    if during is not None and sent == requests // 2:
                        during()
                    try:
                        await self.request(client, number)
                    except httpx.TransportError:
                        assert during is not None, "the server broke a connection"
                        self.count("broken off")

            await asyncio.gather(*map(one, range(requests)))

    async def request(self, client, number):
        kind = self.rng.choices(
            ("chat", "auto", "stream", "vanish", "card", "malformed", "oversized", "unknown"),
            (8, 3, 3, 2, 1, 1, 1, 1),
        )[0]
        name, words = self.rng.choice([*PROMPTS, None]), self.rng.choice(WORDS)
        body = {
            "model": f"edge:{name}" if name else "edge",
            "messages": [{"role": "user", "content": words}],
        }
        if kind == "auto":
            name = name or "upper"
            system = {"role": "system", "content": PROMPTS[name]}
            body = {"model": "edge:auto", "messages": [system, *body["messages"]]}
        path = "/v1/chat/completions"
        if kind in ("chat", "auto"):
            found = await client.post(path, json=body)
            assert found.status_code in (200, 503), found.text
            if found.status_code == 200:
                text = found.json()["choices"][0]["message"]["content"]
                assert text == self.right[name, words]
        elif kind in ("stream", "vanish"):
            async with client.stream("POST", path, json=body | {"stream": True}) as found:
                async for line in found.aiter_lines():
                    assert line == "" or line.startswith("data: ")
                    if kind == "vanish":
                        break
        elif kind == "card":
            wanted = {"system": self.rng.choice(list(PROMPTS.values())), "name": f"n{number}"}
            found = await client.post("/v1/cards", json=wanted)
            if found.status_code == 201:
                self.kept[f"n{number}"] = found.json()["card"]["gates"]
        elif kind == "malformed":
            found = await client.post(path, content=b'{"model": "edge", "messages": [')
            assert found.status_code == 400
        elif kind == "oversized":
            found = await client.post(path, content=b" " * ((1 << 20) + 1))
            assert found.status_code == 413
        else:
            found = await client.post(path, json=body | {"model": "edge:nobody"})
            assert found.status_code == 404
        self.count(kind)


def resident(process) -> float:
    """MiB of a process's memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.slow
def test_two_thousand_mixed_requests(tmp_path, merged):
    right = {(name, words): chat(merged[name], words) for name in merged for words in WORDS}
    load = Load(right, seed=0)
    process, url = start(tmp_path)
    for name, system in PROMPTS.items():
        assert send(f"{url}/v1/cards", {"system": system, "name": name})[0] == 201
    asyncio.run(load.run(url, 500))
    before = resident(process)
    asyncio.run(load.run(url, 900))
    grown = resident(process) - before
    assert grown < 64, f"{grown:.0f} MiB more after 900 requests"
    health = send(f"{url}/health")[1]
    assert (health["running"], health["waiting"]) == (0, 0)

    asyncio.run(load.run(url, 300, lambda: process.send_signal(signal.SIGTERM)))
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "Traceback" not in errors, errors

    process, url = start(tmp_path)
    asyncio.run(load.run(url, 300, lambda: process.send_signal(signal.SIGKILL)))
    process.wait(10)
    process.stderr.close()

    process, url = start(tmp_path)
    for name, gates in load.kept.items():
        assert send(f"{url}/v1/cards/{name}")[1]["card"]["gates"] == gates
    print(load.seen, f"{len(load.kept)} cards kept, {grown:.1f} MiB grown")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stderr.close()
