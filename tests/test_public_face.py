"""The names of `lorage_jax`, whatever was imported before."""

import importlib

import pytest

import lorage_jax as lg
from lorage_jax.methods import training


def test_every_name_is_there_and_what_its_home_has():
    for name in lg.__all__:
        assert getattr(lg, name) is not None


def test_train_is_the_function_and_the_room():
    """Importing the room `lorage_jax.train` does not hide the function of that name."""
    step = importlib.import_module("lorage_jax.train.step")
    assert lg.train.step is step
    with pytest.raises(AttributeError, match="'str' object"):
        lg.train("no configuration")
    with pytest.raises(AttributeError, match="'str' object"):
        training.train("no configuration")
