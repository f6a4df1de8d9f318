"""The prompts whose gates are explained: drawn from the built-in world, or of files of tasks."""

import json
from random import Random

import numpy as np
import pytest

from lorage_jax.config import HeldOut
from lorage_jax.data.written_tasks import is_held_out
from lorage_jax.errors import DataError
from lorage_jax.generator.generator import specialize
from lorage_jax.report import role_prompts as module
from lorage_jax.report.explain import to_text
from lorage_jax.report.role_prompts import explain_tasks, explain_world
from lorage_jax.world import prompts as world_prompts
from tests.report.test_roles import value_of
from tests.tiny import make_generator, make_tiny


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """Its cloud's context has room for the prompts of `tools`, with a token per byte."""
    root = tmp_path_factory.mktemp("explain")
    for name, seed in (("cloud", 1), ("edge", 2)):
        sizes = {"num_hidden_layers": 2, "hidden_size": 32, "max_position_embeddings": 4096}
        make_tiny("llama", root / name, seed=seed, **sizes)
    return make_generator(root / "cloud", root / "edge")


def test_explain_reads_the_drawn_prompts(generator):
    found = explain_world(generator, prompts_per_family=9, seed=5, prompt="Say yes.")
    assert found["prompts"] == {"words": 9, "tools": 9}
    assert found["left_out"] == {"words": 0, "tools": 0}
    drawn = [
        prompt
        for split, n in (("train", 4), ("paraphrase", 5))
        for prompt in world_prompts.draw_prompts(split, n, 5, "words")
    ]
    gates = np.asarray([card.gates for card in specialize(generator, [p.system for p in drawn])])
    np.testing.assert_allclose(found["usage"]["families"]["words"], gates.mean(0), atol=2e-4)
    for kind in ("style", "format"):
        value = value_of(drawn[0], kind)
        under = [value_of(prompt, kind) == value for prompt in drawn]
        mean = gates[under].mean(0)
        np.testing.assert_allclose(found["gates"][kind][value], mean, atol=2e-4)
    own = specialize(generator, "Say yes.").gates.ravel()
    flat = gates.reshape(len(gates), -1)
    cosines = flat @ own / np.linalg.norm(flat, axis=1) / np.linalg.norm(own)
    named = {one["prompt"]: one["cosine"] for one in found["nearest"]["neighbours"]}
    assert found["nearest"]["prompt"] == "Say yes." and len(named) == 5
    for prompt, cosine in zip(drawn, cosines, strict=True):
        if prompt.system in named:
            assert named[prompt.system] == pytest.approx(cosine, abs=2e-4)
        else:
            assert cosine <= min(named.values()) + 2e-4
    assert max(map(len, to_text(found).split("\n"))) < 100


def test_prompts_that_the_cloud_cannot_read_are_left_out(generator, monkeypatch):
    monkeypatch.setattr(module, "fit_cloud", lambda _, text: (text, "Workbench" in text))
    found = explain_world(generator, prompts_per_family=10, seed=0)
    assert found["prompts"] == {"words": 10} and found["left_out"] == {"words": 0, "tools": 10}
    assert set(found["serves"]) == {"operation", "style", "format"}
    monkeypatch.setattr(module, "fit_cloud", lambda _, text: (text, Random(text).random() < 0.9))
    with pytest.raises(DataError, match=r"10 of words, 10 of tools\); 20 do not fit"):
        explain_world(generator, prompts_per_family=10, seed=0)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Six tasks of three kinds with ten wordings each, as a file."""
    path = tmp_path_factory.mktemp("tasks") / "mine.jsonl"
    rows = [
        {
            "name": f"{kind}{number}",
            "group": kind,
            "definition": [f"{kind.title()} the word, please ({number}/{n})." for n in range(10)],
            "instances": [{"input": "a", "output": "b"}],
        }
        for kind in ("reverse", "double", "spell")
        for number in (0, 1)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_definitions_of_a_file_of_tasks(generator, tasks):
    found = explain_tasks(generator, tasks)
    assert found["prompts"] == {"tasks": 48} and found["left_out"] == {"tasks": 0}
    assert {kind: one["prompts"] for kind, one in found["serves"]["kind"].items()} == {
        "reverse": 16,
        "double": 16,
        "spell": 16,
    }
    assert found == explain_tasks(generator, tasks) != explain_tasks(generator, tasks, seed=1)
    text = to_text(found)
    assert "Prompts: 48 of tasks.\n" in text and max(map(len, text.split("\n"))) < 100


def test_tasks_that_training_held_out_stand_apart(generator, tasks):
    held = HeldOut(tasks=0.4, paraphrases=0.3, seed=2, by="group")
    new = {kind for kind in ("reverse", "double", "spell") if is_held_out("task", kind, 0.4, 2)}
    assert len(new) == 1
    found = explain_tasks(generator, tasks, held=[held], prompt="Reverse it.")
    assert found["prompts"] == {"tasks": 16 * (3 - len(new)), "unseen tasks": 16 * len(new)}
    assert set(found["usage"]["values"]["unseen kind"]) == new
    assert not new & set(found["usage"]["values"]["kind"])
    for one in found["nearest"]["neighbours"]:
        wording = "unseen" if is_held_out("definition", one["prompt"], 0.3, 2) else "seen"
        kind = one["prompt"].split()[0].casefold()
        family = "unseen tasks" if kind in new else "tasks"
        assert one["from"] == f"{family}/{wording} wording"
    [unseen] = new
    likes = found["nearest"]["kinds"][unseen]
    assert {one["value"] for one in likes} == {"reverse", "double", "spell"} - new
    assert f"  {unseen:18}{likes[0]['value']} ({likes[0]['cosine']:.2f}), " in to_text(found)
    # What only one of two sources held out was in training.
    both = explain_tasks(generator, tasks, held=[held, HeldOut(tasks=0.0, paraphrases=0.0)])
    assert both["prompts"] == {"tasks": 48}
