"""Measures `lorage serve` against llama.cpp's server with a LoRA file per card, on one machine.

python experiments/serve/llama_server.py --generator smollm2 \
    --json experiments/results/serve_llama_cpp.json

64 requests over 16 cards, as in throughput.py, arrive at once, in turn at
- `lorage serve`, the command, with weights of its default dtype;
- llama.cpp's server with the same edge and the same 16 cards as LoRA files, once for each type of
  the edge's weights in --types.
All servers have 16 slots; those that are not asked are idle. A request names its adapter with scale
1, and no prompt is taken from a cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from throughput import BATCH, CARDS, MOST, Clients, tasks

from lorage_jax import compilation
from lorage_jax.bench.timing import in_turn, largest_spread
from lorage_jax.files.outputs import write_file
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.lora_gguf import export_lora_gguf
from lorage_jax.generator.store import load_generator, read_values, recorded_path
from lorage_jax.hf.load import load_model
from lorage_jax.llamacpp.export import export_gguf
from lorage_jax.models.model import Model
from lorage_jax.provenance import provenance

CONTEXT = 256  # tokens of one request at llama.cpp's server
START_SECONDS = 900
OURS = "lorage_serve"


@contextmanager
def lorage_serve(generator: str, cards: Path, folder: Path) -> Iterator[str]:
    """The URL of the command, whose programs are compiled."""
    port = folder / "port"
    words = ["serve", "--generator", generator, "--cards", str(cards), "--slots", str(BATCH)]
    words += ["--port", "0", "--port-file", str(port)]
    command = [sys.executable, "-m", "lorage_jax.cli", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + START_SECONDS
    try:
        while not port.exists():
            assert process.poll() is None, "lorage serve has ended"
            assert time.monotonic() < deadline, "lorage serve does not listen"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port.read_text().strip()}"
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def llama_server(model: Path, loras: list[Path], threads: int) -> Iterator[str]:
    """The URL of llama.cpp's server."""
    script, pipe = Path(__file__).with_name("llama_child.py"), subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    values = {"model": str(model), "loras": list(map(str, loras)), "threads": threads}
    process.stdin.write(json.dumps(values | {"slots": BATCH, "context": CONTEXT}) + "\n")
    process.stdin.flush()
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.communicate(timeout=60)


def our_body(card: int, user: str) -> dict[str, Any]:
    """A request to `lorage serve`."""
    messages = [{"role": "user", "content": user}]
    return {"model": f"edge:card{card}", "messages": messages, "max_tokens": MOST}


def their_body(card: int, user: str) -> dict[str, Any]:
    """The same request to llama.cpp's server."""
    lora = [{"id": card, "scale": 1.0}]
    greedy = {"temperature": 0, "cache_prompt": False, "repeat_penalty": 1.0}
    return our_body(card, user) | {"lora": lora} | greedy


def write_files(
    generator: Generator, edge: Model, systems: list[str], types: list[str], folder: Path
) -> tuple[Path, list[Path], dict[str, Path]]:
    """The folder of the cards, their LoRA files, and the edge's files by type."""
    (folder / "cards").mkdir()
    loras = []
    cards = specialize(generator, systems)
    for number, card in enumerate(cards):
        card.save(folder / "cards" / f"card{number}.json")
        loras.append(folder / f"card{number}.gguf")
        export_lora_gguf(generator.pool, card, edge, loras[-1])
    files = {type: folder / f"edge-{type}.gguf" for type in types}
    for type, path in files.items():
        export_gguf(edge, path, type, template=cards[0].turns(edge))
    return folder / "cards", loras, files


def measured(
    ways: dict[str, tuple[str, Callable[[int, str], Any]]],
    asked: list[tuple[int, str]],
    repeats: int,
) -> dict[str, Any]:
    """Seconds and requests per second of every way, and the shares of answers that equal ours."""
    answers: dict[str, list[str]] = {}

    def run(name: str, url: str, body: Callable[[int, str], Any]) -> None:
        found = clients.ask(url, [body(*one) for one in asked])
        answers[name] = [text.strip() for text in found]

    actions = {name: partial(run, name, *way) for name, way in ways.items()}
    with Clients() as clients:
        times = in_turn(actions, repeats)
    took = {name: statistics.median(each) for name, each in times.items()}
    ours = answers[OURS]
    return {
        name: {
            "seconds": seconds,
            "requests_per_second": len(asked) / seconds,
            "equal_answers": float(
                np.mean([a == b for a, b in zip(ours, answers[name], strict=True)])
            ),
        }
        for name, seconds in took.items()
    } | {"largest_spread_within_one": largest_spread(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description="lorage serve against llama.cpp's server")
    parser.add_argument("--generator", default="smollm2", choices=["nano", "smollm2"])
    parser.add_argument("--types", nargs="+", default=["f32", "q8_0"])
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="of llama.cpp")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    compilation.keep_programs()
    generator = load_generator(options.generator)
    values = read_values(Path(options.generator))
    edge = load_model(recorded_path(values, "edge", Path(options.generator)))
    edge = generator.speaking(edge)
    drawn = tasks(options.generator, seed=0)
    asked = [(card, user) for card, (_, users) in enumerate(drawn) for user in users]
    Random(0).shuffle(asked)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, systems = Path(name), [system for system, _ in drawn]
        cards, loras, files = write_files(generator, edge, systems, options.types, folder)
        url = stack.enter_context(lorage_serve(options.generator, cards, folder))
        ways: dict[str, Any] = {OURS: (url, our_body)}
        for type, path in files.items():
            for threads in options.threads:
                url = stack.enter_context(llama_server(path, loras, threads))
                ways[f"llama_cpp_{type}_{threads}_threads"] = (url, their_body)
        result = {
            "generator": options.generator,
            "dtype_of_lorage_serve": str(edge.dtype),
            "requests": len(asked),
            "cards": CARDS,
            "lora_megabytes": round(loras[0].stat().st_size / 1e6, 2),
            "servers": measured(ways, asked, options.repeats),
            "provenance": provenance([Path(sys.executable).name, *sys.argv]),
        }
    text = json.dumps(result, indent=1)
    write_file(options.json, text + "\n", overwrite=True)
    print(text)


if __name__ == "__main__":
    main()
