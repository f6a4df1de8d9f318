"""`lorage inspect --tasks`: text, picture and JSON of the tasks that experts serve; user errors."""

import io
import json
import shutil
import sys

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.commands import inspect
from lorage_jax.report import role_prompts
from tests.commands.world import PROMPT, lorage

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(inspect, "PROMPTS", 24)


def test_tasks(world, tmp_path, capfd):
    assert lorage("inspect", world.generator) == 0
    plain = capfd.readouterr().out
    png, result = tmp_path / "experts.png", tmp_path / "facts.json"
    args = ("--tasks", "--prompt", world.root / "prompt.txt", "--png", png, "--json", result)
    assert lorage("inspect", world.generator, *args) == 0
    shown = capfd.readouterr().out
    assert shown.startswith(plain) and shown.endswith(f"picture: {png}\n")
    assert "Experts by value" in shown
    assert f"Nearest prompts, by cosine of the gates, to: {PROMPT}" in shown
    # With a token per byte, the prompts exceed the cloud's 256 positions.
    assert "cloud's context: 24 of tools." in shown
    assert png.read_bytes().startswith(b"\x89PNG")
    facts = json.loads(result.read_text())
    assert facts["sizes"]["trained.meta"] == 3 * 32  # the whole output without --tasks
    tasks = facts["tasks"]
    assert set(tasks["serves"]) == {"operation", "style", "format"}
    assert np.shape(tasks["usage"]["families"]["words"]) == (3, 8)
    assert np.allclose(np.sum(tasks["usage"]["families"]["words"], axis=1), 1, atol=1e-3)
    [nearest, *_] = tasks["nearest"]["neighbours"]
    generator = lg.load_generator(world.generator)
    ours, theirs = (card.gates for card in lg.specialize(generator, [PROMPT, nearest["prompt"]]))
    cosine = np.vdot(ours, theirs) / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert nearest["cosine"] == pytest.approx(cosine, abs=1e-3)


def test_tasks_with_a_prompt_from_standard_input_and_a_moved_cloud(
    world, tmp_path, refuse, capfd, monkeypatch
):
    shutil.copytree(world.root / "cloud", tmp_path / "cloud")
    shutil.copytree(world.generator, tmp_path / "lone" / "generator")
    path = tmp_path / "lone" / "generator" / "lorage.json"
    values = json.loads(path.read_text())
    values["cloud"] |= {"path": "/moved/away", "relative": "../moved"}
    path.write_text(json.dumps(values))
    refuse("inspect", path.parent, "--tasks", says="cloud model is not at its .*--cloud")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Be kind.\n")))
    args = ("--tasks", "--prompt", "-", "--cloud", tmp_path / "cloud")
    assert lorage("inspect", path.parent, *args) == 0
    assert "gates, to: Be kind.\n" in capfd.readouterr().out


def test_a_file_of_tasks(world, tmp_path, refuse, capfd):
    path, png = tmp_path / "mine.jsonl", tmp_path / "experts.png"
    asked = [{"input": "a", "output": "b"}]
    rows = [
        {"name": name, "definition": [f"{name} {n}" for n in range(5)], "instances": asked}
        for name in ("Reverse", "Double")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    args = ("inspect", world.generator, "--tasks", "--task-file", path)
    assert lorage(*args, "--png", png, "--json", tmp_path / "facts.json") == 0
    assert "Prompts: 10 of tasks." in capfd.readouterr().out
    assert png.read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "facts.json").read_text())["tasks"]
    assert set(found["gates"]["kind"]) == {"Reverse", "Double"}
    path.write_text(json.dumps(rows[0]))
    refuse(*args, says=r"too few prompts \(5 of tasks\)\. Expected 8 or more different ones")
    rows[0]["definition"] = [f"{n}" * 300 for n in range(9)]
    path.write_text(json.dumps(rows[0]))
    refuse(*args, says=r"\(8 of tasks\); 8 do not fit into the cloud's context of 256 tokens\.")
    path.write_text("no")
    refuse(*args, says="mine.jsonl")
    refuse("inspect", world.generator, "--task-file", path, says="--task-file needs --tasks")


def test_misuse(world, tmp_path, refuse, monkeypatch):
    card, prompt = world.special / "card.json", world.root / "prompt.txt"
    for path in (card, world.special, tmp_path / "nowhere"):
        refuse("inspect", path, "--tasks", says="is not a generator; --tasks needs the `generator`")
    hint = r"did you mean .*/run/generator\?"
    refuse("inspect", world.root / "run", "--tasks", says=hint)
    refuse("inspect", world.root / "run", says=f"holds no card and is no generator; {hint}")
    for path in (card, world.generator):
        refuse("inspect", path, "--prompt", prompt, says="^lorage: --prompt needs --tasks")
        refuse("inspect", path, "--cloud", world.root, says="^lorage: --cloud needs --tasks")
    refuse("inspect", world.generator, "--png", tmp_path / "a.png", says="needs a card, or --tasks")
    (tmp_path / "mine.png").write_text("mine")
    tasks = ("inspect", world.generator, "--tasks")
    with monkeypatch.context() as patch:
        patch.setattr(role_prompts, "explain_world", None)  # these are refused before the work
        refuse(*tasks, "--png", tmp_path / "mine.png", says="mine.png")
        refuse(*tasks, "--prompt", tmp_path / "none.txt", says="Expected a file with the text")
    (tmp_path / "long.txt").write_text("x" * 300)
    refuse(*tasks, "--prompt", tmp_path / "long.txt", says="308 tokens.* at most 253")
    refuse(*tasks, "--cloud", world.root / "cloud2", says="cloud2 is not the cloud this generator")
