"""Options of the subcommands: one dataclass per command, its fields the flags.

Those of runs are in `experiment_options`, those that write or share model files in
`conversion_options`, and those of `bench` in its own folder.

This is data only. `cli.py` maps each class to the module that runs it, so that `--help` and usage
errors import neither jax nor a runner.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Positional = tyro.conf.Positional
Dtype = Literal["float32", "bfloat16", "float16"]
GgufType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
AutoDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    tyro.conf.arg(help="Dtype of the weights; auto is bfloat16 on TPU and GPU, float32 on a CPU."),
]
Coordinator = Annotated[
    str | None,
    tyro.conf.arg(help="HOST:PORT of process 0: any free port, reachable from every host."),
]
Processes = Annotated[int | None, tyro.conf.arg(help="Number of processes.")]
ProcessId = Annotated[int | None, tyro.conf.arg(help="Rank of this process, from 0.")]
Json = Annotated[
    Path | None, tyro.conf.arg(help="Also write the result to this file as JSON, for machines.")
]
Overwrite = Annotated[bool, tyro.conf.arg(help="Replace the output folder if lorage_jax wrote it.")]
Experiment = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(help="Python file, or its name below experiments/, such as paper/tinyllama."),
]
_GENERATOR = tyro.conf.arg(
    help="Folder generator of a run of `lorage train`, nano or smollm2 for a bundled generator, or "
    "OWNER/NAME on the Hub."
)
GeneratorFolder = Annotated[Path, _GENERATOR]
MaybeGenerator = Annotated[Path | None, _GENERATOR]
Edge = Annotated[
    Path | None,
    tyro.conf.arg(help="Edge model (folder or GGUF), if not where the generator recorded it."),
]
Cloud = Annotated[
    Path | None,
    tyro.conf.arg(help="Cloud model (folder or GGUF), if not where the generator recorded it."),
]

Adapters = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar="DIR[=WEIGHT]",
        help="PEFT folder to merge into the model, with a weight of 1 by default; may be repeated.",
    ),
]

Runs = Annotated[
    tuple[Path, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar="FOLDER",
        help="With --generator: the folder of a finished training of the same edge, by any method, "
        "which is asked the same under the folder's name; may be repeated.",
    ),
]

Texts = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]  # --x a b, or --x a --x b


@dataclass(frozen=True)
class Quickstart:
    """See the whole method in a minute: no downloads, no network, two CPU cores.

    A bundled generator specialises a bundled edge for a prompt that was not in its training. The
    edge then answers the same questions without the prompt, with it in context, specialised, and
    specialised by another prompt.

    Example: lorage quickstart --out quickstart
    """

    out: Path
    """Folder for all results."""
    prompt: str | None = None
    """Your own system prompt, e.g. --prompt "Reverse the words. Put commas between words."."""
    family: Literal["words", "tools"] = "words"
    """Built-in tasks from which to draw the prompt, or with --prompt only the questions."""
    real: bool = False
    """Use a real pretrained model, SmolLM2-135M-Instruct, whose folder is in LORAGE_MODELS (by
    default ~/.cache/lorage-models), with the generator for it that is bundled."""
    generator: Path | None = None
    """With --real: another generator, such as one of lorage retarget, and its own edge."""
    ask: Texts = ()
    """Your own questions, instead of drawn ones."""
    train: bool = False
    """First train a new generator on the bundled models, for a short while."""
    seed: int = 0
    """Seed for the prompt and questions, and with --train for the generator."""
    json: Json = None
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Specialize:
    """Turn a system prompt into a card, a PEFT adapter and a merged Hugging Face checkpoint.

    Ends with a parity report: the largest logit difference between unmerged, merged and reloaded
    weights, and the prompt tokens saved per request.

    Example: lorage specialize --generator runs/a/generator --prompt prompt.txt --out special
    """

    generator: GeneratorFolder
    prompt: str
    """Text file with the system prompt; - reads standard input."""
    out: Path
    """New folder for the results."""
    edge: Edge = None
    cloud: Cloud = None
    samples: Path | None = None
    """File of solved requests of the prompt's task, rows {user, target} or {input, output}: the
    prompt's LoRA is trained on them before it is written."""
    tuning_steps: int | None = None
    """With --samples: steps of this training; by default 30."""
    tuning_rate: float | None = None
    """With --samples: its learning rate; by default 0.0003."""
    save: str | None = None
    """Outputs to write, separated by commas: any of card, adapter, merged (the default), and for
    llama.cpp gguf and lora-gguf. With --samples there is no card."""
    dtype: Dtype | None = None
    """With --save merged or gguf: dtype of the merged weights; the edge's own by default."""
    rounding: Literal["auto", "nearest", "stochastic"] = "auto"
    """Rounding of the merged weights to a dtype narrower than float32."""
    seed: int | None = None
    """Seed of stochastic rounding; by default 0."""
    strict: bool = False
    """Fail if the cast or the GGUF file loses more than a tenth of the prompt's effect."""
    base_name: str | None = None
    """With --save adapter: name of the base in the adapter's config; by default the Hub's, or the
    folder's own."""
    gguf_type: GgufType | None = None
    """With --save gguf: how the matrices of the merged GGUF file are stored; f16 by default."""
    tensor: int | None = None
    """Devices, of all processes, that share the cloud's weights; by default as few as hold it."""
    coordinator: Coordinator = None
    num_processes: Processes = None
    process_id: ProcessId = None
    json: Json = None
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Generate:
    """Continue a text, or answer with a specialised model, streaming to the terminal.

    Example: lorage generate --model special/merged --input "lion leaf gold corn"
    """

    model: Path
    """Hugging Face folder or GGUF file; a model with turns answers, others continue the text."""
    input: str
    """User input or text to continue; - reads standard input."""
    adapter: Adapters = ()
    system: Path | None = None
    """File with a system prompt to put into the model's own context (the baseline)."""
    raw: bool = False
    """Continue the text as it is, without the turns that specialised models are trained on."""
    max_new_tokens: int | None = None
    """Maximum number of new tokens; by default 128, or fewer if the context is too short."""
    temperature: float = 0.0
    """Sampling temperature; 0 takes the likeliest token."""
    top_k: int | None = None
    """Sample from this many of the likeliest tokens; by default 0, which means all. Like --top-p
    and --seed, it needs a --temperature above 0."""
    top_p: float | None = None
    """Sample from the likeliest tokens whose probabilities add up to this share; by default 1."""
    seed: int | None = None
    """Seed for sampling; by default 0."""
    stop: Texts = ()
    """Texts before which to stop."""
    dtype: AutoDtype = "auto"
    json: Json = None


