"""LoraHub and LoRAs per task: combinations of trained LoRAs; peft's own sum is the oracle."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from lorage_jax.config import DataConfig, ExperimentConfig, OptimizerConfig, Source
from lorage_jax.errors import ConfigError, DataError, WeightsError
from lorage_jax.files.manifest import write_manifest
from lorage_jax.generator import loras
from lorage_jax.generator.adapter import export_adapter
from lorage_jax.generator.lora_folder import write_lora
from lorage_jax.generator.peft import load_adapter
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods.lora import LORA, Lora, load_lora
from lorage_jax.methods.lora_per_task import LoraPerTask, TaskLora, closest_task
from lorage_jax.methods.lorahub import LoraHub, SearchSettings
from lorage_jax.methods.trained_loras import combination
from lorage_jax.methods.training import train
from lorage_jax.world import prompts as world_prompts
from tests.methods.test_lora import torch_folder
from tests.tiny import torch_logits

# peft asks transformers in a way that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TOKENS = np.arange(5, 25)[None]
WORDS = Source("synthetic", "synthetic", name="words")
SOLVED = [("go 1", "stop one"), ("go 2", "stop two")]


@pytest.fixture(scope="module")
def edge(pair):
    return load_model(pair[1])


@pytest.fixture(scope="module")
def modules(edge, tmp_path_factory):
    """A folder with three LoRAs of ranks 2, 2 and 3, and solved examples of one prompt."""
    root, rng = tmp_path_factory.mktemp("modules"), np.random.default_rng(0)
    for name, rank in (("one", 2), ("three", 2), ("two", 3)):
        (root / name).mkdir()
        leaves = loras.lora_leaves(edge.config, ("gate", "up", "down"), rank)
        drawn = {
            leaf: {part: 0.1 * rng.standard_normal(x.shape) for part, x in one.items()}
            for leaf, one in leaves.items()
        }
        write_lora(root / name, edge, loras.without_expert_axis(drawn), rank, 2.0 * rank)
    rows = [{"system": "Stop.", "user": user, "target": target} for user, target in SOLVED]
    (root / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return root


def test_a_combination_is_the_one_of_peft(edge, modules, pair, tmp_path):
    """The sums of A and of B apart: peft's "linear", which takes the square of each weight."""
    hub, weights = LoraHub.load(edge, modules), np.array([0.7, 1.2, 0.0])
    assert hub.names == ("one", "three", "two")
    card = combination(hub.edge, hub.pool, weights)
    rows = [dataclasses.replace(hub.prepare(["?"])[0], card=card)]
    ours = np.asarray(forward(hub.place(edge, rows).model, TOKENS))

    model: Any = peft.PeftModel.from_pretrained(torch_folder(pair[1]), str(modules / "one"), "one")
    model.load_adapter(str(modules / "three"), "three")
    squares = np.square(weights[:2]).tolist()
    model.add_weighted_adapter(["one", "three"], squares, "sum", combination_type="linear")
    model.set_adapter("sum")
    theirs = torch_logits(model.eval(), TOKENS)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(ours).max())
    assert np.abs(ours - np.asarray(forward(edge, TOKENS))).max() > 0.1

    export_adapter(hub.pool, card, edge, tmp_path / "adapter")
    read = torch_logits(
        peft.PeftModel.from_pretrained(torch_folder(pair[1]), str(tmp_path / "adapter")).eval(),
        TOKENS,
    )
    np.testing.assert_allclose(ours, read, atol=2e-5 * np.abs(ours).max())
    export_merged(hub.place(edge, rows).model, tmp_path / "merged", base=pair[1])
    whole = torch_logits(torch_folder(tmp_path / "merged").eval(), TOKENS)
    np.testing.assert_allclose(ours, whole, atol=2e-5 * np.abs(ours).max())


