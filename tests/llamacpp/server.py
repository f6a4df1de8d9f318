"""The real llama.cpp: its server in this process, for comparisons of logits, tokens and texts."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp

from lorage_jax.hf.gguf import gguf_tokenizer
from tests.llamacpp.models import texts


class LlamaServer:
    """A server with one model; adapters are loaded but not applied unless a request names them."""

    def __init__(self, path: Path, loras: Sequence[Path] = (), context: int = 256):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_gpu_layers, params.port, params.warmup = 0, 0, False
        params.n_ctx, params.n_parallel = context, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # others spin
        params.cache_ram_mib = 0  # it forgets with which adapter a prompt was read
        # By default, half of the precision goes into speed.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        disabled = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.flash_attn_type = disabled
        adapters = []
        for lora in loras:
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(lora), 0.0
            adapters.append(adapter)
        params.lora_adapters = adapters
        self._server = xllamacpp.Server(params)

    def post(self, path: str, **values: Any) -> Any:
        """The answer to a request, from JSON."""
        request = urllib.request.Request(
            self._server.listening_address + path,
            json.dumps(values).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def log_probabilities(self, tokens: Sequence[int], size: int, **more: Any) -> np.ndarray:
        """Of the token after these, [V]."""
        options: dict[str, Any] = {"n_predict": 1, "temperature": 0, "n_probs": size}
        # Without a text, such as an end or half a character, there is no answer; the bias chooses
        # the token, and is not in the probabilities.
        options["logit_bias"] = [[self.tokens("a")[-1], 1000]]
        prompt = [int(token) for token in tokens]
        answer = self.post("/completion", prompt=prompt, cache_prompt=False, **options, **more)
        found = np.full(size, np.nan)
        for one in answer["completion_probabilities"][0]["top_logprobs"]:
            found[one["id"]] = one["logprob"]
        return found

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are not special."""
        return self.post("/tokenize", content=text, parse_special=False)["tokens"]

    def get(self, path: str) -> Any:
        """The answer to a request without values, from JSON."""
        with urllib.request.urlopen(self._server.listening_address + path, timeout=60) as answer:
            return json.load(answer)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits, in float64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def check_read_tokens(server: LlamaServer, path: Path, count: int = 150) -> None:
    """The tokenizer that is read from the server's file splits texts as the server does."""
    tokenizer = gguf_tokenizer(path)
    for text in texts(count, composed=False):
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == server.tokens(text), text
    begun = server.post("/tokenize", content="It is 12.", add_special=True)["tokens"]
    assert tokenizer("It is 12.")["input_ids"] == begun
