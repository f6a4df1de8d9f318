"""The names of `lorage_jax`, whatever was imported before."""

import importlib
import importlib.metadata
import inspect
import logging
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers

import lorage_jax as lg
from lorage_jax import cli, nano
from lorage_jax.errors import ConfigError
from lorage_jax.generator.deploy import Outputs
from lorage_jax.infer.gates import row_gates
from lorage_jax.infer.sample import sampling_of
from lorage_jax.infer.score import score
from lorage_jax.methods import training


def test_every_name_is_there_and_what_its_home_has():
    for name in lg.__all__:
        assert getattr(lg, name) is not None


def test_the_version_is_that_of_the_package(capsys):
    assert lg.__version__ == importlib.metadata.version("lorage_jax")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lorage {lg.__version__}\n"


def test_transformers_does_not_complain_about_pytorch():
    """Its sentence is not heard, and no other is lost."""
    text = Path(str(transformers.__file__)).read_text("utf-8")
    (sentence,) = re.findall(r'"(PyTorch was not found[^"]*)"', text)
    logger = logging.getLogger("transformers")
    for message, heard in ((sentence, False), ("PyTorch is too old.", True)):
        record = logger.makeRecord(logger.name, logging.WARNING, "", 0, message, (), None)
        assert bool(logger.filter(record)) is heard


def test_arguments_of_another_kind_are_one_message():
    generator, edge = lg.load_generator("nano"), lg.load_model(nano.EDGE)
    card = lg.specialize(generator, "Say it twice.")
    # Without the checks of annotations, which tests add.
    merge, specialize = inspect.unwrap(lg.merge), inspect.unwrap(lg.specialize)
    forward, args = inspect.unwrap(lg.forward), (edge, generator.pool, card)
    for call, says in (
        (lambda: merge(edge, generator, card), r"^pool is of type Generator; .*gen\.pool\.$"),
        (lambda: merge(edge, generator.pool, [card]), "^card is of type list; expected one Card"),
        (lambda: merge("edge", generator.pool, card), "^edge is of type str; expected a Model"),
        (lambda: merge(*args, dtype="bf16"), "^dtype is 'bf16'; expected one of float32, bfloat"),
        (lambda: merge(*args, dtype=np.float32), "^dtype is of type type; expected one of float3"),
        (lambda: merge(*args, seed="a"), "^seed is of type str; expected a whole number, 0 to 42"),
        (lambda: merge(*args, seed=-1), "^seed is -1; expected a whole number, 0 to 4294967295"),
        (lambda: merge(*args, seed=2**32), "^seed is 4294967296; expected a whole number"),
        (lambda: Outputs(seed=10**20), "^seed is 10+; expected a whole number"),
        (lambda: specialize("nano", "x"), "^generator is of type str; .*load_generator"),
        (lambda: specialize(generator, 5), "^prompt is of type int; expected a text"),
        (lambda: specialize(generator, ["x", 5]), "^prompt 1 is of type int; expected a text"),
        (lambda: specialize(generator, {"a": "b"}), "^prompt is of type dict; expected a text"),
        (lambda: specialize(generator, b"ab"), "^prompt is of type bytes; expected a text"),
        (lambda: specialize(generator, {"a", "b"}), "^prompt is of type set; expected a text"),
        (lambda: forward("edge", [1]), "^model is of type str; expected a Model"),
        (lambda: forward(edge, "hello"), "^tokens are <U5.* expected token ids"),
        (lambda: forward(edge, [[1.9]]), "^tokens are float64.* whole numbers"),
        (lambda: forward(edge, np.zeros((1, 0), int)), r"shape \(1, 0\); .* 1 or more in each"),
        (lambda: forward(edge, np.zeros((1, 1, 1), int)), r"shape \(1, 1, 1\); expected token ids"),
        (lambda: forward(edge, [[1, 2], [3]]), "^the rows of tokens have different lengths"),
        (
            lambda: forward(edge, [[1, 2], [3, 4]], attention_mask=[[1, 1], [1]]),
            r"^attention_mask has rows of different lengths.* tokens, which are \(2, 2\)",
        ),
        (lambda: lg.generate(edge, "x", max_new_tokens=2.5), "^max_new_tokens is of type float"),
        (lambda: lg.chat(edge, "x", max_new_tokens="9"), "^max_new_tokens is of type str"),
    ):
        with pytest.raises(ConfigError, match=says):
            call()


