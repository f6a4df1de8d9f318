"""The least time by each resource."""

import pytest

from lorage_jax.aot.roofline import roofline
from lorage_jax.chips import CHIPS

V5E = CHIPS["v5e"]


def test_the_slowest_resource_decides():
    roof = roofline(V5E, flops=197e12, hbm=81.9e9, ici=100e9, dcn=0, model_flops=98.5e12)
    assert roof["compute_s"] == pytest.approx(1) and roof["hbm_s"] == pytest.approx(0.1)
    assert roof["ici_s"] == pytest.approx(0.5) and roof["dcn_s"] == 0
    assert roof["step_s"] == pytest.approx(1) and roof["bound_by"] == "compute"
    assert roof["predicted_mfu"] == pytest.approx(0.5)  # half of it is recomputation
    slow = roofline(V5E, flops=197e12, hbm=0, ici=0, dcn=12.5e9, model_flops=197e12)
    assert slow["bound_by"] == "dcn" and slow["predicted_mfu"] == pytest.approx(0.25)
