"""Merges adapters of PEFT into a model: LoRA, DoRA and VeRA, several with weights."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorage_jax.data.templates import ChatTemplate, Template, TemplateKind, alternating
from lorage_jax.data.templates.template import PROBE
from lorage_jax.data.templates.tokens import raw_ids
from lorage_jax.errors import ConfigError, DataError, WeightsError
from lorage_jax.fields import home_path, require_kind
from lorage_jax.files.fingerprint import short
from lorage_jax.files.manifest import manifest_of
from lorage_jax.generator.card import check_arithmetic, check_turns
from lorage_jax.generator.merge import exact_sum
from lorage_jax.hf.peft_weights import Lora, Update, lora_digest, read_lora
from lorage_jax.hf.tokenizer import has_tokenizer_files, load_tokenizer, stored_chat_template
from lorage_jax.models.leaves import Leaf, model_leaves
from lorage_jax.models.model import MergedLora, Model, merged_fingerprint, require_model

_log = logging.getLogger(__name__)


def load_adapter(
    folder: str | Path | Sequence[str | Path],
    edge: Model,
    weights: Sequence[float] | None = None,
) -> Model:
    """The edge with a PEFT folder's adapter merged, as PEFT itself would merge it.

    Linear layers of any kind may have a LoRA or DoRA, each with its own rank and alpha, or a VeRA
    whose folder holds its projections. The updates are summed in float32 and cast once. An adapter
    on a head that is tied to the embeddings unties it: the embeddings stay. A chat template in the
    folder, or the turns that our own adapter records, become those of the model.

    Args:
        folder: one folder, or several, merged one after the other as PEFT merges several active
            adapters. Of plain LoRA, that is the sum `W + sum_i weights[i] dW_i` (PEFT's
            `add_weighted_adapter` with combination_type "cat").
        weights: one factor per folder; 1 by default, and always for DoRA.

    Raises WeightsError that lists everything in a folder beyond these, every tensor that is
    missing, unknown or of another shape, or that names the edge that an adapter was made for; for
    a chat template with other token ids in the tokenizer beside it than in the edge's; and for a
    model into which a card was merged. Raises ConfigError for weights that do not match, and
    for arguments of another kind.
    """
    require_model(edge, "edge")
    known = "a PEFT folder, or a list of them"
    require_kind(folder, str | Path | Sequence, "folder", known, unlike=bytes)
    folders = [home_path(one) for one in ([folder] if isinstance(folder, str | Path) else folder)]
    factors = [1.0] * len(folders) if weights is None else [float(one) for one in weights]
    if not folders or len(factors) != len(folders) or not np.isfinite(factors).all():
        raise ConfigError(
            f"{len(folders)} adapters with the weights {factors}; expected a finite weight each."
        )
    if edge.card is not None:
        raise WeightsError(
            "this model already has a card merged. Load the adapter into the base edge."
        )
    for one in folders:
        check_base(one, edge)
    loras = [read_lora(one, edge) for one in folders]
    for one, lora, factor in zip(folders, loras, factors, strict=True):
        if factor != 1.0 and any(update.magnitude is not None for update in lora.updates):
            raise ConfigError(f"{one} is a DoRA, which has no weight but 1; got {factor}.")
    template, answers = _turns(folders, edge)
    return merge_loras(edge, loras, factors).replace(template=template, answers=answers)


def merge_loras(edge: Model, loras: Sequence[Lora], factors: Sequence[float]) -> Model:
    """The edge with the updates of several adapters, each with its factor; `edge` is untouched."""
    params, config = edge.params, edge.config
    if config.tied_head and any(u.leaf == ("head",) for lora in loras for u in lora.updates):
        config = dataclasses.replace(config, tied_head=False)
        params = params | {"head": params["embed"].T}
    merged = _merged_leaves(edge.replace(config=config, params=params), loras, factors)
    for path, value in merged.items():
        params = _with(params, path, value)
    digests = [_weighted(lora.digest, one) for lora, one in zip(loras, factors, strict=True)]
    applied = tuple(MergedLora(digest, frozenset(merged)) for digest in digests)
    identity = edge.identity
    if identity is None and edge.source is None:
        identity = edge.base_fingerprint  # while the weights are the base's
    return edge.replace(config=config, params=params, identity=identity, loras=edge.loras + applied)


def _weighted(digest: str, factor: float) -> str:
    return f"{digest} {factor!r}"


def adapted_fingerprint(folder: Path) -> str | None:
    """The fingerprint of an adapter's base with the adapter merged, weight 1.

    None if the folder does not record its base's, as those of others do not. Raises WeightsError.
    """
    base = _recorded_base(folder)
    return base and merged_fingerprint(base, [_weighted(lora_digest(folder), 1.0)])


def _recorded_base(folder: Path) -> str | None:
    """The fingerprint of the base of an adapter of ours."""
    base = manifest_of(folder).get("base")
    ours = base.get("fingerprint") if isinstance(base, dict) else None
    return ours if isinstance(ours, str) else None


def check_base(folder: Path, edge: Model) -> None:
    """Raises WeightsError if the adapter is one of ours, made for other weights."""
    base, ours = manifest_of(folder).get("base"), _recorded_base(folder)
    if ours is not None and ours != edge.fingerprint:
        other = " with another adapter merged" if edge.loras else ""
        raise WeightsError(
            f"{folder} was made for an edge with the weights {short(ours)}, not for "
            f"{short(edge.fingerprint)} ({edge.source}{other}). Load the edge that it was made "
            "for."
        )
    if isinstance(base, dict):
        check_arithmetic(base.get("arithmetic"), edge, str(folder))


def own_turns(folder: Path) -> TemplateKind | None:
    """The turns that an adapter of ours was trained in; None for an adapter of others.

    A chat template in its folder is part of them.

    Raises WeightsError for turns that this version does not know.
    """
    values = manifest_of(folder)
    if "templates" not in values:
        return None
    try:
        kind = TemplateKind.of(values)
        return dataclasses.replace(kind, source=stored_chat_template(folder))
    except DataError as error:
        raise WeightsError(f"{folder}: {error}") from None


def trained_turns(folder: Path, kind: TemplateKind, edge: Model) -> Template:
    """The turns `kind` of an adapter of ours, on the edge's tokenizer.

    Raises WeightsError if the tokenizer gives other ids than in training, where those are recorded.
    """
    template = kind.on(edge.tokenizer)
    check_turns(_recorded(folder), template.digest(), edge)
    return template


def _recorded(folder: Path) -> Any:
    """The digest of the turns of an adapter of ours, in its manifest or in its card."""
    values = manifest_of(folder)
    card = values.get("card")
    about = card.get("about") if isinstance(card, dict) else None
    return (about if isinstance(about, dict) else values).get("turns")


def _turns(folders: Sequence[Path], edge: Model) -> tuple[Template | None, bool]:
    """The turns of the adapters, where they have some and agree; else those of the edge.

    Returns (turns, whether the model answers in them).
    """
    if edge.tokenizer is None:
        return edge.template, edge.answers
    found = {one.identity(): one for one in (_brought(folder, edge) for folder in folders) if one}
    if len(found) > 1:
        _log.warning(
            "The adapters %s were trained in different turns; the model answers in its own.",
            ", ".join(map(str, folders)),
        )
    template = next(iter(found.values())) if len(found) == 1 else edge.template
    return template, bool(found) or edge.answers


def _brought(folder: Path, edge: Model) -> Template | None:
    """The turns that an adapter brings along: ours, or the chat template in its folder.

    Raises WeightsError if the edge's tokenizer gives other ids for them than in training.
    """
    kind, text = own_turns(folder), stored_chat_template(folder)
    if kind is None:
        return None if text is None else _theirs(folder, text, edge)
    try:
        return trained_turns(folder, kind, edge)
    except DataError as error:
        raise WeightsError(f"{folder}: {error}") from None


def _theirs(folder: Path, source: str, edge: Model) -> Template | None:
    """The turns of an adapter of others. None, with a warning, if its chat template is unusable."""
    try:
        template = ChatTemplate(edge.tokenizer, source=source, untrained=True)
        _check_tokenizer(folder, template)
        return template
    except DataError as error:
        why = str(error).rstrip(".")
        _log.warning("%s: %s. The model answers in the edge's own turns.", folder, why)
        return None


def _check_tokenizer(folder: Path, template: ChatTemplate) -> None:
    """Raises WeightsError if the tokenizer in an adapter's folder reads its turns as other ids."""
    if not has_tokenizer_files(folder):
        return
    try:
        tokenizer = load_tokenizer(folder)
    except WeightsError as error:
        _log.warning("%s Its turns are written with the edge's tokenizer.", error)
        return
    own = ChatTemplate(tokenizer, source=template.source, untrained=True)
    if _turn_ids(own) != _turn_ids(template):
        raise WeightsError(
            f"{folder} was trained with another tokenizer than the edge's: the turns of its chat "
            "template are other token ids there. Put its tokenizer files and chat template into a "
            "copy of the edge's folder, and load that as the edge."
        )


