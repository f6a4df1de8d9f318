"""The parts of `gpu.py`: each measures one thing on the shapes of a `Setting`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TEXTS = 256  # tokens of a text of the training step
Figures = dict[str, Any]


class Setting:
    """Shapes and repetitions, real or tiny, and the folder for what the parts write."""

    def __init__(self, tiny: bool, folder: Path):
        from lorage_jax.hf.family import family_decoder
        from lorage_jax.hf.presets import SHAPES

        self.tiny, self.folder = tiny, folder
        self.repeats = 1 if tiny else 5
        names = ("llama3-8b", "tinyllama", "smollm2-135m")
        small = {"vocab_size": 512, "heads": 4, "kv_heads": 2}
        self.shapes = {
            name: family_decoder("llama", width=64, layers=2, ffn_width=96, **small)
            if tiny
            else SHAPES[name]
            for name in names
        }

    def model_folder(self, name: str) -> Path:
        """A Hugging Face folder of this shape, with random weights and a small tokenizer."""
        import jax

        from lorage_jax import nano
        from lorage_jax.files.dtypes import DTYPES
        from lorage_jax.hf.save import save_model
        from lorage_jax.hf.tokenizer import load_tokenizer
        from lorage_jax.models.leaves import initialise, model_leaves
        from lorage_jax.models.model import Model

        folder = self.folder / name
        if not folder.exists():
            config = self.shapes[name]
            make = jax.jit(lambda key: initialise(model_leaves(config), key, DTYPES["bfloat16"]))
            save_model(Model(config, make(jax.random.key(0)), load_tokenizer(nano.EDGE)), folder)
        return folder


def goal(what: str, measured: float | None, least: float) -> Figures:
    """One figure beside the least that the project asks of it."""
    met = measured is not None and measured >= least
    return {"what": what, "measured": measured, "goal": least, "met": met}


def timed(action: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of `repeats` calls, after two that are not timed."""
    from lorage_jax.bench.timing import seconds

    for _ in range(2):
        seconds(action)
    return [seconds(action) for _ in range(repeats)]


def copy_bandwidth(setting: Setting) -> float:
    """Bytes per second, read plus written, of the fastest copy of a large array."""
    import jax
    import jax.numpy as jnp

    count = 1 << (16 if setting.tiny else 30)
    source = jax.random.bits(jax.random.key(0), (count,), jnp.uint16)
    copy = jax.jit(lambda x: x ^ jnp.uint16(1))  # a plain copy would be optimised away
    return 2 * source.nbytes / min(timed(lambda: copy(source), setting.repeats))


def matmul_rate(setting: Setting) -> float:
    """FLOP/s of bfloat16 products of random matrices."""
    from lorage_jax.bench.matmul import matmul_rate

    return matmul_rate("bfloat16", (256,) if setting.tiny else None)


def ceilings(setting: Setting) -> Figures:
    """The rates that bound every program: matrix products, and copies in the device's memory."""
    return {
        "matmul_flops_per_second": matmul_rate(setting),
        "copy_bytes_per_second": copy_bandwidth(setting),
    }


def merge(setting: Setting, shape: str) -> Figures:
    """Merges a card into the FFN: bytes that must be read and written, against a copy's rate."""
    import jax.numpy as jnp

    from lorage_jax.bench.edge import random_edge
    from lorage_jax.generator.merge import compiled_assemble, compiled_merge
    from lorage_jax.generator.merge import merge as merged
    from lorage_jax.generator.pool import assembled_rank

    edge, pool, card = random_edge(setting.shapes[shape], "bfloat16")
    ffn = {name: edge.params["layers"][name] for name in edge.config.projections}
    rank = assembled_rank(pool, card.gates)
    factors = compiled_assemble(pool, jnp.asarray(card.gates), rank)
    program = compiled_merge(tuple((name, x.sharding) for name, x in ffn.items()), False)
    least = 2 * sum(x.nbytes for x in ffn.values())
    calls: dict[str, Callable[[], Any]] = {
        "program": lambda: program(ffn, factors),
        "merge_nearest": lambda: merged(edge, pool, card, layerwise=False, rounding="nearest"),
        "merge_layerwise_nearest": lambda: merged(
            edge, pool, card, layerwise=True, rounding="nearest"
        ),
        "merge": lambda: merged(edge, pool, card),
    }
    bandwidth = copy_bandwidth(setting)
    figures: Figures = {"shape": shape, "bytes": least, "copy_bytes_per_second": bandwidth}
    for name, call in calls.items():
        # A model's parameters are what must be ready, not the model around them.
        found = timed(lambda call=call: getattr(made := call(), "params", made), setting.repeats)
        figures[f"{name}_seconds"] = statistics.median(found)
        figures[f"{name}_share"] = least / statistics.median(found) / bandwidth
    what = f"merge into {shape}: share of the copy bandwidth"
    return figures | {"goals": [goal(what, figures["program_share"], 0.7)]}


