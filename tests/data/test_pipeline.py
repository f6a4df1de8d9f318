import dataclasses
import itertools
import json
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest

from lorage_jax.config import DataConfig, Source
from lorage_jax.data import sources as data_sources
from lorage_jax.data.pipeline import load_groups, make_dataset
from lorage_jax.data.sources import data_fingerprint, load_source
from lorage_jax.errors import ConfigError, DataError
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world import tools as world_tools
from lorage_jax.world import words as world_words


@pytest.fixture
def write(tmp_path):
    def _write(name, rows):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return str(path)

    return _write


def _rows(systems, tag="x"):
    """systems: {system text: number of rows}"""
    return [
        {"system": system, "user": f"{tag} {system} {i}", "target": f"{i}"}
        for system, count in systems.items()
        for i in range(count)
    ]


def _items(n):
    return [{"question": f"q{i}", "choices": ["no", f"a{i}"], "label": 1} for i in range(n)]


def _config(*sources, prompts=4, queries=2, **values):
    return DataConfig(
        sources=sources,
        prompts_per_batch=prompts,
        queries_per_prompt=queries,
        **{"min_bucket": 16, "max_prompt_tokens": 128, "max_query_tokens": 64, **values},
    )


def _take(groups, n, start=0):
    return [groups[i] for i in range(start, start + n)]


@pytest.fixture
def mixed(write):
    """A config over all three kinds."""
    instruction = Source(path=write("i.jsonl", _rows({"A": 5, "B": 1, "C": 2})), weight=0.5)
    choices = Source(path=write("c.jsonl", _items(9)), kind="choices", name="piqa", shots=(0, 3))
    words = Source(path="synthetic", kind="synthetic", name="words", split="paraphrase", weight=2)
    return _config(instruction, choices, words)


def _equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_resume_continues_bit_for_bit(mixed, cloud, edge):
    iterator = iter(make_dataset(mixed, cloud, edge, seed=1))
    for _ in range(7):
        next(iterator)
    state = json.dumps(iterator.get_state())
    expected = [next(iterator) for _ in range(5)]
    resumed = iter(make_dataset(mixed, cloud, edge, seed=1))
    resumed.set_state(json.loads(state))
    for batch in expected:
        _equal(next(resumed), batch)
    # The five differ from each other, so the equality above means something.
    assert len({batch.queries[0].tokens.tobytes() for batch in expected}) == 5


def test_seed_decides_everything(mixed):
    one, same, other = (load_groups(mixed, seed) for seed in (1, 1, 2))
    assert _take(one, 60) == _take(same, 60)
    assert _take(one, 60) != _take(other, 60)
    # An element does not depend on what was read before it.
    assert load_groups(mixed, 1)[41] == one[41]


def test_batches_hold_the_groups_in_order(mixed, cloud, edge):
    dataset = make_dataset(mixed, cloud, edge, seed=1)
    groups = load_groups(mixed, 1)
    for n, batch in enumerate(itertools.islice(dataset, 3)):
        expected = _take(groups, 4, 4 * n)
        assert batch.group_ids.tolist() == [g.index for g in expected]
        ids, mask = batch.prompts[0].tokens, batch.prompts[0].mask
        texts = [cloud.decode(i[m][1:]) for i, m in zip(ids, mask, strict=True)]
        assert texts == [f"System: {g.system}" for g in expected]
        real = [q < len(g.queries) for g in expected for q in range(2)]
        assert batch.queries[0].loss_mask.any(axis=1).tolist() == real


def test_weights_are_proportions_of_prompts(mixed):
    counts = Counter(
        "synthetic" if "." in g.system and g.index >= 14 else "choices" if g.index >= 5 else "rows"
        for g in _take(load_groups(mixed, 0), 350)
    )
    # 5 groups of rows (A in 3, B, C), 9 items, then synthetic: 0.5 : 1 : 2.
    assert counts == {"rows": 50, "choices": 100, "synthetic": 200}


