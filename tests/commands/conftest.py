"""A user's folder, and a check that a command refuses bad input and changes nothing."""

import re
import shutil
from types import SimpleNamespace

import pytest

from tests.commands.world import EXPERIMENT, PROMPT, contents, lorage
from tests.tiny import make_tiny


@pytest.fixture(scope="session")
def world(tmp_path_factory, pair, data_file):
    """A user's folder: cloud, edge, data, an experiment, and the outputs of train and specialize.

    Shared: tests read it and write into their own tmp_path.
    """
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(pair[0], root / "cloud")
    shutil.copytree(pair[1], root / "edge")
    shutil.copy(data_file, root / "train.jsonl")
    make_tiny("llama", root / "cloud2", seed=8, num_hidden_layers=2, hidden_size=32)
    make_tiny("qwen2", root / "edge2", seed=9)
    (root / "exp.py").write_text(EXPERIMENT.format(root=root))
    (root / "prompt.txt").write_text(PROMPT + "\n")
    out = ("--out", root / "run", "--json", root / "train.json")
    assert lorage("train", root / "exp.py", *out) == 0
    generator, special = root / "run" / "generator", root / "special"
    made = ("--out", special, "--json", root / "special.json")
    prompt = ("--generator", generator, "--prompt", root / "prompt.txt")
    assert lorage("specialize", *prompt, *made) == 0
    return SimpleNamespace(root=root, generator=generator, special=special, prompt=prompt)


@pytest.fixture
def refuse(world, tmp_path, capfd):
    """Runs a command that must fail with exactly one message, matching `says`, and change nothing.

    Files that are in tmp_path before are watched, too.
    """

    def check(*args, says, code=1):
        before = contents(world.root, tmp_path)
        capfd.readouterr()
        assert lorage(*args) == code
        error = capfd.readouterr().err
        assert error.startswith("lorage: ") and error.count("lorage: ") == 1, error
        assert "Traceback" not in error and "Error(" not in error
        assert re.search(says, error), error
        assert contents(world.root, tmp_path) == before

    return check


@pytest.fixture
def specialize(world, tmp_path):
    """Arguments of a valid `lorage specialize`; `changes` map option names to values."""

    def args(**changes):
        options = {
            "generator": world.generator,
            "prompt": world.root / "prompt.txt",
            "out": tmp_path / "out",
        } | changes
        flags = [(f"--{name}", value) for name, value in options.items() if value is not True]
        switches = [f"--{name}" for name, value in options.items() if value is True]
        return ["specialize", *(part for flag in flags for part in flag), *switches]

    return args
