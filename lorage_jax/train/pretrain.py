"""`pretrain(config)`: a small language model from scratch to a Hugging Face folder.

First a tokenizer of its own, then all weights in float32, through the one step and the one loop of
`train`. Answers and prose count fully in the loss, the tokens of prompts a little: a model should
know their words, but cannot predict which prompt comes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lorage_jax import distributed
from lorage_jax.config import ModelConfig, PretrainConfig
from lorage_jax.data.batches import Batch, Rows
from lorage_jax.data.documents import DocumentRows, Documents
from lorage_jax.data.sources import data_fingerprint
from lorage_jax.data.tokenizer import add_own_bos, train_tokenizer
from lorage_jax.errors import ConfigError
from lorage_jax.fields import to_dict
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.files.fingerprint import fingerprint
from lorage_jax.files.manifest import MODEL, manifest_of
from lorage_jax.hf.family import get_family, to_values
from lorage_jax.hf.load import load_model
from lorage_jax.hf.save import check_describable, config_differences, save_model
from lorage_jax.hf.source import is_model
from lorage_jax.models.context import Branches
from lorage_jax.models.decoder import Decoder, Output
from lorage_jax.models.leaves import initialise, model_leaves
from lorage_jax.models.model import Model
from lorage_jax.sharding import Layout, make_mesh
from lorage_jax.train import loop
from lorage_jax.train.loop import Job, TrainResult, check_divides, check_run_folder, run
from lorage_jax.train.losses import token_nll
from lorage_jax.train.optimizer import learning_rate, make_optimizer
from lorage_jax.train.resume import Resume
from lorage_jax.train.saved import saved_config
from lorage_jax.train.state import TrainState, abstract_state, first_state, shardings
from lorage_jax.train.step import Loss, LossFn, device_batch, make_step, micro_sharding

# Fields that may differ between a checkpoint and the run that resumes it.
RESUMABLE = (*loop.RESUMABLE, "saved_dtype")


@dataclass(frozen=True)
class PretrainResult(TrainResult):
    """`TrainResult` of a model's folder, for `load_model`, and the model's number of parameters."""

    parameters: int


def pretrain(
    config: PretrainConfig, *, resume: bool | Resume = False, progress: bool = True
) -> PretrainResult:
    """Trains a model and writes it to `<out>/model`; all processes of a run must call it.

    Raises like `train.loop.run`, and ConfigError for rows that do not divide over the devices or
    an `init` of another shape.
    """
    began, out = time.monotonic(), Path(config.out)
    with distributed.together():
        layout = Layout(make_mesh(config.mesh))
        for corpus in config.corpora:
            what = f"a batch of {corpus.rows} rows ({corpus.source.path})"
            check_divides(corpus.rows, what, layout.mesh, "rows")
        check_run_folder(out, "model", bool(resume))
    parts = _in_parts(config, saved_config(config, None, resume))
    with distributed.together():
        documents = Documents(config, config.seed, bool(parts))
        model, tokenizer, params = _beginning(config, documents, layout)
    leaves = model_leaves(model)
    optimizer = make_optimizer(config.optimizer, config.steps, leaves)
    places = shardings(abstract_state(leaves, {}, optimizer, layout, random=False))
    step = make_step(
        pretrain_loss(config, model),
        optimizer,
        learning_rate(config.optimizer, config.steps),
        accumulate=1,
        shardings=places,
        frozen={},
        layout=layout,
        count=functools.partial(target_weight, prompt_weight=config.prompt_weight),
    )
    digest = _digest(tokenizer)
    if not config.init or manifest_of(Path(config.init)).get("format") == MODEL:
        add_own_bos(tokenizer)  # every text of its training begins with one
    job = Job(
        config=config,
        resolved=_resolved(config, digest) | parts,
        # Sources may move: `data_contents` identifies them.
        resumable=(*RESUMABLE, *(f"corpora.{n}.source" for n in range(len(config.corpora)))),
        state=_new_state(leaves, optimizer, config.seed, places, params),
        step=lambda state, batch: step(state, {}, batch),
        batches=documents.batches(tokenizer),
        describe=documents.describe,
        vocabularies={"queries": ("model", model.vocab_size)},
        place=lambda batch: device_batch(batch, 1, micro_sharding(layout)),
        shapes=len({(corpus.rows, corpus.row_tokens) for corpus in config.corpora}),
        renamed={"trained": "params"},
        note=documents.note or None,
    )
    done = run(job, resume=resume, progress=progress)
    dtype = DTYPES[config.saved_dtype]
    params = distributed.to_host(jax.tree.map(lambda x: x.astype(dtype), done.state.trained))
    identity = _write(Model(model, params, tokenizer), out / "model")
    count = sum(x.size for x in jax.tree.leaves(params))
    return PretrainResult(out / "model", identity, parameters=count, **done.figures(began))


def _resolved(config: PretrainConfig, tokenizer: str) -> dict[str, Any]:
    """The config as recorded in checkpoints, which identifies data and tokenizer by contents."""
    return {
        **to_dict(config),
        "model": to_values(config.model),
        "data_contents": data_fingerprint([corpus.source for corpus in config.corpora]),
        "tokenizer_contents": tokenizer,
    }


def _in_parts(config: PretrainConfig, saved: dict[str, Any] | None) -> dict[str, bool]:
    """The field of the recorded config that says that long prose is read in parts.

    None without prose. Runs of earlier versions, which recorded none, go on without.
    """
    prose = any(corpus.source.kind == "text" for corpus in config.corpora)
    return {"prose_parts": True} if prose and (saved is None or saved.get("prose_parts")) else {}


def _write(made: Model, folder: Path) -> str:
    """Writes the model, from the main process, and returns its fingerprint."""
    identity = ""
    with distributed.together():
        if distributed.is_main():
            save_model(made, folder, overwrite=True)
            identity = fingerprint(folder)
    return distributed.gather_texts(identity)[0]


def _beginning(
    config: PretrainConfig, documents: Documents, layout: Layout
) -> tuple[ModelConfig, Any, dict[str, Any] | None]:
    """The model with its tokenizer's ids, the tokenizer, and the weights, or None to draw them."""
    model = config.model
    if not config.init:
        texts = documents.texts(config.tokenizer_documents)
        rules = get_family(model.family).tokenizer
        like = None if rules is None else rules()
        tokenizer = train_tokenizer(texts, model.vocab_size, model.bos_id is not None, like)
        model = dataclasses.replace(
            model,
            vocab_size=len(tokenizer),
            bos_id=tokenizer.bos_token_id,
            eos_ids=(tokenizer.eos_token_id,),
            pad_id=tokenizer.pad_token_id,
        )
        check_describable(model)
        return model, tokenizer, None
    if not is_model(Path(config.init)):
        raise ConfigError(
            f"init is {config.init}, which is not a folder. Run the experiment that makes it "
            "first, or name the folder that it was written to."
        )
    begun = load_model(config.init, "float32", layout)
    ids = {name: getattr(begun.config, name) for name in ("bos_id", "eos_ids", "pad_id")}
    asked = dataclasses.replace(model, vocab_size=begun.config.vocab_size, **ids)
    if other := config_differences(asked, begun.config):
        raise ConfigError(
            f"init is {config.init}, whose model is another: {'; '.join(other)}. "
            "Give `model` its shape, or begin from another folder."
        )
    return begun.config, begun.tokenizer, begun.params


