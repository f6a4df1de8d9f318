"""Exports a merged model as a Hugging Face folder: the base folder with new FFN weights.

The base's files are streamed. Only the FFN's projections are replaced, one layer's
tensor at a time; every other tensor and file is copied bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorage_jax.config import ModelConfig
from lorage_jax.data.templates import ChatTemplate, Template, TemplateKind
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.fields import home_path
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.files.fingerprint import fingerprint, short
from lorage_jax.files.gguf import is_gguf
from lorage_jax.files.manifest import MERGED, OWN_TURNS, manifest_of, write_manifest
from lorage_jax.files.outputs import check_target, new_folder
from lorage_jax.files.safetensors import FLOATS, INDEX, SINGLE, Checkpoint, main_dtype, rewrite
from lorage_jax.hf import tables
from lorage_jax.hf.config import generation_eos, read_config
from lorage_jax.hf.folder import open_folder
from lorage_jax.hf.hub_card import (
    SCORES,
    describe_card,
    licence_text,
    origin,
    portable_name,
    write_hub_card,
)
from lorage_jax.hf.import_gguf import write_folder
from lorage_jax.hf.kept import UpdateKept
from lorage_jax.hf.multimodal import text_names
from lorage_jax.hf.source import open_model
from lorage_jax.models.model import Model

_log = logging.getLogger(__name__)

GENERATION = "generation_config.json"
# Files copied along with the weights: tokenizer, settings (of images, too), licence. Code, weights
# in other formats and the README, which describes the base model, are not copied.
COPIED = (
    GENERATION,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tekken.json",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
    "Notice*",
    "USE_POLICY*",
)


def export_merged(
    model: Model,
    out_dir: str | Path,
    base: str | Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes `model` as a Hugging Face folder that differs from `base` only in merged weights.

    These are the FFN's, and those that a PEFT adapter changed.

    `base`: the folder or GGUF file the model was loaded from; by default, its path at load time.
    `dtype`: cast all float tensors to one of DTYPES; by default they keep their dtypes, and
    quantised ones become float32. The card goes into `lorage.json`. Standard error says so if
    float32 weights lose much of their update in the files' dtype. Raises WeightsError for another
    base, and OutputError.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}, or None.")
    base = model.source if base is None else home_path(base)
    if base is None:
        raise WeightsError("this model has no source folder; pass base=, the folder of its base.")
    check_target(out_dir, overwrite, base)
    if is_gguf(base):
        _export_over_gguf(model, base, Path(out_dir), dtype, overwrite)
        return
    opened = open_folder(base)
    identity = _check_base(model, base, opened.config)
    checkpoint = Checkpoint.open(base)
    names = text_names(checkpoint)
    renamed = {names[there]: here for here, there in opened.stored.items()}
    names |= {here: names[there] for here, there in opened.stored.items()}
    replace = {names[name]: make for name, make in _replacements(model).items()}
    found = sorted({checkpoint.dtype(name) for name in replace})
    kept = UpdateKept(checkpoint)
    if dtype is None:
        replace = {name: kept.watched(name, make) for name, make in replace.items()}
    with new_folder(out_dir, overwrite=overwrite) as folder:
        for file in checkpoint.files():
            inside = {name: replace[name] for name in replace if _file(checkpoint, name) == file}
            rewrite(file, folder / file.name, inside, dtype, renamed)
        if not (base / SINGLE).exists():
            (folder / INDEX).write_bytes(_index(base, folder, dtype, renamed))
        (folder / "config.json").write_bytes(_config(base, dtype))
        for source in _companions(base):
            target = folder / source.relative_to(base)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
        if model.card is not None or model.answers:
            write_template(model.template, folder)
            _write_ends(model.template, opened.config, folder)
        _write_hub_card(model, base, folder)
        write_manifest(folder, _manifest(model, identity, found, dtype))
    if (words := kept.words()) is not None:
        _log.warning("%s", words)


def _export_over_gguf(
    model: Model, base: Path, out_dir: Path, dtype: str | None, overwrite: bool
) -> None:
    """`export_merged` of a model whose base is a GGUF file."""
    opened = open_model(base, with_tokenizer=True)
    identity = _check_base(model, base, opened.config)
    replace, tensors = _replacements(model), opened.checkpoint
    found, kept = main_dtype(tensors), UpdateKept(tensors)
    if dtype is None:
        watched = [name for name in replace if tensors.dtype(name) == found]
        replace |= {name: kept.watched(name, replace[name]) for name in watched}
    with new_folder(out_dir, overwrite=overwrite) as folder:
        write_folder(opened, folder, dtype, replace)
        if model.card is not None or model.answers:
            write_template(model.template, folder)
            _write_ends(model.template, opened.config, folder)
        _write_hub_card(model, base, folder)
        write_manifest(folder, _manifest(model, identity, [found], dtype))
    if (words := kept.words()) is not None:
        _log.warning("%s", words)


USE = """Ask in the turns of this folder's chat template, without a system message, which is in the
weights.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
```

In lorage_jax: `lg.chat(lg.load_model("THIS_FOLDER"), "...")`."""


def _write_hub_card(model: Model, base: Path, folder: Path) -> None:
    name = portable_name(base)
    if model.card is None:
        made = "adapters merged into its weights" if model.loras else "its own weights"
        parts = {"": f"`{name}` with {made}, written by lorage_jax."}
    else:
        parts = {
            "": f"`{name}`, specialised for a system prompt: only the FFN's matrices differ from "
            f"the base. Their LoRA was {origin(model.card)}.",
            "Use": USE,
            "Made from": describe_card(model.card),
            "Scores": SCORES,
        }
    parts["Licence"] = licence_text({"base": base})
    title = f"{name}, specialised by a system prompt" if model.card is not None else name
    write_hub_card(folder, title, parts, bases=[base], library="transformers", relation="finetune")


def _manifest(model: Model, identity: str, dtypes: list[str], dtype: str | None) -> dict[str, Any]:
    """The origin of a merged folder; `dtypes` are the base's dtypes, as its files spell them."""
    names = {spelled: name for name, spelled in FLOATS.items()}
    values: dict[str, Any] = {
        "format": MERGED,
        "base": {
            "fingerprint": identity,
            "dtype": names.get(dtypes[0], dtypes[0]) if len(dtypes) == 1 else "mixed",
        },
        "dtype": dtype or "as in the base",
        **_kind(model).to_dict(),
    }
    if isinstance(model.template, ChatTemplate) and model.template.untrained:
        values[OWN_TURNS] = True
    if model.card is not None:
        values |= {"generator": model.card.generator, "card": model.card.to_dict()}
    return values


def _check_base(model: Model, base: Path, config: ModelConfig) -> str:
    """Returns the fingerprint of `base`. Raises WeightsError unless it is the model's base."""
    if config.tied_head and dataclasses.replace(config, tied_head=False) == model.config:
        raise WeightsError(
            "the adapter of this model untied its head from the embeddings; it cannot be exported."
        )
    if config != model.config:
        raise WeightsError(f"{base} contains a model of another shape than the one to export.")
    identity = fingerprint(base)
    # Without a card or source folder, only the shape of the base is known.
    if model.card is not None or model.source is not None:
        expected = model.card.edge if model.card is not None else model.base_fingerprint
        if identity != expected:
            raise WeightsError(
                f"{base} is not the base of this model (weights {short(identity)}, expected "
                f"{short(expected)}). Pass base=, the folder that the model was loaded from."
            )
    return identity


def write_template(template: Template | None, folder: Path) -> None:
    """Writes `chat_template.jinja`, by which transformers and servers render the trained turns.

    A template inside tokenizer_config.json, where older versions kept it, is taken out, and so are
    named ones (`tool_use`), which transformers would prefer for some requests.
    """
    if template is None:
        return
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    (folder / "chat_template.jinja").write_text(template.jinja(), "utf-8")
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    values = json.loads(path.read_text("utf-8"))
    if values.pop("chat_template", None) is not None:
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_ends(template: Template | None, config: ModelConfig, folder: Path) -> None:
    """Adds the ends of the trained turns to the eos ids in generation_config.json.

    transformers and servers stop at these alone. A file that is missing is written with the
    settings that transformers takes from config.json in its place.
    """
    if template is None:
        return
    path = folder / GENERATION
    found = path.is_file()
    if set(template.ends) <= set(generation_eos(folder) if found else config.eos_ids):
        return
    values = json.loads(path.read_text("utf-8")) if found else _generation_settings(folder)
    # transformers 4 would replace settings with this mark by those in config.json.
    values.pop("_from_model_config", None)
    values["eos_token_id"] = list(dict.fromkeys([*config.eos_ids, *template.ends]))
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _generation_settings(folder: Path) -> dict[str, Any]:
    from transformers import GenerationConfig

    how = {"config_file_name": "config.json", "_from_model_config": True, "local_files_only": True}
    return GenerationConfig.from_pretrained(str(folder), **how).to_diff_dict()


def _kind(model: Model) -> TemplateKind:
    return TemplateKind() if model.template is None else model.template.kind


def is_merged(folder: Path) -> bool:
    """True if `export_merged` wrote this folder."""
    return manifest_of(folder).get("format") == MERGED


def _replacements(model: Model) -> dict[str, Callable[[], np.ndarray]]:
    """The FFN's tensors, and all others that an adapter changed, by their names in the file."""
    get = functools.partial(tables.leaf_array, model.params)
    changed = {path[-1] for lora in model.loras for path in lora.leaves}
    return dict(tables.tensors(model.config, get, *{*model.config.projections, *changed}))


def _file(checkpoint: Checkpoint, name: str) -> Path:
    return checkpoint.tensors[name].file


def _companions(base: Path) -> list[Path]:
    return sorted({path for kind in COPIED for path in base.glob(kind) if path.is_file()})


def _config(base: Path, dtype: str | None) -> bytes:
    """The bytes of config.json: the base's, unless its dtype field must change."""
    raw = read_config(base)
    name = "torch_dtype" if "torch_dtype" in raw and "dtype" not in raw else "dtype"
    if dtype is None or raw.get(name) == dtype:
        return (base / "config.json").read_bytes()
    raw = {key: value for key, value in raw.items() if key != "torch_dtype" or key == name}
    return (json.dumps(raw | {name: dtype}, indent=2, ensure_ascii=False) + "\n").encode()


def _index(base: Path, folder: Path, dtype: str | None, renamed: Mapping[str, str]) -> bytes:
    """The bytes of the shard index: the base's, unless names or the total size changed."""
    content = (base / INDEX).read_bytes()
    if renamed:
        values = json.loads(content)
        places = {renamed.get(name, name): file for name, file in values["weight_map"].items()}
        content = json.dumps(values | {"weight_map": places}, indent=2).encode()
    if dtype is None:
        return content
    files = sorted(set(json.loads(content)["weight_map"].values()))
    parts = [Checkpoint.open_file(folder / file) for file in files]
    size = sum(t.stop - t.start for part in parts for t in part.tensors.values())
    values = json.loads(content)
    if (values.get("metadata") or {}).get("total_size") == size:
        return content
    values["metadata"] = (values.get("metadata") or {}) | {"total_size": size}
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
