"""The paper's switches on the nano pair: short runs that differ from `lora_gen` in one setting.

    python experiments/side_by_side.py experiments/nano/switches.py --seeds 3 --at-once 2 --pin
    lorage compare experiments/nano/switches.py --no-costs --seeds 3 \
        --json experiments/results/nano_switches.json --table experiments/results/nano_switches.md

Hardware: two CPU cores. Wall time: about 6 minutes per row and seed, two at once; what is in
experiments/results/nano_short is not made again.

Runs and questions are those of `compare.py`, and `lora_gen` is the same run. Since these rows
select settings, they are scored on other prompts than the pair's table (but `composition` has the
same fixed list of tasks).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import compare

from lorage_jax.config import CompareConfig

SWITCHES: dict[str, dict[str, Any]] = {
    "combine_factors": {"combine": "factors"},
    "top_k_1": {"top_k": 1},
    "top_k_2": {"top_k": 2},
    "top_k_8": {"top_k": 8},
    "pool_shared": {"pool_scope": "shared"},
    "router_shared": {"router_scope": "shared"},
    "experts_4": {"experts": 4},
    "experts_4_top_k_2": {"experts": 4, "top_k": 2},
    "experts_12": {"experts": 12},
    "cv_weight_0": {"cv_weight": 0.0},
    "cv_weight_0.005": {"cv_weight": 0.005},
    "cv_weight_0.1": {"cv_weight": 0.1},
    "gumbel": {"routing": "gumbel"},
    "no_batch_norm": {"batch_norm": False},
    "no_cloud_adapters": {"cloud_rank": 0},
    "rank_4": {"rank": 4, "alpha": 4.0},
    "rank_8": {"rank": 8, "alpha": 8.0},
}


def config() -> CompareConfig:
    methods = compare.config()
    rows: dict[str, dict[str, Any]] = {"lora_gen": {}}
    for name, changed in SWITCHES.items():
        generator = dataclasses.replace(methods.base.generator, **changed)
        rows[name] = {"method": "lora_gen", "generator": generator}
    return dataclasses.replace(methods, methods=rows)
