"""Everything that kept figures depend on: models and their use, data, settings, results."""

import dataclasses
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from lorage_jax import nano
from lorage_jax.compare import kept
from lorage_jax.compare.facts import bigger_clouds
from lorage_jax.compare.parts import all_parts, check_untrained
from lorage_jax.config import CompareConfig, DataConfig, ExperimentConfig, Source
from lorage_jax.errors import ConfigError
from lorage_jax.fields import learnt_from
from lorage_jax.files.fingerprint import fingerprint
from lorage_jax.files.manifest import MANIFEST
from lorage_jax.methods.few_case import FewCaseSettings
from lorage_jax.methods.finished import result_digest
from lorage_jax.methods.lora_gen import LoraGenSettings
from lorage_jax.methods.no_llm import NoLlmSettings

DATA = DataConfig((Source("synthetic", "synthetic"),))
CONFIG = CompareConfig(
    ExperimentConfig(cloud="a", edge="b", out="out", data=DATA, steps=100),
    {"lora_gen": {}, "lora": {}},
)


@pytest.mark.parametrize("field", ["init", "teacher"])
def test_a_folder_that_the_run_learns_from_belongs_to_the_figures(tmp_path, field):
    """Trained again in the same place, its figures are others."""
    folder, base = (
        tmp_path / "before",
        dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE)),
    )
    row = {"init": str(folder)}
    if field == "teacher":
        row = {"settings": LoraGenSettings(distilled=0.5, teacher=str(folder))}
    config = CompareConfig(base, {"lora_gen": row})
    part = all_parts(config, ["lora_gen"], 1)[1]
    folder.mkdir()
    (folder / MANIFEST).write_text("{}")
    first = kept.identity(config, part, None)
    assert kept.identity(config, part, None) == first
    (folder / MANIFEST).write_text('{"again": 1}')
    assert kept.identity(config, part, None) != first


def test_what_a_method_begins_with_belongs_to_the_figures(tmp_path):
    """A card, the generator that it is of, and a sentence encoder."""
    card, encoder = tmp_path / "card.json", tmp_path / "encoder"
    encoder.mkdir()
    weights = encoder / "model.safetensors"
    for file in (card, weights):
        file.write_text("{}")
    rows = {
        "few_case": {"settings": FewCaseSettings(generator=str(nano.GENERATOR), card=str(card))},
        "no_llm": {"settings": NoLlmSettings("sentence", str(encoder))},
    }
    base = dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE))
    config = CompareConfig(base, rows)
    parts = all_parts(config, list(rows), 1)[1:]
    first = [kept.identity(config, part, None) for part in parts]
    assert [len(one["learnt_from"]) for one in first] == [2, 1]
    for changed, file in enumerate((card, weights)):
        file.write_text("{ }")
        again = kept.identity(config, parts[changed], None)
        assert again["learnt_from"][-1] != first[changed]["learnt_from"][-1]
        again["learnt_from"] = first[changed]["learnt_from"]
        assert again == first[changed]


def test_a_setting_of_any_method_may_name_what_is_learnt_from(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Mine:
        number: int = 1
        corpus: str = learnt_from()

    file = tmp_path / "corpus.txt"
    file.write_text("a")
    base = dataclasses.replace(
        CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE), settings=Mine(corpus=str(file))
    )
    config = CompareConfig(base, {"lora": {}})
    part = all_parts(config, ["lora"], 1)[1]
    first = kept.identity(config, part, None)["learnt_from"]
    file.write_text("b")
    assert len(first) == 1 and kept.identity(config, part, None)["learnt_from"] != first
    assert FewCaseSettings(card="~/a.json").card == str(Path.home() / "a.json")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config.json", '"rms_norm_eps": 1e-05', '"rms_norm_eps": 0.01'),
        ("tokenizer.json", '1534,\n      "Ġwinter": 1535', '1535,\n      "Ġwinter": 1534'),
        ("tokenizer_config.json", "{", '{"chat_template": "{{ messages[0].content }}",'),
    ],
)
def test_an_edge_of_the_same_weights_that_is_used_otherwise(tmp_path, file, old, new):
    """Arithmetic, vocabulary and turns belong to the figures of every row, trained or not."""
    edge = tmp_path / "edge"
    shutil.copytree(nano.EDGE, edge)
    base = dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(edge))
    config = CompareConfig(base, {"in_context": {}, "lora": {}})
    parts = all_parts(config, list(config.methods), 1)
    first = [kept.identity(config, part, None) for part in parts]
    text = (edge / file).read_text("utf-8")
    assert old in text
    (edge / file).write_text(text.replace(old, new, 1), "utf-8")
    for part, one in zip(parts, first, strict=True):
        again = kept.identity(config, part, None)
        assert again["usage"]["edge"] != one["usage"]["edge"]
        assert again["usage"]["cloud"] == one["usage"]["cloud"] and again["edge"] == one["edge"]


def test_the_alpha_of_an_adapter_from_elsewhere_belongs_to_its_digest(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    config = tmp_path / "adapter_config.json"
    config.write_text('{"lora_alpha": 16}')
    first = result_digest(tmp_path)
    config.write_text('{"lora_alpha": 32}')
    assert result_digest(tmp_path) != first
    (tmp_path / MANIFEST).write_text("{}")  # one of ours has its alpha in there
    assert set(result_digest(tmp_path)) == {MANIFEST, "adapter_model.safetensors"}


def test_the_dtype_belongs_to_the_figures_of_rows_without_training():
    base = dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE))
    found = []
    for dtype in ("float32", "bfloat16"):
        config = CompareConfig(dataclasses.replace(base, dtype=dtype), {"in_context": {}})
        found.append(
            [kept.identity(config, part, None) for part in all_parts(config, ["in_context"], 1)]
        )
    assert all(one != other for one, other in zip(*found, strict=True))


def test_a_row_with_a_cloud_of_its_own(tmp_path):
    base = dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE))
    config = CompareConfig(
        base, {"lora_gen": {}, "own": {"method": "lora_gen", "cloud": base.edge}}
    )
    ours, own = (
        kept.identity(config, part, None) for part in all_parts(config, config.methods, 1)[1:]
    )
    assert (ours["cloud"], own["cloud"]) == (fingerprint(nano.CLOUD), fingerprint(nano.EDGE))
    assert ours["edge"] == own["edge"] == fingerprint(nano.EDGE)
    parts = all_parts(config, list(config.methods), 1)[1:]
    assert bigger_clouds(config, parts) == {"lora_gen"}  # the other's is the edge itself


def test_figures_belong_to_a_finished_result(tmp_path):
    """Those of a folder of LoRAs to all of them and the examples; without it, one clear error."""
    base = dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE))
    rows = {"lorahub": {"trained": str(tmp_path / "loras")}}
    config = dataclasses.replace(CONFIG, base=base, methods=rows)
    found = all_parts(config, ["lorahub"], 2)
    with pytest.raises(ConfigError, match=r"lorahub uses .*loras, which is not a folder. Train it"):
        check_untrained(config, found)
    files = [tmp_path / "loras" / name for name in ("00/lora/x.safetensors", "examples.jsonl")]
    files[0].parent.mkdir(parents=True)
    seen = []
    for file, content in (*zip(files, ("a", "b"), strict=True), (files[0], "c"), (files[1], "d")):
        file.write_text(content)
        seen.append(kept.identity(config, found[1], None)["trained"])
    check_untrained(config, found)
    assert [len(one) for one in seen] == [1, 2, 2, 2]
    assert all(a != b for a, b in pairwise(seen))
