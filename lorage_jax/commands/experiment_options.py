"""Options of the commands on experiment files: `train`, `pretrain`, `compile` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorage_jax.commands.options import Coordinator, Experiment, Json, Processes, ProcessId


@dataclass(frozen=True)
class Train:
    """Train a generator, or another method with trained parts, from an experiment file.

    The file defines config() -> ExperimentConfig.

    On several hosts, start the same command on every host. TPU pods, SLURM and Open MPI supply
    each process's rank. Elsewhere, give --coordinator, --num-processes and --process-id, or set
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Example: lorage train experiments/real_smoke.py --out runs/real_smoke
    """

    experiment: Experiment
    out: Path | None = None
    """Folder for the run, instead of the experiment's own."""
    resume: bool = False
    """Continue from the run's last checkpoint, if there is one (also: --resume auto). The number of
    steps may have changed: the learning rate then follows the schedule of the new one."""
    resume_step: int | None = None
    """Continue from the checkpoint of this step; later ones are moved to checkpoints_set_aside."""
    resume_data: Literal["same", "changed"] = "same"
    """With changed, the data may differ from the checkpoint's; the run continues at the same
    position."""
    checkpoints: str | None = None
    """Folder or bucket (gs://...) for checkpoints, instead of <out>/checkpoints."""
    profile: str | None = None
    """START:STOP, the steps to trace into <out>/profile, for TensorBoard's profiler."""
    coordinator: Coordinator = None
    num_processes: Processes = None
    process_id: ProcessId = None
    json: Json = None


@dataclass(frozen=True)
class Pretrain:
    """Train a small language model from scratch, tokenizer included, to use as a cloud or an edge.

    The experiment file defines config() -> PretrainConfig. On several hosts, start the same command
    on every host, as for `lorage train`.

    Example: lorage pretrain experiments/nano/edge.py --out runs/nano_edge
    """

    experiment: Experiment
    out: Path | None = None
    """Folder for the run, instead of the experiment's own."""
    resume: bool = False
    """Continue from the run's last checkpoint, if there is one (also: --resume auto). The number of
    steps may have changed: the learning rate then follows the schedule of the new one."""
    resume_step: int | None = None
    """Continue from the checkpoint of this step; later ones are moved to checkpoints_set_aside."""
    resume_data: Literal["same", "changed"] = "same"
    """With changed, the data may differ from the checkpoint's; the run continues at the same
    position."""
    coordinator: Coordinator = None
    num_processes: Processes = None
    process_id: ProcessId = None
    json: Json = None


@dataclass(frozen=True)
class Compile:
    """Compile an experiment for TPUs you do not have: memory, collectives and time per chip.

    The train step, a specialisation, the merge and decoding go through the TPU compiler (libtpu),
    which needs neither a TPU nor weights. A program that does not fit is a result, not an error:
    the exit code is 0, and the JSON says "fits": false.

    Example: lorage compile experiments/paper/tinyllama.py --topology v5e:2x4 --layers 2
    """

    experiment: Experiment
    topology: str = "v5e:2x4"
    """TPU generation and slice shape, e.g. v5e:2x4, v5p:2x2x1; v5e:2x4*2 means two slices."""
    layers: int | None = None
    """Cut both models to at most this many layers; full depth takes minutes to compile."""
    row_tokens: int | None = None
    """Also compile the step for rows of this many tokens, to estimate a typical step. With
    --batches: the length of prompts and queries."""
    batches: str | None = None
    """Batch sizes, comma-separated, e.g. 1,32,256, at which to compile decoding (merged, and with
    one card per row) and specialising, instead of the training step."""
    programs: str = "decode,decode_cards,specialize"
    """The programs of --batches."""
    json: Json = None


@dataclass(frozen=True)
class Compare:
    """Train several methods in one experiment, ask them the same questions, and make one table.

    The experiment file defines config() -> CompareConfig. Existing runs and measurements are
    reused. The bare edge is asked in every comparison, the controls with lora_gen.

    Example: lorage compare experiments/nano/compare.py --methods lora_gen,lora --json methods.json
    """

    experiment: Experiment
    methods: str | None = None
    """Names separated by commas; by default all that the experiment names."""
    seeds: int = 1
    """Number of seeds with which each method is trained."""
    limit: int | None = None
    """Ask about only the first N prompts of every split."""
    out: Path | None = None
    """Folder for the runs and their figures, instead of the experiment's own."""
    table: Path | None = None
    """Also write the table to this file, as Markdown."""
    costs: bool = True
    """Measure the time, FLOPs and memory of a request; loads and compiles every method."""
    coordinator: Coordinator = None
    num_processes: Processes = None
    process_id: ProcessId = None
    json: Json = None