def test_arguments_of_another_kind_are_one_message_everywhere(tmp_path):
    generator, edge = lg.load_generator("nano"), lg.load_model(nano.EDGE)
    card, out = lg.specialize(generator, "Say it twice."), tmp_path / "out"

    def plain(name, *args, **how):
        return lambda: inspect.unwrap(getattr(lg, name))(*args, **how)

    def weighed(gates, pool):
        return lambda: inspect.unwrap(row_gates)(edge, gates, pool, 1)

    def scored(gates):
        return lambda: score(edge, [([5], [6])], gates=gates, pool=generator.pool)

    def chat(**how):
        return plain("chat", edge, "x", max_new_tokens=1, **how)

    for call, says in (
        (plain("export_adapter", generator, card, edge, out), r"^pool is of type Generator; "),
        (
            plain("export_adapter", generator.pool, card, "edge", out),
            "^edge is of type str; ",
        ),
        (
            plain("export_lora_gguf", card, generator.pool, edge, out),
            "^pool is of type Card; ",
        ),
        (plain("load_adapter", "dir", "edge"), "^edge is of type str; expected a Model"),
        (plain("load_adapter", edge, edge), "^folder is of type Model; expected a PEFT folder"),
        (plain("export_gguf", generator, out), "^model is of type Generator; expected a Model"),
        (plain("save_generator", out, generator), "^generator is of type .*Path; expected a Gen"),
        (plain("load_model", 5), "^folder is of type int; expected a Hugging Face folder"),
        (plain("load_generator", None), "^folder is of type NoneType; expected a generator's"),
        (plain("load_card", {}), "^path is of type dict; expected a card file"),
        (plain("chat", "edge", "x"), "^model is of type str; expected a Model"),
        (plain("generate", "edge", "x", max_new_tokens=1), "^model is of type str; expected a M"),
        (weighed(card, generator), r"^pool is of type Generator; .*gen\.pool\.$"),
        (weighed(["card.json"], generator.pool), "^one of gates is of type str; .* a Card"),
        (weighed("card.json", generator.pool), "^one of gates is of type str; .* a Card"),
        (weighed([], generator.pool), "^gates are empty; expected one for each of 1 rows, of sh"),
        (weighed([np.ones((2, 3)), np.ones((3, 3))], generator.pool), r"the shapes \(2, 3\), \(3"),
        (weighed([[[1.0, 2.0], [3.0]]], generator.pool), "^one of gates is no array of numbers"),
        (scored(5), "^one of gates is of type int; expected a Card"),
        (scored("card.json"), "^one of gates is of type str; expected a Card"),
        (scored(np.array(5.0)), r"^gates have shape \(1,\); expected"),
        (chat(temperature="hot"), "^temperature is 'hot'; expected a number"),
        (chat(temperature=1.0, top_k=1.5), "^top_k is 1.5; expected a whole number"),
        (chat(temperature=1.0, seed=None, top_p="x"), "^top_p is 'x'; expected a number"),
        (
            lambda: inspect.unwrap(sampling_of)("x"),
            "^sampling is of type str; expected a Sampling",
        ),
        (chat(stop=5), "^stop is of type int; expected a text before which to stop"),
    ):
        with pytest.raises(ConfigError, match=says):
            call()
    assert not out.exists()


def test_a_notebook_shows_one_line():
    edge, generator = lg.load_model(nano.EDGE), lg.load_generator("nano")
    card = lg.specialize(generator, "Say it twice.")
    special = lg.merge(edge, generator.pool, card)
    abstract = jax.eval_shape(lambda pool: pool, generator.pool)
    empty = jax.tree.map(lambda _: None, generator.pool)
    for one, says in (
        (edge, rf"^Model\({edge.config.family}, \d+\.\d M parameters, float32, .*nano/edge\)$"),
        (special, r"with a card merged\)$"),
        (generator, r"^Generator\(cloud .* experts of rank \d+, .*\)$"),
        (generator.pool, r"^Pool\(\d+ experts of rank \d+ on gate, up, down, .* sha256:\w+\)$"),
        (abstract, r"^Pool\(\d+ experts"),
        (empty, r"^Pool\(experts on gate"),
    ):
        assert re.search(says, repr(one)) and len(repr(one)) < 400, repr(one)


def test_forward_is_traced_with_weights_and_gates():
    edge, generator = lg.load_model(nano.EDGE), lg.load_generator("nano")
    gates = np.full((edge.config.layers, generator.pool.count), 0.1, np.float32)

    def logits(params, gates):
        return lg.forward(edge.replace(params=params), [1, 2], gates=gates, pool=generator.pool)

    traced = jax.eval_shape(logits, edge.params, gates)
    assert traced.shape == (1, 2, edge.config.vocab_size)


def test_train_is_the_function_and_the_room():
    """Importing the room `lorage_jax.train` does not hide the function of that name."""
    step = importlib.import_module("lorage_jax.train.step")
    assert lg.train.step is step
    with pytest.raises(lg.LorageError, match="config is of type str; expected an ExperimentConfig"):
        lg.train("no configuration")
    with pytest.raises(lg.LorageError, match="config is of type str; expected an ExperimentConfig"):
        training.train("no configuration")
