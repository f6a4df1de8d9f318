"""Few-case tuning of every prompt (the replies' Table 12): its card, trained on solved samples.

A card's LoRA becomes plain factors, which a few steps of Adam fit to solved samples of the prompt's
task: what `few_case` does in a run of its own, here for many prompts at once and while a prompt is
prepared. `tuned_fresh` is the control: the same samples and steps from a fresh LoRA of the same
rank, so that the prompt has no share in it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lorage_jax.buckets import bucket
from lorage_jax.data.batches import Rows
from lorage_jax.errors import DataError
from lorage_jax.fields import check_types, require_least
from lorage_jax.files.fingerprint import fingerprint_arrays
from lorage_jax.generator.loras import Updates, lora_leaves, without_expert_axis
from lorage_jax.generator.pool import assemble, assembled_rank
from lorage_jax.generator.trees import flatten
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.methods.method import (
    Conditioning,
    FromSamples,
    Method,
    Placement,
    Solved,
    register,
)
from lorage_jax.methods.own_loras import own_card, place_own
from lorage_jax.models.bits import program_params
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import initialise
from lorage_jax.models.model import Model
from lorage_jax.train.edge_loss import chunk_nll

BATCH = 8  # prompts that are tuned side by side


@dataclass(frozen=True)
class TuningSettings:
    """Settings of the tuning."""

    steps: int = 30
    learning_rate: float | None = None  # of Adam, constant; by default the method's `rate`
    samples: int = 5  # most solved samples per prompt
    seed: int = 0  # of fresh LoRAs

    def __post_init__(self):
        check_types(self)
        require_least(self, 1, "steps", "samples")


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
    fresh: ClassVar[bool] = False
    rate: ClassVar[float] = 1e-3  # better than three times of it on the nano pair

    edge: Model
    ours: LoraGen
    solved: Solved = field(default_factory=dict)
    tuning: TuningSettings = field(default_factory=TuningSettings)

    @classmethod
    def load(cls, edge: Model, source: Path | None = None) -> TunedCards:
        ours = LoraGen.load(edge, source)
        return cls(ours.generator.speaking(edge), ours)

    def prepare(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Makes and tunes a card per distinct prompt.

        Raises DataError for a sample that is longer than the edge's context.
        """
        distinct = list(dict.fromkeys(prompts))
        made = self.ours.prepare(distinct)
        asked = [self._tokens(prompt) for prompt in distinct]
        longest = max((len(q) + len(a) for one in asked for q, a in one), default=1)
        cards = [one.card for one in made if one.card is not None]
        pool = self.ours.generator.pool
        rank = max((assembled_rank(pool, card.gates) for card in cards), default=1)
        tuned: list[Any] = []
        for begin in range(0, len(distinct), BATCH):
            part = slice(begin, begin + BATCH)
            each = [self._start(card, rank) for card in cards[part]]
            factors = jax.tree.map(lambda *one: jnp.stack(one), *each)
            rows = _rows(
                asked[part], self.tuning.samples, bucket(longest, smallest=16, per_octave=4)
            )
            tuned += self._tuned(factors, rows, len(each))
        found = {
            prompt: Conditioning(
                card=own_card(self.edge, factors, 1.0, fingerprint_arrays(flatten(factors))),
                facts={**one.facts, "examples": len(pairs)},
            )
            for prompt, one, pairs, factors in zip(distinct, made, asked, tuned, strict=True)
        }
        return [found[prompt] for prompt in prompts]

    def place(self, edge: Model, rows: Sequence[Conditioning]) -> Placement:
        return place_own(edge, rows, self.edge.template)

    def _tokens(self, prompt: str) -> list[tuple[list[int], list[int]]]:
        """The (question, answer) token ids of a prompt's samples."""
        edge = self.edge
        assert edge.template is not None  # of `speaking`
        found = []
        for user, target in self.solved.get(prompt, ())[: self.tuning.samples]:
            question, answer = edge.template.prompt(user), edge.template.answer(target)
            if len(question) + len(answer) > edge.config.max_positions:
                raise DataError(
                    f"a solved sample has {len(question) + len(answer)} tokens; expected at most "
                    f"{edge.config.max_positions}, the edge's context. Leave it out."
                )
            found.append((question, answer))
        return found

    def _start(self, card: Any, rank: int) -> Updates:
        """The factors A [L, in, R] and B [L, R, out] of a card, or of a fresh LoRA."""
        if self.fresh:
            leaves = lora_leaves(self.edge.config, self.edge.config.projections, rank)
            return without_expert_axis(initialise(leaves, jax.random.key(self.tuning.seed)))
        factors = assemble(self.ours.generator.pool, jnp.asarray(card.gates), rank)
        return {name: {"a": a, "b": b} for name, (a, b) in factors.items()}

    def _tuned(self, factors: Updates, rows: Rows, count: int) -> list[Updates]:
        """The factors of each prompt after the steps, as one expert per layer."""
        params, settings = program_params(self.edge.params), self.tuning
        rate = self.rate if settings.learning_rate is None else settings.learning_rate
        done = _compiled(self.edge.config, settings.steps, params, factors, rows, rate)
        return [jax.tree.map(lambda x, i=i: x[i][:, None], done) for i in range(count)]


@register
@dataclass(frozen=True, eq=False)
class TunedFresh(TunedCards):
    """The control: a fresh LoRA per prompt, trained on the same samples in the same steps."""

    name: ClassVar[str] = "tuned_fresh"
    what: ClassVar[str] = "a fresh LoRA per prompt, trained on solved samples, merged"
    fresh: ClassVar[bool] = True
    rate: ClassVar[float] = 3e-3  # better than a third and three times of it on the nano pair


def _rows(
    asked: Sequence[Sequence[tuple[list[int], list[int]]]], samples: int, length: int
) -> Rows:
    """Samples as right-padded rows [P, samples, T]; a missing one is a row without a loss."""
    shape = (len(asked), samples, length)
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
