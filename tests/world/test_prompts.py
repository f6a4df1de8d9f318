from collections import Counter
from random import Random

import pytest

from lorage_jax.errors import DataError
from lorage_jax.world import prompts as world_prompts
from lorage_jax.world import tools as world_tools
from lorage_jax.world import tools_texts
from lorage_jax.world import words as world_words
from lorage_jax.world.prompts import (
    FAMILIES,
    SPLITS,
    blind_ceiling,
    draw,
    draw_group,
    draw_groups,
    draw_prompt,
    families,
    find,
)
from lorage_jax.world.words_texts import FORMATS, OPERATIONS, STYLES

CELLS = [(split, family) for family in FAMILIES for split in FAMILIES[family].splits]


def test_splits_of_the_families():
    assert {split: families(split) for split in SPLITS} == {
        "train": ("words", "tools"),
        "paraphrase": ("words", "tools"),
        "composition": ("words",),
        "samples": ("words",),
        "tools": ("tools",),
    }


@pytest.mark.parametrize("family", ["easy", "objects"])
def test_easy_splits_and_their_wordings(family):
    assert FAMILIES[family].splits == ("train", "paraphrase")
    parts = (*OPERATIONS, *STYLES, *FORMATS)
    wordings = {
        "train": {text for part in parts for text in part.seen},
        "paraphrase": {text for part in parts for text in part.unseen},
    }
    for split, allowed in wordings.items():
        for record in draw(split, 100, 0, family):
            assert set(record.system.removesuffix(".").lower().split(". ")) <= allowed
            assert find(record.system).answer(record.user) == record.target


@pytest.mark.parametrize("family", ["easy", "objects"])
def test_easy_blind_ceiling_is_what_the_best_guess_scores(family):
    rng, every = Random(7), world_words.easy_tasks()
    users = [world_words.draw_user(rng) for _ in range(100)]
    best = [max(Counter(t.answer(user) for t in every).values()) / len(every) for user in users]
    assert blind_ceiling("train", family) == pytest.approx(sum(best) / 100, rel=0.1)


def test_easy_tasks_are_tasks_of_training_and_drawn_by_name_only():
    tasks = {task.name for task in world_words.tasks("train")}
    drawn = [draw_prompt("train", Random(i), "easy") for i in range(300)]
    names = {prompt.task for prompt in drawn}
    assert names < tasks and len(names) > 40
    assert {name.split("/")[0] for name in names} == set(world_words.EASY)
    assert {name.split("/")[1] for name in names} == {"plain"}
    assert all(find(prompt.system) is not None for prompt in drawn)
    assert not any(draw_prompt("train", Random(i)).family == "easy" for i in range(200))


def test_objects_are_easy_tasks_on_what_tools_are_about():
    [records] = draw_groups("train", 1, 40, 0, "objects")
    assert {word for r in records for word in r.user.split()} == set(tools_texts.OBJECTS)
    drawn = [draw_prompt("train", Random(i), "objects") for i in range(300)]
    assert {p.family for p in drawn} == {"objects"}
    assert [p.system for p in drawn] == [
        draw_prompt("train", Random(i), "easy").system for i in range(300)
    ]
    assert all(p.answer(user) == target for p in drawn for user, target in [p.draw(Random(1))])


@pytest.mark.parametrize(("split", "family"), CELLS)
def test_draw_is_seeded(split, family):
    records = draw(split, 30, 3, family)
    assert records == draw(split, 30, 3, family) and len(records) == 30
    assert records[:12] == draw(split, 12, 3, family)
    assert records != draw(split, 30, 4, family)
    assert len({r.system for r in records}) == 30
    assert all(r.user.strip() and r.target.strip() for r in records)


def test_known_record():
    # Drawn data must not change unless VERSION does.
    assert world_prompts.VERSION == 2
    [record] = draw("paraphrase", 1, 0, "words")
    assert (record.system, record.user, record.target) == KNOWN


KNOWN = (
    "End with stop. Remove the first word.",
    "cat home leaf star key",
    "home leaf star key stop",
)


