"""Helpers of the command line's tests: running commands, comparing folders."""

import subprocess
import sys
from pathlib import Path

from lorage_jax import cli

REPOSITORY = Path(__file__).parents[2]
EXPERIMENT = """
from lorage_jax.config import *

def config():
    return ExperimentConfig(
        cloud="{root}/cloud", edge="{root}/edge", out="{root}/unused",
        data=DataConfig(sources=(Source("{root}/train.jsonl"),), prompts_per_batch=8,
                        queries_per_prompt=2, max_prompt_tokens=64, max_query_tokens=48,
                        min_bucket=48),
        generator=GeneratorConfig(rank=4, cloud_rank=4),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
        steps=6, dtype="float32", remat="none", save_every=2, log_every=2)
"""
PROMPT = "Say 7 twice."
WEIGHTS = "model.safetensors"


def lorage(*args):
    return cli.main([str(arg) for arg in args])


def subprocess_lorage(*args, **options):
    command = [sys.executable, "-m", "lorage_jax.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def contents(*folders):
    """Everything below the folders, hidden things included."""
    paths = [path for folder in folders for path in sorted(folder.rglob("*"))]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}
