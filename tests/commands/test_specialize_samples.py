"""`lorage specialize --samples`: the prompt's LoRA, trained on solved requests, then written."""

import json
from pathlib import Path

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax import cli, nano
from lorage_jax.data.solved import read_solved
from lorage_jax.errors import DataError
from lorage_jax.methods.tuned_cards import TunedCards, TuningSettings

PROMPT = "Write the words in reverse order."
PAIRS = [("king frog star", "STAR | FROG | KING"), ("", "NONE")]


@pytest.fixture
def files(tmp_path):
    """A prompt and two solved requests, one in each layout."""
    (tmp_path / "prompt.txt").write_text(PROMPT)
    rows = [{"user": PAIRS[0][0], "target": PAIRS[0][1]}, {"input": "", "output": PAIRS[1][1]}]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def asked(files, *more):
    prompt, out = str(files / "prompt.txt"), str(files / "out")
    return ["specialize", "--generator", "nano", "--prompt", prompt, "--out", out, *more]


def test_what_is_written_is_what_the_method_makes(files, capsys):
    given = ["--samples", str(files / "samples.jsonl"), "--tuning-steps", "3"]
    assert cli.main(asked(files, *given, "--tuning-rate", "0.01", "--dtype", "float32")) == 0
    assert "adapter, merged in" in capsys.readouterr().out
    assert not (files / "out" / "card.json").exists()
    edge = lg.load_model(nano.EDGE, "float32")
    method = TunedCards.load(edge, Path(nano.GENERATOR))
    generator = method.ours.generator
    card = lg.specialize(generator, PROMPT)
    method = TunedCards(method.edge, method.ours, tuning=TuningSettings(3, 0.01))
    [made] = method.given({PROMPT: PAIRS}).prepare([PROMPT])
    tokens = [method.edge.template.prompt("king frog star")]
    wanted = lg.forward(lg.merge(edge, made.card.pool, made.card), tokens)
    found = lg.forward(lg.load_model(files / "out" / "merged", "float32"), tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    untrained = lg.forward(lg.merge(edge, generator.pool, card), tokens)
    assert np.abs(wanted - untrained).max() > 0.1
    text = (files / "out" / "adapter" / "README.md").read_text()
    assert "trained on 2 solved samples" in text


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tuning-steps", "3"], "--tuning-steps and --tuning-rate go with --samples FILE"),
        (["--samples", "SAMPLES", "--save", "card,merged"], "Leave card out of --save"),
        (["--samples", "SAMPLES", "--tuning-steps", "0"], "steps is 0; expected 1 or more"),
        (["--samples", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(files, capsys, more, says):
    more = [str(files / "samples.jsonl") if one == "SAMPLES" else one for one in more]
    assert cli.main(asked(files, *more)) == 1
    assert says in capsys.readouterr().err
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"user": "a"}', r"samples\.jsonl:1: found the fields user; expected a solved request"),
        ('{"user": "a", "target": " "}', "the field target is empty"),
        ("", "holds no rows"),
        (
            '{"instruction": "Translate: hello", "input": "", "output": "bonjour"}',
            r"samples\.jsonl:1: the field instruction is not the prompt.*\{user, target\}",
        ),
        (
            '{"input": "a", "output": "b", "history": [["c", "d"]]}',
            "samples.jsonl:1: the field history is not supported",
        ),
    ],
)
def test_bad_samples_are_told(tmp_path, text, says):
    path = tmp_path / "samples.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_solved(path)


def test_samples_of_both_layouts_are_read(files):
    assert read_solved(files / "samples.jsonl") == PAIRS


def test_an_instruction_may_be_the_prompt(tmp_path):
    """As in the rows that a generator is trained on."""
    path, row = tmp_path / "samples.jsonl", {"input": "a", "output": "b"}
    rows = [{"instruction": f"{PROMPT}\n", **row}, {"instruction": " ", **row, "history": None}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_solved(path, PROMPT) == [("a", "b")] * 2