def generator_step(setting: Setting, packed: bool) -> Figures:
    """A step of the TinyLlama recipe, under LLaMA3-8B: share of the measured matmul rate.

    64 prompts and queries of 256 tokens, the mean that fills the recipe's packed rows; packed into
    eight rows as in the recipe, or a row each.
    """
    import dataclasses

    import jax

    from lorage_jax.bench.train import random_batch
    from lorage_jax.commands.experiment import load_experiment
    from lorage_jax.compilation import Compilations
    from lorage_jax.methods.lora_gen import LoraGen
    from lorage_jax.models.bits import program_params
    from lorage_jax.models.leaves import model_leaves
    from lorage_jax.models.presets import random_model
    from lorage_jax.sharding import Layout, make_mesh, tree_shardings
    from lorage_jax.train.experiment import batch_rows, build_step, new_state
    from lorage_jax.train.flops import cloud_flops, step_flops
    from lorage_jax.train.step import device_batch, micro_sharding

    config: Any = load_experiment(ROOT / "experiments" / "paper" / "tinyllama.py")
    length = 16 if setting.tiny else TEXTS
    data = dataclasses.replace(config.data, max_prompt_tokens=length, max_query_tokens=length)
    if not packed:
        data = dataclasses.replace(data, packed_rows=None)
    config = dataclasses.replace(config, data=data)
    cloud, edge = setting.shapes["llama3-8b"], setting.shapes["tinyllama"]
    layout = Layout(make_mesh(config.mesh, rows=batch_rows(config)))
    program = build_step(LoraGen, config, {"cloud": cloud, "edge": edge}, layout)
    frozen = {
        name: program_params(
            random_model(model, config.dtype, tree_shardings(model_leaves(model), layout)).params
        )
        for name, model in {"cloud": cloud, "edge": edge}.items()
    }
    batch = random_batch(data, cloud, edge)
    placed = device_batch(batch, 1, micro_sharding(layout))
    state = new_state(program, frozen, 0)

    def step() -> Any:
        nonlocal state
        state, metrics = program.step(state, frozen, placed)
        return metrics["loss"]

    with Compilations() as compiled:
        first = float(step())
    times = timed(step, setting.repeats)
    seconds, rate = statistics.median(times), matmul_rate(setting)
    flops = step_flops(config.generator, cloud, edge, batch)
    mfu = flops / seconds / rate
    how = "packed" if packed else "a row per text"
    what = f"generator's step ({how}): share of the matmul rate"
    return {
        "prompts": list(batch.prompts[0].tokens.shape),
        "queries": list(batch.queries[0].tokens.shape),
        "remat": config.remat,
        "flash_kernels": layout.flash,
        "compile_seconds": compiled.seconds,
        "first_loss": first,
        "seconds": times,
        "flops": flops,
        "cloud_share_of_flops": cloud_flops(config.generator, cloud, edge, batch) / flops,
        "matmul_flops_per_second": rate,
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "goals": [goal(what, mfu, 0.4)],
    }


