"""A generator on disk gives the same cards when loaded; foreign parts are refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorage_jax.config import GeneratorConfig
from lorage_jax.errors import ConfigError, DataError, OutputError, WeightsError
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.store import load_generator, read_values, recorded_path, save_generator
from lorage_jax.generator.trees import flatten
from tests.tiny import make_generator, make_tiny

PROMPT = "You are a pirate."


@pytest.fixture(scope="module")
def saved(tmp_path_factory, cloud_dir, tiny):
    """home/{cloud,edge,gen}, which may move together. Tests copy it before they change it."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(cloud_dir, home / "cloud")
    shutil.copytree(tiny("llama")[0], home / "edge")
    gen = make_generator(home / "cloud", home / "edge")
    save_generator(gen, home / "gen")
    return home, gen, specialize(gen, PROMPT)


@pytest.fixture
def home(saved, tmp_path):
    """A copy elsewhere; the original stays, so absolute paths lead back to it."""
    shutil.copytree(saved[0], tmp_path / "home")
    return tmp_path / "home"


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_round_trip(saved):
    home, gen, card = saved
    back = load_generator(home / "gen")
    for name, value in flatten({"t": gen.trained, "s": gen.statistics}).items():
        got = flatten({"t": back.trained, "s": back.statistics})[name]
        np.testing.assert_array_equal(got, value)
        assert got.dtype == value.dtype
    assert back.config == gen.config and back.edge == gen.edge
    assert back.fingerprint == gen.fingerprint
    assert back.edge_source == home / "edge" and back.source == home / "gen"
    again = specialize(back, PROMPT)
    assert again.gates.tobytes() == card.gates.tobytes()
    assert (again.generator, again.edge) == (card.generator, card.edge)
    assert {p.name for p in (home / "gen").iterdir()} == {
        "README.md",
        "generator.safetensors",
        "lorage.json",
    }


def test_round_trip_in_bfloat16(saved, tmp_path):
    """Half the size; the loaded generator gives nearly the original's cards."""
    home, gen, card = saved
    save_generator(gen, tmp_path / "half", dtype="bfloat16")
    file = "generator.safetensors"
    stored = load_file(tmp_path / "half" / file)
    kinds = {name: str(array.dtype) for name, array in stored.items()}
    assert {k for n, k in kinds.items() if n.startswith("trained.")} == {"bfloat16"}
    assert {k for n, k in kinds.items() if n.startswith("statistics.")} == {"float32"}
    assert (tmp_path / "half" / file).stat().st_size < 0.6 * (home / "gen" / file).stat().st_size
    back = load_generator(tmp_path / "half")
    assert {x.dtype for x in jax.tree.leaves(back.trained)} == {jax.numpy.dtype("float32")}
    assert back.fingerprint == read_values(tmp_path / "half")["fingerprint"] != gen.fingerprint
    again = specialize(back, PROMPT)
    np.testing.assert_allclose(again.gates, card.gates, atol=0.02)
    save_generator(back, tmp_path / "again", dtype="bfloat16")
    assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "half" / file).read_bytes()
    with pytest.raises(WeightsError, match="dtype is 'float16'; expected one of float32, bfloat16"):
        save_generator(gen, tmp_path / "no", dtype="float16")


def test_the_house_moves(saved, home):
    """Relative paths come first: folders that moved together still belong together."""
    back = load_generator(home / "gen")
    assert back.cloud.source == home / "cloud" and back.edge_source == home / "edge"
    assert back.fingerprint == saved[1].fingerprint


def test_only_the_generator_moves(saved, tmp_path):
    """The absolute path is tried second; it is recorded unless the folders are siblings."""
    save_generator(saved[1], tmp_path / "gen")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "gen").rename(tmp_path / "deep" / "er" / "gen")
    assert load_generator(tmp_path / "deep" / "er" / "gen").cloud.source == saved[0] / "cloud"
    shutil.copytree(saved[0] / "gen", tmp_path / "alone" / "gen")
    with pytest.raises(WeightsError, match="--cloud"):
        load_generator(tmp_path / "alone" / "gen")
    back = load_generator(tmp_path / "alone" / "gen", cloud=saved[0] / "cloud")
    assert back.fingerprint == saved[1].fingerprint


def test_a_generator_behind_a_link(saved, tmp_path):
    """Runs often lie on another disk, to which a link leads."""
    (tmp_path / "disk" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "deep" / "er")
    save_generator(saved[1], tmp_path / "runs" / "gen")
    back = load_generator(tmp_path / "runs" / "gen")
    assert back.cloud.source == saved[0] / "cloud" and back.edge_source == saved[0] / "edge"


def test_a_cloud_that_is_gone(home, tmp_path):
    def forget(values):
        for role in ("cloud", "edge"):
            values[role]["path"] = str(tmp_path / "gone")

    edit(home / "gen" / "lorage.json", forget)
    (home / "cloud").rename(home / "moved")
    with pytest.raises(WeightsError, match="--cloud"):
        load_generator(home / "gen")
    (home / "edge").rename(home / "moved-edge")
    back = load_generator(home / "gen", cloud=home / "moved")
    assert back.edge_source is None and back.cloud.source == home / "moved"


def test_another_cloud(home, tmp_path):
    make_tiny("llama", tmp_path / "twin", seed=6, num_hidden_layers=2, hidden_size=32)
    with pytest.raises(WeightsError, match="not the cloud"):
        load_generator(home / "gen", cloud=tmp_path / "twin")


