"""GPT4Tools through methods: arms, gates per row, resuming, cuts, gaps."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from lorage_jax.data.gpt4tools import ToolRecord, split_instruction, to_tool_records
from lorage_jax.data.templates import NEWEST, cloud_prompt, edge_prompt, encode
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.evaluate import answers
from lorage_jax.evaluate.answers import Generation
from lorage_jax.evaluate.arms import CONTROLS, Answered
from lorage_jax.evaluate.controls import random_prompt
from lorage_jax.evaluate.gpt4tools import score
from lorage_jax.evaluate.paired import FEWEST, Gap
from lorage_jax.evaluate.tool_calls import READS, evaluate_tool_calls, other_tools
from lorage_jax.files.journal import Journal, request_key
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.hf.load import load_model
from lorage_jax.infer.generate import generate
from lorage_jax.methods import lora_gen
from lorage_jax.methods.lora_gen import fit_cloud
from lorage_jax.world.tools import draw
from tests.tiny import byte_tokenizer, make_generator, make_tiny

TOKENIZERS = Path(__file__).parents[3] / "shared" / "tokenizers"
NAMES = ("Blur Cats", "Find Dogs", "Draw Boats", "Count Cars")
NEW = 6


def record(i: int, tools: tuple[str, ...] = ()) -> ToolRecord:
    """A short record, with a length and tools that differ from its neighbours'."""
    tools = tools or (NAMES[i % 4], NAMES[(i + 1) % 4])
    text = (
        "Tools:\n"
        + "".join(f"> {name}: {name.lower()}{'!' * i}. Give a path\n" for name in tools)
        + f"\n```\nAction: one of [{', '.join(tools)}]\n```\n\nKeep names.\n\n"
        + f"Previous conversation:\n\nHuman: image/a{i}.png.\n\n"
        + f"New input: {'please ' * (i % 3)}go\n"
        + "Think step by step.\n"
    )
    output = (
        "Thought: Do I need to use a tool? Yes\n"
        f"Action: {tools[0]}\nAction Input: image/a{i}.png\nObservation:\n"
    )
    return ToolRecord(f"r{i}", split_instruction(text, f"r{i}"), output)


