"""GPT4Tools with a specialised edge: every record has its own tools, so its own adapter.

The edge answers many records a batch, each row under its own gates, and stops at `Observation:`.
Arms (what the cloud reads | what the edge reads):

    in_context         nothing | the whole instruction
    no_tools           nothing | the instruction without the tool lines
    specialized_tools  the static part | the instruction without the tool lines
    specialized        the static part | conversation, request and trace
and the controls of `specialized`, which say whether the prompt made the difference:
    shuffled           another record's static part, with other tools | as specialized
    random             a random string of as many cloud tokens | as specialized
    mean_gates         (the mean of all cards of the run) | as specialized
    no_adapter         nothing | as specialized
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from random import Random
from typing import Any, Literal

import numpy as np

from lorage_jax.data.gpt4tools import ToolRecord
from lorage_jax.data.templates import edge_prompt, encode
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.evaluate.controls import mean_card, random_prompts
from lorage_jax.evaluate.gpt4tools import average, corpus_score, score
from lorage_jax.evaluate.paired import paired_gap
from lorage_jax.files.journal import Journal, request_key
from lorage_jax.generator.card import Card
from lorage_jax.generator.generator import Generator
from lorage_jax.infer.generate import generate_tokens
from lorage_jax.infer.text import GrowingTexts
from lorage_jax.methods.lora_gen import fit_cloud, journaled_cards
from lorage_jax.models.model import Model
from lorage_jax.progress import progress

STOP = "Observation:"
# What the edge reads, a property of `Instruction`, and whose card it gets.
ARMS = {
    "in_context": ("text", None),
    "no_tools": ("without_tools", None),
    "specialized_tools": ("without_tools", "own"),
    "specialized": ("dynamic", "own"),
    "shuffled": ("dynamic", "shuffled"),
    "random": ("dynamic", "random"),
    "mean_gates": ("dynamic", "mean"),
    "no_adapter": ("dynamic", None),
}
PLAIN = ("in_context", "no_tools")  # without a generator
CONTROLS = {  # and what it means when one does as well as `specialized`
    "shuffled": "with another record's tools the edge does as well, so nothing shows that it "
    "learnt its own from the prompt",
    "random": "a random string serves as well, so nothing shows that the prompt got through",
    "mean_gates": "one card for all records serves as well, so nothing shows that the record's "
    "own prompt matters",
    "no_adapter": "nothing shows that the adapter does anything for this edge",
}
GAPS = ("success", "average")


def evaluate_agent(
    records: Sequence[ToolRecord],
    edge: Model,
    generator: Generator | None,
    *,
    arms: Sequence[str] | None = None,
    template: Literal["trained", "harness"] = "trained",
    max_new_tokens: int = 512,
    batch_rows: int = 16,
    limit: int | None = None,
    seed: int = 0,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Runs the arms (by default all that can be) over the first `limit` records.

    Returns JSON values {"arms", "gaps", "words", "samples", "cloud_seconds"}.

    Of each arm: n, official and strict scores with standard errors, mean tokens of the edge's
    input (as fed, before any cut), of the whole instruction by the edge's tokenizer and in the
    same template, their ratio (compression), mean cloud tokens, seconds, and how many inputs of
    edge and cloud were cut to the context. `gaps`: specialized minus each control, record by
    record, official scores. With `template` "trained" the edge reads `edge_prompt`, with
    "harness" the bare text. What `journal` holds already is not run again.
    """
    records, arms = list(records)[:limit], _checked(arms, generator)
    if not records:
        raise DataError("there are no records to evaluate; expected at least one.")
    # What can be wrong is, before the cloud reads for hours.
    wholes = _rows(edge, [record.instruction.text for record in records], template)
    room_for_input(edge, max_new_tokens)
    journal = journal if journal is not None else Journal()
    started = time.monotonic()
    cards, cloud_cut = _all_cards(records, generator, arms, seed, batch_rows, journal)
    cloud_seconds = time.monotonic() - started
    outcomes: dict[str, Any] = {}
    samples = [{"id": r.id, "gold": r.output, "predictions": {}, "scores": {}} for r in records]
    for arm in arms:
        part, whose = ARMS[arm]
        rows = _rows(edge, [getattr(record.instruction, part) for record in records], template)
        started = time.monotonic()
        own = cards[whose] if whose else None
        texts, cut = _answers(edge, generator, arm, rows, own, max_new_tokens, batch_rows, journal)
        seconds = time.monotonic() - started
        for sample, text in zip(samples, texts, strict=True):
            sample["predictions"][arm] = text
            sample["scores"][arm] = {
                mode: score(sample["gold"], text, mode) for mode in ("official", "strict")
            }
        edge_tokens, full_tokens = (float(np.mean([len(r) for r in x])) for x in (rows, wholes))
        outcomes[arm] = {
            "n": len(records),
            **_scores([sample["scores"][arm] for sample in samples]),
            "edge_tokens": edge_tokens,
            "full_tokens": full_tokens,
            "compression": full_tokens / edge_tokens,
            "cloud_tokens": _cloud_tokens(whose, own),
            "seconds": seconds,
            "truncated": cut,
            "cloud_truncated": cloud_cut.get(whose, 0),
        }
    gaps = _gaps(samples, arms)
    return {
        "arms": outcomes,
        "gaps": gaps,
        "words": _words(gaps, len(records)),
        "samples": samples,
        "cloud_seconds": cloud_seconds,
    }


