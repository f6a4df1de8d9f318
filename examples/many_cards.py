"""Many tasks in one batch: every row has a card of its own, and nothing is merged.

    python examples/many_cards.py

The cloud reads eight system prompts in one pass. The edge then answers one question under each, in
one batch. So one edge serves many tasks, and a new task costs some hundred bytes.
"""

import json
from random import Random

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.world import prompts

TASKS = 8


def main() -> int:
    generator = lg.load_generator("nano")
    edge = generator.speaking(lg.load_model(nano.EDGE))  # asks in the turns of the training

    rng = Random(0)
    tasks = [prompts.draw_prompt("composition", rng, "words") for _ in range(TASKS)]  # all unseen
    asked = [task.draw(rng) for task in tasks]

    cards = lg.specialize(generator, [task.system for task in tasks])  # one pass for all
    size = sum(len(json.dumps(card.to_dict())) for card in cards)
    print(f"{TASKS} cards, {size} bytes as JSON, fingerprints included")

    answers = lg.chat(edge, [question for question, _ in asked], gates=cards, max_new_tokens=32)
    right = 0
    for task, (question, target), answer in zip(tasks, asked, answers, strict=True):
        right += answer.strip() == target
        mark = "right" if answer.strip() == target else f"expected {target}"
        print(f"{task.system}\n    {question}  ->  {answer.strip()}  ({mark})")

    # The same questions under each other's cards: what a card does, no other does.
    crossed = [*cards[1:], cards[0]]
    others = lg.chat(edge, [question for question, _ in asked], gates=crossed, max_new_tokens=32)
    wrong = sum(a.strip() == target for a, (_, target) in zip(others, asked, strict=True))
    print(f"{right} of {TASKS} right; with another task's card {wrong}")
    return right - wrong


if __name__ == "__main__":
    main()
