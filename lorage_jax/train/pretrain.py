"""`pretrain(config)`: a small language model from scratch to a Hugging Face folder.

A tokenizer of its own first, then all weights in float32, in the loop, checkpoints and curves of
`train`. Answers and prose count fully in the loss, the tokens of prompts a little: a model should
know their words, but cannot know which prompt comes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from lorage_jax.config import ModelConfig, PretrainConfig
from lorage_jax.data.documents import Documents
from lorage_jax.data.sources import data_fingerprint
from lorage_jax.data.tokenizer import train_tokenizer
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import to_dict
from lorage_jax.generator.losses import token_nll
from lorage_jax.hf.config import model_config, to_hf_config
from lorage_jax.hf.load import DTYPES, load_model
from lorage_jax.hf.save import save_model
from lorage_jax.models.decoder import Branches, Decoder
from lorage_jax.models.leaves import initialise, model_leaves
from lorage_jax.models.model import Model
from lorage_jax.sharding import ShardingRules, make_mesh, replicated, tree_shardings
from lorage_jax.train.loop import Job, check_divides, check_run_folder, run
from lorage_jax.train.optimizer import learning_rate, make_optimizer
from lorage_jax.train.state import moment_shardings

# What may differ between a checkpoint and the run that resumes it.
RESUMABLE = ("out", "save_every", "keep", "log_every", "mesh", "remat", "saved_dtype")

ARRAYS = ("tokens", "mask", "text", "branch", "positions", "targets", "loss_mask", "answer_mask")


@flax.struct.dataclass
class PretrainState:
    """All that a step changes."""

    step: Int[Array, ""]
    params: dict[str, Any]
    optimizer: Any


@dataclass(frozen=True)
class PretrainResult:
    """`folder`: the model's, for `load_model`. `losses`: of every step, nats per counted token."""

    folder: Path
    parameters: int
    losses: list[tuple[int, float]]
    seconds: float
    first_step: int


def pretrain(
    config: PretrainConfig, *, resume: bool = False, progress: bool = True
) -> PretrainResult:
    """Trains a model and writes it to `<out>/model`. Raises as `train.loop.train`."""
    began, out = time.time(), Path(config.out)
    mesh, rules = make_mesh(config.mesh), ShardingRules()
    for corpus in config.corpora:
        check_divides(
            corpus.rows, f"a batch of {corpus.rows} rows ({corpus.source.path})", mesh, "rows"
        )
    check_run_folder(out, "model", resume)
    documents = Documents(config, config.seed)
    model, tokenizer, params = _beginning(config, documents, mesh, rules)
    optimizer = make_optimizer(config.optimizer, config.steps, model_leaves(model))
    shardings = _shardings(model, optimizer, mesh, rules)
    rows = NamedSharding(mesh, PartitionSpec(rules.batch))
    sources = [corpus.source for corpus in config.corpora]
    job = Job(
        config=config,
        resolved=to_dict(config)
        | {
            "data_contents": data_fingerprint(sources),
            "tokenizer_contents": _digest(tokenizer),
        },
        # Sources may move: `data_contents` says what is in them.
        resumable=(*RESUMABLE, *(f"corpora.{n}.source" for n in range(len(sources)))),
        state=_new_state(model, optimizer, config.seed, shardings, params),
        step=make_pretrain_step(config, model, optimizer, shardings, rows),
        batches=documents.batches(tokenizer),
        describe=documents.describe,
        vocabularies={"tokens": ("model", model.vocab_size)},
        place=lambda batch: jax.device_put({name: batch[name] for name in ARRAYS}, rows),
    )
    state, losses, first = run(job, resume=resume, progress=progress)
    dtype = DTYPES[config.saved_dtype]
    params = jax.tree.map(lambda x: x.astype(dtype), state.params)
    save_model(Model(model, params, tokenizer), out / "model", overwrite=True)
    count = sum(x.size for x in jax.tree.leaves(params))
    return PretrainResult(out / "model", count, losses, time.time() - began, first)


