"""Helpers that run `lorage` in several real processes, over gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from lorage_jax.fields import to_dict

ROOT = Path(__file__).parents[1]
EXPERIMENT = """{before}
import json, os, signal, time
from lorage_jax.config import *
from lorage_jax.fields import from_dict
from lorage_jax.train.watch import Watch

record = Watch.record

def recorded(self, step, *rest):
    record(self, step, *rest)
    {after_step}

Watch.record = recorded

def config():
    return from_dict(ExperimentConfig, json.loads({text!r}))
"""


def write_experiment(config, folder, after_step="pass", before=""):
    """An experiment file; the statement `after_step` runs when `step` has been recorded.

    The statements `before` run when the file is loaded.
    """
    path = folder / f"experiment{len(list(folder.glob('experiment*')))}.py"
    text = json.dumps(to_dict(config))
    text = EXPERIMENT.format(text=text, after_step=after_step, before=before)
    path.write_text(text, "utf-8")
    return path


def start(experiments, *options, devices=2, count=None):
    """Starts `lorage train` per experiment file, or `count` with the same one, joined."""
    if count is not None:
        experiments = [experiments] * count
    return join([["train", str(experiment), *options] for experiment in experiments], devices)


def join(commands, devices=2):
    """Starts a `lorage` process for each list of arguments; several are joined."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for number, args in enumerate(commands):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(len(commands)),
            "JAX_PROCESS_ID": str(number),
        }
        if len(commands) == 1:
            for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
                del environment[name]
        command = [sys.executable, "-m", "lorage_jax.cli", *map(str, args)]
        found.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return found


def finish(processes, timeout=400):
    """[(exit code, stdout, stderr)]"""
    try:
        told = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # closes its pipes
    return [(p.returncode, *texts) for p, texts in zip(processes, told, strict=True)]
