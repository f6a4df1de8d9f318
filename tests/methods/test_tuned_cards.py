"""Cards tuned on solved samples: peft on torch is the oracle; no prompt learns from another's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from lorage_jax.config import GeneratorConfig
from lorage_jax.errors import ConfigError, DataError, WeightsError
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.lora_folder import write_lora
from lorage_jax.generator.pool import assemble, assembled_rank
from lorage_jax.generator.store import save_generator
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods import tuned_cards
from lorage_jax.methods.tuned_cards import TunedCards, TunedFresh, TuningSettings
from tests.methods.test_lora import torch_folder
from tests.tiny import make_generator, make_tiny, torch_logits

# peft asks transformers in a way that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TOKENS = np.arange(5, 25)[None]
SOLVED = {
    "Say it twice.": [("go", "go go"), ("stop it", "stop it stop it")],
    "Shout.": [("go", "GO")],
}


@pytest.fixture(scope="module")
def edge(pair):
    return load_model(pair[1])


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    switches = GeneratorConfig(combine="products", top_k=2, rank=3, alpha=6.0, cloud_rank=4)
    folder = tmp_path_factory.mktemp("tuned") / "generator"
    save_generator(make_generator(pair[0], pair[1], switches, strength=0.05), folder)
    return folder


def tuned(kind, edge, folder, solved=SOLVED, **settings):
    method = kind.load(edge, folder).given(solved)
    return dataclasses.replace(method, tuning=TuningSettings(**settings))


def logits(method, edge, rows, tokens=TOKENS):
    placed = method.place(edge, rows)
    return np.asarray(forward(placed.model, tokens, gates=placed.cards, pool=placed.pool))


def test_three_steps_are_those_of_torch(pair, edge, folder, tmp_path):
    """From the card's PEFT folder: the summed loss of the answers' tokens, and torch's Adam."""
    prompt = "Say it twice."
    method = tuned(TunedCards, edge, folder, steps=3, learning_rate=5e-3)
    [row, _] = method.prepare([prompt, "Shout."])
    found = logits(method, edge, [row])

    pool, [start] = method.ours.generator.pool, method.ours.prepare([prompt])
    assert start.card is not None
    rank = assembled_rank(pool, start.card.gates)
    factors = assemble(pool, jnp.asarray(start.card.gates), rank)
    updates = {name: {"a": np.asarray(a), "b": np.asarray(b)} for name, (a, b) in factors.items()}
    (tmp_path / "card").mkdir()
    write_lora(tmp_path / "card", edge, updates, rank, float(rank))
    model: Any = peft.PeftModel.from_pretrained(
        torch_folder(pair[1]), str(tmp_path / "card"), is_trainable=True
    )
    begun = torch_logits(model, TOKENS)
    adam = torch.optim.Adam([x for x in model.parameters() if x.requires_grad], 5e-3)
    assert method.edge.template is not None
    for _ in range(3):
        adam.zero_grad()
        for user, target in SOLVED[prompt]:
            asked, answer = method.edge.template.prompt(user), method.edge.template.answer(target)
            out = model(input_ids=torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
            torch.nn.functional.cross_entropy(out, torch.tensor(answer), reduction="sum").backward()
        adam.step()
    theirs = torch_logits(model, TOKENS)
    moved = np.abs(theirs - begun).max()
    assert moved > 0.02
    np.testing.assert_allclose(found, theirs, atol=0.02 * moved)


def test_what_was_tuned_is_exported(pair, edge, folder, tmp_path):
    method = tuned(TunedCards, edge, folder, steps=2, learning_rate=5e-3)
    [row] = method.prepare(["Shout."])
    ours = logits(method, edge, [row])
    assert row.card is not None and row.card.pool is not None
    export_adapter(row.card.pool, row.card, method.edge, tmp_path / "adapter")
    page = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert "trained on 1 solved samples, beginning with the card" in page
    adapted = peft.PeftModel.from_pretrained(torch_folder(pair[1]), str(tmp_path / "adapter"))
    export_merged(method.place(edge, [row]).model, tmp_path / "merged", base=pair[1])
    for model in (adapted.eval(), torch_folder(tmp_path / "merged")):
        atol = 2e-5 * np.abs(ours).max()
        np.testing.assert_allclose(torch_logits(model, TOKENS), ours, atol=atol)


def test_a_prompt_learns_from_its_own_samples_alone(edge, folder):
    method = tuned(TunedCards, edge, folder, steps=4)
    both = method.prepare([*SOLVED, *SOLVED])
    assert both[0] is both[2]
    [alone] = method.prepare(["Shout."])
    assert both[1].card is not None and alone.card is not None
    assert both[1].card.pool is not None and alone.card.pool is not None
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
        both[1].card.pool.experts,
        alone.card.pool.experts,
    )
    assert [row.facts["examples"] for row in both[:2]] == [2, 1]
    merged = [logits(method, edge, [row])[0] for row in both[:2]]
    beside = logits(method, edge, both[:2], np.repeat(TOKENS, 2, axis=0))
    np.testing.assert_allclose(beside, merged, atol=2e-5 * np.abs(beside).max())
    assert np.abs(merged[0] - merged[1]).max() > 0.1


