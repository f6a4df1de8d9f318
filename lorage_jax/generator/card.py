"""A card: the gates of one prompt, with the fingerprints of its generator and edge.

It is a JSON file of some hundred bytes to a few kilobytes. A device that holds the edge model and
the pool needs nothing else for a new task.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.data.templates import Template, TemplateKind, check_tokenizer, notice_change
from lorage_jax.errors import DataError, OutputError, WeightsError, bullets, denied
from lorage_jax.fields import home_path, require_kind
from lorage_jax.files.fingerprint import TWO_MODELS, short
from lorage_jax.files.gguf import is_gguf, open_gguf_file
from lorage_jax.files.manifest import MANIFEST, Kind
from lorage_jax.files.outputs import write_file
from lorage_jax.hf.arithmetic import different_arithmetic
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model

FORMAT = "lorage-card/1"
CARD = Kind(
    FORMAT,
    "a card",
    "a card file, or a folder that lorage_jax exported",
    {"generator": str, "edge": str, "layers": int, "experts": int, "gates": list, "about": dict},
)
GGUF_KEY = "lorage.card"  # of the card in a LoRA GGUF file
MOST_EXPERTS = 1 << 16  # a damaged card must not fill the memory
COLLAPSED = 0.9  # a layer whose router gives one expert more than this share has collapsed


@dataclass(frozen=True, eq=False)
class Card:
    """The gates of one system prompt.

    Attributes:
        gates: [L, E] float32; each layer sums to 1.
        generator: fingerprint of the trained parts and their cloud.
        edge: fingerprint of the edge's weights.
        about: further facts for people, such as the hash of the prompt.
        pool: the experts, on a card fresh from `specialize`, so that `forward` and `generate` need
            no other; a file does not hold it.
        edge_arithmetic: the edge's `hf.arithmetic`; None on cards of earlier versions.
        chat_template: the text of the edge's chat template at training, on a card fresh from
            `specialize`, if there was one.
    """

    gates: np.ndarray
    generator: str
    edge: str
    about: dict[str, Any] = field(default_factory=dict)
    pool: Pool | None = field(default=None, repr=False)
    edge_arithmetic: dict[str, Any] | None = field(default=None, repr=False)
    chat_template: str | None = field(default=None, repr=False)

    @property
    def template(self) -> TemplateKind:
        """The turns that the edge was trained in. Raises WeightsError if they are unknown."""
        try:
            kind = TemplateKind.of(self.about)
        except DataError as error:
            raise WeightsError(f"this card cannot be used: {error}") from None
        return dataclasses.replace(kind, source=self.chat_template)

    def turns(self, edge: Model) -> Template:
        """The turns in which `edge` answers under this card.

        Raises WeightsError if its tokenizer gives other ids for them than in training, and for an
        edge without a tokenizer.
        """
        check_tokenizer(edge.tokenizer, edge.source or "the edge")
        kind = self.template
        template = kind.on(edge.tokenizer)
        notice_change(kind.source, edge.tokenizer, edge.source)
        check_turns(self.about.get("turns"), template.digest(), edge)
        return template

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the card as JSON. Raises OutputError if the file exists, unless `overwrite`."""
        path = home_path(path)
        if path.is_dir():
            raise OutputError(
                f"{path} is a folder; expected the name of a card file, such as card.json."
            )
        write_file(path, json.dumps(self.to_dict()) + "\n", overwrite=overwrite)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; each layer lists the [expert, gate] pairs of its open gates, exactly."""
        gates = np.asarray(self.gates, np.float32)
        rows = [
            [[int(e), float(np.format_float_scientific(row[e], unique=True))] for e in open_]
            for row in gates
            for open_ in [np.flatnonzero(row)]
        ]
        return {
            "format": FORMAT,
            "generator": self.generator,
            "edge": self.edge,
            **({} if self.edge_arithmetic is None else {"edge_arithmetic": self.edge_arithmetic}),
            "layers": gates.shape[0],
            "experts": gates.shape[1],
            "gates": rows,
            "about": self.about,
        }

    def check(self, edge: Model, pool: Pool) -> None:
        """Raises WeightsError unless this card was made by `pool`'s generator for `edge`.

        Nor may anything be merged into the edge already.
        """
        require_base(edge)
        if self.generator != pool.generator:
            raise WeightsError(
                f"this card was made by generator {short(self.generator)}, not by "
                f"{short(pool.generator)}. Specialise again with this generator."
            )
        self.check_edge(edge)
        want = (edge.config.layers, pool.count)
        if self.gates.shape != want:
            raise WeightsError(f"this card has gates {self.gates.shape}; expected {want}.")

    def check_edge(self, edge: Model) -> None:
        """Raises WeightsError unless `edge` has the weights and arithmetic of this card's edge."""
        if self.edge != edge.fingerprint:
            raise WeightsError(
                f"this card is for the edge model {short(self.edge)}, not for "
                f"{short(edge.fingerprint)} ({edge.source}). Load the edge it was made for, or "
                f"specialise with a generator of this edge. {TWO_MODELS}"
            )
        check_arithmetic(self.edge_arithmetic, edge, "this card")