@dataclass(frozen=True)
class Serve:
    """Serve a generator's edge with many cards at once, behind OpenAI's API; for one machine.

    A request's model is edge, edge:CARD, or edge:auto, for which the request's system message
    becomes the card. POST /v1/cards makes cards; a page to try it is at /. SIGTERM or Ctrl-C stops
    it after the running requests. Needs the extra: pip install "lorage_jax[serve]".

    Example: lorage serve --generator nano --port 8000
    """

    generator: GeneratorFolder
    edge: Edge = None
    cloud: Cloud = None
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all, then with --api-key."""
    port: int = 8000
    """Port to listen on; 0 takes any free one."""
    port_file: Path | None = None
    """File to write the port to, once the server listens."""
    api_key: str | None = None
    """Key that clients must send; also from the variable LORAGE_API_KEY, which ps does not show."""
    cards: Path = Path("cards")
    """Folder in which cards are kept."""
    slots: int = 16
    """Requests that run at the same time."""
    queue: int = 256
    """Requests that may wait; others get status 429."""
    context: int | None = None
    """Most tokens of a request's prompt and answer; by default the model's context, at most
    2048."""
    max_body: int = 1 << 20
    """Most bytes of a request."""
    warm: int = 64
    """Compile the programs for requests of up to this many tokens before listening; others are
    compiled when they come, which takes seconds."""
    dtype: AutoDtype = "auto"
    json: Json = None


@dataclass(frozen=True)
class Inspect:
    """Show a card's gates by layer and expert as text and picture, or the facts of a generator.

    With --tasks, also show what a generator's experts do, measured on the gates of many prompts:
    of built-in tasks, or of your own.

    Example: lorage inspect special/card.json --png gates.png
    """

    path: Positional[Path]
    """Card file, or folder that lorage_jax wrote, or nano or smollm2 for a bundled generator."""
    tasks: bool = False
    """Also show which experts serve which tasks, and the nearest prompts."""
    task_file: Path | None = None
    """With --tasks: files of tasks as for `lorage eval`, whose definitions are read; by default
    built-in tasks."""
    prompt: str | None = None
    """With --tasks: text file with a system prompt, to list its neighbours; - reads stdin."""
    cloud: Path | None = None
    """With --tasks: the cloud model, if it has moved since the generator was saved."""
    png: Path | None = None
    """Picture to write: a card's gates, or with --tasks the experts by task."""
    json: Json = None
    overwrite: bool = False
    """Replace the picture if it exists."""


