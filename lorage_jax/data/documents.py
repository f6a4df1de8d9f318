"""Documents for pretraining, as rows of tokens: prose, or a system prompt with solved requests.

All requests of a prompt follow it as branches (`models.decoder.Branches`): each is read as
`chat_prompt` writes it, but the prompt is computed only once. Some documents show requests without
their prompt, as a specialised edge will see them.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, cast

import grain
import numpy as np
from jaxtyping import Array, Bool, Int

from lorage_jax.config import Corpus, PretrainConfig
from lorage_jax.data.batches import Batch, Group, Rows, pad_id
from lorage_jax.data.records import Skipped, require_text
from lorage_jax.data.sources import LoadedSource, load_source, seeded, skipped_note, source_rows
from lorage_jax.data.templates import chat_prompt, edge_target, encode, encode_target, own_bos
from lorage_jax.errors import ConfigError, DataError

# Arrays of `DocumentRows`, in the order of the fields of a slot in `_line`.
COLUMNS = ("tokens", "branch", "positions", "targets", "loss_mask", "answer_mask")

SAMPLE = 32  # documents checked before a run, to see if they fit into a row

PIECE = 6  # characters of prose per token of a row; of what does not fit, each epoch reads a part


class DocumentRows(Rows, kw_only=True):
    """Packed documents, B rows of T slots; `text` and `positions` as in `models.decoder.Branches`.

    Attributes:
        branch: 0 in a shared prompt, k in its k-th continuation.
        targets: the next token of the same branch, where `loss_mask` is True.
        answer_mask: True where that token belongs to an answer, or to prose.
    """

    branch: Int[Array, "*A R T"]
    targets: Int[Array, "*A R T"]
    answer_mask: Bool[Array, "*A R T"]


@dataclass(frozen=True)
class Document:
    """(prompt, answer) pairs whose prompts begin alike, or a single (text, "") of prose.

    Of prose that is longer than a row, one part is read: the first, and one further in each epoch.
    """

    texts: tuple[tuple[str, str], ...]
    index: int
    epoch: int = 0

    @property
    def is_prose(self) -> bool:
        return len(self.texts) == 1 and not self.texts[0][1]


class Documents:
    """Seeded, resumable batches for a whole run; each batch holds documents of one corpus.

    `parts`: prose that is longer than a row is read in parts, one per epoch in turn, instead of its
    first part in every epoch, as by runs of earlier versions.
    """

    def __init__(self, config: PretrainConfig, seed: int, parts: bool = True):
        self._config = config
        self._weights = [corpus.source.weight for corpus in config.corpora]
        sources = [_load(corpus, parts) for corpus in config.corpora]
        self._parts: list[Any] = seeded(sources, seed)
        self._places = [source.places for source in sources]
        # What was left out of the data.
        self.note = "\n".join(source.note for source in sources if source.note)

    def texts(self, count: int) -> list[str]:
        """The texts of `count` documents, mixed from all corpora by weight, for a tokenizer."""
        documents = grain.MapDataset.mix(self._parts, self._weights)
        return [
            prompt + (edge_target(answer) if answer else "")
            for i in range(count)
            for prompt, answer in cast(Document, documents[i]).texts
        ]

    def batches(self, tokenizer: Any) -> grain.IterDataset:
        """The batches of all steps, made by `pack_documents`.

        Raises ConfigError if no solved request fits into a row.
        """
        tokenizer = copy.deepcopy(tokenizer)  # another thread may use the caller's
        for corpus, part in zip(self._config.corpora, self._parts, strict=True):
            if corpus.source.kind != "text":
                _check_room(tokenizer, corpus, [part[i] for i in range(SAMPLE)])
        batched = [
            part.batch(corpus.documents, drop_remainder=True, batch_fn=_Encode(tokenizer, corpus))
            for part, corpus in zip(self._parts, self._config.corpora, strict=True)
        ]
        stages = [*self._config.stages(), self._config.steps]
        mixed = [self._mix(batched, *ends) for ends in itertools.pairwise(stages)]
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return grain.MapDataset.concatenate(mixed).to_iter_dataset(options)

    def _mix(self, batched: Sequence[grain.MapDataset], begin: int, end: int) -> grain.MapDataset:
        """The batches of steps `begin` to `end`, in which the same corpora are used throughout."""
        used = [n for n, corpus in enumerate(self._config.corpora) if corpus.used(begin)]
        # Before `begin`, no corpus has given more than one batch per step.
        parts = [batched[n][begin:] for n in used]
        return grain.MapDataset.mix(parts, [self._weights[n] for n in used])[: end - begin]

    def describe(self, index: int) -> str:
        """The file and line of an index in `group_ids`.

        Raises DataError if there is no such document.
        """
        for places, end in zip(self._places, accumulate(map(len, self._places)), strict=True):
            if 0 <= index < end:
                return places[index - end]
        raise DataError(f"there is no document {index}; the data end before it.")


def pack_documents(tokenizer: Any, documents: Sequence[Document], count: int, length: int) -> Batch:
    """Packs documents, longest first, into `count` rows of `length` slots.

    Returns a batch that has no prompts and one chunk of `DocumentRows`. Its `truncated` counts the
    documents that were cut or did not fit.
    """
    lines = [_line(tokenizer, document, length) for document in documents]
    out: dict[str, Any] = {
        name: np.zeros((count, length), bool if name.endswith("mask") else np.int32)
        for name in ("tokens", "mask", "text", *COLUMNS[1:])
    }
    out["tokens"][:] = pad_id(tokenizer)
    used, texts = [0] * count, [0] * count
    cut = 0
    for line in sorted(lines, key=len, reverse=True):
        columns = np.array(line[:length], np.int32).T
        size = columns.shape[1]
        row = next((row for row in range(count) if used[row] + size <= length), None)
        cut += row is None or len(line) > length
        if row is None:
            continue
        place = slice(used[row], used[row] + size)
        for name, column in zip(COLUMNS, columns, strict=True):
            out[name][row, place] = column
        out["mask"][row, place], out["text"][row, place] = True, texts[row]
        used[row], texts[row] = used[row] + size, texts[row] + 1
    ids = np.array([document.index for document in documents], np.int64)
    return Batch((), (DocumentRows(**out),), ids, cut)


def _line(tokenizer: Any, document: Document, length: int) -> list[tuple[int, ...]]:
    """One (token, branch, position, target, has target, is answer) per slot of a document."""
    sequences = []
    for prompt, answer in document.texts:
        ids = encode(tokenizer, prompt, bos=True)
        known = len(ids) if answer else 0
        ids += encode_target(tokenizer, answer) if answer else [tokenizer.eos_token_id]
        sequences.append((ids, known))
    if document.is_prose:
        sequences = [(_part(tokenizer, sequences[0][0], length, document.epoch), 0)]
    trunk = 0 if len(sequences) == 1 else _common([ids for ids, _ in sequences])
    line = []
    for branch, (ids, known) in enumerate(sequences, 1):
        shown = 0 if branch == 1 else trunk
        for at in range(shown, len(ids) - 1):
            # The trunk's last token has a different successor in every branch.
            at_fork = trunk > 0 and at == trunk - 1
            line.append(
                (
                    ids[at],
                    0 if at < trunk else branch,
                    at,
                    ids[at + 1],
                    not at_fork,
                    at + 1 >= known,
                )
            )
    return line


def _part(tokenizer: Any, ids: list[int], length: int, epoch: int) -> list[int]:
    """The part of a text that is read in an epoch: `length` targets, which follow those before.

    It begins like a text of its own, with the bos; without one, with the last token before it.
    """
    count = max(1, -(-(len(ids) - 1) // length))
    begin = 1 + length * (epoch % count)
    return [*(own_bos(tokenizer) or ids[begin - 1 : begin]), *ids[begin : begin + length]]


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix, but leaving each sequence a token of its own."""
    shortest = min(map(len, sequences)) - 1
    first = sequences[0]
    return next(
        (i for i in range(shortest) if any(ids[i] != first[i] for ids in sequences)), shortest
    )