def _checked(arms: Sequence[str] | None, generator: Generator | None) -> tuple[str, ...]:
    able = tuple(ARMS) if generator is not None else PLAIN
    for arm in arms or ():
        if arm not in ARMS:
            raise ConfigError(f"there is no arm {arm!r}; expected some of {', '.join(ARMS)}.")
        if arm not in able:
            raise ConfigError(
                f"the arm {arm} needs a generator; without one there are {' and '.join(PLAIN)}."
            )
    return able if arms is None else tuple(dict.fromkeys(arms))


def _rows(edge: Model, texts: Sequence[str], template: str) -> list[list[int]]:
    if template not in ("trained", "harness"):
        raise ConfigError(f"template is {template!r}; expected trained or harness.")
    wrap = edge_prompt if template == "trained" else str
    return [encode(edge.tokenizer, wrap(text), bos=True) for text in texts]


# Cards


def _all_cards(
    records: Sequence[ToolRecord],
    generator: Generator | None,
    arms: Sequence[str],
    seed: int,
    batch_rows: int,
    journal: Journal,
) -> tuple[dict[str, list[Card]], dict[str, int]]:
    """The cards by their kind, one a record, and how many prompts were cut for them."""
    wanted = {ARMS[arm][1] for arm in arms} - {None}
    if generator is None or not wanted:
        return {}, {}
    # Before any work: it may be impossible.
    donors = other_tools(records, seed) if "shuffled" in wanted else []
    fitted = [fit_cloud(generator, record.instruction.static) for record in records]
    prompts, cut = [prompt for prompt, _ in fitted], sum(cut for _, cut in fitted)
    cards: dict[str, list[Card]] = {}
    if wanted != {"random"}:
        own = cards["own"] = journaled_cards(generator, prompts, batch_rows, journal)
        cards["shuffled"] = [own[donor] for donor in donors]
        cards["mean"] = [mean_card(own)] * len(own)
    if "random" in wanted:
        strings = random_prompts(generator.cloud.tokenizer, prompts, seed)
        cards["random"] = journaled_cards(generator, strings, batch_rows, journal)
    return cards, {"own": cut, "shuffled": sum(fitted[donor][1] for donor in donors), "mean": cut}


def other_tools(records: Sequence[ToolRecord], seed: int) -> list[int]:
    """For each record the index of a random other one whose tools differ.

    Preferred is one that lacks the tools of the gold call: its prompt cannot help by chance.
    """
    rng, n = Random(f"shuffled/{seed}"), len(records)
    names = [set(record.instruction.tool_names) for record in records]
    donors = []
    for i, record in enumerate(records):
        order = [rng.randrange(n) for _ in range(min(n, 200))]
        differ = [j for j in order if names[j] != names[i]]
        differ = differ or [j for j in range(n) if names[j] != names[i]]
        if not differ:
            raise ConfigError(
                f"the arm shuffled needs records with other tools, but all {n} have those of "
                f"record {record.id}. Evaluate more records, or leave the arm out."
            )
        without = [j for j in differ if not names[j] & set(record.called)]
        donors.append((without or differ)[0])
    return donors