def _beginning(
    config: PretrainConfig, documents: Documents, mesh: Mesh, rules: ShardingRules
) -> tuple[ModelConfig, Any, dict[str, Any] | None]:
    """(the model with its tokenizer's ids, the tokenizer, the weights or None for random ones)"""
    model = config.model
    if not config.init:
        texts = documents.texts(config.tokenizer_documents)
        tokenizer = train_tokenizer(texts, model.vocab_size, model.bos_id is not None, model.family)
        model = dataclasses.replace(
            model,
            vocab_size=len(tokenizer),
            bos_id=tokenizer.bos_token_id,
            eos_ids=(tokenizer.eos_token_id,),
            pad_id=tokenizer.pad_token_id,
        )
        _check_family(model)
        return model, tokenizer, None
    if not Path(config.init).is_dir():
        raise ConfigError(
            f"init is {config.init}, which is no folder. Run the experiment that makes it first, "
            "or name the folder that it was written to."
        )
    begun = load_model(config.init, "float32", mesh, rules)
    ids = {name: getattr(begun.config, name) for name in ("bos_id", "eos_ids", "pad_id")}
    asked = dataclasses.replace(model, vocab_size=begun.config.vocab_size, **ids)
    if other := _differences(asked, begun.config):
        raise ConfigError(
            f"init is {config.init}, whose model is another: {'; '.join(other)}. "
            "Give `model` its shape, or begin from another folder."
        )
    return begun.config, begun.tokenizer, begun.params


def make_pretrain_step(
    config: PretrainConfig,
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    shardings: PretrainState,
    rows: NamedSharding,
) -> Callable[[PretrainState, dict[str, Any]], tuple[PretrainState, dict[str, Any]]]:
    """The compiled `step(state, batch) -> (state, metrics)`; `state` is donated.

    Metrics: loss (weighted mean, nats), answer_loss (nats per token of answers and prose),
    grad_norm, learning_rate.
    """
    schedule = learning_rate(config.optimizer, config.steps)
    decoder = Decoder(model, remat=config.remat)

    def step(state, batch):
        grad = jax.value_and_grad(packed_loss, has_aux=True)
        (loss, answer_loss), grads = grad(state.params, batch, decoder, config.prompt_weight)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        metrics = {
            "loss": loss,
            "answer_loss": answer_loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        params = optax.apply_updates(state.params, updates)
        return PretrainState(state.step + 1, params, moments), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, rows),
        out_shardings=(shardings, replicated(rows.mesh)),
        donate_argnums=0,
    )


def packed_loss(
    params: dict[str, Any], batch: dict[str, Any], decoder: Decoder, prompt_weight: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(weighted mean over the targets of a batch of `rows`, the same of answers and prose alone)"""
    branches = Branches(batch["branch"], batch["positions"], batch["text"])
    output = decoder.apply({"params": params}, batch["tokens"], batch["mask"], branches=branches)
    nll = token_nll(output.logits, batch["targets"])
    answer = (batch["answer_mask"] & batch["loss_mask"]).astype(jnp.float32)
    prompt = (~batch["answer_mask"] & batch["loss_mask"]).astype(jnp.float32)
    weight = answer + prompt_weight * prompt
    loss = jnp.sum(nll * weight) / jnp.maximum(jnp.sum(weight), 1.0)
    return loss, jnp.sum(nll * answer) / jnp.maximum(jnp.sum(answer), 1.0)


def _new_state(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    shardings: PretrainState,
    params: dict[str, Any] | None = None,
) -> PretrainState:
    """Step 0, of the given weights or of random ones."""

    def build(params):
        return PretrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    if params is not None:
        return jax.jit(build, out_shardings=shardings)(params)
    return jax.jit(
        lambda key: build(initialise(model_leaves(model), key)), out_shardings=shardings
    )(jax.random.key(seed))


def _shardings(
    model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, rules: ShardingRules
) -> PretrainState:
    leaves = model_leaves(model)
    params = tree_shardings(leaves, rules, mesh)
    return PretrainState(
        replicated(mesh), params, moment_shardings(leaves, params, optimizer, mesh)
    )


def _check_family(model: ModelConfig) -> None:
    """That the model's config.json will describe it: its family may know no windows or biases."""
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(to_hf_config(model, "float32"))
        (Path(folder) / "config.json").write_text(text, "utf-8")
        try:
            read = model_config(Path(folder))
        except WeightsError as error:
            reason = str(error).replace(folder, "its")
            raise ConfigError(f"the model cannot be saved as a {model.family}: {reason}") from None
    if lost := _differences(model, read):
        raise ConfigError(
            f"a saved {model.family} would not be this model: {'; '.join(lost)}. "
            "Change these, or the family."
        )


def _differences(one: ModelConfig, other: ModelConfig) -> list[str]:
    """In words, the fields in which two models differ by more than a rounding."""
    return [
        f"{field.name} {value!r}, there {there!r}"
        for field in dataclasses.fields(one)
        if (value := getattr(one, field.name)) != (there := getattr(other, field.name))
        and not (isinstance(value, float) and math.isclose(value, there or 0.0, rel_tol=1e-6))
    ]


def _digest(tokenizer: Any) -> str:
    text = tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(text.encode()).hexdigest()