def test_a_changed_tensor(home):
    path = home / "gen" / "generator.safetensors"
    tensors = load_file(path)
    tensors["trained.pool.gate.b"][0, 0, 0, 0] += 1e-3
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="was changed"):
        load_generator(home / "gen")


def test_tensors_that_do_not_fit_are_listed(home):
    path = home / "gen" / "generator.safetensors"
    tensors = load_file(path)
    del tensors["trained.meta"]
    tensors["trained.router.f1.bias"] = np.zeros(99, np.float32)
    tensors["surprise"] = np.zeros(1, np.float32)
    save_file(tensors, path)
    with pytest.raises(WeightsError) as error:
        load_generator(home / "gen")
    for words in (
        "trained.meta is missing; expected (3, 32)",
        "trained.router.f1.bias has shape (99,); expected (8,)",
        "surprise is not known",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format="lorage-adapter/1"), "lorage-adapter/1"),
        (lambda v: v.update(templates=99), "templates 99"),
        (lambda v: v["generator"].update(speed=3), "no field speed"),
        (lambda v: v["generator"].update(rank=5), "expected"),
        (lambda v: v["generator"].update(alpha=9.0), "was changed"),
        (lambda v: v.pop("cloud"), "damaged"),
        (lambda v: v["edge"].pop("config"), "damaged"),
    ],
)
def test_changed_facts(home, change, message):
    edit(home / "gen" / "lorage.json", change)
    with pytest.raises((WeightsError, ConfigError), match=message):
        load_generator(home / "gen")


def test_folders_that_are_no_generator(home, tmp_path):
    with pytest.raises(WeightsError, match="not a folder"):
        read_values(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"no lorage\.json"):
        load_generator(home / "edge")
    (home / "gen" / "generator.safetensors").write_bytes(b"123")
    with pytest.raises(WeightsError, match="truncated"):
        load_generator(home / "gen")
    (home / "gen" / "generator.safetensors").unlink()
    with pytest.raises(WeightsError, match="missing"):
        load_generator(home / "gen")
    (home / "gen" / "lorage.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_generator(home / "gen")


def test_overwriting(saved, home):
    with pytest.raises(OutputError, match="not empty"):
        save_generator(saved[1], home / "gen")
    save_generator(saved[1], home / "gen", overwrite=True)
    (home / "gen" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        save_generator(saved[1], home / "gen", overwrite=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"pool_scope": "shared", "router_scope": "per_layer", "combine": "products"},
        {"batch_norm": False, "cloud_rank": 0, "routing": "gumbel", "hidden_layer": 0},
    ],
)
def test_every_switch_survives(saved, tmp_path, fields):
    home, _, _ = saved
    config = GeneratorConfig(rank=2, experts=3, top_k=2, **fields)
    gen = make_generator(home / "cloud", home / "edge", config)
    save_generator(gen, tmp_path / "gen")
    back = load_generator(tmp_path / "gen")
    assert back.config == config and back.fingerprint == gen.fingerprint
    assert jax.tree.structure(back.trained) == jax.tree.structure(gen.trained)


def test_the_fingerprint_is_of_everything(saved):
    """It covers every part that affects the gates or their meaning."""
    _, gen, _ = saved
    seen = {gen.fingerprint}
    for key, change in (
        ("meta", lambda x: x.at[0, 0].add(1e-3)),
        ("router", lambda x: jax.tree.map(lambda y: y + 1e-3, x)),
        ("pool", lambda x: jax.tree.map(lambda y: y * 1.001, x)),
        ("adapters", lambda x: jax.tree.map(lambda y: y * 1.001, x)),
    ):
        trained = gen.trained | {key: change(gen.trained[key])}
        seen.add(type(gen)(**(vars_of(gen) | {"trained": trained})).fingerprint)
    moved = jax.tree.map(lambda y: y + 1e-3, gen.statistics)
    seen.add(type(gen)(**(vars_of(gen) | {"statistics": moved})).fingerprint)
    assert len(seen) == 6


def vars_of(gen):
    return {name: getattr(gen, name) for name in gen.__dataclass_fields__}


def test_prompts(saved):
    """Prompts in one pass do not affect each other; unreadable ones are refused."""
    _, gen, card = saved
    cards = specialize(gen, [PROMPT, "Translate: " + "words " * 12, "?"])
    for one, prompt in zip(cards, [PROMPT, "Translate: " + "words " * 12, "?"], strict=True):
        alone = specialize(gen, prompt)
        np.testing.assert_allclose(one.gates, alone.gates, atol=1e-5)
        assert one.about == alone.about
    np.testing.assert_allclose(cards[0].gates, card.gates, atol=1e-5)
    assert np.abs(cards[1].gates - cards[0].gates).max() > 1e-3
    with pytest.raises(DataError, match="empty"):
        specialize(gen, " \n")
    with pytest.raises(DataError, match="at most 253"):
        specialize(gen, "long " * 100)


def test_a_generator_from_the_hub(saved, monkeypatch):
    """OWNER/NAME is fetched, and so is a cloud whose name on the Hub was recorded."""
    home, gen, _ = saved
    asked = []

    def snapshot(name, allow_patterns):
        asked.append(name)
        assert "*.safetensors" in allow_patterns and not {"*.py", "*.bin", "*"} & {*allow_patterns}
        return str(home / {"me/gen": "gen", "org/cloud": "cloud"}[name])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_generator("me/gen").fingerprint == gen.fingerprint
    values = json.loads((home / "gen" / "lorage.json").read_text())
    values["cloud"] = {"hub": "org/cloud", "relative": "../nowhere"}
    assert recorded_path(values, "cloud", home / "gen") == home / "cloud"
    assert asked == ["me/gen", "org/cloud"]
