"""Real weights, tokenizer and data: the checkpoint under ../shared, Alpaca and ARC."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.commands import specialize
from lorage_jax.commands.experiment import load_experiment
from lorage_jax.commands.options import Specialize
from lorage_jax.config import MeshConfig
from lorage_jax.methods.training import train

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
MODEL = SHARED / "models" / "stories260K"

pytestmark = pytest.mark.skipif(
    not MODEL.is_dir(), reason="needs the real checkpoint in ../shared/models/stories260K"
)

PROMPT = """Answer the science question of a school exam with a short phrase.

User: Which gas do plants take in from the air?
Assistant: carbon dioxide
"""


def test_the_story_goes_on_as_in_transformers():
    from transformers import AutoModelForCausalLM

    model = lg.load_model(MODEL)
    theirs = AutoModelForCausalLM.from_pretrained(str(MODEL)).eval()
    tokens = model.tokenizer("Once upon a time", return_tensors="pt")
    expected = theirs.generate(**tokens, max_new_tokens=100, do_sample=False)[0]
    start = tokens["input_ids"].shape[1]
    assert lg.generate(model, "Once upon a time", max_new_tokens=100) == model.tokenizer.decode(
        expected, skip_special_tokens=True
    ).removeprefix("Once upon a time")
    logits = np.asarray(lg.forward(model, expected[None].numpy()))[0, start - 1 : -1]
    np.testing.assert_array_equal(logits.argmax(-1), expected[start:].numpy())


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs Alpaca and ARC in ../shared/data")
def test_train_and_specialize_on_real_data(tmp_path):
    """experiments/real_smoke.py, shortened: it learns, and exports what it computed."""
    config = dataclasses.replace(
        load_experiment(ROOT / "experiments" / "real_smoke.py"),
        out=str(tmp_path / "run"),
        steps=60,
        mesh=MeshConfig(data=8),
    )
    result = train(config, progress=False)
    losses = [loss for _, loss in result.losses]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.2
    (tmp_path / "prompt.txt").write_text(PROMPT, "utf-8")
    options = Specialize(result.folder, str(tmp_path / "prompt.txt"), tmp_path / "special")
    report = specialize.run(options)
    assert report["parity"]["max_abs_logit_diff"] < 2e-4
    assert {"unmerged_vs_reloaded", "unmerged_vs_transformers"} <= report["parity"].keys()
    assert report["prompt_tokens_saved"] == 96
    base, special = lg.load_model(MODEL), lg.load_model(tmp_path / "special" / "merged")
    tokens = base.tokenizer("What do plants need?")["input_ids"]
    moved = np.abs(np.asarray(lg.forward(special, tokens)) - np.asarray(lg.forward(base, tokens)))
    assert moved.max() > 0.1
