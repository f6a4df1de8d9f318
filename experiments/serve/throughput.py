"""Measures `lorage serve`: many cards in one batch against one card at a time, and its parts.

python experiments/serve/throughput.py --generator nano --json experiments/results/serve_nano.json

64 requests over 16 cards, with prompts and questions of the built-in tasks, arrive at once. In one
run, in turn:
- `served`: over HTTP, by `lorage serve`'s server in this process, the clients in another;
- `merged_in_order`: one by one as they came, merging the card of each;
- `merged_by_card`: card by card, merged once, the card's requests as one batch.
Beside them: a step of decoding with a card per row against the base alone at batch 16, and the time
of `POST /v1/cards`.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import jax
import numpy as np
import uvicorn

from lorage_jax import compilation, nano
from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.commands.serve import SWITCH_SECONDS, use_few_threads
from lorage_jax.config import GeneratorConfig
from lorage_jax.data.templates import NEWEST
from lorage_jax.fields import from_dict
from lorage_jax.files.outputs import write_file
from lorage_jax.generator.generator import Generator, new_trained, specialize
from lorage_jax.generator.merge import merge
from lorage_jax.generator.store import load_generator, read_values, recorded_path
from lorage_jax.hf.family import from_values
from lorage_jax.hf.load import load_model
from lorage_jax.hf.tokenizer import load_tokenizer
from lorage_jax.infer.chat import chat
from lorage_jax.infer.slots import (
    CHUNK,
    PackedPrompts,
    Requests,
    decode,
    insert,
    new_slots,
    prefill,
)
from lorage_jax.models.bits import program_params
from lorage_jax.models.model import Model
from lorage_jax.models.presets import random_model
from lorage_jax.provenance import provenance
from lorage_jax.serve.app import Server
from lorage_jax.serve.service import Limits, Service
from lorage_jax.world import everyday, prompts

CARDS, QUESTIONS, BATCH = 16, 4, 16
MOST = 24  # tokens of an answer
MANNERS = ("", " Be brief.", " Say nothing else.")
PARTS = ("served", "decoding")
WARM = 64  # the default of `lorage serve`


def tasks(generator: str, seed: int) -> list[tuple[str, list[str]]]:
    """CARDS different system prompts with QUESTIONS questions each."""
    rng, found = Random(f"serve/{seed}"), {}
    while len(found) < CARDS:
        if generator == "smollm2":
            task = everyday.draw_everyday(rng)
            system = task.system + rng.choice(MANNERS)  # there are fewer wordings than CARDS
        else:
            task = prompts.draw_prompt("paraphrase", rng, "words")
            system = task.system
        found[system] = [task.draw(rng)[0] for _ in range(QUESTIONS)]
    return list(found.items())


class Running:
    """The server on a free port of this process."""

    def __init__(self, service: Service):
        import socket

        self.service, listener = service, socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(Server(service).app(), lifespan="off", log_config=None)
        self.server = uvicorn.Server(config)
        serve = self.server.serve(sockets=[listener])
        self.thread = threading.Thread(target=lambda: asyncio.run(serve), daemon=True)

    def __enter__(self) -> str:
        self.service.start(WARM)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self.url

    def __exit__(self, *_: Any) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.service.stop()


class Clients:
    """Clients in a process of their own, as their work is not the server's."""

    def __enter__(self) -> "Clients":
        script = Path(__file__).with_name("client.py")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=pipe, stdout=pipe, text=True
        )
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.communicate()

    def ask(self, url: str, bodies: list[dict[str, Any]]) -> list[str]:
        """The answers to requests that are sent at once."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"url": url, "bodies": bodies}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["answers"]


def requests_per_second(
    generator: Generator,
    edge: Model,
    url: str,
    asked: list[tuple[int, str]],
    cards: list[Any],
    repeats: int,
) -> dict[str, Any]:
    """Seconds of all requests in the three ways, and the share of equal answers."""
    bodies = [
        {
            "model": f"edge:card{card}",
            "messages": [{"role": "user", "content": user}],
            "max_tokens": MOST,
        }
        for card, user in asked
    ]
    answers: dict[str, list[str]] = {}
    clients = Clients()

    def served() -> None:
        answers["served"] = clients.ask(url, bodies)

    def in_order() -> None:
        found, last, model = [], None, edge
        for card, user in asked:
            if card != last:
                model, last = merge(edge, generator.pool, cards[card]), card
            found.append(chat(model, user, max_new_tokens=MOST))
        answers["merged_in_order"] = found

    def by_card() -> None:
        found = [""] * len(asked)
        for card in range(CARDS):
            own = [i for i, one in enumerate(asked) if one[0] == card]
            model = merge(edge, generator.pool, cards[card])
            texts = chat(model, [asked[i][1] for i in own], max_new_tokens=MOST)
            for i, text in zip(own, texts, strict=True):
                found[i] = text
        answers["merged_by_card"] = found

    actions: dict[str, Callable[[], None]] = {
        "served": served, "merged_in_order": in_order, "merged_by_card": by_card
    }  # fmt: skip
    with clients:
        times = in_turn(actions, repeats)
    took = {name: statistics.median(each) for name, each in times.items()}
    same = np.mean(
        [a == b for a, b in zip(answers["served"], answers["merged_in_order"], strict=True)]
    )
    return {
        "requests": len(asked),
        "cards": CARDS,
        **{f"seconds_{name}": value for name, value in took.items()},
        "times_faster_than_in_order": took["merged_in_order"] / took["served"],
        "times_faster_than_by_card": took["merged_by_card"] / took["served"],
        "share_of_equal_answers": float(same),
        "largest_spread_within_one": largest_spread(times),
    }


def step_milliseconds(
    generator: Generator, edge: Model, cards: list[Any], repeats: int, room: int = 128
) -> dict[str, float]:
    """Milliseconds of a step at batch 16: the base without a pool, and a card per row."""
    params, rng = program_params(edge.params), np.random.default_rng(0)
    decoding, states = generator.pool.for_decoding(), {}

    def start(gates: np.ndarray | None) -> Any:
        pool = None if gates is None else decoding
        values: dict[str, Any] = {
            "gates": gates,
            "most": np.full(BATCH, 1 << 20, np.int32),
            "ends": np.full((BATCH, 1), -1, np.int32),
            "temperature": np.zeros(BATCH, np.float32),
            "top_k": np.zeros(BATCH, np.int32),
            "top_p": np.ones(BATCH, np.float32),
            "seed": np.zeros(BATCH, np.uint32),
        }
        tokens = rng.integers(3, edge.config.vocab_size, (BATCH, 32)).tolist()
        prompts = PackedPrompts.of(tokens, BATCH, BATCH * 32)
        read = prefill(edge.config, False, params, pool, prompts, Requests(**values))
        return insert(new_slots(read, BATCH, room), read, np.arange(BATCH, dtype=np.int32))

    def run(name: str, gates: np.ndarray | None) -> None:
        pool = None if gates is None else decoding
        states[name], _, counts = decode(
            edge.config, False, params, pool, states.pop(name), np.int32(CHUNK)
        )
        jax.block_until_ready(counts)

    kinds = {"base": None, "card_per_row": np.stack([card.gates for card in cards[:BATCH]])}
    for name, gates in kinds.items():
        states[name] = start(gates)
    actions = {
        name: (lambda name=name, gates=gates: run(name, gates)) for name, gates in kinds.items()
    }
    times = in_turn(actions, repeats)
    took = {name: 1e3 * statistics.median(each) / CHUNK for name, each in times.items()}
    return {
        **{f"step_ms_{name}": value for name, value in took.items()},
        "ratio": took["card_per_row"] / took["base"],
        "largest_spread_within_one": largest_spread(times),
    }


def card_seconds(url: str, generator: str, count: int = 7) -> dict[str, Any]:
    """Seconds of POST /v1/cards for prompts that the server has not seen, one after the other."""
    took = []
    for number, (system, _) in enumerate(tasks(generator, seed=1)[:count]):
        began = time.perf_counter()
        httpx.post(f"{url}/v1/cards", json={"system": system}, timeout=600).raise_for_status()
        if number:  # the first one may compile
            took.append(time.perf_counter() - began)
    return {"median": statistics.median(took), "longest": max(took), "cards": len(took)}


def random_pair() -> tuple[Generator, Model]:
    """A generator and its edge of the bundled SmolLM2 generator's shapes, with random weights.

    For machines without the model: time does not depend on values. Texts are read by nano's
    tokenizer, and answers have MOST tokens.
    """
    values = read_values(Path("smollm2"))
    config = from_dict(GeneratorConfig, values["generator"])
    tokenizer = load_tokenizer(nano.EDGE)
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    cloud, edge = (
        random_model(from_values(values[role]["config"]), dtype).replace(
            tokenizer=tokenizer, template=NEWEST.on(tokenizer), identity=role
        )
        for role in ("cloud", "edge")
    )
    embed = cloud.params["embed"]
    trained, statistics = new_trained(config, cloud.config, edge.config, embed, jax.random.key(0))
    generator = Generator(config, cloud, edge.config, edge.fingerprint, trained, statistics)
    return generator, edge


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of lorage serve")
    parser.add_argument("--generator", default="nano", choices=["nano", "smollm2"])
    parser.add_argument("--random", action="store_true", help="SmolLM2's shapes, random weights")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    compilation.keep_programs()
    sys.setswitchinterval(SWITCH_SECONDS)
    if options.random:
        generator, edge = random_pair()
    else:
        values = read_values(Path(options.generator))
        use_few_threads(values)
        generator = load_generator(options.generator)
        edge = load_model(recorded_path(values, "edge", Path(options.generator)))
    edge = generator.speaking(edge)
    drawn = tasks(options.generator, seed=0)
    cards = specialize(generator, [system for system, _ in drawn])
    asked = [(card, user) for card, (_, users) in enumerate(drawn) for user in users]
    Random(0).shuffle(asked)
    name = "random, of smollm2's shapes" if options.random else options.generator
    result: dict[str, Any] = {"generator": name, "dtype": str(edge.dtype)}
    if "served" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            for number, card in enumerate(cards):
                card.save(Path(folder) / f"card{number}.json")
            service = Service(generator, edge, Path(folder), Limits(slots=BATCH))
            with Running(service) as url:
                result["throughput"] = requests_per_second(
                    generator, edge, url, asked, cards, options.repeats
                )
                result["card_seconds"] = card_seconds(url, options.generator)
    if "decoding" in options.parts:
        result["decoding"] = step_milliseconds(generator, edge, cards, 4 * options.repeats)
    result["provenance"] = provenance([Path(sys.executable).name, *sys.argv])
    text = json.dumps(result, indent=1)
    write_file(options.json, text + "\n", overwrite=True)
    print(text)


if __name__ == "__main__":
    main()
