"""`lorage quickstart`, with its training cut to a few steps: every part, in its place."""

import json

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.cli import main
from lorage_jax.commands import quickstart

PARTS = {
    "cloud",
    "edge",
    "generator",
    "prompt.txt",
    "card.json",
    "adapter",
    "merged",
    "report.json",
    "loss.png",
    "gates.png",
    "lorage.json",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a short quickstart."""
    out = tmp_path_factory.mktemp("quickstart") / "made"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"CLOUD_STEPS": 40, "EDGE_STEPS": 40, "GENERATOR_STEPS": 40}.items():
            patch.setattr(quickstart, name, value)
        patch.setattr(quickstart, "TEXTS", 500)
        assert main(["quickstart", "--out", str(out)]) == 0
    return out


def test_every_part_is_there(made):
    assert {path.name for path in made.iterdir()} >= PARTS
    assert not list(made.parent.glob(".*")), "a temporary folder was left"
    for picture in ("loss.png", "gates.png"):
        assert (made / picture).read_bytes().startswith(b"\x89PNG")


def test_the_report_is_what_was_measured(made):
    report = json.loads((made / "report.json").read_text("utf-8"))
    assert report["parity"]["max_abs_logit_diff"] < 2e-4
    assert "unmerged_vs_transformers" in report["parity"]
    assert report["prompt_tokens_saved"] > 5 and report["seconds"] > 0
    ways = {"without_prompt", "with_prompt", "specialized", "control_other_prompt"}
    assert report["exact_match"].keys() == report["nats_per_target_token"].keys() == ways
    for way in ways:
        right = [answer[way] == answer["expected"] for answer in report["answers"]]
        assert report["exact_match"][way] == pytest.approx(np.mean(right))
    assert report["generator_loss"]["last"] < report["generator_loss"]["first"]


def test_the_models_differ_and_work_together(made):
    edge, cloud = lg.load_model(made / "edge"), lg.load_model(made / "cloud")
    assert (edge.config.family, cloud.config.family) == ("qwen2", "llama")
    assert len(edge.tokenizer) != len(cloud.tokenizer)
    gen = lg.load_generator(made / "generator")
    card = lg.specialize(gen, (made / "prompt.txt").read_text("utf-8").strip())
    np.testing.assert_allclose(card.gates, lg.load_card(made / "card.json").gates, atol=1e-6)
    tokens = [list(range(5, 25))]
    merged = lg.forward(lg.load_model(made / "merged"), tokens)
    unmerged = lg.forward(edge, tokens, gates=card, pool=gen.pool)
    np.testing.assert_allclose(merged, unmerged, atol=2e-4)


def test_the_folder_may_move(made, tmp_path):
    """The generator finds its models beside it; the adapter names where the base really is."""
    made.rename(tmp_path / "moved")
    try:
        assert lg.load_generator(tmp_path / "moved" / "generator").edge_source is not None
    finally:
        (tmp_path / "moved").rename(made)
    adapter = json.loads((made / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert adapter["base_model_name_or_path"] == str(made / "edge")


def test_an_existing_folder_is_refused(made, capsys):
    assert main(["quickstart", "--out", str(made)]) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(("devices", "prompts"), [(1, 16), (6, 18), (32, 32)])
def test_the_batch_divides_over_any_number_of_devices(monkeypatch, tmp_path, devices, prompts):
    monkeypatch.setattr(quickstart.jax, "device_count", lambda: devices)
    assert quickstart._experiment(tmp_path, 0).data.prompts_per_batch == prompts
