"""The names of `lorage_jax`, whatever was imported before."""

import importlib
import importlib.metadata
import logging
import re
from pathlib import Path

import pytest
import transformers

import lorage_jax as lg
from lorage_jax import cli
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


def test_train_is_the_function_and_the_room():
    """Importing the room `lorage_jax.train` does not hide the function of that name."""
    step = importlib.import_module("lorage_jax.train.step")
    assert lg.train.step is step
    with pytest.raises(AttributeError, match="'str' object"):
        lg.train("no configuration")
    with pytest.raises(AttributeError, match="'str' object"):
        training.train("no configuration")