# Answers


def room_for_input(edge: Model, max_new_tokens: int) -> int:
    """Tokens that an input may have. ConfigError when the answer leaves none."""
    room = edge.config.max_positions - max_new_tokens
    if room < 1 or max_new_tokens < 1:
        raise ConfigError(
            f"max_new_tokens is {max_new_tokens}; expected 1 or more, and room for a question in "
            f"the edge's context of {edge.config.max_positions}. Ask for fewer: --max-new-tokens."
        )
    return room


def _answers(
    edge: Model,
    generator: Generator | None,
    arm: str,
    rows: Sequence[list[int]],
    cards: Sequence[Card] | None,
    max_new_tokens: int,
    batch_rows: int,
    journal: Journal,
) -> tuple[list[str], int]:
    """The answer to every row, in the order of the rows, and how many rows were cut."""
    room = room_for_input(edge, max_new_tokens)
    kept = [row[-room:] for row in rows]  # as lm-eval: the end is kept
    model = json.dumps(
        [
            edge.fingerprint,
            str(edge.dtype),
            repr(edge.config),
            edge.card.to_dict() if edge.card is not None else None,
            generator.fingerprint if cards is not None and generator is not None else None,
        ]
    )
    keys = [
        request_key(
            "gpt4tools",
            model,
            np.asarray(cards[i].gates, np.float32).tobytes() if cards is not None else b"",
            np.asarray(row, np.int32).tobytes(),
            max_new_tokens,
            STOP,
        )
        for i, row in enumerate(kept)
    ]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    todo = [i for key, i in first.items() if journal.get(key) is None]
    todo.sort(key=lambda i: len(kept[i]))
    with progress(arm, len(todo)) as advance:
        for start in range(0, len(todo), batch_rows):
            batch = todo[start : start + batch_rows]
            # The last batch is filled up: no program is compiled for it alone.
            filled = batch + batch[-1:] * (batch_rows - len(batch) if start else 0)
            growing = GrowingTexts(edge.tokenizer, [kept[i] for i in filled], (STOP,), None)
            generate_tokens(
                edge,
                [kept[i] for i in filled],
                max_new_tokens=max_new_tokens,
                gates=None if cards is None else [cards[i] for i in filled],
                pool=None if generator is None or cards is None else generator.pool,
                watch=growing.update,
            )
            journal.add({keys[i]: text for i, text in zip(batch, growing.texts, strict=False)})
            advance(len(batch))
    return [journal.get(key) for key in keys], sum(len(row) > room for row in rows)


# Figures


def _scores(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    out = {}
    for mode in ("official", "strict"):
        corpus = corpus_score([one[mode] for one in scores])
        out |= {mode: corpus["mean"], f"{mode}_stderr": corpus["stderr"]}
    return out


def _cloud_tokens(whose: str | None, cards: Sequence[Card] | None) -> float | None:
    """Mean over the records. Of the mean of all cards there is no number; nor without a card."""
    if cards is None or whose == "mean":
        return None
    return float(np.mean([card.about["cloud_tokens"] for card in cards]))


def _gaps(samples: Sequence[dict[str, Any]], arms: Sequence[str]) -> dict[str, Any]:
    def values(arm: str, name: str) -> list[float]:
        official = [sample["scores"][arm]["official"] for sample in samples]
        return [average(one) if name == "average" else one[name] for one in official]

    if "specialized" not in arms:
        return {}
    return {
        control: {
            name: asdict(paired_gap(values("specialized", name), values(control, name)))
            for name in GAPS
        }
        for control in CONTROLS
        if control in arms
    }


def _words(gaps: dict[str, Any], n: int) -> list[str]:
    """A sentence for each control that `specialized` does not clearly beat."""
    words = []
    for control, scores in gaps.items():
        gap = scores["average"]
        if gap["significant"] and gap["gap"] > 0:
            continue
        size = f"{gap['gap']:+.3f}"
        if gap["stderr"] is not None:
            size += f" ± {gap['stderr']:.3f}"
        verdict = "significantly worse" if gap["significant"] else "not significantly better"
        words.append(
            f"GPT4Tools: specialized is {verdict} than {control} (official average {size} over "
            f"{n} records): {CONTROLS[control]}."
        )
    return words
