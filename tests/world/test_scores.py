"""The arms on the built-in world: texts and gates that are read, controls, exact match, errors."""

import dataclasses
import math
import zlib

import numpy as np
import pytest

from lorage_jax.data.records import Record
from lorage_jax.data.templates import (
    cloud_prompt,
    edge_prompt,
    edge_prompt_with_system,
    encode,
    encode_target,
)
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.evaluate import answers, controls
from lorage_jax.files.journal import request_key
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.infer.generate import generate
from lorage_jax.methods import lora_gen
from lorage_jax.report.world import combine
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world import seconds
from lorage_jax.world.samples import WorldSample, draw_world, other_tasks
from lorage_jax.world.scores import (
    GENERATOR_ARMS,
    MARGIN,
    ArmScore,
    Asking,
    base_arms,
    from_json,
    generator_arms,
    lora_arm,
    measure,
    to_json,
)
from lorage_jax.world.seconds import request_seconds

SAMPLES = draw_world(4, 3, seed=1)
NAMES = [
    "words/train",
    "words/paraphrase",
    "words/composition",
    "words/samples",
    "tools/train",
    "tools/paraphrase",
    "tools/tools",
]
WORDS, TOOLS = SAMPLES[1], SAMPLES[6]


@pytest.fixture
def calls(monkeypatch):
    """Every batch as (model, texts, options). Answers depend on text and gates."""
    seen = []

    def answer(model, rows, *, gates, pool, **options):
        texts = read(model, rows)
        seen.append((model, texts, options | {"gates": gates, "pool": pool}))
        return write(model, [said(text, gates and gates[i]) for i, text in enumerate(texts)])

    monkeypatch.setattr(answers, "generate_tokens", answer)
    return seen