@pytest.mark.parametrize("prompt", ["Say it twice.", "nothing solved"])
def test_it_begins_with_the_card(edge, folder, prompt):
    """Without samples, or without a step that moves, it is the card's own merge."""
    method = tuned(TunedCards, edge, folder, steps=1, learning_rate=1e-12)
    found = logits(method, edge, method.prepare([prompt]))
    card = logits(method.ours, edge, method.ours.prepare([prompt]))
    np.testing.assert_allclose(found, card, atol=2e-5 * np.abs(card).max())
    if prompt not in SOLVED:
        far = dataclasses.replace(method, tuning=TuningSettings(steps=3, learning_rate=1.0))
        kept = logits(far, edge, far.prepare([prompt]))
        np.testing.assert_allclose(kept, card, atol=2e-5 * np.abs(card).max())


def test_a_fresh_lora_knows_no_card(edge, folder):
    """It begins at the bare edge, with the rank of a card's LoRA, and learns from the samples."""
    still = tuned(TunedFresh, edge, folder, steps=1, learning_rate=1e-12)
    [row] = still.prepare(["Shout."])
    bare = np.asarray(forward(edge, TOKENS))
    np.testing.assert_allclose(logits(still, edge, [row]), bare, atol=1e-5 * np.abs(bare).max())
    card = tuned(TunedCards, edge, folder, steps=1).prepare(["Shout."])[0].card
    assert row.card is not None and row.card.pool is not None and card is not None
    shapes = [jax.tree.map(np.shape, one.pool.experts) for one in (row.card, card)]
    assert shapes[0] == shapes[1]
    each = [TunedFresh.load(edge, folder).given(SOLVED, seed=seed) for seed in (0, 1)]
    [a], [b] = (method._starts(["Shout."]) for method in each)
    assert np.abs(a.factors["up"]["a"] - b.factors["up"]["a"]).max() > 0.01

    def loss(method, prompt):
        model = method.place(edge, method.prepare([prompt])).model
        [(user, target)] = SOLVED["Shout."]
        asked, answer = model.template.prompt(user), model.template.answer(target)
        out = np.asarray(forward(model, [asked + answer]))[0, len(asked) - 1 : -1]
        return -torch.log_softmax(torch.tensor(out), -1)[range(len(answer)), answer].sum().item()

    learnt = tuned(TunedFresh, edge, folder, steps=10, learning_rate=1e-2)
    assert loss(learnt, "Shout.") < loss(still, "Shout.") - 0.1


def test_batches_do_not_matter(edge, folder, monkeypatch):
    """Prompts in any order, of two lengths and numbers of samples, in one batch or three."""
    solved = {**SOLVED, "Whisper.": [("STOP THAT NOW PLEASE", "stop that now please")] * 6}
    method = tuned(TunedCards, edge, folder, solved, steps=2)
    prompts = ["Whisper.", "Shout.", "Say it twice."]
    together = method.prepare(prompts)
    monkeypatch.setattr(tuned_cards, "BATCH", 1)
    alone = method.prepare(prompts)
    assert [row.facts["examples"] for row in together] == [6, 1, 2]
    for one, other in zip(together, alone, strict=True):
        assert one.card is not None and other.card is not None
        assert one.card.generator == other.card.generator
        found, again = logits(method, edge, [one]), logits(method, edge, [other])
        np.testing.assert_allclose(found, again, atol=1e-4 * np.abs(again).max())


def test_added_ranks_stay_empty():
    """A card with fewer open gates gets no capacity from those beside it."""
    factors = {"up": {"a": jnp.ones((2, 3, 1)), "b": jnp.ones((2, 1, 4))}}
    wide = tuned_cards._with_rank(factors, 3)["up"]

    def square(one):
        return jnp.sum(jnp.square(one["a"] @ one["b"] - 2.0))

    slope = jax.grad(square)(wide)
    np.testing.assert_array_equal(wide["a"] @ wide["b"], np.ones((2, 3, 4)))
    assert not slope["a"][..., 1:].any() and not slope["b"][:, 1:].any() and slope["a"].any()


def test_a_sample_that_is_too_long(edge, folder):
    """It loses the start of its question; an answer has to fit."""
    long = tuned(TunedCards, edge, folder, {"Shout.": [("go" * 400, "GO")]}, steps=1)
    [(question, answer)] = long._tokens("Shout.")
    assert (
        len(question) + len(answer) == 256
        and long.edge.template.prompt("go" * 400)[-1:] == (question[-1:])
    )
    far = tuned(TunedCards, edge, folder, {"Shout.": [("go", "GO" * 400)]})
    with pytest.raises(DataError, match=r"has \d+ tokens; expected fewer than 256, the edge's"):
        far.prepare(["Shout."])


def test_a_generator_of_another_edge(edge, folder, tmp_path):
    make_tiny(edge.config.family, tmp_path, seed=5)
    other = load_model(tmp_path)
    with pytest.raises(WeightsError, match="this card is for the edge model"):
        tuned(TunedCards, other, folder).prepare(["Shout."])
    with pytest.raises(ConfigError, match="tuned_cards needs the folder of a generator"):
        TunedCards.load(edge)
