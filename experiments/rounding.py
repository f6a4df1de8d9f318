"""Measures how much of a merged LoRA survives the cast of the weights, by rounding and by strength.

    python experiments/rounding.py models/SmolLM2-135M-Instruct   # -> results/rounding.json and .md

Hardware: two CPU cores. Wall time: about 20 minutes. Expected result: results/rounding.md.

An update of rank 8 on the FFN of a pretrained model is trained for a short while on one built-in
word task. It is scaled so that |dW| / |W| spans the strengths of lightly to strongly trained
generators, and merged in bfloat16 and float16, rounded to nearest and stochastically. KL
divergences are of the next token on solved requests that the training did not see, from the
unmerged float32 model.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lorage_jax.data.templates import NEWEST, PlainTemplate
from lorage_jax.files.outputs import write_file
from lorage_jax.generator.card import Card
from lorage_jax.generator.merge import merge_with_report
from lorage_jax.generator.parity import mean_kl
from lorage_jax.hf.load import load_model
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model, forward
from lorage_jax.provenance import provenance
from lorage_jax.world.prompts import draw_groups

RESULTS = Path(__file__).parent / "results"
RANK, STEPS, ROWS, LENGTH, HELD_OUT = 8, 40, 8, 48, 4
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # |dW| / |W|
DTYPES, SEEDS = ("bfloat16", "float16"), (0, 1, 2)
SEED = 0


def main(folder: Path) -> None:
    edge = load_model(folder, "float32")
    records = draw_groups("train", 1, ROWS * 4 + HELD_OUT, SEED, "words")[0]
    rows = [solved(edge, record.user, record.target) for record in records]
    tokens, targets = (np.stack(part) for part in zip(*rows, strict=True))
    pool = train(edge, tokens[HELD_OUT:], targets[HELD_OUT:])
    natural = strength(edge, pool)
    found = []
    for wanted in STRENGTHS:
        scaled = pool.replace(scale=wanted / natural)
        for dtype in DTYPES:
            row = measure(folder, dtype, scaled, tokens[:HELD_OUT])
            found.append({"strength": wanted, "dtype": dtype} | row)
            print(json.dumps(found[-1]), flush=True)
    write_results(folder.name, found)


def write_results(model: str, found: list[dict[str, Any]]) -> None:
    about = provenance(["python", "experiments/rounding.py", f"models/{model}"])
    values = about | {"model": model, "seed": SEED, "rank": RANK, "rows": found}
    write_file(RESULTS / "rounding.json", json.dumps(values, indent=1) + "\n", overwrite=True)
    write_file(RESULTS / "rounding.md", table(model, found), overwrite=True)


def solved(edge: Model, user: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a solved request, and a mask of the answer, both cut or padded to LENGTH."""
    template = PlainTemplate(edge.tokenizer, NEWEST.version)
    prompt, answer = template.prompt(user), template.answer(target)
    tokens, mask = np.zeros(LENGTH, np.int32), np.zeros(LENGTH, bool)
    ids = [*prompt, *answer][:LENGTH]
    tokens[: len(ids)] = ids
    mask[len(prompt) : len(ids)] = True
    return tokens, mask


def fresh_factors(edge: Model, key: jax.Array) -> dict[str, Any]:
    """One expert [L, 1, ...] on the FFN, with which training begins."""
    factors = {}
    for name in edge.config.projections:
        layers, inside, outside = edge.params["layers"][name].shape
        key, own = jax.random.split(key)
        a = jax.random.normal(own, (layers, 1, inside, RANK)) * inside**-0.5
        factors[name] = {"a": a, "b": jnp.zeros((layers, 1, RANK, outside))}
    return factors


def pool_of(factors: dict[str, Any]) -> Pool:
    return Pool(factors, combine="factors", scale=1.0, scope="per_layer", generator="measured")


