"""Runs lm-evaluation-harness with our models, through an `lm_eval.api.model.LM`.

Texts are tokenized as by lm-eval's own `hf` model, so all log-likelihoods of a folder agree with
that model's. `python -m lorage_jax.evaluate.harness ...` is lm-eval's command line, extended by
`--model lorage --model_args pretrained=DIR`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lorage_jax.buckets import bucket
from lorage_jax.data.templates import check_tokenizer
from lorage_jax.errors import ConfigError, DataError, LorageError
from lorage_jax.evaluate.host_chat import AS_TEXT, ChatRequests, HostChat
from lorage_jax.evaluate.host_settings import (
    as_hf_adapts,
    check_arguments,
    check_device,
    check_generation,
    longest_request,
    optional_number,
    read_number,
    read_numbers,
)
from lorage_jax.evaluate.protocol import ENCODINGS
from lorage_jax.fields import home_path
from lorage_jax.files.journal import Journal, request_key
from lorage_jax.generator.peft import load_adapter
from lorage_jax.hf.load import load_model
from lorage_jax.hf.tokenizer import load_tokenizer
from lorage_jax.infer.defaults import generation_defaults
from lorage_jax.infer.generate import eos_ids, generate_tokens
from lorage_jax.infer.place import place
from lorage_jax.infer.prefixes import Prefix
from lorage_jax.infer.sample import Sampling
from lorage_jax.infer.score import BATCH_TOKENS, fit, identity, score
from lorage_jax.infer.text import before_stops, spelling
from lorage_jax.models.experts import Experts
from lorage_jax.models.model import Model
from lorage_jax.progress import progress

HARNESS_TOKENS = 256  # of an answer: lm-eval's default

# Token ids, stop strings, maximum of new tokens, repetition penalty.
Job = tuple[list[int], tuple[str, ...], int, float]


class LorageLM(ChatRequests, TemplateLM):
    """Answers lm-eval's requests with a loaded `Model` or the model of a Hugging Face folder.

    `counts` holds totals since the last reset: requests, tokens read by the edge, and requests
    whose context was too long and lost its start.
    """

    def __init__(
        self,
        pretrained: str | Model,
        dtype: str = "auto",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        batch_tokens: int | str | None = None,
        max_gen_toks: int | str = HARNESS_TOKENS,
        encoding: str = "harness",
        journal: Journal | None = None,
        *,
        tokenizer: str | Any | None = None,
        peft: str | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | str | None = None,
        max_length: int | str | None = None,
        chat_template_args: dict[str, Any] | None = None,
        enable_thinking: bool | None = None,
        **others: Any,
    ):
        super().__init__()
        if encoding not in ENCODINGS:
            raise ConfigError(f"encoding is {encoding!r}; expected one of {', '.join(ENCODINGS)}.")
        check_arguments(others | {"enable_thinking": enable_thinking or None})
        check_device(device, jax.default_backend())
        if isinstance(pretrained, Model):
            model = pretrained
        else:
            model = load_model(home_path(pretrained), str(dtype).removeprefix("torch."))
        if isinstance(tokenizer, str):
            tokenizer = load_tokenizer(home_path(tokenizer))
        if tokenizer is not None:
            model = model.replace(tokenizer=tokenizer)
        check_tokenizer(model.tokenizer, model.source or "this model")
        if peft is not None:
            model = load_adapter(home_path(peft), as_hf_adapts(model))
        self.tokenizer = model.tokenizer
        self.add_bos_token = add_bos_token
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self.chat_template_args = {**(chat_template_args or {}), **thinking}
        self._prefix = optional_number(int, "prefix_token_id", prefix_token_id)
        self._longest = longest_request(max_length, model)
        self.batch_tokens = optional_number(int, "batch_tokens", batch_tokens)
        self.max_gen_toks = read_number(int, "max_gen_toks", max_gen_toks)
        self.encoding = encoding
        self.journal = Journal() if journal is None else journal
        self.reset(model)

    def reset(
        self,
        model: Model,
        encoding: str | None = None,
        prefix: Prefix | None = None,
        experts: Experts | None = None,
    ) -> None:
        """Switches to another model (same tokenizer) or encoding, and resets the counts.

        `prefix` stands in front of every request; `experts` with routers are applied next to
        the model.
        """
        self.model, self.prefix, self.experts = place(model), prefix, experts
        self.encoding = encoding or self.encoding
        self.counts = {"requests": 0, "edge_tokens": 0, "truncated": 0}

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a continuation without context: the tokenizer's bos, or eos.

        Of a tokenizer without both, that of the config, with which `hf` has none. Raises
        ConfigError if the config has none either.
        """
        config = self.model.config
        known = (self._first, config.bos_id, *config.eos_ids)
        found = [token for token in known if token is not None]
        if not found:
            raise ConfigError(
                "neither tokenizer nor config.json has a bos or eos token, to stand for an empty "
                "context; pass prefix_token_id=."
            )
        return found[0]

    @property
    def _first(self) -> int | None:
        """The prefix token by `hf`'s rule: as given, or the tokenizer's bos, or its eos."""
        if self._prefix is not None:
            return self._prefix
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """Tokens that a request may have; a longer one loses its start."""
        longest = self._longest or self.model.config.max_positions
        return longest - (0 if self.prefix is None else self.prefix.length)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids as in the `hf` model: with the tokenizer's special tokens, but only one bos."""
        if self.encoding == "trained":
            return self.model.template.tokens(string)
        options: dict[str, bool] = {}
        added = self.add_bos_token if add_special_tokens is None else add_special_tokens
        if added is not None:
            options["add_special_tokens"] = added
        first = self._first
        known = add_special_tokens is None and first is not None
        if known and string.startswith(self.tokenizer.decode(first)):
            options = {"add_special_tokens": False}
        return self.tokenizer.encode(string, verbose=False, **options)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self.encoding == "trained":
            turns = self.model.template
            return self.tok_encode(context), turns.content(continuation.removeprefix(turns.lead))
        return super()._encode_pair(context, continuation)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the greedy answer) of each (context, continuation)."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_options: Any
    ) -> list[tuple[float, bool]]:
        pairs: list[tuple[Sequence[int], Sequence[int]]] = [pair[1:] for pair in requests]
        size, room = self.model.config.vocab_size, self.max_length
        for i, (context, continuation) in enumerate(pairs):
            kept, asked, cut = fit(context, continuation, room, i, size)
            pairs[i] = (kept, asked)
            self._count(kept, cut)
        scores = score(
            self.model,
            pairs,
            pool=self.experts,
            prefixes=None if self.prefix is None else [self.prefix] * len(pairs),
            batch_tokens=self.batch_tokens,
            journal=self.journal,
        )
        for (text, _, _), answer in zip(requests, scores, strict=True):
            if text is not None:  # rolling windows have no text
                self.cache_hook.add_partial("loglikelihood", text, tuple(answer))
        return [(answer.loglikelihood, answer.greedy) for answer in scores]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """The log-likelihoods of whole texts, in lm-eval's rolling windows."""
        windows, owners = [], []
        for number, (text,) in enumerate(request.args for request in requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy answers, cut before the first stop string.

        Raises ConfigError if a request asks for sampling, and DataError if its answer leaves no
        room for the context.
        """
        jobs = [self._job(*request.args) for request in requests]
        front = [] if self.prefix is None else [self.prefix.identity]
        model = identity(self.model, self.experts)
        ends = [f"end {token}" for token in self._ends if token not in eos_ids(self.model)]
        base = request_key(model, *eos_ids(self.model), spelling(self.tokenizer), *front, *ends)
        keys = [
            request_key(
                "generate",
                base,
                np.asarray(ids, np.int32).tobytes(),
                *until,
                limit,
                *([] if penalty == 1 else [f"penalty {penalty}"]),
            )
            for ids, until, limit, penalty in jobs
        ]
        todo = {key: i for i, key in enumerate(keys) if self.journal.get(key) is None}
        # Longest first, grouped by settings.
        order = sorted(todo.values(), key=lambda i: (jobs[i][1:], -len(jobs[i][0])))
        batches = self.journal.part(self._generation_batches(order, jobs))
        share = len(order) // self.journal.processes
        with progress("generating", share) as advance, self.journal.exchanged():
            for batch in batches:
                _, until, limit, penalty = jobs[batch[0]]
                texts = self._generate([jobs[i][0] for i in batch], until, limit, penalty)
                self.journal.add({keys[i]: t for i, t in zip(batch, texts, strict=True)})
                advance(len(batch))
        answers = [self.journal.get(key) for key in keys]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    @property
    def _ends(self) -> Sequence[int]:
        """Ids that end an answer beside the config's: those of the trained turns."""
        return self.model.template.ends if self.encoding == "trained" else ()

    def room(self, settings: dict[str, Any]) -> int:
        """Number of context tokens that these generation settings leave room for.

        Raises DataError if there is no room.
        """
        limit = self._settings(settings)["max_gen_toks"]
        if limit >= self.max_length:
            raise DataError(
                f"{limit} new tokens were requested, but the model's context is {self.max_length}. "
                "Request fewer with --max-new-tokens."
            )
        return self.max_length - limit

    def _settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        return dict(normalize_gen_kwargs(read_numbers(settings), self.max_gen_toks))

    def _job(self, context: str, settings: dict[str, Any]) -> Job:
        """A request as it is run. Raises ConfigError for settings that are not obeyed."""
        values, defaults = self._settings(settings), generation_defaults(self.model)
        penalty = {**defaults, **values}.get("repetition_penalty") or 1.0
        penalty = read_number(float, "repetition_penalty", penalty)
        obeyed = {"repetition_penalty": None}
        check_generation(values | obeyed, defaults | obeyed)
        eos = self.tokenizer.decode([self.eot_token_id]) if self.eot_token_id is not None else None
        until = tuple(filter(None, handle_stop_sequences(list(values["until"]), eos=eos)))
        limit = values["max_gen_toks"]
        room = self.room(settings)
        ids = self.tok_encode(context) or [self.prefix_token_id]
        self._count(ids[-room:], len(ids) > room)
        return ids[-room:], until, limit, penalty

    def _generation_batches(self, order: Sequence[int], jobs: Sequence[Job]) -> Iterator[list[int]]:
        while order:
            ids, _, limit, _ = jobs[order[0]]
            settings = jobs[order[0]][1:]
            rows = max(1, (self.batch_tokens or BATCH_TOKENS) // bucket(len(ids) + limit))
            same = [i for i in order[:rows] if jobs[i][1:] == settings]
            yield same
            order = order[len(same) :]

    def _generate(
        self, rows: list[list[int]], until: Sequence[str], limit: int, penalty: float
    ) -> list[str]:
        def stopped(ids: list[int]) -> bool:  # by a string, where special tokens count as text
            text = self.tokenizer.decode(ids, skip_special_tokens=False)
            return any(stop in text for stop in until)

        def watch(outputs: list[list[int]], ended: list[bool]) -> list[bool]:
            return [end or stopped(ids) for ids, end in zip(outputs, ended, strict=True)]

        outputs = generate_tokens(
            self.model,
            rows,
            max_new_tokens=limit,
            sampling=Sampling(repetition_penalty=penalty),
            pool=self.experts,
            prefixes=None if self.prefix is None else [self.prefix] * len(rows),
            watch=watch,
            ends=self._ends,
        )
        return [before_stops(self.tokenizer, ids, until)[0] for ids in outputs]

    def _count(self, tokens: Sequence[int], cut: bool) -> None:
        self.counts["requests"] += 1
        known = 0 if self.prefix is None else self.prefix.shared(tokens)
        self.counts["edge_tokens"] += len(tokens) - known
        self.counts["truncated"] += cut


# Called as a function: as a decorator, its type would turn the class into a plain `LM`.
register_model("lorage")(LorageLM)


def run_tasks(
    model: LorageLM,
    tasks: dict[str, Any],
    limit: int | None,
    seed: int,
    chat: HostChat = AS_TEXT,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Runs lm-eval's tasks and returns the metrics and samples of each, in record order.

    Metrics have lm-eval's names: `acc`, `acc_stderr`, `exact_match,strict-match`.
    """
    for task in tasks.values():
        task.set_fewshot_seed(seed=seed)
    with _quiet():
        found: Any = evaluate(
            lm=model,
            task_dict={"tasks": tasks},
            limit=limit,
            log_samples=True,
            **chat.arguments(),
        )
    metrics = {}
    for name in tasks:
        values = {key: v for key, v in found["results"][name].items() if "," in key}
        metrics[name] = {key.removesuffix(",none"): v for key, v in values.items()}
        metrics[name]["n"] = len({sample["doc_id"] for sample in found["samples"][name]})
    return metrics, found["samples"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides lm-eval's progress bars, which no argument turns off; ours use the real stream."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except LorageError as error:  # the user's, without a traceback, as `lorage` tells it
        sys.exit(f"lorage: {error}")
