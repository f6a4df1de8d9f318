"""llama.cpp's server with one model and LoRA files, in a process of its own.

Reads one line of {"model", "loras", "threads", "slots", "context"}, answers with a line of {"url"},
and ends with its input. No adapter is applied unless a request names it.
"""

import json
import sys
from typing import Any

import xllamacpp as llama

llama: Any  # its names are not known before it runs


def start(model: str, loras: list[str], threads: int, slots: int, context: int) -> Any:
    """The server; `context` is in tokens per slot."""
    params = llama.CommonParams()
    params.model.path = model
    params.n_gpu_layers, params.port = 0, 0
    params.n_ctx, params.n_parallel = slots * context, slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0  # it forgets with which adapter a prompt was read
    adapters = []
    for path in loras:
        adapter = llama.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, 0.0
        adapters.append(adapter)
    params.lora_adapters = adapters
    return llama.Server(params)


if __name__ == "__main__":
    server = start(**json.loads(sys.stdin.readline()))
    print(json.dumps({"url": server.listening_address}), flush=True)
    sys.stdin.read()