def _turn_ids(template: ChatTemplate) -> list[list[int]]:
    """Token ids of a question and of its answer, as the tokenizer reads the rendered text."""
    asked, answered = alternating([PROBE]), alternating([PROBE, PROBE])
    texts = (template.text(asked), template.text(answered, cue=False))
    return [raw_ids(template.tokenizer, text, add_special_tokens=False) for text in texts]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Dora:
    """A DoRA of one leaf: `m (W + A B) / |W + A B|`."""

    a: Float[Array, "L *I P"]
    b: Float[Array, "L P *O"]
    magnitude: Float[Array, "L ..."]
    covered: Float[Array, " L"]  # 1 where the layer has one


def _merged_leaves(
    edge: Model, loras: Sequence[Lora], factors: Sequence[float]
) -> dict[tuple[str, ...], Array]:
    """New values of all leaves that the adapters change, one leaf at a time."""
    merged, leaves = {}, model_leaves(edge.config)
    for path in sorted({update.leaf for lora in loras for update in lora.updates}):
        leaf, old = _at(leaves, path), _at(edge.params, path)
        steps = []
        for lora, factor in zip(loras, factors, strict=True):
            own = [update for update in lora.updates if update.leaf == path]
            if own and own[0].magnitude is not None:
                steps.append(_dora(leaf, own))
            elif own:
                a, b = _stack(leaf, own)
                steps.append((a, b * np.float32(factor)))
        merged[path] = _compiled_merge(old.sharding, path[0] == "layers")(old, steps)
    for path in sorted({bias.leaf for lora in loras for bias in lora.biases}):
        old = _at(edge.params, path)
        base = np.asarray(old, np.float32)
        base = base if path[0] == "layers" else base[None]
        new = base.copy()
        for lora, factor in zip(loras, factors, strict=True):
            for bias in (bias for bias in lora.biases if bias.leaf == path):
                values = bias.values.reshape(base.shape[1:])
                change = values if bias.added else values - base[bias.layer]
                new[bias.layer] += np.float32(factor) * change
        merged[path] = jax.device_put(jnp.asarray(new.reshape(old.shape), old.dtype), old.sharding)
    return merged