def require_base(edge: Model) -> None:
    """Raises WeightsError if anything is merged into a model already."""
    if edge.card is not None or edge.loras:
        raise WeightsError(
            "this model already has an adapter merged; a card goes with the base edge. Load the "
            "base, or merge the adapter of the card as a PEFT folder (export_adapter) together "
            "with the other one."
        )


def check_arithmetic(recorded: Any, edge: Model, what: str) -> None:
    """Raises WeightsError unless the edge has the arithmetic that `what` recorded, if it did."""
    if not isinstance(recorded, dict):
        return
    if different := different_arithmetic(recorded, edge.config):
        raise WeightsError(
            f"{edge.source} has the right weights for {what}, but its config.json differs:\n"
            f"{bullets(different)}"
        )


def check_turns(recorded: Any, digest: str | None, model: Model) -> None:
    """Raises WeightsError unless a model's turns have the digest that training recorded.

    None is for turns that have no digest, or none that is known.
    """
    if isinstance(recorded, str) and digest not in (None, recorded):
        raise WeightsError(
            f"{model.source or 'the model'} does not tokenize as in training: its tokenizer or "
            "chat template has changed. Restore the tokenizer files of the training, "
            "chat_template.jinja included."
        )


def load_card(path: str | Path) -> Card:
    """Reads a card file, or the card inside a folder or LoRA GGUF file that lorage_jax exported.

    Raises WeightsError if there is none, or if it is damaged, and ConfigError if `path` is
    not a path.
    """
    require_kind(path, str | PathLike, "path", "a card file, or a folder or file that holds a card")
    path = home_path(path)
    if path.is_dir():
        found = [path / name for name in ("card.json", MANIFEST) if (path / name).exists()]
        if not found:
            raise WeightsError(
                f"{path} contains no card; expected card.json, or an export's {MANIFEST}."
            )
        path = found[0]
    try:
        values = json.loads(_text(path))
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist; expected a card file.") from None
    except PermissionError:
        raise WeightsError(denied(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise WeightsError(
            f"{path} is not a card: it is not JSON. Expected a card.json, or a folder or LoRA GGUF "
            "file that lorage wrote."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not a card: {error}.") from None
    if isinstance(values, dict) and "card" in values:
        values = values["card"]
    return card_from_dict(values, str(path))


def _text(path: Path) -> str:
    """The JSON of a card file, or of the card in a LoRA GGUF file."""
    if not path.is_file() or not is_gguf(path):
        return path.read_text("utf-8")
    found = open_gguf_file(path).keys.get(GGUF_KEY)
    if not isinstance(found, str):
        raise WeightsError(f"{path} holds no card; expected a LoRA GGUF file of lorage_jax.")
    return found


def _fill(row: np.ndarray, pairs: Any, layer: str) -> None:
    """Puts a layer's [expert, gate] pairs into its row. Raises ValueError for anything else."""
    if not isinstance(pairs, list):
        raise ValueError(f"{layer} is {pairs!r:.40}; expected a list of [expert, gate]")
    known: set[int] = set()
    for pair in pairs:
        kinds = [type(one) for one in pair] if isinstance(pair, list) else []
        if kinds not in ([int, float], [int, int]):
            raise ValueError(f"{layer} holds {pair!r:.40}; expected [expert, gate]")
        expert, value = pair
        if not 0 <= expert < len(row):
            raise ValueError(f"{layer} names expert {expert} of {len(row)}")
        if expert in known:
            raise ValueError(f"{layer} names expert {expert} twice")
        known.add(expert)
        row[expert] = value


def card_from_dict(values: Any, where: str) -> Card:
    """The inverse of `Card.to_dict`. Raises WeightsError if `values` is not a card."""
    if isinstance(values, dict):
        values = {"about": {}} | values
    values = CARD.check(values, where)
    layers, experts, rows = values["layers"], values["experts"], values["gates"]
    try:
        if len(rows) != layers or layers < 1 or not 1 <= experts <= MOST_EXPERTS:
            raise ValueError(f"{len(rows)} rows of gates for {layers} layers, {experts} experts")
        gates = np.zeros((layers, experts), np.float32)
        for layer, pairs in enumerate(rows):
            _fill(gates[layer], pairs, f"layer {layer}")
        if not np.isfinite(gates).all():
            raise ValueError("gates are not finite")
    except (OverflowError, ValueError) as error:
        raise WeightsError(f"{where} is a damaged card: {error}.") from None
    arithmetic = values.get("edge_arithmetic")
    if not isinstance(arithmetic, dict | None):
        raise WeightsError(f"{where} is a damaged card: edge_arithmetic is {arithmetic!r:.80}.")
    return Card(
        gates, values["generator"], values["edge"], values["about"], edge_arithmetic=arithmetic
    )
