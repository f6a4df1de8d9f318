"""A system prompt becomes a model: specialise, chat, export, load again.

    python examples/specialise_and_chat.py [OUT]

The bundled pair; no download. OUT (by default runs/example) gets a Hugging Face folder, a PEFT
folder and the card. For a model of your own: your generator's folder in the place of "nano".
"""

import sys
from pathlib import Path

import lorage_jax as lg
from lorage_jax import nano

PROMPT = (
    "Put bars on each side of words. Write all the words in upper case. Move the last word to "
    "first place."
)
QUESTIONS = ["city king frog star", "lion leaf gold corn"]


def main(out: Path) -> list[str]:
    generator = lg.load_generator("nano")  # the cloud and everything trained
    edge = lg.load_model(nano.EDGE)  # the small model that will answer

    card = lg.specialize(generator, PROMPT)  # one pass of the cloud over the prompt
    print(f"gates of {card.gates.shape[0]} layers x {card.gates.shape[1]} experts")

    special = lg.merge(edge, generator.pool, card)  # same shapes; the edge itself is untouched
    answers = lg.chat(special, QUESTIONS)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}  ->  {answer}")

    lg.export_merged(special, out / "merged", base=nano.EDGE, overwrite=True)
    lg.export_adapter(generator.pool, card, edge, out / "adapter", overwrite=True)
    card.save(out / "card.json", overwrite=True)

    again = lg.load_model(out / "merged")
    assert lg.chat(again, QUESTIONS) == answers
    print(f"{out} holds merged/, adapter/ and card.json; the reloaded model answers the same.")
    return answers


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"))