def attention(setting: Setting) -> Figures:
    """The attention of a layer here, at the cloud's shape, beside products of XLA's.

    Eight packed rows of 2048 slots with eight texts each; forward, and with the backward pass.
    `difference` and `slope_difference` are relative to our products in the Euclidean norm.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lorage_jax import ops
    from lorage_jax.cudnn import computes_attention, cudnn_attention

    cloud = setting.shapes["llama3-8b"]
    rows, texts, length = (2, 2, 32) if setting.tiny else (8, 8, 2048)
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (rows, length, heads, cloud.head_dim), jnp.bfloat16)
        for key, heads in zip(keys, (cloud.heads, cloud.kv_heads, cloud.kv_heads), strict=True)
    )
    text = np.arange(length) * texts // length
    seen = np.tril(text[:, None] == text[None, :])
    mask = jnp.broadcast_to(jnp.asarray(seen), (rows, length, length))
    scale = cloud.head_dim**-0.5

    def products(q, k, v):
        return ops.attention(q, k, v, mask, scale, None)

    def by_jax(q, k, v):
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask[:1, None], scale=scale, implementation="xla"
        )

    named: dict[str, Any] = {"products": products, "jax_xla": by_jax}
    if computes_attention(q, k, v, None, None):
        named["cudnn"] = lambda q, k, v: cudnn_attention(q, k, v, mask, scale, None)
    path = "cudnn" if "cudnn" in named else "products"
    figures: Figures = {"path": path, "shape": list(q.shape)}
    reference: list[Any] = []

    def difference(found: Any, wanted: Any) -> float:
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    for name, function in named.items():
        forward = jax.jit(function)
        backward = jax.jit(
            jax.grad(
                lambda *x, f=function: jnp.sin(f(*x).astype(jnp.float32)).sum(), argnums=(0, 1, 2)
            )
        )
        found = [np.asarray(x, np.float32) for x in (forward(q, k, v), *backward(q, k, v))]
        reference = reference or found
        apart = [difference(*pair) for pair in zip(found, reference, strict=True)]
        figures[name] = {
            "forward_seconds": statistics.median(
                timed(lambda f=forward: f(q, k, v), setting.repeats)
            ),
            "with_backward_seconds": statistics.median(
                timed(lambda f=backward: f(q, k, v), setting.repeats)
            ),
            "difference": apart[0],
            "slope_difference": max(apart[1:]),
        }
    return figures


def generation(setting: Setting, shape: str) -> Figures:
    """Prompts and tokens at 1 and 16 rows, beside transformers on the same device."""
    from lorage_jax.bench.generation import compare_decode, compare_prefill

    folder, figures, goals = setting.model_folder(shape), {}, []
    tokens = 16 if setting.tiny else 200
    for batch in (1, 2 if setting.tiny else 16):
        common: dict[str, Any] = {"batch": batch, "prompt_tokens": tokens, "dtype": "bfloat16"}
        found = {
            "prefill": compare_prefill(folder, **common, repeats=setting.repeats),
            "decode": compare_decode(
                folder, **common, new_tokens=4 if setting.tiny else 32, repeats=setting.repeats
            ),
        }
        for name, figure in found.items():
            figures[f"{name}_{batch}"] = figure
            what = f"{name}, {shape}, {batch} rows: transformers' time over ours"
            goals.append(goal(what, figure["ratio"], 3))
    return figures | {"goals": goals}


def score(setting: Setting, shape: str) -> Figures:
    """Questions with four endings each, beside lm-eval's hf at its best batch size."""
    from lorage_jax.bench.score import bench_score

    questions = 2 if setting.tiny else 32
    repeats = min(3, setting.repeats)
    figures = bench_score(setting.model_folder(shape), repeats, "bfloat16", questions=questions)
    return figures | {"goals": [goal(f"score, {shape}: hf's time over ours", figures["ratio"], 2)]}


def specialize(setting: Setting, shape: str) -> Figures:
    """The cloud pass over 64 prompts in a batch and one by one, and the bound of their ratio.

    A prompt alone must read all weights once or do its arithmetic, whichever takes longer; in a
    batch, the arithmetic is all that is left.
    """
    from lorage_jax.bench.specialize import PROMPTS, bench_specialize
    from lorage_jax.config import GeneratorConfig
    from lorage_jax.models.presets import parameter_count

    cloud, tokens = setting.shapes[shape], 16 if setting.tiny else 200
    figures = bench_specialize(
        setting.shapes["tinyllama"],
        cloud,
        GeneratorConfig.paper(),
        instruction_tokens=tokens,
        repeats=min(3, setting.repeats),
        dtype="bfloat16",
    )
    slots = figures["padded_tokens"] + figures["meta_tokens"]
    weights = parameter_count(cloud) - 2 * cloud.vocab_size * cloud.width
    arithmetic = 2 * weights * slots / matmul_rate(setting)
    reading = 2 * 2 * weights / copy_bandwidth(setting)  # a copy moves every byte twice
    ratio = figures["single_calls_seconds"] / figures["batch_seconds"]
    what = f"{PROMPTS} prompts, cloud {shape}: singly over in a batch"
    return {
        "cloud": shape,
        **figures,
        "floor_seconds_of_one_prompt": max(arithmetic, reading / 2),
        "floor_seconds_of_the_batch": PROMPTS * arithmetic,
        "bound_of_ratio_at_full_rates": max(arithmetic, reading / 2) / arithmetic,
        "goals": [goal(what, ratio, 4)],
    }


# Name -> (whether it runs beside torch, seconds, part), in the order of worth.
PARTS: dict[str, tuple[bool, int, Callable[[Setting], Figures]]] = {
    "ceilings": (False, 25, ceilings),
    "merge": (False, 30, partial(merge, shape="tinyllama")),
    "generator_step": (False, 90, partial(generator_step, packed=True)),
    "generation_tinyllama": (True, 100, partial(generation, shape="tinyllama")),
    "score": (True, 75, partial(score, shape="tinyllama")),
    "specialize_small": (False, 30, partial(specialize, shape="smollm2-135m")),
    "attention": (False, 30, attention),
    "specialize": (False, 45, partial(specialize, shape="llama3-8b")),
    "generator_step_rows": (False, 80, partial(generator_step, packed=False)),
    "merge_8b": (False, 40, partial(merge, shape="llama3-8b")),
    "generation_smollm2": (True, 60, partial(generation, shape="smollm2-135m")),
}
