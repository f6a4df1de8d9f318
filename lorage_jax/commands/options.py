"""What can be asked for: one dataclass a subcommand, its fields the options, its `run` the work.

Only `run` imports what does the work, so that --help is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

Positional = tyro.conf.Positional
Json = Annotated[
    Path | None, tyro.conf.arg(help="Also write the result to this file, for machines.")
]
Overwrite = Annotated[
    bool, tyro.conf.arg(help="Replace the output folder, if lorage_jax wrote it.")
]


@dataclass(frozen=True)
class Quickstart:
    """See the whole method in a minute: no downloads, no network, two CPU cores.

    A bundled generator specialises a bundled edge for a prompt that was not in training; the same
    questions go to the edge without prompt, with it, specialised, and under another prompt's card.

    Example: lorage quickstart --out quickstart
    """

    out: Path
    """Folder for everything that is made."""
    prompt: str | None = None
    """Another system prompt, as in --prompt "Reverse the words. Put commas between words."."""
    family: Literal["words", "tools"] = "words"
    """Of built-in tasks: where a prompt is drawn from, or the questions for one that is none."""
    train: bool = False
    """First train a generator anew on the bundled models, for a short while."""
    seed: int = 0
    """Of the prompt, the questions, and with --train of the generator."""
    json: Json = None
    overwrite: Overwrite = False

    def run(self) -> dict[str, Any]:
        from lorage_jax.commands.quickstart import quickstart

        return quickstart(self.out, self.seed, self.overwrite, self.prompt, self.family, self.train)


@dataclass(frozen=True)
class Train:
    """Train a generator from an experiment file, which defines config() -> ExperimentConfig.

    On several hosts, start the same command on every one. TPU pods, SLURM and Open MPI tell which
    process this is; elsewhere the last three options do, or JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Example: lorage train experiments/real_smoke.py --out runs/real_smoke
    """

    experiment: Positional[Path]
    """Python file, or the name of one in experiments/."""
    out: Path | None = None
    """Folder of the run, instead of the experiment's own."""
    resume: bool = False
    """Go on from the run's last checkpoint; begin when there is none (also: --resume auto)."""
    checkpoints: str | None = None
    """Folder or bucket (gs://...) for checkpoints, instead of <out>/checkpoints."""
    profile: str | None = None
    """START:STOP, steps to trace into <out>/profile, for TensorBoard's profiler."""
    coordinator: str | None = None
    """HOST:PORT of process 0, any free port, reachable from every host."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    json: Json = None

    def run(self) -> dict[str, Any] | None:
        from lorage_jax.commands.train import train_experiment

        return train_experiment(self)


@dataclass(frozen=True)
class Pretrain:
    """Train a small language model from scratch, tokenizer included; it can be a cloud or an edge.

    The experiment file defines config() -> PretrainConfig.

    Example: lorage pretrain experiments/nano_edge.py --out runs/nano_edge
    """

    experiment: Positional[Path]
    """Python file, or the name of one in experiments/."""
    out: Path | None = None
    """Folder of the run, instead of the experiment's own."""
    resume: bool = False
    """Go on from the run's last checkpoint; begin when there is none (also: --resume auto)."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        from lorage_jax.commands.pretrain import pretrain_experiment

        return pretrain_experiment(self.experiment, self.out, self.resume)


@dataclass(frozen=True)
class Compile:
    """Compile an experiment for TPUs that are not here: memory, collectives and time, per chip.

    The train step, a specialisation, the merge and decoding, by the TPU compiler (libtpu), which
    needs neither TPU nor weights. That something does not fit is an answer: the exit code is 0,
    and the JSON says "fits": false.

    Example: lorage compile experiments/paper_tinyllama.py --topology v5e:2x4 --layers 2
    """

    experiment: Positional[Path]
    """Python file, or the name of one in experiments/."""
    topology: str = "v5e:2x4"
    """Generation and shape of a slice: v5e:2x4, v6e:4x4, v5p:2x2x1, v4:2x2x2; v5e:2x4*2 for two."""
    layers: int | None = None
    """At most so many of both models, for a quick look: the full depth compiles for minutes."""
    row_tokens: int | None = None
    """Compile the step for a batch with rows of so many slots, too: what a usual step takes."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        from lorage_jax.commands.compile import compile_experiment

        return compile_experiment(self.experiment, self.topology, self.layers, self.row_tokens)


