"""Data configuration: sources of records, and the shape of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorage_jax.fields import check_types, expand_home, require, require_least


@dataclass(frozen=True)
class HeldOut:
    """The shares of a source of `tasks` that training never sees.

    A hash of `seed` and the text itself decides, so the same task, wording or input is held out
    wherever it stands: in another file, in part of the file, among other tasks.
    """

    tasks: float = 0.1
    paraphrases: float = 0.2  # of the definitions
    instances: float = 0.2  # by their input
    seed: int = 0
    by: Literal["task", "group"] = "task"  # `group`: hold out whole groups of tasks

    def __post_init__(self):
        check_types(self)
        for name in ("tasks", "paraphrases", "instances"):
            share = getattr(self, name)
            require(0 <= share < 1, f"held_out.{name} is {share}; expected 0 or more, below 1.")


@dataclass(frozen=True)
class PromptForms:
    """How often the prompt of a source of `tasks` has which form, relative to the others."""

    definition: float = 1.0  # a drawn paraphrase
    samples: float = 1.0  # drawn samples
    both: float = 1.0

    def __post_init__(self):
        check_types(self)
        shares = (self.definition, self.samples, self.both)
        require(
            min(shares) >= 0 and sum(shares) > 0,
            f"forms are {shares}; expected shares of 0 or more, one of them above 0.",
        )


@dataclass(frozen=True)
class Source:
    """One data set. `path` is a local .json/.jsonl(.gz) file, a `datasets` name, or `synthetic`.

    `kind`: `instruction` rows are {instruction, input, output}, {system, user, target} or chats
    of any number of turns, {messages}; `choices` rows are {question, choices, label} of one task,
    whose description and randomly drawn samples become the system prompt; `tasks` rows are whole
    tasks, {name, definition, instances}, in a file or a folder of files, and `split` is `train`, or
    one of what `held_out` keeps from training: `instances`, `paraphrases` or `tasks`; `synthetic`
    is the built-in data, whose `name` picks a family (`words`, `tools`; empty: all that have the
    split); `text` rows are {text}, prose for `lorage pretrain`.
    """

    path: str
    kind: Literal["instruction", "choices", "tasks", "synthetic", "text"] = "instruction"
    name: str = ""  # task (`choices`), family (`synthetic`), or configuration of a `datasets` name
    split: str = "train"
    shots: tuple[int, int] = (0, 5)  # `choices`, `tasks`: fewest and most samples in the prompt
    needs_input: bool = False  # drop instruction rows whose input is empty
    limit: int | None = None  # only the first rows of the file; of records, the first usable ones
    weight: float = 1.0  # share of the batches, relative to other sources
    skip_bad_rows: int = 0  # rows that cannot be used are skipped and reported, up to this many
    held_out: HeldOut = HeldOut()  # `tasks` only
    forms: PromptForms = PromptForms()  # `tasks` only
    # Only this task: its name (`tasks`, `synthetic`), or the system prompt of its rows
    # (`instruction`); empty: all. A source of `choices` is one task.
    task: str = ""

    def __post_init__(self):
        check_types(self)
        expand_home(self, "path")
        require(
            self.skip_bad_rows >= 0,
            f"skip_bad_rows is {self.skip_bad_rows}; expected the number of rows that may be "
            "skipped, 0 or more.",
        )
        require(
            0 <= self.shots[0] <= self.shots[1],
            f"shots is {self.shots}; expected (fewest, most) with 0 <= fewest <= most.",
        )
        require(
            not self.task or self.kind in ("instruction", "tasks", "synthetic"),
            f"task is {self.task!r}, but a source of kind {self.kind} has no tasks to choose from.",
        )
        require(self.weight > 0, f"weight is {self.weight}; expected more than 0.")
        require(
            self.limit is None or self.limit >= 1,
            f"limit is {self.limit}; expected 1 or more, or None for all rows.",
        )


@dataclass(frozen=True)
class DataConfig:
    """A batch: P prompts with Q queries each; the cloud reads P rows, the edge P x Q rows."""

    sources: tuple[Source, ...]
    prompts_per_batch: int = 64  # P
    queries_per_prompt: int = 1  # Q
    max_prompt_tokens: int = 1024  # largest S, in cloud tokens
    max_query_tokens: int = 1024  # largest T, in edge tokens, input and target together
    # Turns: `plain` (System, User, Assistant), `chat` (each model's own chat template), or `auto`
    # (chat where both models have one).
    template: Literal["plain", "chat", "auto"] = "plain"
    assistant_turns: Literal["last", "all"] = "last"  # answers of a chat that are learnt from
    # Lengths are padded to min_bucket times a power of two (packed rows: four sizes per doubling),
    # at most to the maximum.
    min_bucket: int = 32
    prompt_chunks: int = 1  # sort the prompts by length and pad them in this many chunks
    # Or pack the P prompts into this many rows, P / packed_rows per row, and the queries likewise.
    packed_rows: int | None = None

    def __post_init__(self):
        check_types(self)
        require(len(self.sources) > 0, "data.sources is empty; name at least one Source.")
        for source in self.sources:
            require(
                source.kind != "text",
                f"the source {source.path} is of kind text: prose has no system prompts to learn "
                "from. Use it in a Corpus of `lorage pretrain`, or give rows with prompts here.",
            )
        require_least(self, 1, "prompts_per_batch", "queries_per_prompt", "min_bucket")
        require_least(self, 1, "max_prompt_tokens", "max_query_tokens", "prompt_chunks")
        if self.packed_rows is not None:
            require(
                self.packed_rows >= 1 and self.prompts_per_batch % self.packed_rows == 0,
                f"packed_rows is {self.packed_rows}; expected a divisor of the "
                f"{self.prompts_per_batch} prompts of a batch.",
            )
            require(
                self.prompt_chunks == 1,
                "prompt_chunks and packed_rows both reduce padding; set only one of them.",
            )

    @property
    def prompts_per_row(self) -> int:
        """Prompts in one row of the cloud: 1, unless rows are packed."""
        return 1 if self.packed_rows is None else self.prompts_per_batch // self.packed_rows

    @property
    def rows(self) -> int:
        """B = P x Q."""
        return self.prompts_per_batch * self.queries_per_prompt
