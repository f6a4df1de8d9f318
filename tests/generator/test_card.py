"""Cards: exact, small, and refused when damaged or foreign."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorage_jax.errors import OutputError, WeightsError
from lorage_jax.generator.card import Card, card_from_dict, load_card
from lorage_jax.hf.family import family_decoder
from lorage_jax.models.experts import Pool
from lorage_jax.models.model import Model

PRINTS = ("sha256:" + "a" * 64, "sha256:" + "b" * 64)


def make_card(seed=0, layers=28, experts=8, top_k=2, about=None):
    rng = np.random.default_rng(seed)
    gates = np.zeros((layers, experts), np.float32)
    for row in gates:
        weights = np.exp(8 * rng.standard_normal(top_k)).astype(np.float32)
        row[rng.choice(experts, top_k, replace=False)] = weights / weights.sum()
    return Card(gates, *PRINTS, about or {"prompt_sha256": "c" * 64, "cloud_tokens": 113})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([[0]], r"layer 1 holds \[0\]; expected \[expert, gate\]"),
        ([[0, 1.0, 2]], "layer 1 holds .*; expected"),
        ([["0", 1.0]], "layer 1 holds .*; expected"),
        ([[0.5, 1.0]], "layer 1 holds .*; expected"),
        ([[True, 1.0]], "layer 1 holds .*; expected"),
        ([[0, None]], "layer 1 holds .*; expected"),
        ([7], "layer 1 holds 7; expected"),
        (7, "layer 1 is 7; expected a list"),
        ([[8, 1.0]], "layer 1 names expert 8 of 8"),
        ([[-1, 1.0]], "layer 1 names expert -1 of 8"),
        ([[2, 0.5], [3, 0.0], [2, 0.5]], "layer 1 names expert 2 twice"),
        ([[0, 10**400]], "too large"),
    ],
)
def test_a_card_with_damaged_gates(row, says):
    values = make_card(layers=3).to_dict()
    values["gates"][1] = row
    with pytest.raises(WeightsError, match=f"^here is a damaged card: .*{says}"):
        card_from_dict(values, "here")


def test_file_round_trip(tmp_path):
    """Every bit of every gate; under 4 KB for 28 layers of 8 experts."""
    card = make_card()
    card.save(tmp_path / "sub" / "card.json")
    back = load_card(tmp_path / "sub" / "card.json")
    assert back.gates.dtype == np.float32
    assert back.gates.tobytes() == card.gates.tobytes()
    assert (back.generator, back.edge, back.about) == (card.generator, card.edge, card.about)
    assert (tmp_path / "sub" / "card.json").stat().st_size < 4096
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["card.json"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.floats(0, 1, width=32, allow_subnormal=True).map(lambda x: x or 0.0),
        min_size=6,
        max_size=6,
    )
)
def test_any_gates_are_exact(values):
    gates = np.array(values, np.float32).reshape(2, 3)
    text = json.dumps(Card(gates, *PRINTS).to_dict())
    assert card_from_dict(json.loads(text), "here").gates.tobytes() == gates.tobytes()


def test_saving_refuses_to_overwrite(tmp_path):
    card, path = make_card(), tmp_path / "card.json"
    card.save(path)
    with pytest.raises(OutputError, match="exists"):
        make_card(1).save(path)
    np.testing.assert_array_equal(load_card(path).gates, card.gates)
    make_card(1).save(path, overwrite=True)
    np.testing.assert_array_equal(load_card(path).gates, make_card(1).gates)
    with pytest.raises(OutputError, match="folder"):
        card.save(tmp_path, overwrite=True)


def test_folders_that_hold_a_card(tmp_path):
    card = make_card()
    card.save(tmp_path / "a" / "card.json")
    np.testing.assert_array_equal(load_card(tmp_path / "a").gates, card.gates)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "lorage.json").write_text(json.dumps({"card": card.to_dict(), "files": []}))
    np.testing.assert_array_equal(load_card(tmp_path / "b").gates, card.gates)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format="lorage-card/9"), "lorage-card/9"),
        (lambda v: v.pop("format"), "format"),
        (lambda v: v.pop("edge"), "edge"),
        (lambda v: v.pop("gates"), "gates"),
        (lambda v: v["gates"].pop(), "27 rows of gates for 28 layers"),
        (lambda v: v["gates"][3].append([8, 0.5]), "expert 8 of 8"),
        (lambda v: v["gates"][3].append([-1, 0.5]), "expert -1 of 8"),
        (lambda v: v["gates"][3].append([1, float("nan")]), "not finite"),
        (lambda v: v["gates"][3].append([1, "much"]), "damaged"),
        (lambda v: v["gates"].__setitem__(0, 7), "damaged"),
        (lambda v: v.update(layers="many"), "damaged"),
        (lambda v: v.update(layers=-1), "damaged"),
    ],
)
def test_damaged_cards(tmp_path, change, message):
    values = make_card().to_dict()
    change(values)
    path = tmp_path / "card.json"
    path.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=message) as error:
        load_card(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1}', b"3"])
def test_no_cards(tmp_path, content):
    path = tmp_path / "card.json"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a card"):
        load_card(path)


def test_nothing_there(tmp_path):
    for path, says in ((tmp_path / "none.json", "does not exist"), (tmp_path, "contains no card")):
        with pytest.raises(WeightsError, match=says):
            load_card(path)


class Edge(Model):
    fingerprint = PRINTS[1]


def test_check():
    sizes = {"width": 2, "layers": 28, "heads": 1, "kv_heads": 1, "ffn_width": 2}
    edge = Edge(
        family_decoder("llama", vocab_size=9, **sizes), {}, None, source=Path("edge-folder")
    )
    gate = {"a": np.zeros((28, 8, 2, 1)), "b": np.zeros((28, 8, 1, 2))}
    pool = Pool({"gate": gate}, "factors", 1.0, "per_layer", PRINTS[0])
    make_card().check(edge, pool)
    foreign = Card(make_card().gates, "sha256:" + "d" * 64, PRINTS[1])
    with pytest.raises(WeightsError, match="made by generator sha256:dddd"):
        foreign.check(edge, pool)
    foreign = Card(make_card().gates, PRINTS[0], "sha256:" + "d" * 64)
    with pytest.raises(WeightsError, match="edge-folder"):
        foreign.check(edge, pool)
    for card in (make_card(layers=27), make_card(experts=4)):
        with pytest.raises(WeightsError, match=r"expected \(28, 8\)"):
            card.check(edge, pool)