@dataclass(frozen=True)
class Specialize:
    """Turn a system prompt into a card, a PEFT adapter and a merged Hugging Face checkpoint.

    Ends with a parity report: the largest logit difference between unmerged, merged and reloaded
    weights, and the prompt tokens saved per request.

    Example: lorage specialize --generator runs/a/generator --prompt prompt.txt --out special
    """

    generator: Path
    """Folder that `lorage train` wrote; nano: the bundled generator."""
    prompt: str
    """Text file with the system prompt; - reads standard input."""
    out: Path
    """New folder for the results."""
    edge: Path | None = None
    """The edge model's folder, when it is not where the generator recorded it."""
    cloud: Path | None = None
    """The cloud model's folder, when it is not where the generator recorded it."""
    save: str = "card,adapter,merged"
    """What to write: any of card, adapter, merged, with commas."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the merged weights; the edge's own by default."""
    json: Json = None
    overwrite: Overwrite = False

    def run(self) -> dict[str, Any]:
        from lorage_jax.commands.specialize import specialize_folder

        return specialize_folder(
            self.generator,
            self.prompt,
            self.out,
            edge=self.edge,
            cloud=self.cloud,
            save=self.save,
            dtype=self.dtype,
            overwrite=self.overwrite,
        )


@dataclass(frozen=True)
class Generate:
    """Continue a text, or answer as a specialised model, streaming to the terminal.

    Example: lorage generate --model special/merged --input "bird table stone"
    """

    model: Path
    """Hugging Face folder; a merged one answers, any other continues the text."""
    input: str
    """The user's input; - reads standard input."""
    system: Path | None = None
    """System prompt file, put into the model's own context (the baseline)."""
    raw: bool = False
    """Continue the text as it is, without the template of specialised models."""
    max_new_tokens: int | None = None
    """At most this many tokens; what the model's context holds, up to 128, by default."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this share of probability."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Stop before any of these texts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    json: Json = None

    def run(self) -> dict[str, Any]:
        from lorage_jax.commands.generate import generate_text

        return generate_text(self)


@dataclass(frozen=True)
class Inspect:
    """Show a card, or every fact of a generator: gates by layer and expert as text and picture.

    With --tasks also what a generator's experts are for, read from the gates of drawn prompts.

    Example: lorage inspect special/card.json --png gates.png
    """

    path: Positional[Path]
    """A card file, or a folder that lorage_jax wrote; nano: the bundled generator."""
    tasks: bool = False
    """Also show which experts serve which of the built-in world's tasks, and nearest prompts."""
    prompt: str | None = None
    """With --tasks, text file with the system prompt to find the nearest of; - reads stdin."""
    cloud: Path | None = None
    """With --tasks, the cloud model's folder, when it is not where the generator recorded it."""
    png: Path | None = None
    """Write a card's heatmap, or with --tasks that of operations and formats, to this picture."""
    json: Json = None
    overwrite: bool = False
    """Replace the picture if it exists."""

    def run(self) -> dict[str, Any]:
        from lorage_jax.commands.inspect import inspect

        return inspect(self)