def test_docstring_example():
    assert all(repr(text) in world_prompts.__doc__ for text in (KNOWN, EXAMPLE))
    assert find(KNOWN[0]).answer("sun cat oil") == EXAMPLE


EXAMPLE = "cat oil stop"


def test_prompts_are_distinct_within_a_draw_and_across_splits():
    cells = [cell for cell in CELLS if cell[1] not in ("easy", "objects")]  # parts of words
    texts = [r.system for split, family in cells for r in draw(split, 400, 0, family)]
    assert len(texts) == len(set(texts)) == 400 * len(cells)
    # Also where there are few: most draws here would be repetitions.
    few = draw("composition", 4000, 0)
    assert len({r.system for r in few}) == 4000


def test_groups_share_the_prompt_and_differ_in_input():
    for split, family in CELLS:
        groups = draw_groups(split, 20, 4, 0, family)
        assert all(len({r.system for r in g}) == 1 for g in groups)
        assert all(len({r.user for r in g}) == len(g) == 4 for g in groups)
        # The prompts are those of a draw with another number of queries.
        assert [g[0].system for g in groups] == [r.system for r in draw(split, 20, 0, family)]
    assert len(draw_group("train", 7, Random(0), "words")) == 7


def test_families_are_drawn_by_weight():
    rng = Random(0)
    counts = Counter(draw_prompt("train", rng).family for _ in range(2000))
    assert counts == pytest.approx({"words": 1500, "tools": 500}, abs=80)
    assert {draw_prompt("train", rng, "tools").family for _ in range(20)} == {"tools"}
    assert {draw_prompt("samples", rng).family for _ in range(20)} == {"words"}


def test_tools_come_from_tool_calls():
    for split, name in (("train", "train"), ("paraphrase", "paraphrase"), ("tools", "unseen")):
        ours, theirs = (
            draw_prompt(split, Random(5), "tools"),
            world_tools.draw_prompt(name, Random(5)),
        )
        assert (ours.system, ours.answer) == (theirs.system, None)
        dialect = theirs.dialect
        assert ours.task == f"{dialect.word}/{dialect.pattern}/{dialect.input}"
        assert set(ours.parts["object"]) == {tool.object for tool in theirs.tools}
        assert ours.draw(Random(6)) == theirs.draw(Random(6))
        assert blind_ceiling(split, "tools") == world_tools.blind_ceiling(name)


def test_blind_ceilings_are_low():
    for split in world_words.SPLITS:
        assert 0 < blind_ceiling(split, "words") == world_words.blind_ceiling(split) < 0.02


@pytest.mark.parametrize("split", ["paraphrase", "composition"])
def test_find_knows_the_answers(split):
    for record in draw(split, 300, 5, "words"):
        found = find(record.system)
        assert found.answer(record.user) == record.target and found.family == "words"
        user, target = found.draw(Random(1))
        assert found.answer(user) == target
    assert find("Be kind.") is None


def test_a_draw_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(world_prompts, "TRIES", 50)
    prompt = world_prompts.Prompt("S", "one", "words", lambda rng: ("u", "t"))
    family = world_prompts.Family(("train",), lambda split, rng: prompt, lambda split: 1.0, 1)
    monkeypatch.setitem(FAMILIES, "one", family)
    assert len(draw("train", 1, 0, "one")) == 1
    with pytest.raises(DataError, match="2 different prompts of 'train' are too many; found 1"):
        draw("train", 2, 0, "one")
    with pytest.raises(DataError, match="2 different user texts are too many for the task 'one'"):
        draw_group("train", 2, Random(0), "one")


def test_wrong_names():
    with pytest.raises(DataError, match="no split 'test'; expected train, paraphrase, compos"):
        draw("test", 1, 0)
    with pytest.raises(DataError, match="no split 'test'"):
        families("test")
    with pytest.raises(DataError, match="no family 'oops'; expected words, tools"):
        draw_group("train", 1, Random(0), "oops")
    with pytest.raises(DataError, match="family 'tools' has no split 'samples'; it has train, pa"):
        draw_prompt("samples", Random(0), "tools")
    with pytest.raises(DataError, match="family 'words' has no split 'tools'"):
        blind_ceiling("tools", "words")