def test_one_weight_is_that_lora_and_signs_cancel(edge, modules):
    """Quadratic in the weights: w and -w are the same LoRA, 0 is the bare edge."""
    hub = LoraHub.load(edge, modules)

    def logits(*weights):
        card = combination(hub.edge, hub.pool, np.array(weights))
        rows = [dataclasses.replace(hub.prepare(["?"])[0], card=card)]
        return np.asarray(forward(hub.place(edge, rows).model, TOKENS))

    two = np.asarray(forward(load_adapter(modules / "two", edge), TOKENS))
    atol = 1e-5 * np.abs(two).max()
    np.testing.assert_allclose(logits(0, 0, 1), two, atol=atol)
    np.testing.assert_allclose(logits(0.3, 0.9, -1), logits(-0.3, -0.9, 1), atol=atol)
    np.testing.assert_allclose(logits(0, 0, 0), np.asarray(forward(edge, TOKENS)), atol=atol)


def test_the_search_uses_its_examples_and_says_so(edge, modules, monkeypatch):
    """It beats the bare edge on them; a prompt without examples gets nothing."""
    hub = dataclasses.replace(LoraHub.load(edge, modules), search=SearchSettings(budget=12))
    known, unknown, again = hub.prepare(["Stop.", "What?", "Stop."])
    assert known is again and known.facts["examples"] == 2 and known.facts["evaluations"] == 12
    weights = np.array(list(known.facts["weights"].values()))
    assert np.abs(weights).max() <= 1.5 and weights.any()
    assert unknown.card is not None and not unknown.card.gates.any()
    assert unknown.facts["examples"] == 0

    given = hub.given({"What?": SOLVED * 3}, seed=3)
    assert given.solved == {"What?": SOLVED * 3}
    assert given.search == SearchSettings(budget=12, examples=6, seed=3)

    turns = hub.edge.template
    total = count = 0.0
    model = hub.place(edge, [known]).model
    for user, target in SOLVED:
        asked, answer = turns.prompt(user), turns.answer(target)
        logits = np.asarray(forward(model, [asked + answer]))[0, len(asked) - 1 : -1]
        logprobs = torch.log_softmax(torch.tensor(logits), -1).numpy()
        total -= logprobs[np.arange(len(answer)), answer].sum()
        count += len(answer)
    expected = total / count / 2 + 0.05 * np.abs(weights).mean()
    assert known.facts["loss"] == pytest.approx(expected, rel=1e-3)

    placed = hub.place(edge, [known, unknown])
    assert placed.cards is not None and len(placed.cards) == 2 and placed.pool is not None
    with pytest.raises(WeightsError, match="holds no PEFT folders"):
        LoraHub.load(edge, modules / "one" / "nothing")


