"""Few-case tuning of every prompt (the replies' Table 12): its card, trained on solved samples.

A card's LoRA becomes plain factors, which a few steps of Adam fit to solved samples of the prompt's
task: what `few_case` does in a run of its own, here for many prompts at once and while a prompt is
prepared. `tuned_fresh` is the control: the same samples and steps from a fresh LoRA of the same
rank, so that the prompt has no share in it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lorage_jax.buckets import bucket
from lorage_jax.data.batches import Rows
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.fields import check_types, require_least
from lorage_jax.files.journal import request_key
from lorage_jax.generator.card import Card
from lorage_jax.generator.loras import Updates, lora_leaves, without_expert_axis
from lorage_jax.generator.pool import assemble, assembled_rank
from lorage_jax.methods.cards import own_card, place_own
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.method import (
    Conditioning,
    FromSamples,
    Method,
    Placement,
    Solved,
    register,
)
from lorage_jax.models.bits import program_params
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import Leaf, count_values, initialise
from lorage_jax.models.model import Model
from lorage_jax.train.edge_loss import chunk_nll

BATCH = 8  # prompts that are tuned side by side
Pair = tuple[list[int], list[int]]  # token ids of a question and its answer


@dataclass(frozen=True)
class Start:
    """The factors A [L, in, R] and B [L, R, out] that a tuning begins with, and facts of them."""

    factors: Updates
    facts: dict[str, Any]


@dataclass(frozen=True)
class TuningSettings:
    """Settings of the tuning, by Adam with a constant learning rate.

    The default rate suits cards of SmolLM2-135M-Instruct; the nano pair's may have 1e-3.
    """

    steps: int = 30
    learning_rate: float = 3e-4
    seed: int = 0  # of fresh LoRAs

    def __post_init__(self):
        check_types(self)
        require_least(self, 1, "steps")


@register
@dataclass(frozen=True, eq=False)
class TunedCards(Method, FromSamples):
    """Specialises the edge with the prompt's card after training on solved samples.

    A prompt without samples keeps its card as it is.

    Attributes:
        edge: the model that is tuned, in the turns of the generator's training.
        ours: the generator that makes the cards.
        solved: samples of the prompts.
        tuning: settings.
    """

    name: ClassVar[str] = "tuned_cards"
    what: ClassVar[str] = "the prompt's card, trained further on solved samples, merged"
    frozen: ClassVar[tuple[str, ...]] = LoraGen.frozen
    beginning: ClassVar[str] = "the card of a system prompt"

    edge: Model
    ours: LoraGen
    solved: Solved = field(default_factory=dict)
    tuning: TuningSettings = field(default_factory=TuningSettings)

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> Self:
        if source is None:
            raise ConfigError(f"{cls.name} needs the folder of a generator; none was given.")
        ours = LoraGen.load(edge, source)
        return cls(ours.generator.speaking(edge), ours, tuning=cls.learning())

    @classmethod
    def learning(cls) -> TuningSettings:
        return TuningSettings()

    def given(self, solved: Solved, seed: int = 0, learning: TuningSettings | None = None) -> Self:
        tuning = dataclasses.replace(learning or self.tuning, seed=seed)
        return dataclasses.replace(self, solved=solved, tuning=tuning)

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Makes and tunes a card per distinct prompt.

        A sample that is longer than the edge's context loses the start of its question. Raises
        DataError if an answer alone is longer, and WeightsError for a generator of another edge.
        """
        distinct = list(dict.fromkeys(prompts))
        found = self._fitted(dict(zip(distinct, self._starts(distinct), strict=True)))
        return [found[prompt] for prompt in prompts]

    def fit(self, prompt: str, card: Card) -> Card:
        """The card of a prompt that was read before, after training on the prompt's samples.

        Errors are those of `prepare`.
        """
        made = self._fitted({prompt: self._start(card, {})})[prompt].card
        assert made is not None
        return dataclasses.replace(made, about={**card.about, **made.about})

    def _fitted(self, starts: Mapping[str, Start]) -> dict[str, Conditioning]:
        """Trains each prompt's start on its samples, those of like length side by side."""
        asked = {prompt: self._tokens(prompt) for prompt in starts}
        distinct = sorted(asked, key=lambda prompt: _longest(asked[prompt]))
        rank = max((_rank(start.factors) for start in starts.values()), default=1)
        most = max(map(len, asked.values()), default=0)
        found: dict[str, Conditioning] = {}
        for begin in range(0, len(distinct), BATCH):
            part = distinct[begin : begin + BATCH]
            factors = [_with_rank(starts[prompt].factors, rank) for prompt in part]
            rows = _rows([asked[prompt] for prompt in part], max(most, 1))
            for prompt, experts in zip(part, self._tuned(factors, rows), strict=True):
                facts = {**starts[prompt].facts, "examples": len(asked[prompt])}
                found[prompt] = Conditioning(card=self._card(prompt, experts), facts=facts)
        return found

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return place_own(edge, rows)

    def trained_values(self) -> int:
        return self.ours.trained_values()

    def _tokens(self, prompt: str) -> list[Pair]:
        """The token ids of a prompt's samples."""
        turns, room = self.edge.template, self.edge.config.max_positions
        assert turns is not None  # of `speaking`
        found = []
        for user, target in self.solved.get(prompt, ()):
            question, answer = turns.prompt(user), turns.answer(target)
            if len(answer) >= room:
                raise DataError(
                    f"the answer of a solved sample has {len(answer)} tokens; expected fewer than "
                    f"{room}, the edge's context. It begins {target[:40]!r}. Leave it out."
                )
            found.append((question[-(room - len(answer)) :], answer))
        return found

    def _starts(self, prompts: Sequence[str]) -> list[Start]:
        """The start of each prompt's tuning."""
        found = self.ours.prepare(prompts)
        return [self._start(one.card, one.facts) for one in found if one.card is not None]

    def _start(self, card: Card, facts: dict[str, Any]) -> Start:
        pool = self.ours.generator.pool
        card.check(self.edge, pool)
        factors = assemble(pool, jnp.asarray(card.gates), assembled_rank(pool, card.gates))
        return Start({name: {"a": a, "b": b} for name, (a, b) in factors.items()}, facts)

    def _tuned(self, factors: Sequence[Updates], rows: Rows) -> list[Updates]:
        """The factors of each prompt after the steps, as one expert per layer."""
        stacked = jax.tree.map(lambda *one: jnp.stack(one), *factors)
        params, settings = program_params(self.edge.params), self.tuning
        rate = settings.learning_rate
        done = _compiled(self.edge.config, settings.steps, params, stacked, rows, rate)
        return [jax.tree.map(lambda x, i=i: x[i][:, None], done) for i in range(len(factors))]

    def _card(self, prompt: str, experts: Updates) -> Card:
        pairs = self.solved.get(prompt, ())
        texts = [self.name, str(self.tuning), prompt, *(text for pair in pairs for text in pair)]
        name = request_key("tuned", self.ours.generator.fingerprint, *texts)
        origin = f"trained on {len(pairs)} solved samples, beginning with {self.beginning}"
        return own_card(self.edge, experts, 1.0, name, origin)


