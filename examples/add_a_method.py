"""A method of your own, asked the same questions as the built-in ones.

    python examples/add_a_method.py

`sharp` is LoRA-Gen with one expert per layer: of every card, only the largest gate is kept. The
comparison shows what the mixture of experts is worth.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.evaluate.answers import Generation, turns
from lorage_jax.evaluate.arms import Arm, Unit, ask
from lorage_jax.methods.method import get_method, register
from lorage_jax.world import prompts


@register
@dataclass(frozen=True, eq=False)
class Sharp(get_method("lora_gen")):
    name: ClassVar[str] = "sharp"
    what: ClassVar[str] = "a card of one expert per layer, merged"

    def prepare(self, prompts):
        ready = super().prepare(prompts)
        return [replace(one, card=sharpened(one.card)) for one in ready]


def sharpened(card):
    best = card.gates == card.gates.max(axis=-1, keepdims=True)
    return replace(card, gates=best.astype(np.float32))


def main(count: int = 16) -> dict[str, float]:
    edge = lg.load_generator("nano").speaking(lg.load_model(nano.EDGE, dtype="float32"))
    records = prompts.draw("composition", count, seed=0, family="words")
    systems, questions = zip(*((one.system, one.user) for one in records), strict=True)
    unit = Unit("words", systems, questions, range(count))
    names = ("lora_gen", "sharp", "bare")
    arms = [Arm(name, get_method(name).load(edge, nano.GENERATOR)) for name in names]

    def answer(arm, unit, placement, rows):
        texts = [turns(question, row) for question, row in zip(unit.questions, rows, strict=True)]
        return Generation(max_new_tokens=32)(arm.name, placement, texts)

    shares = {}
    for name, found in ask(arms, edge, [unit], answer).items():
        said = found["words"].answered.answers
        right = [a.strip() == r.target for a, r in zip(said, records, strict=True)]
        shares[name] = sum(right) / count
        print(f"{name:10} {shares[name]:.2f} right of {count}")
    return shares


if __name__ == "__main__":
    main()
