"""`lorage quickstart`: the whole method on a pair of models made on the spot.

Two small language models of different families and tokenizers learn the built-in world of text
tasks, prompt in context; then they are frozen and a generator is trained on them; then a prompt in
words that no training has seen becomes a card, an adapter and a merged checkpoint.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from lorage_jax.buckets import bucket, left_pad
from lorage_jax.commands.specialize import describe, specialize_into
from lorage_jax.config import (
    Corpus,
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    OptimizerConfig,
    PretrainConfig,
    Source,
)
from lorage_jax.data import synthetic
from lorage_jax.data.prompts import (
    edge_prompt,
    edge_prompt_with_system,
    encode,
    encode_target,
)
from lorage_jax.data.records import Record
from lorage_jax.evaluate.shapes import plain_decoder
from lorage_jax.generator.card import load_card
from lorage_jax.generator.generator import Generator, specialize
from lorage_jax.generator.losses import cross_entropy
from lorage_jax.generator.merge import merge
from lorage_jax.generator.store import load_generator
from lorage_jax.hf.folder import check_target, new_folder, write_manifest
from lorage_jax.hf.load import load_model
from lorage_jax.infer.generate import generate
from lorage_jax.models.model import Model, forward
from lorage_jax.pictures import gate_heatmap, gate_text, loss_curve
from lorage_jax.train.loop import train
from lorage_jax.train.pretrain import pretrain

TEXTS = 2_000  # documents of the built-in world, for a tokenizer
CLOUD_STEPS, EDGE_STEPS, GENERATOR_STEPS = 250, 400, 200
QUESTIONS = 24  # on which the three ways to answer are compared


def quickstart(out: Path, seed: int, overwrite: bool) -> dict[str, Any]:
    """Makes everything under `out`, prints what happened, returns what `report.json` holds."""
    began, console = time.time(), Console(stderr=True, highlight=False)
    check_target(out, overwrite)
    with new_folder(out, overwrite=overwrite) as folder:
        console.print("1/4  Making a cloud (llama) and an edge (qwen2) with their tokenizers ...")
        made = _make_pair(folder, seed)
        console.print("2/4  Training a generator for the frozen pair ...")
        result = train(_experiment(folder, seed))
        loss_curve(result.losses, folder / "loss.png", overwrite=False)
        console.print("3/4  Specialising for a prompt that was not in training ...")
        # Nobody resumes this run: what is of use only for that goes.
        shutil.rmtree(folder / "checkpoints")
        (folder / "config.json").unlink()
        generator = load_generator(result.folder)
        records = synthetic.draw_groups("paraphrase", 1, QUESTIONS, seed, "easy")[0]
        (folder / "prompt.txt").write_text(records[0].system + "\n", "utf-8")
        edge_name = str(out.absolute() / "edge")
        report = specialize_into(
            generator,
            records[0].system,
            folder,
            folder / "edge",
            ("card", "adapter", "merged"),
            None,
            base_name=edge_name,
        )
        gates = load_card(folder / "card.json").gates
        gate_heatmap(gates, folder / "gates.png", overwrite=False)
        console.print("4/4  Asking all three ways, and with another prompt's card ...")
        other = synthetic.draw_groups("paraphrase", 2, 1, seed + 1, "easy")[1][0].system
        report |= _ask(folder, records, generator, other) | {
            "prompt": records[0].system,
            "questions": len(records),
            "pretraining": made,
            "generator_loss": {"first": result.losses[0][1], "last": result.losses[-1][1]},
            "seed": seed,
            "seconds": time.time() - began,
        }
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        write_manifest(folder, {"format": "lorage-quickstart/1"})
    print(_story(report, gate_text(gates), out))
    return report


def _make_pair(folder: Path, seed: int) -> dict[str, Any]:
    made = {}
    for role, steps in (("cloud", CLOUD_STEPS), ("edge", EDGE_STEPS)):
        run = folder / f"{role}_run"
        losses = pretrain(_pretraining(role, run, steps, seed)).losses
        (run / "model").rename(folder / role)
        shutil.rmtree(run)
        made[role] = {"first_loss": losses[0][1], "last_loss": losses[-1][1], "steps": steps}
    return made


def _pretraining(role: str, out: Path, steps: int, seed: int) -> PretrainConfig:
    is_cloud = role == "cloud"
    width, devices = 96 if is_cloud else 64, jax.device_count()
    rows = -(-8 // devices) * devices
    easy = Source("synthetic", "synthetic", name="easy")
    return PretrainConfig(
        model=plain_decoder(
            "llama" if is_cloud else "qwen2",
            vocab_size=768 if is_cloud else 640,
            width=width,
            layers=4,
            heads=4,
            kv_heads=2,
            ffn_width=3 * width,
            max_positions=256,
            tied_head=True,
            bos_id=0 if is_cloud else None,
        ),
        out=str(out),
        corpora=(Corpus(easy, documents=2 * rows, rows=rows, row_tokens=192, queries=3),),
        steps=steps,
        tokenizer_documents=TEXTS,
        optimizer=OptimizerConfig(2e-3, "muon", betas=(0.9, 0.95), warmup_steps=20),
        saved_dtype="float32",
        remat="none",
        seed=seed + is_cloud,
        save_every=steps,
    )


def _experiment(folder: Path, seed: int) -> ExperimentConfig:
    devices = jax.device_count()
    return ExperimentConfig(
        cloud=str(folder / "cloud"),
        edge=str(folder / "edge"),
        out=str(folder),
        data=DataConfig(
            sources=(Source("synthetic", "synthetic", name="easy"),),
            prompts_per_batch=-(-16 // devices) * devices,
            queries_per_prompt=4,
            max_prompt_tokens=64,
            max_query_tokens=64,
        ),
        generator=GeneratorConfig(rank=8, alpha=8.0, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=30),
        steps=GENERATOR_STEPS,
        dtype="float32",
        remat="none",
        seed=seed,
        save_every=GENERATOR_STEPS,
        log_every=20,
    )


def _ask(
    folder: Path, records: Sequence[Record], generator: Generator, other: str
) -> dict[str, Any]:
    """The same questions to the edge without prompt, with the prompt in its context, specialised.

    As a control, specialised by the prompt `other`. Exact matches, and nats per target token.
    """
    edge, special = load_model(folder / "edge"), load_model(folder / "merged")
    wrong = merge(edge, generator.pool, specialize(generator, other))
    bare = [edge_prompt(r.user) for r in records]
    told = [edge_prompt_with_system(r.system, r.user) for r in records]
    targets = [r.target for r in records]
    ways = {
        "without_prompt": (edge, bare),
        "with_prompt": (edge, told),
        "specialized": (special, bare),
        "control_other_prompt": (wrong, bare),
    }
    texts = {
        way: [text.strip() for text in generate(model, asked, max_new_tokens=32)]
        for way, (model, asked) in ways.items()
    }
    return {
        "answers": [
            {"user": r.user, "expected": r.target, **{way: texts[way][i] for way in ways}}
            for i, r in enumerate(records)
        ],
        "exact_match": {
            way: sum(map(str.__eq__, texts[way], targets)) / len(records) for way in ways
        },
        "nats_per_target_token": {
            way: _target_loss(model, asked, targets) for way, (model, asked) in ways.items()
        },
    }


def _target_loss(model: Model, asked: Sequence[str], answers: Sequence[str]) -> float:
    rows = [
        (encode(model.tokenizer, text, bos=True), encode_target(model.tokenizer, target))
        for text, target in zip(asked, answers, strict=True)
    ]
    tokens, mask = left_pad([a + b for a, b in rows], bucket(max(len(a + b) for a, b in rows)))
    counts = np.asarray([len(b) for _, b in rows])
    is_target = np.arange(tokens.shape[1]) >= tokens.shape[1] - counts[:, None]
    logits = forward(model, tokens, attention_mask=mask)
    targets, mask = jnp.asarray(tokens[:, 1:]), jnp.asarray(is_target[:, 1:])
    total, count = cross_entropy(logits[:, :-1], targets, mask)
    return float(total / count)


def _story(report: dict[str, Any], gates: str, out: Path) -> str:
    loss, match = report["generator_loss"], report["exact_match"]
    nats, control = report["nats_per_target_token"], match["control_other_prompt"]
    lines = [
        describe(report, out),
        f"\nSystem prompt (unseen in training): {report['prompt']}",
        f"Generator loss {loss['first']:.2f} -> {loss['last']:.2f} nats per target token",
        f"Exact answers to {report['questions']} questions: edge without prompt "
        f"{match['without_prompt']:.0%}, with prompt in context {match['with_prompt']:.0%}, "
        f"specialised, without prompt {match['specialized']:.0%}; control {control:.0%}",
        "Nats per target token: " + ", ".join(f"{way} {value:.2f}" for way, value in nats.items()),
    ]
    for example in report["answers"][:3]:
        lines += [
            f"\n  user         {example['user']}",
            f"  expected     {example['expected']}",
            f"  no prompt    {example['without_prompt']}",
            f"  in context   {example['with_prompt']}",
            f"  specialised  {example['specialized']}",
        ]
    lines += [f"\n{gates}", f"\nAll of it, with loss.png and gates.png: {out}"]
    lines.append(
        f"{report['seconds']:.0f} s. Next: lorage generate --model {out}/merged --input ..."
    )
    return "\n".join(lines)
