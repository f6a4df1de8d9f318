"""Cards, generators, adapters, LoRAs and models of older versions load and compute the same."""

import shutil

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.methods.lora import load_lora

TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def edge(old):
    return lg.load_model(old / "edge", "float32")


@pytest.fixture(scope="module")
def generator(old):
    return lg.load_generator(old / "generator")


@pytest.fixture
def check_logits(expected):
    """check_logits(name, model, ...): the last position's logits are those recorded as `name`."""

    def check(name, model, **how):
        tokens = np.asarray(expected["tokens"], np.int32)
        begin, end = expected["slice"]
        found = np.asarray(lg.forward(model, tokens, **how))[0, -1, begin:end]
        np.testing.assert_allclose(found, expected["logits"][name], **TOLERANCE)

    return check


def test_models_and_their_fingerprints(old, edge, generator, check_logits, expected):
    check_logits("edge", edge)
    check_logits("cloud", lg.load_model(old / "cloud", "float32"))
    check_logits("pretrain", lg.load_model(old / "model", "float32"))
    known = expected["fingerprints"]
    assert (edge.fingerprint, generator.cloud.fingerprint) == (known["edge"], known["cloud"])


def test_a_generator_finds_its_models_beside_it(old, tmp_path, expected):
    for name in ("cloud", "edge", "generator"):
        shutil.copytree(old / name, tmp_path / name)
    generator = lg.load_generator(tmp_path / "generator")
    assert generator.fingerprint == expected["fingerprints"]["generator"]
    assert generator.edge_source == tmp_path / "edge"
    gates = lg.specialize(generator, "Say 7 twice.").gates
    np.testing.assert_allclose(gates, expected["gates"], **TOLERANCE)


def test_a_card(old, edge, generator, check_logits, expected):
    card = lg.load_card(old / "special" / "card.json")
    np.testing.assert_allclose(card.gates, expected["card"], **TOLERANCE)
    check_logits("card", edge, gates=card, pool=generator.pool)
    check_logits("card", lg.merge(edge, generator.pool, card))


def test_what_specialize_left(old, edge, check_logits):
    check_logits("adapter", lg.load_adapter(old / "special" / "adapter", edge))
    check_logits("merged", lg.load_model(old / "special" / "merged", "float32"))


def test_an_old_folder_may_be_replaced(old, tmp_path):
    special = tmp_path / "special"
    shutil.copytree(old / "special", special)
    generator = ["--generator", old / "generator", "--prompt", old / "prompt.txt"]
    arguments = ["specialize", *generator, "--out", special, "--save", "card", "--overwrite"]
    from lorage_jax import cli

    assert cli.main([str(argument) for argument in arguments]) == 0
    assert (special / "card.json").is_file() and not (special / "merged").exists()


def test_a_lora_for_all_tasks(old, edge, check_logits):
    check_logits("lora", load_lora(old / "lora", edge))