@register
@dataclass(frozen=True, eq=False)
class TunedFresh(TunedCards):
    """The control: a fresh LoRA per prompt, trained on the same samples in the same steps."""

    name: ClassVar[str] = "tuned_fresh"
    what: ClassVar[str] = "a fresh LoRA per prompt, trained on solved samples, merged"
    frozen: ClassVar[tuple[str, ...]] = ("edge",)
    beginning: ClassVar[str] = "a fresh LoRA"

    @property
    def rank(self) -> int:
        """The rank of a card's LoRA."""
        config = self.ours.generator.config
        opened = config.experts if config.routing == "gumbel" else config.top_k
        return config.rank * (opened if config.combine == "products" else 1)

    @property
    def leaves(self) -> dict[str, dict[str, Leaf]]:
        """The factors that are trained for each prompt."""
        return lora_leaves(self.edge.config, self.edge.config.projections, self.rank)

    def trained_values(self) -> int:
        """The number of values that are trained for one prompt."""
        return count_values(self.leaves)

    def _starts(self, prompts: Sequence[str]) -> list[Start]:
        drawn = initialise(self.leaves, jax.random.key(self.tuning.seed))
        return [Start(without_expert_axis(drawn), {})] * len(prompts)

    @classmethod
    def learning(cls) -> TuningSettings:
        return TuningSettings(learning_rate=1e-3)


def _longest(pairs: Sequence[Pair]) -> int:
    return max((len(question) + len(answer) for question, answer in pairs), default=1)


def _rank(factors: Updates) -> int:
    return next(iter(factors.values()))["a"].shape[-1]


def _with_rank(factors: Updates, rank: int) -> Updates:
    """The same update with ranks added whose A and B are zero; no gradient reaches those."""
    more = rank - _rank(factors)
    return {
        name: {
            "a": jnp.pad(one["a"], ((0, 0), (0, 0), (0, more))),
            "b": jnp.pad(one["b"], ((0, 0), (0, more), (0, 0))),
        }
        for name, one in factors.items()
    }


def _rows(asked: Sequence[Sequence[Pair]], samples: int) -> Rows:
    """Samples as right-padded rows [P, samples, T]; a missing one is a row without a loss."""
    shape = (len(asked), samples, bucket(max(map(_longest, asked)), per_octave=4))
    tokens, mask, wanted = np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, bool)
    mask[..., 0] = True  # no row is empty
    for i, pairs in enumerate(asked):
        for j, (question, answer) in enumerate(pairs):
            end = len(question) + len(answer)
            tokens[i, j, :end] = question + answer
            mask[i, j, :end] = True
            wanted[i, j, len(question) : end] = True
    return Rows(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(wanted))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3,))
def _compiled(config, steps, params, factors, rows, rate):
    """Trains the factors [P, ...] of P prompts side by side, each on its own rows [P, samples, T].

    The loss is summed over a prompt's answer tokens, as Adam takes the same steps for any multiple.
    """
    decoder, optimizer = Decoder(config), optax.adam(rate)
    name = "embed" if config.tied_head else "head"
    head = {name: params[name]}

    def tuned(factors, rows):
        def loss(factors):
            given = {"adapters": factors, "adapter_scale": 1.0}
            return chunk_nll(decoder, params, head, rows, None, **given)[0]

        def step(carry, _):
            factors, state = carry
            changes, state = optimizer.update(jax.grad(loss)(factors), state)
            return (optax.apply_updates(factors, changes), state), None

        begin = (factors, optimizer.init(factors))
        return jax.lax.scan(step, begin, None, length=steps)[0][0]

    return jax.vmap(tuned)(factors, rows)
