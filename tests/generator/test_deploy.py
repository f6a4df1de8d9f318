"""The report of a deployment: its checks and its JSON form."""

import json

import numpy as np
import pytest

from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.generator import deploy
from lorage_jax.generator.deploy import DeployReport, Timings
from lorage_jax.generator.merge import MergeReport

REPORT = DeployReport(
    parity={"max_abs_logit_diff": 1e-5, "unmerged_vs_merged": 1e-5},
    dtype="float32",
    merge=MergeReport(largest_rounding=0.0, share_unmoved=0.5, weights=8),
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
    assert values["merge"] == {"largest_rounding": 0.0, "share_unmoved": 0.5, "weights": 8}
    assert values["saved"] == ["card", "merged"]
    with pytest.raises(ConfigError, match="cloud_tokens"):
        DeployReport.from_json({k: v for k, v in values.items() if k != "cloud_tokens"})


def test_the_largest_difference_of_all_stages():
    logits = {"unmerged": np.zeros((1, 2, 3)), "merged": np.full((1, 2, 3), 0.1)}
    logits["reloaded"] = np.full((1, 2, 3), -0.2)
    assert deploy._differences(logits) == {
        "max_abs_logit_diff": 0.2,
        "unmerged_vs_merged": 0.1,
        "unmerged_vs_reloaded": 0.2,
    }
    with pytest.raises(WeightsError, match=r"not finite \(merged\)"):
        deploy._differences(logits | {"merged": np.full((1, 2, 3), np.nan)})


@pytest.mark.parametrize("save", [(), ("card", "merge")])
def test_unknown_outputs_are_refused(save):
    with pytest.raises(ConfigError, match="card, adapter, merged"):
        deploy.check_outputs(save)
