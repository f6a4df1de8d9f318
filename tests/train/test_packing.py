"""A row of packed documents with branches gives the same loss as its texts one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.config import Corpus, PretrainConfig, Source
from lorage_jax.data.batches import Batch
from lorage_jax.data.documents import Document, pack_documents
from lorage_jax.data.templates import edge_prompt, edge_prompt_with_system, encode, encode_target
from lorage_jax.hf.load import load_model
from lorage_jax.models.decoder import Decoder
from lorage_jax.train.pretrain import pretrain_loss, target_weight

WEIGHT = 0.25
ASKED = (("bird cat tree", "tree"), ("a b", "b"), ("red sun", "the sun"))


def documents():
    """Requests with their prompt, without it, a single request, and prose."""
    system = "Write the last word."
    return [
        Document(tuple((edge_prompt_with_system(system, u), t) for u, t in ASKED), 0),
        Document(tuple((edge_prompt(u), t) for u, t in ASKED[:2]), 1),
        Document(((edge_prompt_with_system("Say yes.", "go"), "yes"),), 2),
        Document((("It rained, and nobody came.", ""),), 3),
    ]


def one_by_one(tokenizer, documents):
    """tokens, mask, targets, weights [B, T] of one text a row.

    A shared prefix counts in the document's first text only, the token after it in none.
    """
    lines = []
    for document in documents:
        texts = []
        for prompt, answer in document.texts:
            ids = encode(tokenizer, prompt, bos=True)
            known = len(ids) if answer else 0
            texts.append((ids + (encode_target(tokenizer, answer) if answer else [2]), known))
        shared = 0
        while len(texts) > 1 and len({tuple(ids[: shared + 1]) for ids, _ in texts}) == 1:
            shared += 1
        for number, (ids, known) in enumerate(texts):
            first = 1 if number == 0 else shared + 1
            weights = [
                0.0 if i < first or (shared and i == shared) else 1.0 if i >= known else WEIGHT
                for i in range(1, len(ids))
            ]
            lines.append((ids[:-1], ids[1:], weights))
    length = max(len(ids) for ids, _, _ in lines)
    tokens, targets = np.zeros((2, len(lines), length), np.int32)
    mask, weights = np.zeros((len(lines), length), bool), np.zeros((len(lines), length))
    for row, (ids, following, counted) in enumerate(lines):
        here = slice(0, len(ids))
        mask[row, here] = True
        tokens[row, here], targets[row, here], weights[row, here] = ids, following, counted
    return tuple(map(jnp.asarray, (tokens, mask, targets, weights)))


def plain_loss(params, config, tokens, mask, targets, weights):
    """Weighted mean over all targets, without `Branches`."""
    log = jax.nn.log_softmax(Decoder(config).apply({"params": params}, tokens, mask).logits)
    nll = -jnp.take_along_axis(log, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(nll * weights) / weights.sum()


def packed_loss(params, model, batch, prompt_weight):
    """(the loss that pretraining minimises, the loss of answers and prose only)"""
    config = PretrainConfig(
        model=model,
        out="",
        corpora=(Corpus(Source("x"), documents=1, rows=1),),
        steps=100,
        prompt_weight=prompt_weight,
        remat="none",
    )
    batch = jax.tree.map(jnp.asarray, Batch((), batch.queries))
    found = pretrain_loss(config, model)(params, {}, {}, batch, None)
    return found.nll / target_weight(batch, prompt_weight), found.metrics["answer_loss"]


@pytest.mark.parametrize("variant", ["llama", "qwen2", "gemma2", "opt"])
def test_packed_rows_have_the_loss_of_their_texts(tiny, variant):
    """With sliding windows of 6 tokens for qwen2 and gemma2; gradients for gemma2."""
    model = load_model(tiny(variant)[0])
    texts = documents()
    batch = pack_documents(model.tokenizer, texts, 2, 180)
    (packed,) = batch.queries
    assert batch.truncated == 0 and packed.text.max() > 0  # several texts in a row
    apart = one_by_one(model.tokenizer, texts)
    assert (packed.loss_mask & packed.answer_mask).sum() == (apart[-1] == 1).sum()

    def ours(params):
        return packed_loss(params, model.config, batch, WEIGHT)[0]

    def plain(params):
        return plain_loss(params, model.config, *apart)

    if variant != "gemma2":
        np.testing.assert_allclose(
            jax.jit(ours)(model.params), jax.jit(plain)(model.params), rtol=1e-5
        )
        return
    found, wanted = (jax.jit(jax.value_and_grad(f))(model.params) for f in (ours, plain))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found[1]), jax.tree.leaves(wanted[1]), strict=True
    ):
        scale = float(jnp.abs(b).max())
        assert scale > 0, path
        np.testing.assert_allclose(a, b, atol=1e-4 * scale, err_msg=str(path))


def test_answers_alone(tiny):
    model = load_model(tiny("llama")[0])
    batch = pack_documents(model.tokenizer, documents(), 2, 180)
    loss, answers = jax.jit(lambda p: packed_loss(p, model.config, batch, 0.0))(model.params)
    assert loss == answers
    *apart, weights = one_by_one(model.tokenizer, documents())
    wanted = plain_loss(model.params, model.config, *apart, np.where(weights == 1, 1.0, 0.0))
    np.testing.assert_allclose(answers, wanted, rtol=1e-5)