def test_examples_of_several_turns_are_refused(edge, modules, tmp_path):
    home = shutil.copytree(modules, tmp_path / "loras")
    turns = zip(("system", *["user", "assistant"] * 2), "abcde", strict=True)
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (home / "examples.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"examples\.jsonl:1: has 2 earlier turns; expected one"):
        LoraHub.load(edge, home)


def test_an_adapter_beyond_the_ffn_is_refused(edge, tmp_path):
    leaves = loras.lora_leaves(edge.config, ("q",), 2)
    drawn = {"q": {part: np.ones(x.shape, np.float32) for part, x in leaves["q"].items()}}
    (tmp_path / "q").mkdir()
    write_lora(tmp_path / "q", edge, drawn, 2, 2.0)
    with pytest.raises(ConfigError, match="adapter 0 changes q: a pool holds plain LoRA on"):
        LoraHub.load(edge, tmp_path)


def test_loras_of_another_edge_are_refused(edge, modules, tmp_path):
    """Of the same shapes: only the recorded fingerprint tells."""
    home = shutil.copytree(modules, tmp_path / "loras")
    write_manifest(home / "two", {"format": "x", "base": {"fingerprint": edge.fingerprint}})
    assert LoraHub.load(edge, home).names == ("one", "three", "two")
    other = edge.replace(params=edge.params | {"embed": edge.params["embed"] + 1}, source=None)
    for method in (LoraHub, LoraPerTask):
        with pytest.raises(WeightsError, match=r"two was made for an edge with the weights"):
            method.load(other, home)


def test_loras_of_another_tokenizer_are_refused(edge, modules, tmp_path):
    """Both as one LoRA and as one of several; without a recorded digest, nothing is compared."""
    home = shutil.copytree(modules, tmp_path / "loras")
    about = {"format": LORA.format, "base": {"fingerprint": edge.fingerprint}}
    about |= edge.template.kind.to_dict()
    for known in ({}, {"turns": edge.template.digest()}):
        write_manifest(home / "two", about | known)
        assert Lora.load(edge, home / "two").template == edge.template.kind
        assert LoraHub.load(edge, home).edge.template.digest() == edge.template.digest()
    write_manifest(home / "two", about | {"turns": "sha256:" + "0" * 64})
    for load, folder in ((Lora.load, home / "two"), (LoraHub.load, home)):
        with pytest.raises(WeightsError, match="does not tokenize as in training"):
            load(edge, folder)
    assert Lora.load(edge.replace(tokenizer=None, template=None), home / "two")


def test_examples_of_a_folder_below_home(edge, modules, monkeypatch):
    monkeypatch.setenv("HOME", str(modules.parent))
    assert LoraHub.load(edge, Path("~") / modules.name).solved == {"Stop.": SOLVED}


def test_a_prompt_that_contains_another_tasks_prompt_keeps_its_own():
    tasks = [
        TaskLora(mark, kind, (mark,))
        for mark in ("Translate.", "Translate. Then sort.", "sort.")
        for kind in ("instruction", "tasks")
    ]
    for reverse in (False, True):
        given = tasks[::-1] if reverse else tasks
        for prompt, name in {
            "Translate. Then sort.": "Translate. Then sort.",
            "Translate.": "Translate.",
            "Translate. Then sort.\n\nInput: a": "Translate. Then sort.",
            "Do sort. Translate.": "Translate.",
        }.items():
            found = closest_task(given, prompt)
            assert found is not None and given[found].name == name
        assert closest_task(given, "Summarise.") is None


@pytest.mark.slow
def test_a_lora_per_task(edge, pair, tmp_path):
    """Each prompt gets the LoRA of its task; one of another task gets nothing, and a fact."""
    drawn = world_prompts.draw_prompts("paraphrase", 40, 0, "words")
    first = drawn[0]
    second = next(p for p in drawn if p.task != first.task)
    third = next(p for p in drawn if p.task not in (first.task, second.task))
    for number, prompt in enumerate((first, second)):
        config = ExperimentConfig(
            cloud=str(pair[0]),
            edge=str(pair[1]),
            out=str(tmp_path / f"run{number}"),
            method="lora_per_task",
            data=DataConfig(
                (dataclasses.replace(WORDS, task=prompt.task),),
                prompts_per_batch=8,
                queries_per_prompt=1,
                max_prompt_tokens=64,
                max_query_tokens=64,
                min_bucket=64,
            ),
            optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=1),
            steps=2,
            dtype="float32",
            remat="none",
            save_every=2,
        )
        train(config, progress=False)
    method = LoraPerTask.load(edge, tmp_path)
    assert [task.name for task in method.tasks] == [first.task, second.task]
    rows = method.prepare([prompt.system for prompt in (second, third, first)])
    assert [row.facts for row in rows] == [
        {"task": second.task, "trained": True},
        {"task": None, "trained": False},
        {"task": first.task, "trained": True},
    ]
    placed = method.place(edge, rows)
    assert placed.cards is not None
    tokens = np.repeat(TOKENS, 3, axis=0)
    found = np.asarray(forward(edge, tokens, gates=list(placed.cards), pool=placed.pool))
    ways = (
        load_lora(tmp_path / "run1" / "lora_per_task", edge),
        edge,
        load_lora(tmp_path / "run0" / "lora_per_task", edge),
    )
    for row, model in zip(found, ways, strict=True):
        expected = np.asarray(forward(model, TOKENS))[0]
        np.testing.assert_allclose(row, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(found[0] - found[1]).max() > 1e-3
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=(WORDS,)))
    with pytest.raises(ConfigError, match="expected one source with `task` set, got 1 without it"):
        train(dataclasses.replace(whole, out=str(tmp_path / "no")), progress=False)
    wrong = dataclasses.replace(WORDS, task="nothing")
    with pytest.raises(DataError, match="no task 'nothing' in 'train'; one of its tasks is"):
        data = dataclasses.replace(config.data, sources=(wrong,))
        train(dataclasses.replace(config, out=str(tmp_path / "no"), data=data), progress=False)