def _stack(leaf: Leaf, updates: Sequence[Update]) -> tuple[np.ndarray, np.ndarray]:
    """A [L, *I, P] and B [L, P, *O] of one leaf; zero where a layer has no or a smaller update."""
    layers, inputs, outputs = _axes(leaf)
    rank = max(update.a.shape[0] for update in updates)
    a = np.zeros((layers, int(np.prod(inputs)), rank), np.float32)
    b = np.zeros((layers, rank, int(np.prod(outputs))), np.float32)
    for update in updates:
        a[update.layer, :, : update.a.shape[0]] = update.a.T
        b[update.layer, : update.b.shape[1]] = update.b.T
    return a.reshape(layers, *inputs, rank), b.reshape(layers, rank, *outputs)


def _dora(leaf: Leaf, updates: Sequence[Update]) -> _Dora:
    a, b = _stack(leaf, updates)
    layers, _, outputs = _axes(leaf)
    magnitude = np.ones((layers, int(np.prod(outputs))), np.float32)
    covered = np.zeros(layers, np.float32)
    for update in updates:
        magnitude[update.layer], covered[update.layer] = update.magnitude, 1
    magnitude = magnitude.reshape(layers, *outputs)
    return _Dora(*(jnp.asarray(one) for one in (a, b, magnitude, covered)))


def _axes(leaf: Leaf) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The number of layers (1 without), and the sizes of a matrix's input and output axes."""
    layers = leaf.shape[0] if leaf.axes[0] == "layers" else 1
    shape = leaf.shape[1:] if leaf.axes[0] == "layers" else leaf.shape
    first = leaf.axes[-len(shape)]
    split = 2 if first in ("heads", "kv_heads") else 1
    return layers, shape[:split], shape[split:]


@functools.lru_cache(maxsize=64)
def _compiled_merge(sharding: Any, stacked: bool) -> Any:
    def merge_all(old, steps):
        base = total = (old if stacked else old[None]).astype(jnp.float32)
        for step in steps:
            if isinstance(step, _Dora):
                total = _merge_dora(total, base, step)
            else:
                total = exact_sum(total, *step)
        return (total if stacked else total[0]).astype(old.dtype)

    return jax.jit(merge_all, out_shardings=sharding)


def _merge_dora(
    total: Float[Array, "L ..."], base: Float[Array, "L ..."], dora: _Dora
) -> Float[Array, "L ..."]:
    """Each output's weights get the length `magnitude`, if nothing else was merged into the base.

    As in PEFT, what was merged before is scaled by the same factor.
    """
    inputs = tuple(range(1, dora.a.ndim - 1))
    length = jnp.sqrt(jnp.sum(exact_sum(base, dora.a, dora.b) ** 2, axis=inputs, keepdims=True))
    ratio = jnp.expand_dims(dora.magnitude, inputs) / length
    covered = dora.covered.reshape(-1, *[1] * (total.ndim - 1))
    return jnp.where(covered > 0, ratio * exact_sum(total, dora.a, dora.b), total)


def _at(params: dict[str, Any], path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda tree, name: tree[name], path, params)


def _with(params: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = path
    return params | {first: _with(params[first], tuple(rest), value) if rest else value}
