"""The scripts and the notebook of examples/ run as they are, and show what they say they show."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from lorage_jax.hf import family as families
from lorage_jax.methods import method as methods

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def registries():
    """What the examples register is gone after each test."""
    families.get_family("llama")
    methods.discover()
    before = [(registry, dict(registry)) for registry in (families._REGISTRY, methods._REGISTRY)]
    yield
    for registry, names in before:
        for added in set(registry) - set(names):
            del registry[added]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_specialise_and_chat(tmp_path, capsys):
    answers = example("specialise_and_chat").main(tmp_path)
    assert answers == ["| STAR | CITY | KING | FROG |", "| CORN | LION | LEAF | GOLD |"]
    assert (tmp_path / "merged" / "config.json").is_file() and (tmp_path / "card.json").is_file()
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert answers[0] in capsys.readouterr().out


def test_many_cards():
    assert example("many_cards").main() >= 6  # right by its own card, less right by another


def test_add_a_method():
    shares = example("add_a_method").main(count=8)
    assert shares["lora_gen"] >= 0.75 > shares["sharp"] >= shares["bare"] == 0


def test_add_a_family(tmp_path):
    assert example("add_a_family").main(tmp_path / "model") < 1e-4


@pytest.mark.slow
def test_train_your_own(tmp_path):
    """Two steps only: it trains, saves, loads and asks."""
    scores = example("train_your_own").main(tmp_path / "run", steps=2)
    assert scores["specialised"] >= scores["another task's card"] >= 0


def test_every_script_has_a_test_and_is_short():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert len(SCRIPTS) == 5 and set(SCRIPTS) <= tests
    for name in SCRIPTS:
        assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) <= 60, name


def test_the_notebook(capsys):
    """Runs its cells in order, as Jupyter would; they use no magics."""
    notebook = json.loads((EXAMPLES / "lorage_jax.ipynb").read_text("utf-8"))
    assert notebook["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    names = {"__name__": "__main__"}
    for cell in cells:
        exec(compile(cell, "notebook", "exec"), names)
    assert names["own"] >= 28 and names["other"] <= 2
    assert capsys.readouterr().out.count("| STAR | CITY | KING | FROG |") == 2
