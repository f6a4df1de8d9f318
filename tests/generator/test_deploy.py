"""The report of a deployment: its checks and its JSON form."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lorage_jax.commands.specialize import describe
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.generator import deploy, parity
from lorage_jax.generator.deploy import DeployReport, Timings
from lorage_jax.generator.merge import MergeReport

REPORT = DeployReport(
    parity={"max_abs_logit_diff": 1e-5, "unmerged_vs_merged": 1e-5},
    dtype="float32",
    merge=MergeReport(0.0, 0.5, 8, 0.9, "nearest", 0.2, 1.0),
    prompt_tokens_saved=7,
    cloud_tokens=9,
    card_bytes=300,
    gates=[[[0, 0.5], [3, 0.5]]],
    seconds=1.5,
    timings=Timings(specialize=1.0, merge=0.5),
    saved=("card", "merged"),
)


def test_the_report_survives_json():
    values = json.loads(json.dumps(REPORT.to_json()))
    assert DeployReport.from_json(values) == REPORT
    assert values["merge"]["update_kept"] == 0.9 and values["merge"]["rounding"] == "nearest"
    assert (values["merge"]["kl_lost"], values["merge"]["kl_effect"]) == (0.2, 1.0)
    assert values["saved"] == ["card", "merged"]
    with pytest.raises(ConfigError, match="cloud_tokens"):
        DeployReport.from_json({k: v for k, v in values.items() if k != "cloud_tokens"})


def test_the_words_are_about_what_was_written():
    def told(*saved):
        return describe(dataclasses.replace(REPORT, saved=saved), Path("out"))

    assert "Merge: " in told("card", "gguf") and "; card 300 bytes" in told("card", "gguf")
    assert "Merge" not in told("card") and "bytes" not in told("adapter", "merged")


def test_the_largest_difference_of_all_stages():
    logits = {"unmerged": np.zeros((1, 2, 3)), "merged": np.full((1, 2, 3), 0.1)}
    logits["reloaded"] = np.full((1, 2, 3), -0.2)
    assert parity.differences(logits) == {
        "max_abs_logit_diff": 0.2,
        "unmerged_vs_merged": 0.1,
        "unmerged_vs_reloaded": 0.2,
    }
    with pytest.raises(WeightsError, match=r"not finite \(merged\)"):
        parity.differences(logits | {"merged": np.full((1, 2, 3), np.nan)})


@pytest.mark.parametrize("save", [(), ("card", "merge")])
def test_unknown_outputs_are_refused(save):
    with pytest.raises(ConfigError, match="card, adapter, merged"):
        deploy.Outputs(save)


def test_a_lossy_cast_is_put_into_words():
    words = deploy.loss_in_words(REPORT.merge, "bfloat16")
    assert words is not None and "20% of the prompt's effect" in words
    assert "--rounding stochastic" in words and "--dtype float32" in words
    for lost, effect in ((0.1, 1.0), (0.0, 0.0), (1e-10, 1e-12)):
        fine = dataclasses.replace(REPORT.merge, kl_lost=lost, kl_effect=effect)
        assert deploy.loss_in_words(fine, "bfloat16") is None


def test_the_limit_of_every_stage():
    """The adapter and float32 merged weights agree with unmerged; the folder with merged."""
    unmerged = np.full((1, 2, 3), 5.0)
    logits = {"unmerged": unmerged, "adapter": unmerged, "merged": unmerged + 0.1}
    logits |= {"reloaded": unmerged + 0.1}
    assert parity.check_limits(logits, exact=False) == pytest.approx(5e-3)
    for stage, exact, value in (
        ("merged", True, unmerged + 0.1),
        ("adapter", False, unmerged + 0.1),
        ("reloaded", False, unmerged),
        ("transformers", False, unmerged + np.nan),
    ):
        with pytest.raises(WeightsError, match=f"the {stage} stage"):
            parity.check_limits(logits | {stage: value}, exact)


def test_mean_kl():
    first, second = np.random.default_rng(0).normal(size=(2, 1, 4, 5))
    p, q = (torch.log_softmax(torch.tensor(x), -1) for x in (first, second))
    theirs = torch.nn.functional.kl_div(q[0], p[0], log_target=True, reduction="batchmean")
    assert parity.mean_kl(first, second) == pytest.approx(float(theirs))
    assert parity.mean_kl(first, first + 3) == pytest.approx(0.0, abs=1e-12)
