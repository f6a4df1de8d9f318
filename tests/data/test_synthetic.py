import re

import pytest

from lorage_jax.data import synthetic
from lorage_jax.data.synthetic import FORMATS, OPERATIONS, SPLITS, corpus, draw, draw_groups
from lorage_jax.errors import DataError


def _prompts(split):
    return [prompt for _, prompt in synthetic.prompts(split)]


def _words(split):
    return {word for p in _prompts(split) for word in re.findall(r"\w+", p.system.lower())}


def test_no_prompt_is_in_two_splits():
    texts = [p.system for split in SPLITS for p in _prompts(split)]
    assert len(texts) == len(set(texts))


def test_what_the_splits_hold_out():
    train, paraphrase, composition = (_prompts(split) for split in SPLITS)
    tasks = {p.task for p in train}
    assert tasks == {p.task for p in paraphrase}
    held = {p.task for p in composition}
    assert held and not held & tasks
    assert len(held | tasks) == len(OPERATIONS) * len(FORMATS)
    # Every half of a held-out pair is trained in other pairs.
    for half in (0, 1):
        parts = {task.split("/")[half] for task in tasks}
        assert {task.split("/")[half] for task in held} <= parts
    # No wording of the paraphrase split is part of a training prompt.
    seen = {text for part in OPERATIONS + FORMATS for text in part.seen}
    unseen = {text for part in OPERATIONS + FORMATS for text in part.unseen}
    assert not seen & unseen
    for text, wordings in ((p.system.lower(), unseen) for p in paraphrase):
        assert all(sentence in wordings for sentence in text.removesuffix(".").split(". "))
    assert all(len(part.seen) == 3 for part in OPERATIONS + FORMATS)


def test_unseen_wordings_use_seen_words():
    assert _words("paraphrase") <= _words("train")
    assert _words("composition") <= _words("train")


def test_texts_are_short():
    assert max(len(p.system.split()) for s in SPLITS for p in _prompts(s)) <= 25
    assert {len(r.user.split()) for r in draw("train", 200, 0)} == {3, 4}


ANSWERS = {
    "copy/comma": "sun, cat, oil",
    "reverse/bars": "| oil | cat | sun |",
    "first/brackets": "[ sun ]",
    "last/parens": "( oil )",
    "second/quotes": '"cat"',
    "sort/stars": "* cat * oil * sun",
    "upper/arrow": "-> SUN CAT OIL",
    "count/stop": "3 stop",
    "double/comma": "sun, sun, cat, cat, oil, oil",
    "drop_first/bars": "| cat | oil |",
    "drop_last/brackets": "[ sun cat ]",
    "swap/parens": "( cat sun oil )",
    "rotate/quotes": '"cat" "oil" "sun"',
    "initials/stars": "* s * c * o",
}


def test_answers():
    by_task = {p.task: p for split in SPLITS for p in _prompts(split)}
    assert {task: by_task[task].answer("sun cat oil") for task in ANSWERS} == ANSWERS


def test_same_input_has_another_answer_under_every_task():
    by_task = {p.task: p for split in SPLITS for p in _prompts(split)}
    # Any two tasks differ on one of these; most of them differ on each.
    users = ("sun cat oil", "cat egg moon lamp")
    answers = {tuple(p.answer(user) for user in users) for p in by_task.values()}
    assert len(answers) == len(by_task)


@pytest.mark.parametrize("split", SPLITS)
def test_draw_is_seeded(split):
    assert draw(split, 20, 3) == draw(split, 20, 3)
    assert draw(split, 20, 3) != draw(split, 20, 4)
    assert draw(split, 20, 3) == draw(split, 50, 3)[:20]
    known = {p.system: p for p in _prompts(split)}
    assert all(known[r.system].answer(r.user) == r.target for r in draw(split, 50, 3))


def test_groups_share_the_prompt_and_differ_in_input():
    groups = draw_groups("train", 2000, 4, 0)
    assert all(len({r.system for r in g}) == 1 for g in groups)
    assert all(len({r.user for r in g}) == 4 for g in groups)
    # No prompt comes twice before all have come once.
    size = len(_prompts("train"))
    assert len({g[0].system for g in groups[:size]}) == size < 2000


def test_unknown_split():
    with pytest.raises(DataError, match="no split 'test'; expected train, paraphrase, compos"):
        draw("test", 1, 0)


def test_corpus_holds_training_texts_only():
    texts = corpus(400, 1)
    assert len(texts) == 400 and texts == corpus(400, 1)
    train = {p.system for p in _prompts("train")}
    pattern = re.compile(r"System: (.+)\n\nUser: (\w+ ){2,3}\w+\nAssistant: .+")
    assert all(pattern.fullmatch(text)[1] in train for text in texts)