def test_rows_of_one_prompt_are_grouped_and_each_comes_once_per_epoch(write):
    rows = _rows({"A": 5, "B": 1, "C": 2})
    interleaved = rows[::2] + rows[1::2]
    groups = load_groups(_config(Source(path=write("i.jsonl", interleaved))), seed=3)
    assert len({tuple(g.index for g in _take(groups, 5, 5 * e)) for e in range(4)}) > 1
    for epoch in range(3):
        taken = _take(groups, 5, 5 * epoch)
        assert Counter(g.system for g in taken) == {"A": 3, "B": 1, "C": 1}
        assert Counter(len(g.queries) for g in taken) == {2: 3, 1: 2}
        pairs = [(g.system, *query) for g in taken for query in g.queries]
        assert sorted(pairs) == sorted((r["system"], r["user"], r["target"]) for r in rows)


def test_choices_draw_new_samples_every_epoch_but_never_the_queried(write):
    path = write("c.jsonl", _items(9))
    source = Source(path=path, kind="choices", name="openbookqa", shots=(1, 3))
    groups = load_groups(_config(source), seed=3)
    for epoch in range(20):
        taken = _take(groups, 5, 5 * epoch)
        users = [user for g in taken for user, _ in g.queries]
        assert sorted(users) == [f"q{i}" for i in range(9)]
    taken = _take(groups, 100)
    shots = [g.system.count("User: ") for g in taken]
    assert set(shots) == {1, 2, 3}
    assert not any(f"User: {user}\n" in g.system for g in taken for user, _ in g.queries)
    assert len({g.system for g in taken}) > 60
    assert all(target == f"a{user[1:]}" for g in taken for user, target in g.queries)


def test_synthetic_is_endless_and_keeps_to_its_split_and_family():
    source = Source(path="synthetic", kind="synthetic", name="words", split="composition")
    groups = load_groups(_config(source, queries=3), seed=0)
    taken = _take(groups, 400)
    held = {task.name for task in world_words.tasks("composition")}
    assert {world_prompts.find(g.system).task for g in taken} <= held
    assert len({g.system for g in taken}) > 350
    assert all(len({user for user, _ in g.queries}) == 3 for g in taken)
    assert all(world_prompts.find(g.system).answer(u) == t for g in taken for u, t in g.queries)
    size = 1 << 16
    assert _take(groups, 10) != _take(groups, 10, size)
    few = Source(path="synthetic", kind="synthetic", limit=6)
    fixed = load_groups(_config(few), seed=0)
    epochs = [sorted(_take(fixed, 6, 6 * e), key=lambda g: g.index) for e in range(3)]
    assert epochs[0] == epochs[1] == epochs[2] and len({g.queries for g in epochs[0]}) == 6
    # Without a family, all that have the split; with one, only that one.
    both, tools = (
        _take(load_groups(_config(Source("synthetic", "synthetic", name=name)), 0), 200)
        for name in ("", "tools")
    )
    assert all("TOOLS:" in g.system for g in tools)
    assert 25 < sum("TOOLS:" in g.system for g in both) < 80


def test_limit_and_needs_input(write):
    rows = [{"instruction": f"i{n}", "input": "x" * (n % 2), "output": "o"} for n in range(20)]
    source = Source(path=write("a.jsonl", rows), needs_input=True, limit=4)
    systems = {g.system for g in _take(load_groups(_config(source), 0), 40)}
    assert systems == {"i1", "i3", "i5", "i7"}
    empty = Source(path=write("b.jsonl", rows[::2]), needs_input=True)
    with pytest.raises(DataError, match="no row has an input"):
        load_groups(_config(empty), 0)


def test_describe_names_file_and_line(mixed, cloud, edge):
    dataset = make_dataset(mixed, cloud, edge, seed=1)
    assert dataset.describe(0).endswith("i.jsonl:1")
    assert dataset.describe(3).endswith("i.jsonl:6")  # B, after three chunks of A
    assert dataset.describe(5).endswith("c.jsonl:1")
    assert dataset.describe(13).endswith("c.jsonl:9")
    assert dataset.describe(14) == "synthetic/paraphrase:0"
    with pytest.raises(DataError, match="no group"):
        dataset.describe(1 << 20)


