"""A generator's training steps, one for every line on standard input; prints the seconds of each.

`experiments/speed/table.py` runs it on this version and on an earlier one, in turn. It therefore
uses what both have: `bench_train`, whose clock it replaces.

    echo | python experiments/speed/generator_step.py MODEL float32
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax

from lorage_jax.bench import train
from lorage_jax.config import GeneratorConfig
from lorage_jax.hf.config import model_config

ROWS, QUERIES = 8, 4
PROMPT_TOKENS, QUERY_TOKENS = 256, 128


def on_request(actions: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    """Calls the action for every line of the input, and prints its seconds."""
    ((name, action),) = actions.items()
    jax.block_until_ready(action())  # compiles
    print("ready", flush=True)
    taken = []
    for _ in sys.stdin:
        began = time.perf_counter()
        jax.block_until_ready(action())
        taken.append(time.perf_counter() - began)
        print(taken[-1], flush=True)
    return {name: taken or [1.0]}


def main(folder: str, dtype: Any) -> None:
    model = model_config(Path(folder))
    module: Any = train
    module.QUERIES, module.in_turn = (QUERIES,), on_request
    train.bench_train(
        model,
        model,
        GeneratorConfig(combine="products", rank=8),
        rows=ROWS,
        prompt_tokens=PROMPT_TOKENS,
        query_tokens=QUERY_TOKENS,
        repeats=1,
        dtype=dtype,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