@dataclass(frozen=True)
class Eval:
    """Score a model, or a generator with its edge: lm-eval's tasks, files of tasks, or GPT4Tools.

    With --generator, the cloud reads the task's description and few-shot samples once per task, and
    the edge reads the bare question. The few-shot baseline and the controls run in the same call.
    On several hosts, start the same command on every host, as for `lorage train`: they share the
    requests, and process 0 writes the result.

    Example: lorage eval --model special/merged --tasks arc_challenge,piqa --json scores.json
    """

    tasks: str
    """Names separated by commas: gpt4tools, any task of lm-eval, and files with a task per row,
    {name, definition, instances} (.jsonl, .jsonl.gz, or a folder of these, with a slash)."""
    model: Path | None = None
    """Hugging Face folder or GGUF file, scored as it is (few-shot samples in its context)."""
    adapter: Adapters = ()
    generator: MaybeGenerator = None
    edge: Edge = None
    cloud: Cloud = None
    run: Runs = ()
    shots: str | None = None
    """Number of few-shot samples, e.g. 5, or 5,hellaswag=0 by task; by default the task's own."""
    data: str = "hub"
    """Folder with <task>/<split>.jsonl(.gz), or hub to download lm-eval's data sets."""
    limit: int | None = None
    """Score only the first records of every task."""
    controls: bool = True
    """With --generator: also score another task's prompt, a random one, the mean gates and the bare
    edge."""
    baseline: bool = True
    """With --generator: also score the edge with the few-shot samples in its own context."""
    template: Literal["trained", "harness"] | None = None
    """With --generator or gpt4tools: format around the bare question, that of the edge's training
    (trained, the default) or lm-eval's own (harness)."""
    apply_chat_template: bool = False
    """With --model: ask in the turns of the model's chat template, as lm-eval's switch does."""
    system_instruction: str | None = None
    """With --model: a system message (without a chat template, text) before every request."""
    fewshot_as_multiturn: bool = True
    """With --apply-chat-template: few-shot samples are turns, not part of the user's."""
    batch_tokens: int | None = None
    """Tokens per batch, padding included; by default 8192, or 1024 to score on a CPU."""
    max_new_tokens: int | None = None
    """Maximum tokens per answer if the task sets no limit; by default 256, gpt4tools 512."""
    dtype: AutoDtype = "auto"
    seed: int = 1234
    """Seed for the few-shot draw (lm-eval's own by default) and the random control."""
    samples: Path | None = None
    """Also write every record's log-likelihoods and prediction, as JSON lines."""
    coordinator: Coordinator = None
    num_processes: Processes = None
    process_id: ProcessId = None
    json: Json = None


@dataclass(frozen=True)
class Report:
    """Turn result files into one page: the paper's tables with our rows, and pictures.

    Example: lorage report scores.json bench_latency.json --out report
    """

    results: Positional[tuple[Path, ...]]
    """Result files, as written by --json of eval, bench and other commands, and cards."""
    out: Path
    """New folder for report.html and report.md."""
    json: Json = None
    overwrite: Overwrite = False