def test_faults_of_the_files_come_before_the_first_batch(write):
    rows = [*_items(3), {**_items(1)[0], "label": 2}]
    source = Source(path=write("bad.jsonl", rows), kind="choices", name="piqa")
    with pytest.raises(DataError, match=r"bad\.jsonl:4: label is 2"):
        load_groups(_config(source), 0)
    with pytest.raises(DataError, match=r"bad\.jsonl:1: found the fields question"):
        load_groups(_config(Source(path=source.path)), 0)
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        load_groups(_config(Source(path="none.jsonl")), 0)
    with pytest.raises(DataError, match="no task 'oops'"):
        load_groups(_config(Source(path=source.path, kind="choices", name="oops")), 0)
    with pytest.raises(DataError, match="no split 'test'"):
        load_groups(_config(Source(path="synthetic", kind="synthetic", split="test")), 0)
    with pytest.raises(DataError, match="no family 'oops'"):
        load_groups(_config(Source(path="synthetic", kind="synthetic", name="oops")), 0)


def test_folder_holds_one_file_per_split(write, tmp_path):
    write("validation.jsonl", _rows({"V": 1}))
    source = Source(path=str(tmp_path), split="validation")
    assert load_groups(_config(source), 0)[0].system == "V"
    with pytest.raises(DataError, match=r"holds no train\.jsonl"):
        load_groups(_config(Source(path=str(tmp_path))), 0)


