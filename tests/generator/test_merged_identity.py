"""A model with something merged is not its base: nothing is merged twice, no score is reused."""

import dataclasses

import numpy as np
import peft
import pytest
import torch
import transformers

from lorage_jax.errors import WeightsError
from lorage_jax.files.journal import Journal
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.generator.peft import load_adapter
from lorage_jax.generator.store import load_generator, save_generator
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from lorage_jax.infer.chat import chat
from lorage_jax.infer.forward import forward
from lorage_jax.infer.score import score
from tests.tiny import make_generator

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = [[5, 6, 7, 8]]
ALREADY = "already has an? (adapter|card) merged"


@pytest.fixture(scope="module")
def made(pair):
    """(generator, edge, two cards)."""
    generator = make_generator(*pair)
    return generator, load_model(pair[1]), specialize(generator, ["Say it twice.", "Be brief."])


@pytest.fixture(scope="module")
def folders(made, pair, tmp_path_factory):
    """An adapter that we exported, and one of peft."""
    generator, edge, cards = made
    root = tmp_path_factory.mktemp("adapters")
    export_adapter(generator.pool, cards[0], edge, root / "ours")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2)
    base = transformers.AutoModelForCausalLM.from_pretrained(str(pair[1]))
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(0, 0.2)
    model.save_pretrained(str(root / "theirs"))
    return root / "ours", root / "theirs"


def half(pool, edge, card, **how):
    return merge(edge, pool, card, dtype="bfloat16", **how)


@pytest.fixture(scope="module")
def merged(made, folders):
    """Every way to a model with something merged, all of other weights."""
    generator, edge, cards = made
    ours, theirs = folders
    return {
        "card": merge(edge, generator.pool, cards[0]),
        "rounded at random": half(generator.pool, edge, cards[0], rounding="stochastic", seed=0),
        "and otherwise": half(generator.pool, edge, cards[0], rounding="stochastic", seed=1),
        "to nearest": half(generator.pool, edge, cards[0], rounding="nearest"),
        "another card": merge(edge, generator.pool, cards[1]),
        "our adapter": load_adapter(ours, edge),
        "adapter": load_adapter(theirs, edge),
        "half an adapter": load_adapter(theirs, edge, [0.5]),
        "both": load_adapter([ours, theirs], edge),
        "one after the other": load_adapter(theirs, load_adapter(theirs, edge)),
    }


def test_each_has_a_fingerprint_of_its_own(made, merged):
    models = [made[1], *merged.values()]
    assert len({model.fingerprint for model in models}) == len(models)
    again = merge(made[1], made[0].pool, made[2][0])
    assert again.fingerprint == merged["card"].fingerprint


def test_nothing_goes_into_a_merged_model(made, merged, folders, tmp_path):
    generator, _, (card, _) = made
    pool = generator.pool
    for model in merged.values():
        for use in (
            lambda m=model: merge(m, pool, card),
            lambda m=model: forward(m, IDS, gates=card),
            lambda m=model: chat(m, "hi", gates=card, max_new_tokens=1),
            lambda m=model: score(m, [(IDS[0], [9])], gates=card, pool=pool),
            lambda m=model: export_adapter(pool, card, m, tmp_path / "out"),
        ):
            with pytest.raises(WeightsError, match=ALREADY):
                use()
    for name in ("card", "another card"):
        for folder in folders:
            with pytest.raises(WeightsError, match=ALREADY):
                load_adapter(folder, merged[name])
        with pytest.raises(WeightsError, match=ALREADY):
            forward(merged[name], IDS, gates=card.gates[None], pool=pool)
    for name in ("our adapter", "adapter", "both"):
        with pytest.raises(WeightsError, match="with another adapter merged"):
            load_adapter(folders[0], merged[name])
    assert not (tmp_path / "out").exists()


def test_nor_into_one_that_was_saved_and_loaded(made, merged, folders, tmp_path):
    export_merged(merged["card"], tmp_path / "merged")
    loaded = load_model(tmp_path / "merged")
    with pytest.raises(WeightsError, match="this card is for the edge model"):
        merge(loaded, made[0].pool, made[2][0])
    with pytest.raises(WeightsError, match="was made for an edge with the weights"):
        load_adapter(folders[0], loaded)


def test_a_generator_knows_its_cloud_from_an_adapted_one(made, pair, tmp_path):
    generator, _, cards = made
    save_generator(generator, tmp_path / "generator")
    own = dataclasses.replace(
        cards[0], edge=generator.cloud.fingerprint, edge_arithmetic=None
    )  # a card for the cloud, by hand
    special = generator.cloud.replace(card=own)
    with pytest.raises(WeightsError, match="not the cloud this generator was trained with"):
        load_generator(tmp_path / "generator", cloud=special)


def test_one_journal_for_all_of_them(made, merged, tmp_path):
    requests = [(IDS[0], [9, 10]), (IDS[0], [11]), (IDS[0][:2], [30, 31])]
    journal, seen = Journal.open(tmp_path / "progress"), []
    for number, model in enumerate([made[1], *merged.values()], start=1):
        found = [one.loglikelihood for one in score(model, requests, journal=journal)]
        right = [one.loglikelihood for one in score(model, requests)]
        np.testing.assert_allclose(found, right, atol=1e-5)
        assert len(journal) == number * len(requests)
        seen.append(found[0])
    assert np.ptp(seen[:2]) > 0.01  # else the base's score would pass as well
    unmerged = score(made[1], requests, gates=made[2][0], pool=made[0].pool, journal=journal)
    np.testing.assert_allclose(unmerged[0].loglikelihood, seen[1], atol=1e-3)
    assert len(journal) == (number + 1) * len(requests)