RECORDS = [record(i) for i in (4, 0, 3, 1, 2)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("tools")
    make_tiny(
        "llama",
        root / "cloud",
        seed=1,
        num_hidden_layers=2,
        hidden_size=32,
        max_position_embeddings=1024,
    )
    make_tiny("llama", root / "edge", seed=2, max_position_embeddings=1024)
    return load_model(root / "edge"), make_generator(root / "cloud", root / "edge")


@pytest.fixture
def calls(monkeypatch):
    """Every batch of `generate_tokens`, as (rows, cards); the answer is a hash of both."""
    seen = []

    def answer(edge, rows, *, gates, watch, **_):
        seen.append((rows, gates))
        given = [b"" if gates is None else gates[i].gates.tobytes() for i in range(len(rows))]
        texts = [request_key(str(row), gate) for row, gate in zip(rows, given, strict=True)]
        watch([encode(edge.tokenizer, text, bos=False) for text in texts], [True] * len(rows))

    monkeypatch.setattr(answers, "generate_tokens", answer)
    return seen


def run(models, records=RECORDS, **options):
    edge, generator = models
    options = {"max_new_tokens": NEW, "batch_rows": 2} | options
    return evaluate_tool_calls(records, edge, generator, **options)


def fake(monkeypatch, text_of):
    """A `generate_tokens` that writes `text_of(prompt)`, with the same watch as the real one."""

    def answer(edge, rows, *, watch, **_):
        texts = [text_of(edge.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
        watch([encode(edge.tokenizer, text, bos=False) for text in texts], [True] * len(rows))

    monkeypatch.setattr(answers, "generate_tokens", answer)


def predictions(result, arm):
    return [sample["predictions"][arm] for sample in result.samples]


def test_gates_per_row_are_a_merge_per_record(models):
    """With a real edge: the same texts as one record at a time with merged weights."""
    edge, generator = models
    records = RECORDS[:3]
    result = run(models, records, arms=("lora_gen", "bare"), batch_rows=4)
    for one, text in zip(records, predictions(result, "lora_gen"), strict=True):
        special = merge(edge, generator.pool, specialize(generator, one.instruction.static))
        prompt = edge_prompt(one.instruction.dynamic)
        assert text == generate(special, prompt, max_new_tokens=NEW, stop="Observation:")
    texts = predictions(result, "lora_gen") + predictions(result, "bare")
    assert len(set(texts)) > 3 and all(texts)


# The record whose card each row of an arm has.
WHOSE = {"lora_gen": "own", "lora_gen_tools": "own", "shuffled": "shuffled", "random": "random"}
WHOSE |= {"mean_gates": "mean"}


def test_what_each_arm_reads_and_under_which_gates(models, calls):
    edge, generator = models
    result = run(models, template="harness", batch_rows=8)
    reads = dict.fromkeys(("lora_gen", *CONTROLS), "dynamic")
    reads |= {"in_context": "text", "no_tools": "without_tools"}
    reads |= {"lora_gen_tools": "without_tools"}
    assert reads == READS
    assert list(result.result.arms) == list(READS)
    by_arm = dict(zip(READS, calls, strict=True))
    own = {one.id: specialize(generator, one.instruction.static).gates for one in RECORDS}
    for arm, (rows, gates) in by_arm.items():
        part, whose = READS[arm], WHOSE.get(arm)
        assert [len(row) for row in rows] == sorted((len(row) for row in rows), reverse=True)
        texts = [edge.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        expected = [getattr(one.instruction, part) for one in RECORDS]
        assert sorted(texts) == sorted(expected)
        assert (gates is None) == (whose is None)
        if gates is None:
            continue
        assert len(gates) == 5
        for text, card in zip(texts, gates, strict=True):
            mine = own[RECORDS[expected.index(text)].id]
            same = np.abs(card.gates - mine).max() < 1e-5
            assert same == (whose == "own"), arm
            if whose == "mean":
                np.testing.assert_allclose(card.gates, np.mean(list(own.values()), 0), atol=1e-5)
            if whose == "shuffled":
                assert min(np.abs(card.gates - g).max() for g in own.values()) < 1e-5


def test_figures_of_an_arm(models, calls):
    edge, generator = models
    result = run(models, arms=("in_context", "lora_gen", "random", "mean_gates"))
    arms = result.result.arms

    def tokens(part):
        texts = (edge_prompt(getattr(one.instruction, part)) for one in RECORDS)
        return np.mean([len(encode(edge.tokenizer, text, bos=True)) for text in texts])

    assert arms["lora_gen"].edge_tokens == tokens("dynamic")
    assert arms["lora_gen"].full_tokens == tokens("text") == arms["in_context"].edge_tokens
    assert arms["lora_gen"].compression == tokens("text") / tokens("dynamic") > 2
    assert arms["in_context"].compression == 1
    cloud = [
        len(encode(generator.cloud.tokenizer, cloud_prompt(one.instruction.static), bos=True))
        for one in RECORDS
    ]
    assert arms["lora_gen"].cloud_tokens == arms["random"].cloud_tokens == np.mean(cloud)
    assert arms["in_context"].cloud_tokens is arms["mean_gates"].cloud_tokens is None
    for arm in arms.values():
        assert (arm.n, arm.truncated, arm.cloud_truncated) == (5, 0, 0)
        assert set(arm.scores["official"]) == set(arm.stderrs["strict"])
    values = result.result.to_json()
    assert json.loads(json.dumps(values)) == values
    assert json.loads(json.dumps(result.samples)) == result.samples


def test_answers_stop_at_the_observation_and_come_in_record_order(models, monkeypatch):
    """The edge writes the gold call and goes on; the scored text ends before that."""
    files = {f"image/a{i}.png": record(i).output for i in range(5)}

    def text_of(prompt):
        gold = next(output for file, output in files.items() if file in prompt)
        return f" {gold}image/x.png\n{gold}"

    fake(monkeypatch, text_of)
    result = run(models, arms=("lora_gen", "in_context"))
    for one, text in zip(RECORDS, predictions(result, "lora_gen"), strict=True):
        assert text == f" {one.output.split('Observation')[0]}"
    for arm in result.result.arms.values():
        assert arm.scores["strict"]["average"] == 1
        assert arm.scores["official"]["average"] == pytest.approx(1)
    sample = result.samples[1]
    assert (sample["id"], sample["gold"]) == ("r0", RECORDS[1].output)
    expected = score(sample["gold"], sample["predictions"]["lora_gen"], "strict")
    assert sample["scores"]["lora_gen"]["strict"] == expected


def test_a_killed_run_goes_on_where_it_stopped(models, tmp_path, monkeypatch, calls):
    whole = run(models)
    every, counted = len(calls), answers.generate_tokens
    assert every == 3 * len(READS)  # batches of 2, 2 and 1
    assert [len(rows) for rows, _ in calls] == [2] * every  # the last one is filled up

    def journaled(**options):
        return run(models, journal=Journal.open(tmp_path / "journal.jsonl"), **options)

    def dies(*args, **options):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return counted(*args, **options)

    calls.clear()
    monkeypatch.setattr(answers, "generate_tokens", dies)
    with pytest.raises(KeyboardInterrupt):
        journaled()
    calls.clear()
    made = []
    monkeypatch.setattr(answers, "generate_tokens", counted)
    monkeypatch.setattr(lora_gen, "specialize", lambda *args: made.append(args))
    again = journaled()
    assert len(calls) == every - 4
    assert not made  # the cards are in it, too
    for arm in READS:
        assert predictions(again, arm) == predictions(whole, arm)
    assert again.result.gaps == whole.result.gaps
    calls.clear()
    journaled(batch_rows=5)
    assert not calls


def test_batches_have_as_many_rows_as_fit_into_their_tokens(models, calls):
    run(models, arms=("no_tools",), batch_rows=None)
    assert [len(rows) for rows, _ in calls] == [len(RECORDS)]
    calls.clear()
    run(models, arms=("no_tools",), batch_rows=None, batch_tokens=1)
    assert [len(rows) for rows, _ in calls] == [1] * len(RECORDS)


@pytest.mark.parametrize("what", ["edge", "generator", "length", "template", "text"])
def test_whatever_changes_the_answer_changes_the_key(models, what, calls):
    edge, generator = models
    arms = ("no_tools",) if what == "edge" else ("lora_gen",)
    journal, records, options = Journal(), RECORDS, {}
    run(models, journal=journal, arms=arms)
    run(models, journal=journal, arms=arms, batch_rows=3)
    assert len(calls) == 3  # the batching of rows does not matter
    if what == "edge":
        edge, generator = merge(edge, generator.pool, specialize(generator, "Hello.")), None
    elif what == "generator":
        generator = make_generator(generator.cloud.source, edge.source, seed=7)
    elif what == "length":
        options["max_new_tokens"] = NEW + 1
    elif what == "template":
        options["template"] = "harness"
    else:
        records = [record(i, ("Blur Cats", "Draw Boats")) for i in range(5)]
    run((edge, generator), records, journal=journal, arms=arms, **options)
    assert len(calls) == 6


def test_what_is_too_long_loses_its_start_and_is_counted(models, calls):
    edge, generator = models
    room = 1024 - NEW
    long = record(0)
    dynamic = long.instruction.dynamic.replace("New input: ", "New input: " + "x" * 2000)
    tools = "".join(f"> Tool {i}: does {'this and that' * 5}\n" for i in range(15))
    text = "Tools:\n" + tools + "```\n" + dynamic + "Think step by step.\n"
    long = ToolRecord("long", split_instruction(text, "long"), long.output)
    result = run(models, [long, *RECORDS], arms=("in_context", "lora_gen", "mean_gates"))
    for arm, part in (("in_context", "text"), ("lora_gen", "dynamic")):
        figures = result.result.arms[arm]
        assert figures.truncated == 1
        ids = encode(edge.tokenizer, edge_prompt(getattr(long.instruction, part)), bos=True)
        assert ids[-room:] in [row for rows, _ in calls for row in rows]
        assert figures.edge_tokens > 400  # its length before the cut
    assert result.result.arms["in_context"].cloud_truncated == 0
    for arm in ("lora_gen", "mean_gates"):
        assert result.result.arms[arm].cloud_truncated == 1
    kept, cut = fit_cloud(generator, long.instruction.static)
    assert cut and long.instruction.static.startswith(kept) and "> Tool 0" in kept
    length = len(encode(generator.cloud.tokenizer, cloud_prompt(kept), bos=True))
    assert 900 < length <= 1024 - generator.edge.layers


def test_without_a_generator(models, calls):
    result = run((models[0], None))
    assert list(result.result.arms) == ["in_context", "no_tools"]
    assert result.result.gaps == {} and result.result.words == []
    with pytest.raises(ConfigError, match="needs a generator"):
        run((models[0], None), arms=("lora_gen",))


def test_gaps_are_paired_and_put_into_words(models, monkeypatch):
    """`lora_gen` and `random` are right, the others wrong: one control does as well."""
    records = [record(i) for i in range(FEWEST)]

    def answer(self, arm, placement, texts):
        right = arm in ("lora_gen", "random")
        return Answered([one.output if right else "no" for one in records[: len(texts)]], 9.0)

    monkeypatch.setattr(Generation, "__call__", answer)
    result = run(models, records).result
    gaps = result.gaps
    assert list(gaps) == ["shuffled", "random", "mean_gates", "bare"]
    assert gaps["random"]["average"] == Gap(0.0, 0.0, False)
    assert gaps["shuffled"]["success"] == Gap(1.0, 0.0, True)
    told = [word for word in result.words if "no significant difference" in word]
    assert len(told) == 1 and "difference against random" in told[0]
    assert sum("the prompt helps: better than" in word for word in result.words) == 3
    one = run(models, records[:1], arms=("lora_gen", "bare")).result
    assert one.gaps["bare"]["average"].significant is False
    assert "no significant difference against bare" in one.words[0]


def test_the_first_records_only(models, calls):
    result = run(models, limit=2, arms=("in_context",))
    assert [sample["id"] for sample in result.samples] == ["r4", "r0"]


def test_other_tools():
    records = [record(i) for i in range(8)]
    donors = other_tools(records, seed=0)
    for one, donor in zip(records, donors, strict=True):
        assert not set(records[donor].instruction.tool_names) & set(one.called)
    assert donors == other_tools(records, seed=0)
    same = [record(i, NAMES[:2]) for i in range(3)]
    with pytest.raises(ConfigError, match="leave the arm out"):
        other_tools(same, seed=0)
    # The gold tool is in every list, so any other list will do.
    sharing = [record(i, (NAMES[0], NAMES[1 + i])) for i in range(3)]
    assert all(donor != i for i, donor in enumerate(other_tools(sharing, seed=0)))


@pytest.mark.parametrize("tokens", [12, 60, 301])
@pytest.mark.parametrize("name", ["bytes", "llama2", "qwen2"])
def test_a_random_prompt_has_as_many_tokens(name, tokens):
    tokenizer = byte_tokenizer()
    if name != "bytes":
        if not (TOKENIZERS / name).is_dir():
            pytest.skip("the tokenizers in ../shared/tokenizers are not here")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZERS / name))
    template = NEWEST.on(tokenizer)
    for seed in range(3):
        text = random_prompt(template, tokens, Random(seed))
        assert len(encode(tokenizer, cloud_prompt(text), bos=True)) == tokens
        assert text.isprintable()
    assert text != random_prompt(template, tokens, Random(0))


def test_generated_records_run(models, calls):
    """Our own generator's records, cut to a small model's context."""
    records = to_tool_records(draw("unseen", 3, seed=0))
    result = run(models, records, arms=("in_context", "lora_gen"))
    assert result.result.arms["in_context"].truncated > 0
    assert result.result.arms["lora_gen"].truncated == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ("magic",)}, "no arm 'magic'"),
        ({"template": "chat"}, "template is 'chat'"),
        ({"max_new_tokens": 1024}, "room for a question"),
        ({"limit": 0}, "no records"),
    ],
)
def test_what_cannot_be_is_refused(models, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        run(models, **{"arms": ("in_context",)} | options)