def test_hub_names(monkeypatch, cloud, edge):
    import datasets

    asked = []

    def load(path, subset, split):
        asked.append((path, subset, split))
        if path == "no/where":
            raise ConnectionError("Couldn't reach 'no/where' on the Hub")
        row = {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}}
        return datasets.Dataset.from_list([{**row, "answerKey": "B"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Source(path="allenai/ai2_arc", kind="choices", name="arc_easy", split="test")
    dataset = make_dataset(_config(source), cloud, edge, 0)
    assert dataset.groups[0].queries == (("Why?", "b"),)
    assert dataset.describe(0) == "allenai/ai2_arc[test] row 0"
    with pytest.raises(DataError, match=r"no/where: not a file here.*reach"):
        load_groups(_config(Source(path="no/where", name="sub")), 0)
    assert asked == [("allenai/ai2_arc", "ARC-Easy", "test"), ("no/where", "sub", "train")]


def test_fingerprint_follows_bytes_and_settings(write):
    path = write("a.jsonl", _rows({"A": 2}))
    sources = [Source(path=path)]
    first = data_fingerprint(sources)
    assert first == data_fingerprint([Source(path=write("b.jsonl", _rows({"A": 2})))])
    assert first != data_fingerprint([Source(path=path, limit=1)])
    assert first != data_fingerprint(sources * 2)
    write("a.jsonl", _rows({"A": 3}))
    assert first != data_fingerprint(sources)


@pytest.mark.parametrize(
    ("module", "name"),
    [(data_sources, "TEMPLATE_VERSION"), (world_prompts, "VERSION"), (world_tools, "VERSION")],
)
def test_fingerprint_follows_versions(monkeypatch, module, name):
    sources = [Source("synthetic", "synthetic")]
    first = data_fingerprint(sources)
    monkeypatch.setattr(module, name, 99)
    assert first != data_fingerprint(sources)


def test_fingerprint_of_the_built_in_tasks_stays():
    # Recorded in experiments/results/nano/seed0.json: with another value, no such run can resume.
    found = data_fingerprint([Source("synthetic", "synthetic", name="tools")])
    assert found == "d06dd23d0b6c92c9be024923b277ba564c8a438ec02d8f1ab43937e0a5e5613c"


def test_the_built_in_tasks_are_imported_when_first_asked_for(write):
    path = write("a.jsonl", _rows({"A": 2}))
    code = f"""
import sys
from lorage_jax.config import Source
from lorage_jax.data.sources import load_source
load_source(Source({path!r}), 2)
assert not any(name.startswith("lorage_jax.world") for name in sys.modules)
load_source(Source("synthetic", "synthetic"), 2)
assert "lorage_jax.world.source" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prose_has_no_groups(write):
    source = Source(write("prose.jsonl", [{"text": "It rained."}]), "text")
    with pytest.raises(DataError, match="kind 'text' has no system prompts; expected instruction"):
        load_source(source, 1)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Source, {"path": "a", "weight": 0}, "weight is 0"),
        (Source, {"path": "a", "limit": 0}, "limit is 0"),
        (DataConfig, {"sources": (Source(path="a"),), "min_bucket": 0}, "min_bucket is 0"),
    ],
)
def test_config_is_checked(kind, values, message):
    with pytest.raises(ConfigError, match=message):
        kind(**values)


def test_real_alpaca_and_arc(shared, edge):
    from transformers import AutoTokenizer

    cloud = AutoTokenizer.from_pretrained(shared / "tokenizers/qwen2")
    alpaca = Source(path=str(shared / "data/alpaca/alpaca.jsonl.gz"), needs_input=True)
    arc = Source(
        path=str(shared / "data/commonsense/arc_challenge"),
        kind="choices",
        name="arc_challenge",
        shots=(5, 5),
    )
    config = _config(alpaca, arc, prompts=8, queries=2, max_prompt_tokens=512, max_query_tokens=512)
    dataset = make_dataset(config, cloud, edge, seed=0)
    groups = _take(dataset.groups, 400)
    few_shot = [g for g in groups if g.system.count("\n\nUser: ") == 5]
    assert len(few_shot) == 200
    assert all(user.strip() for g in groups for user, _ in g.queries)
    for batch in itertools.islice(dataset, 4):
        targets = [
            edge.decode(ids[loss][:-1]).strip()
            for ids, loss in zip(batch.queries[0].tokens, batch.queries[0].loss_mask, strict=True)
            if loss.any()
        ]
        at = {g.index: g for g in groups}
        expected = [t.strip() for i in batch.group_ids for _, t in at[int(i)].queries]
        assert batch.truncated == 0 and targets == expected
    assert "alpaca.jsonl.gz:" in dataset.describe(0)


def test_a_source_of_one_task(write):
    """Only its rows are drawn; `task_marks` and `task_of` recognise its prompts."""
    rows = write("rows.jsonl", _rows({"A": 5, "B": 3}))
    tasks = [
        {
            "name": name,
            "definition": [f"Do {name}.", f"Please do {name}."],
            "instances": [{"input": f"{name} {i}", "output": "x"} for i in range(9)],
        }
        for name in ("one", "two")
    ]
    word = world_prompts.draw_prompts("train", 1, 3, "words")[0].task
    plain, written, drawn = (
        Source(rows, task="B"),
        Source(write("tasks.jsonl", tasks), "tasks", task="two"),
        # Prompts of samples alone are not recognised.
        Source("synthetic", "synthetic", name="words", split="paraphrase", task=word),
    )
    for source in (plain, written, drawn):
        groups = _take(load_source(source, 2).dataset(0), 6)
        marks, task_of = (
            data_sources.task_marks(source),
            data_sources.source_kind(source.kind).task_of,
        )
        for group in groups:
            if task_of is None:
                assert any(mark in group.system for mark in marks) or "two" in group.queries[0][0]
            else:
                assert task_of(group.system) == source.task and not marks
    assert data_sources.task_marks(plain) == ["B"]
    assert data_sources.task_marks(written) == ["Do two.", "Please do two."]
    with pytest.raises(DataError, match="no row has the system prompt 'C'"):
        load_source(Source(rows, task="C"), 2)
    with pytest.raises(DataError, match=r"no task is called 'three'; found "):
        load_source(Source(write("tasks.jsonl", tasks), "tasks", task="three"), 2)
    with pytest.raises(ConfigError, match="kind choices has no tasks to choose from"):
        Source("a.jsonl", "choices", name="piqa", task="x")


def test_batches_can_tell_the_sources_of_their_prompts(mixed, cloud, edge):
    """In the order of the chunks, to whose rows they belong."""
    config = dataclasses.replace(mixed, prompt_chunks=2)
    dataset = make_dataset(config, cloud, edge, seed=1)
    for batch in itertools.islice(dataset, 3):
        sources = dataset.with_sources(batch).sources
        assert [one.shape for one in sources] == [(2, 1)] * 2
        for number, group in zip(np.concatenate(sources)[:, 0], batch.group_ids, strict=True):
            assert ("i.jsonl", "c.jsonl", "synthetic")[number] in dataset.describe(int(group))