def _check_room(tokenizer: Any, corpus: Corpus, sample: Sequence[Document]) -> None:
    """Raises ConfigError if no document of the sample fits into a row.

    A document that is cut loses its answers, so such rows would teach nothing.
    """
    shortest = min(len(_line(tokenizer, one, corpus.row_tokens)) for one in sample)
    if shortest > corpus.row_tokens:
        raise ConfigError(
            f"row_tokens is {corpus.row_tokens}, but documents of {corpus.source.path} are longer: "
            f"the shortest of {len(sample)} has {shortest} tokens. Raise row_tokens, or lower "
            f"queries ({corpus.queries})."
        )


@dataclass(frozen=True)
class _Encode:
    tokenizer: Any
    corpus: Corpus

    def __call__(self, batch: Sequence[Document]) -> Batch:
        return pack_documents(self.tokenizer, batch, self.corpus.rows, self.corpus.row_tokens)


def _load(corpus: Corpus, parts: bool) -> LoadedSource:
    """One corpus, as documents instead of groups."""
    if corpus.source.kind == "text":
        return _prose(corpus, parts)
    source = load_source(corpus.source, corpus.queries)

    def document(group: Group, generator: np.random.Generator) -> Document:
        system = None if generator.random() < corpus.blind else group.system
        texts = tuple((chat_prompt(asked, system), target) for *asked, target in group.queries)
        return Document(texts, group.index)

    def dataset(seed: int) -> grain.MapDataset:
        return source.dataset(seed).random_map(document, seed=seed)

    return dataclasses.replace(source, dataset=dataset)


def _prose(corpus: Corpus, parts: bool) -> LoadedSource:
    """All texts in pieces of about `row_tokens` tokens, each once per epoch.

    Of a piece with more tokens, each epoch has another part (`Document`), if `parts` is set.
    """
    skipped = Skipped(corpus.source.skip_bad_rows)
    rows = source_rows(corpus.source, skipped)[: corpus.source.limit]
    found = [
        (place, row)
        for place, row in rows
        if skipped.attempt(partial(require_text, row, "text", place)) is not None
    ]
    if not found:
        raise DataError(f"{corpus.source.path}: no row can be used. {skipped.summary}")
    size = PIECE * corpus.row_tokens
    spots = [(n, at) for n, (_, row) in enumerate(found) for at in range(0, len(row["text"]), size)]

    def document(position: int, index: int) -> Document:
        n, at = spots[index]
        text = found[n][1]["text"][at : at + size]
        return Document(((text, ""),), index, position // len(spots) if parts else 0)

    def dataset(seed: int) -> grain.MapDataset:
        order = grain.MapDataset.source(range(len(spots))).seed(seed).shuffle().repeat()
        return order.map_with_index(document)

    places = [f"{found[n][0]}, character {at}" for n, at in spots]
    return LoadedSource(dataset, places, skipped_note(corpus.source, skipped))