def pretrain_loss(config: PretrainConfig, model: ModelConfig) -> LossFn:
    """The loss of packed documents: weighted, summed nats. Metric: answer_loss, unweighted."""
    decoder = Decoder(model, remat=config.remat)

    def loss(trained: Any, statistics: Any, frozen: Any, micro: Batch, key: Any) -> Loss:
        (rows,) = micro.queries
        assert isinstance(rows, DocumentRows) and rows.positions is not None
        branches = Branches(rows.branch, rows.positions, rows.text)
        output: Output = decoder.apply(
            {"params": trained}, rows.tokens, rows.mask, branches=branches
        )
        assert output.logits is not None
        nll = token_nll(output.logits, rows.targets)
        answer = _answers(rows)
        answers = jnp.sum(nll * answer) / jnp.maximum(jnp.sum(answer), 1.0)
        weight = _weights(rows, config.prompt_weight)
        return Loss(jnp.sum(nll * weight), metrics={"answer_loss": answers})

    return loss


def target_weight(batch: Batch, prompt_weight: float) -> Float[Array, ""]:
    """Sum of the weights of a batch's targets, at least 1."""
    return jnp.maximum(sum(jnp.sum(_weights(rows, prompt_weight)) for rows in batch.queries), 1.0)


def _weights(rows: Rows, prompt_weight: float) -> Float[Array, "*A B T"]:
    """1 for a target in an answer or in prose, `prompt_weight` for one in a prompt, else 0."""
    assert isinstance(rows, DocumentRows) and rows.loss_mask is not None
    prompt = (~rows.answer_mask & rows.loss_mask).astype(jnp.float32)
    return _answers(rows) + prompt_weight * prompt


def _answers(rows: DocumentRows) -> Float[Array, "*A B T"]:
    """1 for a target in an answer or in prose, else 0."""
    assert rows.loss_mask is not None
    return (rows.answer_mask & rows.loss_mask).astype(jnp.float32)


def _new_state(
    leaves: Any,
    optimizer: optax.GradientTransformation,
    seed: int,
    places: TrainState,
    params: dict[str, Any] | None = None,
) -> TrainState:
    """The state at step 0, with the given weights or random ones; `places` are its shardings."""

    def build(params: Any) -> TrainState:
        return first_state(params, {}, optimizer, None)

    if params is not None:
        return jax.jit(build, out_shardings=places)(params)
    drawn = jax.jit(lambda key: build(initialise(leaves, key)), out_shardings=places)
    return drawn(jax.random.key(seed))


def _digest(tokenizer: Any) -> str:
    text = tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(text.encode()).hexdigest()
