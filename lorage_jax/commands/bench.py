"""`lorage bench`: runs a measurement of `evaluate/` and prints it with the machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from lorage_jax.config import GeneratorConfig, ModelConfig
from lorage_jax.errors import ConfigError
from lorage_jax.hf.config import model_config
from lorage_jax.models.presets import SHAPES, plain_decoder, shape_name, with_layers
from lorage_jax.provenance import machine
from lorage_jax.report import paper

if TYPE_CHECKING:
    from lorage_jax.commands.options import Bench

EDGE = ("shape", "edge_config", "layers")
PROMPT = ("input_tokens", "instruction_tokens")
# The options that each measurement reads; any other is refused.
READS = {
    "merge": (*EDGE, "repeats", "dtype"),
    "decode": (*EDGE, "repeats", "dtype"),
    "export": (*EDGE, "repeats", "dtype"),
    "flops": (*EDGE, "cloud_config", *PROMPT, "dtype"),
    "latency": (*EDGE, *PROMPT, "new_tokens", "repeats", "dtype"),
    "memory": (*EDGE, *PROMPT, "new_tokens", "dtype"),
    "score": ("model", "repeats", "dtype"),
    "specialize": (*EDGE, "cloud_config", "instruction_tokens", "repeats", "dtype"),
    "train": (*EDGE, "cloud_config", *PROMPT, "rows", "repeats", "dtype"),
}
COUNTS = (*PROMPT, "layers", "new_tokens", "repeats", "rows")  # 1 or more
CPU_LAYERS = 4  # of a latency on a CPU, where the true depth takes minutes a request
# The cloud of `specialize` on a CPU.
SMALL_CLOUD = plain_decoder(
    "llama", vocab_size=32_000, width=512, layers=4, heads=8, kv_heads=2, ffn_width=1792
)
# What `train` takes on a CPU: the true widths, but few layers of both models and few rows.
TRAIN_LAYERS, TRAIN_ROWS = 2, 8
WIDENED = (
    "a CPU widens all bfloat16 weights to float32 in every call: that time and memory hides what "
    "the prompt costs; see --dtype float32"
)
PAPER_MODELS = {
    "tinyllama": "TinyLlama-1.1B",
    "qwen2-1.5b": "Qwen-1.5B",
    "gemma2-2b": "Gemma-2B",
}
PAPER_SHAPE = "qwen2-1.5b"  # of Table 13


def bench(options: Bench) -> dict[str, Any]:
    """Measures, prints and returns the figures."""
    _check(options)
    result = {"bench": options.what, **_run(options)}
    widened = ("latency", "memory", "specialize", "train")
    hidden = options.what in widened and options.dtype == "bfloat16"
    if hidden and jax.default_backend() == "cpu":
        result["note"] = WIDENED
    shown = result | machine()
    width = max(map(len, shown)) + 2
    for name, value in shown.items():
        print(f"{name:{width}}{_text(value)}")
    return result


def _text(value: Any) -> str:
    large = isinstance(value, int) and not isinstance(value, bool) and value >= 10**6
    return f"{value:.4g}" if large or isinstance(value, float) else str(value)


def _check(options: Bench) -> None:
    """ConfigError for a count below 1, and for an option that this measurement does not read."""
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        if name in ("what", "json"):
            continue
        flag = "--" + name.replace("_", "-")
        if name not in READS[options.what] and value != field.default:
            readable = ", ".join("--" + n.replace("_", "-") for n in READS[options.what])
            raise ConfigError(
                f"bench {options.what} does not read {flag} ({value}). It reads {readable}."
            )
        if name in COUNTS and value is not None and value < 1:
            raise ConfigError(f"{flag} is {value}; expected 1 or more.")
        if name == "shape" and options.edge_config is not None and value != field.default:
            raise ConfigError(
                f"both --shape {value} and --edge-config {options.edge_config} name the edge's "
                "shape; give one of them."
            )


def _run(options: Bench) -> dict[str, Any]:
    if options.what == "score":
        return _score(options)
    full = SHAPES[options.shape] if options.edge_config is None else _read(options.edge_config)
    edge = full if options.layers is None else with_layers(full, options.layers)
    name = {"shape": shape_name(full) or str(options.edge_config)}
    match options.what:
        case "flops":
            return name | _flops(options, edge)
        case "latency":
            return name | _latency(options, edge, full)
        case "memory":
            return name | _memory(options, edge)
        case "specialize":
            return name | _specialize(options, edge)
        case "train":
            return name | _train(options, full)
    # Imported when asked for, as every benchmark is: an import of all of them takes seconds.
    from lorage_jax.bench.efficiency import bench_decode, bench_merge
    from lorage_jax.bench.export import bench_export

    run = {"merge": bench_merge, "decode": bench_decode, "export": bench_export}[options.what]
    return name | run(edge, options.repeats, options.dtype)


def _score(options: Bench) -> dict[str, Any]:
    from lorage_jax.bench.score import bench_score

    return bench_score(options.model, options.repeats, options.dtype)


def _flops(options: Bench, edge: ModelConfig) -> dict[str, Any]:
    from lorage_jax.bench.flops import bench_flops

    cloud = _cloud(options.cloud_config)
    tokens = _tokens(options, edge, cloud)
    result = bench_flops(edge, cloud, GeneratorConfig(), **tokens, dtype=options.dtype)
    told = {"cloud": shape_name(cloud) or str(options.cloud_config)}
    return told | result | _paper_macs(shape_name(edge), options)


def _latency(options: Bench, edge: ModelConfig, full: ModelConfig) -> dict[str, Any]:
    from lorage_jax.bench.latency import bench_latency

    if options.layers is None and jax.default_backend() == "cpu":
        edge = with_layers(full, min(CPU_LAYERS, full.layers))
    tokens = _tokens(options, edge) | {"new_tokens": options.new_tokens}
    result = bench_latency(edge, **tokens, repeats=options.repeats, dtype=options.dtype)
    told = {"depth": f"{edge.layers} of {full.layers} layers"}
    return told | result | _paper_latency(shape_name(full), options)


def _memory(options: Bench, edge: ModelConfig) -> dict[str, Any]:
    from lorage_jax.bench.memory import bench_memory

    tokens = _tokens(options, edge) | {"new_tokens": options.new_tokens}
    return bench_memory(edge, **tokens, dtype=options.dtype)


def _specialize(options: Bench, edge: ModelConfig) -> dict[str, Any]:
    from lorage_jax.bench.efficiency import bench_specialize

    small = options.cloud_config is None and jax.default_backend() == "cpu"
    cloud = SMALL_CLOUD if small else _cloud(options.cloud_config)
    _check_context("cloud", cloud, instruction=options.instruction_tokens, meta=edge.layers)
    told = "small, for a CPU" if small else shape_name(cloud) or str(options.cloud_config)
    return {"cloud": told} | bench_specialize(
        edge,
        cloud,
        GeneratorConfig(),
        instruction_tokens=options.instruction_tokens,
        repeats=options.repeats,
        dtype=options.dtype,
    )


def _train(options: Bench, edge: ModelConfig) -> dict[str, Any]:
    from lorage_jax.bench.train import QUERIES, bench_train

    cpu, cloud = jax.default_backend() == "cpu", _cloud(options.cloud_config)
    rows = options.rows or (TRAIN_ROWS if cpu else 64)
    if rows % max(QUERIES):
        raise ConfigError(f"--rows is {rows}; expected a multiple of {max(QUERIES)}.")
    if layers := options.layers or (TRAIN_LAYERS if cpu else None):
        edge, cloud = (with_layers(model, min(layers, model.layers)) for model in (edge, cloud))
    tokens = _tokens(options, edge, cloud)
    told = {"cloud": shape_name(cloud) or str(options.cloud_config or "llama3-8b, shallower")}
    return told | bench_train(
        edge,
        cloud,
        GeneratorConfig(),
        rows=rows,
        prompt_tokens=tokens["instruction_tokens"],
        query_tokens=tokens["input_tokens"],
        repeats=options.repeats,
        dtype=options.dtype,
    )


def _read(folder: Path) -> ModelConfig:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; expected one that holds a config.json.")
    return model_config(folder)


def _cloud(folder: Path | None) -> ModelConfig:
    return SHAPES["llama3-8b"] if folder is None else _read(folder)


def _tokens(options: Bench, edge: ModelConfig, cloud: ModelConfig | None = None) -> dict[str, int]:
    """The token counts, once they fit the contexts of edge and cloud."""
    instruction, own = options.instruction_tokens, options.input_tokens
    new = {"new": options.new_tokens} if "new_tokens" in READS[options.what] else {}
    _check_context("edge", edge, instruction=instruction, input=own, **new)
    if cloud is not None:
        _check_context("cloud", cloud, instruction=instruction, meta=edge.layers)
    return {"input_tokens": own, "instruction_tokens": instruction}


def _check_context(role: str, config: ModelConfig, **counts: int) -> None:
    total = sum(counts.values())
    if total > config.max_positions:
        parts = " + ".join(f"{count} {what}" for what, count in counts.items())
        raise ConfigError(
            f"{parts} tokens are {total}; the {role}'s context is {config.max_positions}. "
            "Ask for fewer."
        )


def _paper_macs(shape: str | None, options: Bench) -> dict[str, float]:
    """Table 13's inference column, if this is its model at its token counts."""
    if shape != PAPER_SHAPE or not _paper_tokens(options):
        return {}
    with_prompt, specialized = paper.TABLE_13[0], paper.TABLE_13[-1]
    return {
        "paper_macs_with_prompt": with_prompt.inference,
        "paper_macs_specialized": specialized.inference,
    }


def _paper_latency(shape: str | None, options: Bench) -> dict[str, float]:
    """Table 2's milliseconds of this model, on the authors' device, and their ratio."""
    if shape not in PAPER_MODELS or not _paper_tokens(options):
        return {}
    model = PAPER_MODELS[shape]
    rows = {row.method: row.milliseconds for row in paper.TABLE_2 if row.model == model}
    base, ours = rows[paper.BASE], rows[paper.OURS]
    return {
        "paper_ms_with_prompt": base,
        "paper_ms_specialized": ours,
        "paper_ratio": base / ours,
    }


def _paper_tokens(options: Bench) -> bool:
    return (options.input_tokens, options.instruction_tokens) == (100, 200)