def train(edge: Model, tokens: np.ndarray, targets: np.ndarray) -> Pool:
    """A LoRA on the answers, by Adam."""
    optimizer = optax.adam(2e-3)
    factors = fresh_factors(edge, jax.random.key(SEED))
    state = optimizer.init(factors)

    @partial(jax.jit, donate_argnums=(1, 2))
    def step(params, factors, state, tokens, mask):
        def loss(factors):
            gates = jnp.ones((ROWS, edge.config.layers, 1))
            decoder = Decoder(edge.config)
            own = pool_of(factors)
            out: Any = decoder.apply({"params": params}, tokens, None, gates=gates, pool=own)
            each = optax.softmax_cross_entropy_with_integer_labels(
                out.logits[:, :-1], tokens[:, 1:]
            )
            return jnp.sum(each * mask[:, 1:]) / jnp.sum(mask[:, 1:])

        value, slope = jax.value_and_grad(loss)(factors)
        change, state = optimizer.update(slope, state)
        return optax.apply_updates(factors, change), state, value

    rng = np.random.default_rng(SEED)
    for number in range(STEPS):
        rows = rng.choice(len(tokens), ROWS, replace=False)
        factors, state, value = step(edge.params, factors, state, tokens[rows], targets[rows])
        if number % 10 == 0 or number == STEPS - 1:
            print(f"step {number} loss {float(value):.3f}", flush=True)
    return pool_of(factors)


def strength(edge: Model, pool: Pool) -> float:
    """|dW| / |W| over the FFN."""
    update = weights = 0.0
    for name, expert in pool.experts.items():
        # |A B|^2 is the trace of (A^T A) (B B^T).
        inner = jnp.einsum("leip,leiq->lpq", expert["a"], expert["a"])
        outer = jnp.einsum("lepo,leqo->lpq", expert["b"], expert["b"])
        update += float(jnp.sum(inner * outer)) * pool.scale**2
        weights += float(jnp.sum(edge.params["layers"][name] ** 2))
    return (update / weights) ** 0.5


def measure(folder: Path, dtype: str, pool: Pool, tokens: np.ndarray) -> dict[str, Any]:
    """The divergences and `update_kept` of both roundings on a base of this dtype."""
    edge = load_model(folder, dtype)
    layers = edge.config.layers
    card = Card(np.ones((layers, 1), np.float32), pool.generator, edge.fingerprint)
    gates = jnp.ones((len(tokens), layers, 1))
    unmerged, base = logits(edge, tokens, gates, pool), logits(edge, tokens)
    row: dict[str, Any] = {"kl_effect": mean_kl(unmerged, base)}
    nearest, report = merge_with_report(edge, pool, card, rounding="nearest")
    row["nearest"] = {
        "kl_lost": mean_kl(unmerged, logits(nearest, tokens)),
        "update_kept": report.update_kept,
        "share_unmoved": report.share_unmoved,
    }
    row["stochastic"] = []
    for seed in SEEDS:
        special, report = merge_with_report(edge, pool, card, rounding="stochastic", seed=seed)
        lost = mean_kl(unmerged, logits(special, tokens))
        row["stochastic"].append({"kl_lost": lost, "update_kept": report.update_kept})
    return row


def logits(model: Model, tokens: np.ndarray, gates: Any = None, pool: Any = None) -> np.ndarray:
    wide = model.replace(params=jax.tree.map(lambda x: x.astype(jnp.float32), model.params))
    return np.asarray(forward(wide, tokens, gates=gates, pool=pool))


def table(model: str, rows: list[dict[str, Any]]) -> str:
    lines = [
        "# What the cast of a merged update loses",
        "",
        f"{model}, an FFN update of rank {RANK}; KL in nats per token. `lost` is the KL that the",
        "cast costs, over the KL between the specialised and the base model; stochastic: mean and",
        f"range over {len(SEEDS)} seeds. `kept` is update_kept.",
        "",
        "| dW / W | dtype | KL of the effect | nearest: lost | kept | unmoved |"
        " stochastic: lost | kept |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        effect, near, drawn = row["kl_effect"], row["nearest"], row["stochastic"]
        lost = [one["kl_lost"] / effect for one in drawn]
        spread = f"{np.mean(lost):.2%} ({min(lost):.2%} to {max(lost):.2%})"
        kept = float(np.mean([one["update_kept"] for one in drawn]))
        lines.append(
            f"| {row['strength']:.0e} | {row['dtype']} | {effect:.2e} | "
            f"{near['kl_lost'] / effect:.2%} | {near['update_kept']:.3f} | "
            f"{near['share_unmoved']:.1%} | {spread} | {kept:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
