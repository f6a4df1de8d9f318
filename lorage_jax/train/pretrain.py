"""A small language model from scratch: tokenizer and weights, on texts that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lorage_jax.config import ModelConfig, OptimizerConfig
from lorage_jax.data.prompts import encode
from lorage_jax.generator.losses import cross_entropy
from lorage_jax.models.decoder import Decoder
from lorage_jax.models.leaves import initialise, model_leaves
from lorage_jax.models.model import Model
from lorage_jax.train.optimizer import make_optimizer


def train_tokenizer(texts: Sequence[str], vocab_size: int, bos: bool) -> Any:
    """A byte-level BPE tokenizer of these texts; ids 0, 1 and 2 are pad, end and (or) begin."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>"] + ["<s>"] * bos
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        **({"bos_token": "<s>"} if bos else {}),
    )


def pretrain(
    config: ModelConfig,
    tokenizer: Any,
    texts: Sequence[str],
    optimizer_config: OptimizerConfig,
    *,
    steps: int,
    rows: int,
    seed: int,
) -> tuple[Model, list[tuple[int, float]]]:
    """Trains all weights in float32 on `rows` whole texts a step, each ended by eos.

    Returns the model and the loss of every step, in nats per token.
    """
    tokens, mask = _table(tokenizer, texts, config.max_positions)
    optimizer = make_optimizer(optimizer_config, steps)
    key = jax.random.key(seed)
    params = jax.jit(lambda key: initialise(model_leaves(config), key))(key)
    moments = optimizer.init(params)
    decoder = Decoder(config)

    def loss_fn(params, tokens, mask):
        logits = decoder.apply({"params": params}, tokens[:, :-1], mask[:, :-1])
        total, count = cross_entropy(logits, tokens[:, 1:], mask[:, 1:])
        return total / count

    # The texts stay on the device: a step moves nothing but its number.
    def step_fn(params, moments, number, tokens, mask):
        pick = jax.random.randint(jax.random.fold_in(key, number), (rows,), 0, tokens.shape[0])
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens[pick], mask[pick])
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    step = jax.jit(step_fn, donate_argnums=(0, 1))
    tokens, mask, losses = jnp.asarray(tokens), jnp.asarray(mask), []
    for number in range(1, steps + 1):
        params, moments, loss = step(params, moments, number, tokens, mask)
        losses.append((number, loss))
    return Model(config, params, tokenizer), [(n, float(loss)) for n, loss in losses]


def _table(tokenizer: Any, texts: Sequence[str], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts as right-padded tokens [N, T] and their mask."""
    ids = [[*encode(tokenizer, text, bos=True), tokenizer.eos_token_id] for text in texts]
    length = min(longest, max(map(len, ids)))
    tokens = np.zeros((len(ids), length), np.int32)
    mask = np.zeros((len(ids), length), bool)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = row[:length]
        mask[i, : len(row)] = True
    return tokens, mask
