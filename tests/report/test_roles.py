"""What experts serve: planted gates are found with their means and distinguished from chance."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from lorage_jax.report import pictures
from lorage_jax.report.explain import to_text
from lorage_jax.report.roles import Sample, explain_gates, nearest_values
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world import tools as world_tools

LAYERS, EXPERTS = 3, 19  # one more than there are operations
PLANTED, REST = 1, 0.25
DRAWN = {
    family: [
        (prompt, split)
        for split in ("train", "paraphrase")
        for prompt in world_prompts.draw_prompts(split, 200, 3, family)
    ]
    for family in ("words", "tools")
}


KINDS = {"words": "operation", "tools": "pattern"}


def value_of(prompt, kind):
    return prompt.parts[kind][0]


def planted(family, kind, layers=LAYERS):
    """Layer 1: one expert per value of `kind`, plus the last expert. Other layers: noise."""
    prompts, splits = zip(*DRAWN[family], strict=True)
    values = sorted({value_of(prompt, kind) for prompt in prompts})
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2, (len(prompts), layers))
    gates = np.eye(EXPERTS)[noise]
    gates[:, PLANTED] = 0
    for row, prompt in zip(gates[:, PLANTED], prompts, strict=True):
        row[values.index(value_of(prompt, kind))] = 1 - REST
        row[-1] = REST
    return Sample(family, list(prompts), list(splits), gates), values


@pytest.fixture(scope="module")
def words():
    sample, operations = planted("words", "operation")
    return sample, operations, explain_gates([sample], seed=0)


def test_the_parts_of_a_prompt():
    [prompt] = world_prompts.draw_prompts("paraphrase", 1, 0, "words")
    assert prompt.system == "End with stop. Remove the first word."
    assert prompt.parts == {"operation": ("drop_first",), "style": ("plain",), "format": ("stop",)}
    assert hash(prompt) == hash(dataclasses.replace(prompt))
    for prompt, split in DRAWN["words"]:
        assert "/".join(value for (value,) in prompt.parts.values()) == prompt.task
        if split == "paraphrase":
            assert world_prompts.find(prompt.system).parts == prompt.parts
    verbs = {verb.words[0]: verb for verb in world_tools.VERBS}
    for prompt, _ in DRAWN["tools"]:
        word, pattern, form = (value_of(prompt, kind) for kind in ("word", "pattern", "input"))
        lines = [line for line in prompt.system.split("\n") if line.startswith("> ")]
        assert all(form.split("{}")[0] in line for line in lines)
        names = [line[2:].split(":")[0] for line in lines]
        called = {
            tool: pattern.format(Verb=name, verb=name.lower(), Objects="\n", objects="\n")
            for tool, verb in verbs.items()
            for name in [verb.words[int(word)]]
        }
        listed = [
            tool
            for name in names
            for tool, text in called.items()
            if all(part in name for part in text.split("\n"))
        ]
        assert list(dict.fromkeys(listed)) == list(prompt.parts["verb"]) != []


def test_draw_prompts_are_those_of_the_groups():
    for split, family in (("train", "words"), ("paraphrase", "tools"), ("composition", "")):
        prompts = world_prompts.draw_prompts(split, 30, 4, family)
        groups = world_prompts.draw_groups(split, 30, 2, 4, family)
        assert [prompt.system for prompt in prompts] == [group[0].system for group in groups]


def test_a_planted_expert_is_found_with_its_means(words):
    sample, operations, found = words
    counts = Counter(value_of(prompt, "operation") for prompt in sample.prompts)
    for number, operation in enumerate(operations):
        one = found["serves"]["operation"][operation]
        first, *others = one["experts"]
        assert first == {"layer": PLANTED, "expert": number, "gate": 1 - REST, "others": 0}
        assert one["prompts"] == counts[operation]
        assert one["chance"] < 0.5 and all(e["layer"] != PLANTED for e in others)
    # The style is unrelated to the gates: no excess is beyond chance.
    excess = [
        one["experts"][0]["gate"] - one["experts"][0]["others"] - one["chance"]
        for one in found["serves"]["style"].values()
    ]
    assert len(excess) == 4 and abs(np.mean(excess)) < 0.05


def test_means_and_shares(words):
    sample, operations, found = words
    np.testing.assert_allclose(
        found["usage"]["families"]["words"], sample.gates.mean(axis=0), atol=1e-4
    )
    for operation in operations:
        under = [value_of(prompt, "operation") == operation for prompt in sample.prompts]
        mean = sample.gates[under].mean(axis=0)
        np.testing.assert_allclose(found["gates"]["operation"][operation], mean, atol=1e-4)
        share = found["usage"]["values"]["operation"][operation]
        np.testing.assert_allclose(share, mean.mean(axis=0), atol=1e-4)
        assert share[-1] == pytest.approx(REST / LAYERS, abs=1e-4)


@pytest.mark.parametrize("symbol", ["open experts", "top expert"])
def test_only_the_planted_layer_tells_and_of_its_kind(words, symbol):
    sample, _, found = words
    if symbol == "top expert":  # all are open a little, as with Gumbel routing
        gates = 0.9 * sample.gates + 0.1 / sample.gates.shape[2]
        found = explain_gates([dataclasses.replace(sample, gates=gates)], seed=0)
    tells = found["tells"]["words"]
    assert tells["symbol"] == symbol
    most, bits = tells["most"]["operation"], np.asarray(list(tells["bits"].values()))
    assert bits[0, PLANTED] == pytest.approx(most, abs=0.05) and most > 3
    # Not all pairs of parts are tasks, so an operation says a little about style and format.
    assert np.abs(bits[1:, PLANTED]).max() < 0.1
    assert np.abs(np.delete(bits, PLANTED, axis=1)).max() < 0.05


def test_sets_that_are_too_many_give_way_to_the_top_expert(words):
    sample = words[0]
    rng = np.random.default_rng(0)
    gates = np.zeros(sample.gates.shape)
    for row in gates.reshape(-1, gates.shape[2]):
        row[rng.choice(len(row), 2, replace=False)] = 0.7, 0.3
    found = explain_gates([dataclasses.replace(sample, gates=gates)], seed=0)["tells"]["words"]
    assert found["symbol"] == "top expert"
    assert np.abs(list(found["bits"].values())).max() < 0.12


def test_a_kind_with_several_values_a_prompt():
    sample, _ = planted("tools", "pattern")
    has = [float("Blur" in prompt.parts["verb"]) for prompt in sample.prompts]
    sample.gates[:, 0] = np.eye(EXPERTS)[7]  # open for all prompts, so it serves none in particular
    sample.gates[:, 2] = np.eye(EXPERTS)[[2 * int(h) for h in has]]
    found = explain_gates([sample], seed=0)
    first, second, _ = found["serves"]["verb"]["Blur"]["experts"]
    assert first == {"layer": 2, "expert": 2, "gate": 1.0, "others": 0.0}
    assert found["serves"]["verb"]["Blur"]["prompts"] == sum(has)
    assert second["gate"] - second["others"] < 0.2
    bits, most = (found["tells"]["tools"][key] for key in ("bits", "most"))
    # One of twelve verbs is known, and it has the entropy of any.
    assert bits["verb"][2] == pytest.approx(most["verb"] / len(world_tools.VERBS), rel=0.3)
    assert max(bits["verb"][:2]) < 0.01
    assert bits["pattern"][PLANTED] == pytest.approx(most["pattern"], abs=0.01)
    assert max(np.abs(bits["word"] + bits["input"])) < 0.02


def test_the_nearest_prompt_has_the_same_operation(words):
    sample, _, found = words
    agreement = found["nearest"]["agreement"]["words"]
    count, total = {}, len(sample.prompts)
    for kind in ("operation", "format"):
        count[kind] = Counter(value_of(prompt, kind) for prompt in sample.prompts)
        chance = sum(n * (n - 1) for n in count[kind].values()) / total / (total - 1)
        assert agreement[kind]["chance"] == pytest.approx(chance, abs=1e-4)
    assert agreement["operation"]["share"] > 0.97 and agreement["operation"]["possible"] == 1
    # Many prompts are equally near; formats count by their share.
    assert agreement["format"]["share"] == pytest.approx(agreement["format"]["chance"], abs=0.04)
    tasks = Counter(prompt.task for prompt in sample.prompts)
    possible = sum(n for n in tasks.values() if n > 1) / total
    assert agreement["all"]["possible"] == pytest.approx(possible, abs=1e-4)
    assert agreement["all"]["chance"] < agreement["all"]["share"] < possible


def test_agreement_in_several_values_is_what_is_common():
    tools, split = [("A",), ("A", "B"), ("A", "B", "C")], ["train"] * 3
    prompts = [
        world_prompts.Prompt(str(i), "tools", "tools", None, parts={"verb": names})
        for i, names in enumerate(tools)
    ]
    gates = np.asarray([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5]])[:, None]
    found = explain_gates([Sample("tools", prompts, split, gates)], seed=0)
    one = found["nearest"]["agreement"]["tools"]["verb"]
    assert one["share"] == pytest.approx((1 / 2 + 1 / 2 + 2 / 3) / 3, abs=1e-4)
    assert one["chance"] == pytest.approx((1 / 2 + 1 / 3 + 2 / 3) / 3, abs=1e-4)
    assert one["possible"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3, abs=1e-4)
    assert list(found["serves"]["verb"]) == ["B", "C"]  # all have A
    gates[:] = gates[0]  # all others are the nearest
    found = explain_gates([Sample("tools", prompts, split, gates)], seed=0)
    one = found["nearest"]["agreement"]["tools"]["verb"]
    assert one["share"] == one["chance"] == 0.5


def test_neighbours_of_a_prompt(words):
    sample, _, found = words
    last = sample.prompts[-1]
    nearest = found["nearest"]
    assert nearest["prompt"] == last.system and len(nearest["neighbours"]) == 5
    assert {tuple(n["parts"]["operation"]) for n in nearest["neighbours"]} == {
        last.parts["operation"]
    }
    first = sample.prompts[0].system
    nearest = explain_gates([sample], seed=0, query=(first, sample.gates[0]))["nearest"]
    assert nearest["neighbours"][0]["cosine"] == 1
    assert first not in [n["prompt"] for n in nearest["neighbours"]]


def test_neighbours_of_a_given_prompt_are_sought_in_all_families(words):
    sample, operations, _ = words
    tools, _ = planted("tools", "pattern")
    tools.gates[:] = np.eye(EXPERTS)[-1]
    gates = np.zeros((LAYERS, EXPERTS), np.float32)
    gates[PLANTED, operations.index("swap")] = 1
    found = explain_gates([sample, tools], seed=0, query=("Mine.", gates))["nearest"]
    assert found["prompt"] == "Mine."
    assert [n["parts"]["operation"] for n in found["neighbours"]] == [["swap"]] * 5
    cosine = (1 - REST) / np.sqrt((1 - REST) ** 2 + REST**2 + 2)
    assert [n["cosine"] for n in found["neighbours"]] == pytest.approx([cosine] * 5, abs=1e-4)
    gates = np.eye(EXPERTS, dtype=np.float32)[[-1] * LAYERS]
    found = explain_gates([sample, tools], seed=0, query=("Mine.", gates))["nearest"]
    assert [(n["cosine"], n["from"]) for n in found["neighbours"]] == [(1.0, "tools/train")] * 5


def test_text_and_json(words):
    deep = [planted(family, kind, layers=28)[0] for family, kind in KINDS.items()]
    found = explain_gates(deep, seed=0) | {"left_out": {"words": 0, "tools": 7}}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    lines = to_text(found).split("\n")
    assert max(map(len, lines)) < 100
    rows = {line.split()[0]: " ".join(line.split()) for line in lines if "/" in line}
    number = words[1].index("reverse")
    assert f" 1/{number} 0.75 (0.00) " in rows["reverse"]
    assert "Left out, as they are longer than the cloud's context: 7 of tools." in lines
    assert "words." not in "".join(line for line in lines if line.startswith("Left out"))
    assert "-0.00" not in to_text(found)
    assert [line for line in lines if line.startswith("  layer 27 ")]
    tells = [line for line in lines if " of " in line and "  layer " in line]
    assert len(tells) == 8 and all(line[-5:-4] == " " and line[-3] == "." for line in tells)


def test_the_picture_has_a_row_for_each_value(words, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path, overwrite: figures.append(figure))
    _, _, found = words
    kinds = {kind: found["gates"][kind] for kind in ("operation", "format")}
    pictures.expert_heatmap(kinds, tmp_path / "a.png", False)
    axes = figures[0].axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [*kinds["operation"], *kinds["format"]]
    image = axes.images[0].get_array()
    reverse = np.reshape(kinds["operation"]["reverse"], -1)
    np.testing.assert_array_equal(image[labels.index("reverse")], reverse)
    assert {text.get_text() for text in axes.texts} == {"operation", "format"}


def test_equal_seeds_say_the_same(words):
    sample, _, found = words
    assert explain_gates([sample], seed=0) == found != explain_gates([sample], seed=1)


def test_values_of_similar_gates():
    shared = np.full((2, 4), 0.25)
    first, second = np.zeros((2, 4)), np.zeros((2, 4))
    first[0, 0] = second[1, 3] = 0.5
    among = {"first": shared + first, "second": shared + second, "neither": shared}
    found = nearest_values({"new": shared + 0.8 * second + 0.1 * first}, among)["new"]
    assert found[0]["value"] == "second"
    centre = np.mean(list(among.values()), axis=0)
    own, other = 0.8 * second + 0.1 * first + shared - centre, shared + second - centre
    cosine = np.vdot(own, other) / np.linalg.norm(own) / np.linalg.norm(other)
    assert found[0]["cosine"] == pytest.approx(cosine, abs=1e-4)
    assert "kinds" not in explain_gates([planted("words", "operation")[0]], seed=0)["nearest"]


def test_many_values_are_cut_in_the_text(words):
    _, _, found = words
    kind, values = "operation", found["serves"]["operation"]
    many = {
        f"{value} number {n} of its kind": one for n in range(3) for value, one in values.items()
    }
    shares = {name: [0.5, 0.5] for name in many}
    usage = {**found["usage"], "values": {kind: shares}}
    text = to_text({**found, "serves": {kind: many}, "usage": usage})
    assert text.count(f"  and {len(many) - 40} more (all with --json)") == 2
    assert max(map(len, text.split("\n"))) < 100