def read(model, rows):
    """The texts of token rows, each of which begins with a bos."""
    return [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def write(model, texts):
    return [encode(model.tokenizer, text, bos=False) for text in texts]


@pytest.fixture
def fake_cards(models, monkeypatch):
    """Cards by prompt, without a cloud pass: {prompt: gates}."""
    generator, gates = models[1], {}
    one = specialize(generator, "Hello.")

    def make(generator, prompts):
        for prompt in prompts:
            rng = np.random.default_rng(zlib.crc32(prompt.encode()))
            gates.setdefault(prompt, rng.random(one.gates.shape).astype(np.float32))
        return [dataclasses.replace(one, gates=gates[prompt]) for prompt in prompts]

    monkeypatch.setattr(lora_gen, "specialize", make)
    return gates


def said(text, card):
    return f" {request_key(text, b'' if card is None else card.gates.tobytes())}\n"


def oracle(monkeypatch, samples):
    """A `generate` that gives the right answer with and without the prompt."""
    known = {}
    for record in (record for sample in samples for record in sample.records):
        for text in (
            edge_prompt(record.user),
            edge_prompt_with_system(record.system, record.user),
        ):
            assert known.setdefault(text, record.target) == record.target
    monkeypatch.setattr(
        answers,
        "generate_tokens",
        lambda model, rows, **_: write(model, [f" {known[text]}" for text in read(model, rows)]),
    )


def test_the_samples():
    assert [sample.name for sample in SAMPLES] == NAMES
    for sample in SAMPLES:
        assert [len(group) for group in sample.groups] == [3] * 4
        assert len(set(sample.prompts)) == 4
        assert all(
            {record.system for record in group} == {group[0].system} for group in sample.groups
        )
    assert WORDS.groups == world_prompts.draw_groups("paraphrase", 4, 3, 1, "words")
    assert [sample.name for sample in draw_world(2, 1, 0, families=("tools",))] == NAMES[4:]
    assert draw_world(4, 3, seed=2)[1].groups != WORDS.groups


def test_right_answers_score_one_in_every_arm(models, fake_cards, monkeypatch):
    edge, generator = models
    samples = [WORDS, TOOLS]
    oracle(monkeypatch, samples)
    base = base_arms(edge, generator.cloud, samples)
    ours = generator_arms(generator, edge, samples, seed=0)
    lora = lora_arm(edge, samples)
    for sample in samples:
        methods = {
            name: one
            for found in (base, ours, lora)
            for name, one in found[sample.name].arms.items()
        }
        assert list(methods) == [
            "bare",
            "in_context",
            "cloud_in_context",
            *GENERATOR_ARMS,
            "lora",
        ]
        for one in methods.values():
            assert (one.exact_match, one.stderr) == (1.0, 0.0)
            assert (one.prompts, one.records) == (4, 12)
            assert one.by_prompt == [1.0] * 4
            assert (one.scores is not None) == (sample is TOOLS) and one.texts is None
        found = base[sample.name]
        assert found.blind_ceiling == world_prompts.blind_ceiling(sample.split, sample.family)
        lengths = [
            np.mean([len(encode(edge.tokenizer, text, bos=True)) for text in texts])
            for texts in (
                [edge_prompt(r.user) for r in sample.records],
                [edge_prompt_with_system(r.system, r.user) for r in sample.records],
            )
        ]
        assert found.tokens == {
            "without_prompt": lengths[0],
            "with_prompt": lengths[1],
            "compression": lengths[1] / lengths[0],
        }
    strict = base["tools/tools"].arms["in_context"].scores["strict"]
    assert strict["mean"] == dict.fromkeys(strict["mean"], 1.0)


def test_what_each_arm_reads_and_under_which_gates(models, calls, fake_cards):
    """Every answer is at its record's place; batches are small and filled up."""
    edge, generator = models
    small = Asking(batch_tokens=700, keep_texts=True)
    base = base_arms(edge, generator.cloud, [WORDS], small)
    assert {id(model) for model, _, _ in calls} == {id(edge), id(generator.cloud)}
    ours = generator_arms(generator, edge, [WORDS], seed=3, asking=small)
    lora = lora_arm(generator.cloud, [WORDS], small)
    bare = [[said(edge_prompt(r.user), None) for r in group] for group in WORDS.groups]
    full = [
        [said(edge_prompt_with_system(r.system, r.user), None) for r in group]
        for group in WORDS.groups
    ]
    texts = {name: one.texts for name, one in base["words/paraphrase"].arms.items()}
    assert texts == {
        "bare": bare,
        "in_context": full,
        "cloud_in_context": full,
    }
    assert lora["words/paraphrase"].arms["lora"].texts == bare
    own = [fake_cards[prompt] for prompt in WORDS.prompts]
    mean = np.mean(own, axis=0, dtype=np.float64).astype(np.float32)
    noise = controls.random_prompts(generator.reads, WORDS.prompts, 3)
    size = [
        [len(encode(generator.cloud.tokenizer, cloud_prompt(text), bos=True)) for text in texts]
        for texts in (noise, WORDS.prompts)
    ]
    assert size[0] == size[1]
    gates = {
        "lora_gen": own,
        "shuffled": [own[donor] for donor in other_tasks(WORDS, 3)],
        "random": [fake_cards[text] for text in noise],
        "mean_gates": [mean] * 4,
    }
    card = specialize(generator, "Hello.")
    for arm in GENERATOR_ARMS:
        assert ours["words/paraphrase"].arms[arm].texts == [
            [said(edge_prompt(r.user), dataclasses.replace(card, gates=g)) for r in group]
            for g, group in zip(gates[arm], WORDS.groups, strict=True)
        ]
    by_arm = {}
    for model, batch, options in calls:
        tokenizer = model.tokenizer
        longest = max(len(encode_target(tokenizer, r.target)) for r in WORDS.records)
        assert options["max_new_tokens"] == longest + MARGIN
        assert (options["pool"] is generator.pool) == (options["gates"] is not None)
        by_arm.setdefault(options["gates"] is None, set()).add(len(batch))
    assert by_arm[False] == {7}  # 700 // (48 + 48), twelve rows in two batches
    assert max(by_arm[True]) == 7 and min(by_arm[True]) < 7


def tool_prompts(sample):
    found = world_prompts.draw_prompts(sample.split, len(sample.groups), 0, "tools")
    assert [prompt.system for prompt in found] == sample.prompts
    return found


def test_shuffled_is_another_task():
    for sample in SAMPLES:
        for seed in range(3):
            donors = other_tasks(sample, seed)
            assert all(donor != i for i, donor in enumerate(donors)), sample.name
    many = draw_world(60, 2, seed=0, families=("words",))[1]
    # It has two prompts for the same task, in other words.
    names = [world_prompts.find(prompt).task for prompt in many.prompts]
    groups = (
        many.groups
        + [[Record(record.system + " ", record.user, record.target) for record in many.groups[0]]]
        * 60
    )
    names += [names[0]] * 60
    doubled = WorldSample("words", "paraphrase", groups)
    for seed in range(3):
        donors = other_tasks(doubled, seed)
        assert all(names[i] != names[donor] for i, donor in enumerate(donors))
    assert other_tasks(doubled, 0) != other_tasks(doubled, 1)
    assert other_tasks(doubled, 0) == other_tasks(doubled, 0)
    tools = draw_world(60, 2, seed=0, families=("tools",))[-1]
    dialects = [[p.parts[k] for k in ("word", "pattern", "input")] for p in tool_prompts(tools)]
    for seed in range(3):
        donors = other_tasks(tools, seed)
        assert all(dialects[i] != dialects[donor] for i, donor in enumerate(donors))
    alike = WorldSample("words", "paraphrase", [groups[0], groups[-1]])
    with pytest.raises(ConfigError, match="Draw more prompts"):
        other_tasks(alike, 0)


def test_the_standard_error_is_over_prompts():
    """Prompts with 3/3, 1/3 and 0/3 right: mean 4/9, sd of 1, 1/3, 0 over sqrt(3)."""
    sample = WorldSample("words", "train", WORDS.groups[:3])
    targets = [record.target for record in sample.records]
    texts = [f" {t}\n" for t in targets[:3]] + [targets[3], "no", targets[5] + "s", "", "x", "y"]
    found = measure(sample, texts)
    assert found.by_prompt == pytest.approx([1, 1 / 3, 0])
    mean = 4 / 9
    variance = ((1 - mean) ** 2 + (1 / 3 - mean) ** 2 + mean**2) / 2
    assert found.exact_match == pytest.approx(mean)
    assert found.stderr == pytest.approx(math.sqrt(variance / 3))
    with pytest.raises(DataError, match="8 answers came for 9 records"):
        measure(sample, texts[:-1])


def test_the_tool_scores_are_over_prompts_too():
    """One prompt is answered right, one with nothing; records are averaged per prompt."""
    groups = [TOOLS.groups[0], TOOLS.groups[1][:1]]
    sample = WorldSample("tools", "tools", groups)
    found = measure(sample, [r.target for r in groups[0]] + [""]).scores
    for mode in ("official", "strict"):
        assert found[mode]["mean"]["success"] == 0.5
        assert found[mode]["stderr"]["success"] == pytest.approx(0.5)
    half = measure(WorldSample("tools", "tools", groups[:1]), [groups[0][0].target, "", ""])
    assert half.scores["strict"]["mean"]["success"] == pytest.approx(1 / 3)


def test_gates_per_row_are_a_merge_per_prompt(models):
    """With a real edge: the same answers as one prompt at a time with merged weights."""
    edge, generator = models
    sample = WorldSample("words", "train", [group[:2] for group in WORDS.groups[:3]])
    found = generator_arms(
        generator, edge, [sample], seed=0, arms=("lora_gen",), asking=Asking(400, keep_texts=True)
    )
    one = found["words/train"].arms["lora_gen"]
    longest = max(len(encode_target(edge.tokenizer, r.target)) for r in sample.records)
    cards = specialize(generator, sample.prompts)
    for card, group, texts in zip(cards, sample.groups, one.texts, strict=True):
        special = merge(edge, generator.pool, card)
        prompts = [edge_prompt(record.user) for record in group]
        assert texts == generate(special, prompts, max_new_tokens=longest + MARGIN)
    assert len({text for texts in one.texts for text in texts}) == 6
    tokenizer = generator.cloud.tokenizer
    lengths = [len(encode(tokenizer, cloud_prompt(text), bos=True)) for text in sample.prompts]
    assert one.cloud_tokens == pytest.approx(np.mean(lengths))
    with pytest.raises(ConfigError, match="no arm 'magic'"):
        generator_arms(generator, edge, [sample], seed=0, arms=("magic",))


def test_the_whole(models, fake_cards, monkeypatch):
    edge, generator = models
    oracle(monkeypatch, [WORDS, TOOLS])
    monkeypatch.setattr(seconds, "generate", lambda *_, **__: None)
    samples = [WORDS, TOOLS]
    ours = generator_arms(generator, edge, samples, seed=0)
    table = combine(
        [ours, ours],
        base_arms(edge, generator.cloud, samples),
        [lora_arm(edge, samples)],
        request_seconds(edge, generator, samples, repeats=1),
    )
    assert list(table["splits"]) == ["words/paraphrase", "tools/tools"]
    methods = table["splits"]["tools/tools"]["methods"]
    assert methods["lora_gen"]["mean"] == 1.0 and methods["lora_gen"]["seeds"] == 2
    assert set(table["seconds_per_request"]) == set(table["splits"])


def test_results_of_any_age_load():
    old = {"exact_match": 0.5, "stderr": None, "prompts": 1, "records": 2, "by_prompt": [0.5]}
    facts = {"blind_ceiling": 0.1, "tokens": {"with_prompt": 3.0}}
    names = ("edge_without_prompt", "cloud_with_prompt", "lorage", "multitask_lora")
    found = from_json({"words/train": {"methods": dict.fromkeys(names, old), **facts}})
    split = found["words/train"]
    assert list(split.arms) == ["bare", "cloud_in_context", "lora_gen", "lora"]
    assert split.arms["bare"] == ArmScore(0.5, None, 1, 2, [0.5])
    assert from_json(to_json(found)) == found
    assert to_json(found)["words/train"]["methods"]["lora"] == old