@dataclass(frozen=True)
class Eval:
    """Score a model, or a generator with its edge, on lm-eval's tasks and on GPT4Tools.

    With --generator, the task's description and few-shot samples go to the cloud once a task, the
    bare question to the edge; beside it run the few-shot baseline and the controls.

    Example: lorage eval --model special/merged --tasks arc_challenge,piqa --json scores.json
    """

    tasks: str
    """Names with commas: any task of lm-eval, and gpt4tools."""
    model: Path | None = None
    """Hugging Face folder, scored as it is (few-shot samples in its context)."""
    generator: Path | None = None
    """Folder that `lorage train` wrote, or nano; it specialises the edge for every task."""
    edge: Path | None = None
    """The edge model's folder, when it is not where the generator recorded it."""
    cloud: Path | None = None
    """The cloud model's folder, when it is not where the generator recorded it."""
    shots: str | None = None
    """Few-shot samples, as in 5 or 5,hellaswag=0; the task's own number by default."""
    data: str = "hub"
    """Folder with <task>/<split>.jsonl(.gz), or hub to download what lm-eval names."""
    limit: int | None = None
    """Only the first records of every task."""
    controls: bool = True
    """Also score another task's prompt, a random one, mean gates and no adapter."""
    baseline: bool = True
    """Also score the edge with the few-shot samples in its own context."""
    template: Literal["trained", "harness"] = "trained"
    """Around the bare question: the edge's turns as in training, or lm-eval's own text."""
    batch_tokens: int = 8192
    """Tokens in one batch, padding included."""
    max_new_tokens: int | None = None
    """Of generated answers, where the task names no number; 256, and 512 in gpt4tools."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 1234
    """Of the few-shot draw (lm-eval's own by default) and of the random control."""
    samples: Path | None = None
    """Also write every record's log-likelihoods and prediction, as JSON lines."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        from lorage_jax.commands.eval import evaluate

        return evaluate(self)

    def finish(self) -> None:
        from lorage_jax.commands.eval import forget_progress

        forget_progress(self.json)


@dataclass(frozen=True)
class Report:
    """Turn result files into one self-contained page: the paper's tables with our rows, pictures.

    Example: lorage report scores.json bench_latency.json --out report
    """

    results: Positional[tuple[Path, ...]]
    """Files that --json of eval, bench and the others wrote; cards (card.json) too."""
    out: Path
    """New folder for report.html and report.md."""
    json: Json = None
    overwrite: Overwrite = False

    def run(self) -> dict[str, Any]:
        from lorage_jax.commands.report import report

        return report(self.results, self.out, self.overwrite)


@dataclass(frozen=True)
class Bench:
    """Measure: merge, decode, export | flops, latency, memory with and without the prompt |
    score against lm-eval's hf model, specialize many prompts at once, train with 1 to 8 queries
    a prompt.

    Example: lorage bench flops --shape qwen2-1.5b
    """

    what: Positional[
        Literal[
            "merge",
            "decode",
            "export",
            "flops",
            "latency",
            "memory",
            "score",
            "specialize",
            "train",
        ]
    ]
    shape: Literal["tinyllama", "qwen2-1.5b", "gemma2-2b"] = "tinyllama"
    """Of the edge, with random weights: time does not depend on their values."""
    edge_config: Path | None = None
    """Folder with the config.json to take the edge's shape from, instead of --shape."""
    cloud_config: Path | None = None
    """The same for the cloud; LLaMA3-8B by default."""
    model: Path | None = None
    """Folder of a real model (score)."""
    layers: int | None = None
    """A shallower or deeper edge (train: both models)."""
    input_tokens: int = 100
    """Of a request, without the system prompt."""
    instruction_tokens: int = 200
    """Of the system prompt."""
    new_tokens: int = 32
    """To be generated (latency)."""
    rows: int | None = None
    """Queries in a training batch, a multiple of 8 (train): 64, on a CPU 8."""
    repeats: int = 3
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    json: Json = None

    def run(self) -> dict[str, Any]:
        from lorage_jax.commands.bench import bench

        return bench(self)


Command = Annotated[
    Quickstart
    | Pretrain
    | Train
    | Compile
    | Specialize
    | Generate
    | Eval
    | Inspect
    | Report
    | Bench,
    tyro.conf.OmitSubcommandPrefixes,
]
