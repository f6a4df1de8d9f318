"""Peak memory of load, merge and export, in a fresh process (Linux).

There are two figures: anonymous memory, which the machine must have, and resident memory, which
includes the pages of mapped weight files, although the system may drop them at any time.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from lorage_jax.bench.edge import random_edge
from lorage_jax.chips import GIB
from lorage_jax.config import ModelConfig
from lorage_jax.data.tokenizer import train_tokenizer
from lorage_jax.errors import ConfigError
from lorage_jax.generator.merge import merge
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from lorage_jax.hf.save import save_model
from lorage_jax.models.presets import with_layers

STATUS = Path("/proc/self/status")


def bench_export(config: ModelConfig, repeats: int, dtype: str) -> dict[str, Any]:
    """Measures the peak memory of load, merge and export together, and of the export alone.

    The base is a folder of this shape in shards of 500 MB. Figures are in GiB, and each is the
    worst of `repeats` runs. Raises ConfigError except on Linux.
    """
    if not STATUS.exists():
        raise ConfigError("bench export reads /proc, which only Linux has.")
    spawn = multiprocessing.get_context("spawn")  # fresh processes: no earlier memory counts
    with tempfile.TemporaryDirectory() as root:
        maker = spawn.Process(target=_make, args=(root, config, dtype))
        maker.start()
        maker.join()
        size = sum(file.stat().st_size for file in Path(root, "base").glob("*.safetensors"))
        runs = []
        for number in range(repeats):
            worker = spawn.Process(target=_work, args=(root, config, dtype, number))
            worker.start()
            worker.join()
            runs.append(json.loads(Path(root, f"{number}.json").read_text("utf-8")))
    worst = {name: max(run[name] for run in runs) for name in runs[0]}
    base = size / GIB
    return {
        "layers": config.layers,
        "dtype": dtype,
        "base_gib": base,
        **worst,
        "export_anonymous_over_base_gib": worst["export_anonymous_gib"] - base,
        "export_resident_over_base_gib": worst["export_resident_gib"] - base,
    }


def _make(root: str, config: ModelConfig, dtype: str) -> None:
    edge, _, _ = random_edge(config, dtype)
    tokenizer = train_tokenizer(["a"], 300, bos=True)
    save_model(edge.replace(tokenizer=tokenizer), Path(root, "base"), shard_bytes=500 << 20)


def _work(root: str, config: ModelConfig, dtype: str, number: int) -> None:
    # The card and pool come from a shallow copy: only its shapes and its random experts count.
    _, pool, _ = random_edge(with_layers(config, 1), dtype)
    pool = pool.replace(
        experts=jax.tree.map(lambda x: x.repeat(config.layers, axis=0), pool.experts),
        scope="per_layer",
    )
    _, _, card = random_edge(with_layers(config, 1), dtype)
    card = dataclasses.replace(card, gates=card.gates.repeat(config.layers, axis=0))
    with _peaks() as whole:
        edge = load_model(Path(root, "base"), dtype)
        card = dataclasses.replace(card, edge=edge.fingerprint)
        special = merge(edge, pool, card, donate=True)
        jax.block_until_ready(special.params)
        del edge
        with _peaks() as export:
            began = time.perf_counter()
            export_merged(special, Path(root, f"merged{number}"))
            seconds = time.perf_counter() - began
    result = {
        "whole_anonymous_gib": whole["RssAnon"] / GIB,
        "whole_resident_gib": whole["VmRSS"] / GIB,
        "export_anonymous_gib": export["RssAnon"] / GIB,
        "export_resident_gib": export["VmRSS"] / GIB,
        "export_seconds": seconds,
    }
    Path(root, f"{number}.json").write_text(json.dumps(result), "utf-8")


@contextmanager
def _peaks() -> Iterator[dict[str, int]]:
    """Highest RssAnon and VmRSS in bytes while the block runs, sampled every 2 ms."""
    peaks = {"RssAnon": 0, "VmRSS": 0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            for line in STATUS.read_text("utf-8").splitlines():
                name, _, rest = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(rest.split()[0]) << 10)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()
