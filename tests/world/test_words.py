import re
from collections import Counter
from itertools import permutations
from random import Random

import pytest

from lorage_jax.errors import DataError
from lorage_jax.world import words as world_words
from lorage_jax.world.words import (
    GENERIC,
    SPLITS,
    WORDS,
    Task,
    blind_ceiling,
    draw_prompt,
    draw_user,
    find,
    sample_half,
    tasks,
)
from lorage_jax.world.words_texts import FORMATS, OPERATIONS, PLAIN, STYLES

PARTS = (*OPERATIONS, *STYLES, *FORMATS)
BY_NAME = [{part.name: part for part in kind} for kind in (OPERATIONS, STYLES, FORMATS)]
TURN = re.compile(r"User: (.+)\nAssistant: (.+)")


def _task(name):
    return Task(*(parts[key] for parts, key in zip(BY_NAME, name.split("/"), strict=True)))


def _draws(split, n, seed=0):
    rng = Random(f"{split} {seed}")
    return [draw_prompt(split, rng) for _ in range(n)]


def _turns(prompt):
    return TURN.findall(prompt.system)


def _words(texts):
    return {word for text in texts for word in re.findall(r"\w+", text.lower())}


USER = "sun cat oil egg"
ANSWERS = {
    "copy/plain/comma": "sun, cat, oil, egg",
    "reverse/plain/comma": "egg, oil, cat, sun",
    "first/plain/comma": "sun",
    "last/plain/comma": "egg",
    "second/plain/comma": "cat",
    "sort/plain/comma": "cat, egg, oil, sun",
    "count/plain/comma": "4",
    "double/plain/comma": "sun, sun, cat, cat, oil, oil, egg, egg",
    "drop_first/plain/comma": "cat, oil, egg",
    "drop_last/plain/comma": "sun, cat, oil",
    "swap/plain/comma": "cat, sun, oil, egg",
    "rotate/plain/comma": "cat, oil, egg, sun",
    "to_front/plain/comma": "egg, sun, cat, oil",
    "first_two/plain/comma": "sun, cat",
    "last_two/plain/comma": "oil, egg",
    "ends/plain/comma": "sun, egg",
    "odd/plain/comma": "sun, oil",
    "repeat/plain/comma": "sun, cat, oil, egg, sun, cat, oil, egg",
    "swap/upper/comma": "CAT, SUN, OIL, EGG",
    "swap/title/comma": "Cat, Sun, Oil, Egg",
    "swap/initial/comma": "c, s, o, e",
    "first_two/plain/bars": "| sun | cat |",
    "first_two/plain/brackets": "[ sun cat ]",
    "first_two/plain/parens": "( sun cat )",
    "first_two/plain/quotes": '"sun" "cat"',
    "first_two/plain/stars": "* sun * cat",
    "first_two/plain/arrow": "-> sun cat",
    "first_two/plain/stop": "sun cat stop",
    "first_two/plain/slashes": "/ sun / cat",
    "first_two/plain/dashes": "- sun - cat",
    "first_two/plain/semicolons": "sun; cat;",
    "first_two/plain/numbered": "1. sun 2. cat",
    "first_two/plain/angles": "<sun> <cat>",
    "first_two/plain/equals": "= sun cat",
    # Letters are those of the words, not those that the format adds.
    "last/upper/stop": "EGG stop",
    "sort/initial/numbered": "1. c 2. e 3. o 4. s",
}


def test_answers():
    assert {name: _task(name).answer(USER) for name in ANSWERS} == ANSWERS
    for i, parts in enumerate(BY_NAME):
        assert {name.split("/")[i] for name in ANSWERS} == parts.keys()


def test_every_task_answers_differently():
    every = [task for split in ("train", "composition") for task in tasks(split)]
    assert len({task.name for task in every}) == len(every)
    assert len(every) == (17 * 4 + 1) * 14
    rng = Random(0)
    users = [" ".join(rng.sample(WORDS, size)) for size in (3, 4, 5)]
    assert len({tuple(task.answer(user) for user in users) for task in every}) == len(every)
    # A style under `count` would be the exception, so there is none.
    assert {t.style.name for t in every if t.operation.name == "count"} == {"plain"}
    # Formats differ even on a single word, and none fails on few words or none.
    assert len({part.apply(["sun"]) for part in FORMATS}) == len(FORMATS)
    assert all(isinstance(task.answer(user), str) for task in every for user in ("", "sun"))


def test_words_and_user_texts():
    assert len(set(WORDS)) == 64 and all(word.islower() for word in WORDS)
    users = [draw_user(Random(i)).split() for i in range(300)]
    assert {len(user) for user in users} == {3, 4, 5}
    assert all(len(set(user)) == len(user) for user in users)


def test_wordings():
    wordings = [text for part in PARTS for text in part.seen + part.unseen if part is not PLAIN]
    # No wording has two parts or is both seen and unseen.
    assert len(wordings) == len(set(wordings)) == 6 * (len(PARTS) - 1)
    assert all(len(part.unseen) == 2 for part in PARTS if part is not PLAIN)
    assert all(3 <= len(text.split()) <= 9 and "." not in text for text in wordings)
    seen = _words(text for part in PARTS for text in part.seen)
    assert _words(text for part in PARTS for text in part.unseen) <= seen


def test_what_the_splits_hold_out():
    train, held = {t.name for t in tasks("train")}, {t.name for t in tasks("composition")}
    assert {t.name for t in tasks("paraphrase")} == {t.name for t in tasks("samples")} == train
    pairs, held_pairs = ({tuple(n.split("/")[::2]) for n in names} for names in (train, held))
    assert not pairs & held_pairs and len(pairs | held_pairs) == 18 * 14
    assert 0.1 < len(held_pairs) / (18 * 14) < 0.15
    # Most other pairs of each part of a held-out pair are in training.
    for kind in (0, 1):
        trained = Counter(pair[kind] for pair in pairs)
        assert all(trained[pair[kind]] >= 10 for pair in held_pairs)
    # Tasks are drawn evenly from those of the split.
    for split in SPLITS:
        drawn = Counter(p.task.name for p in _draws(split, 6000))
        assert drawn.keys() <= {t.name for t in tasks(split)}
        assert len(drawn) > 0.99 * len(tasks(split))
        assert max(drawn.values()) < 6 * 6000 / len(tasks(split))


def test_splits_share_no_prompt():
    texts = {split: {p.system for p in _draws(split, 6000)} for split in SPLITS}
    assert sum(map(len, texts.values())) == len(set().union(*texts.values()))


def test_wordings_of_each_split():
    seen = {text for part in PARTS for text in part.seen if text}
    unseen = {text for part in PARTS for text in part.unseen if text}
    for split in SPLITS:
        allowed = unseen if split == "paraphrase" else seen
        for p in _draws(split, 1500):
            text = p.system.split("\n\n")[0]
            if text not in GENERIC:
                sentences = text.removesuffix(".").lower().split(". ")
                assert set(sentences) <= allowed and len(sentences) in (2, 3)


def test_sentences_come_in_every_order():
    orders = set()
    for p in _draws("train", 3000):
        kinds = [
            next(i for i, parts in enumerate(BY_NAME) if parts.get(part.name) is part)
            for text in p.system.split("\n\n")[0].split(".")
            for part in PARTS
            if text.strip().lower() in part.seen and part is not PLAIN
        ]
        orders.add(tuple(kinds))
    assert {*permutations((0, 1, 2)), (0, 2), (2, 0)} == orders - {()}


def test_what_training_prompts_carry():
    counts = Counter()
    for p in _draws("train", 4000):
        generic = p.system.split("\n\n")[0] in GENERIC
        assert len(_turns(p)) in ((3,) if generic else (0, 1, 2))
        counts["samples" if generic else "both" if _turns(p) else "description"] += 1
    assert counts == pytest.approx({"description": 2400, "both": 800, "samples": 800}, abs=120)


def test_samples_are_solved_and_from_the_split_s_half():
    used = {"train": set(), "samples": set()}
    for split, users in used.items():
        for p in _draws(split, 3000):
            turns = _turns(p)
            assert all(p.task.answer(user) == target for user, target in turns)
            assert tuple(user for user, _ in turns) == p.samples
            users |= set(p.samples)
        assert {sample_half(user) for user in users} == {split}
    assert len(used["train"]) > 2000 and len(used["samples"]) > 8000
    assert not used["train"] & used["samples"]
    halves = Counter(sample_half(draw_user(Random(i))) for i in range(4000))
    assert halves == pytest.approx({"train": 2000, "samples": 2000}, abs=150)
    # Recorded values: the halves must not depend on the process.
    assert "".join(sample_half(f"sun cat {word}")[0] for word in WORDS[:16]) == KNOWN_HALVES


KNOWN_HALVES = "ssttststttsstsss"


def test_samples_alone_tell_the_task():
    every = [task for split in ("train", "composition") for task in tasks(split)]
    for p in _draws("samples", 60):
        assert p.system.split("\n\n")[0] in GENERIC and len(p.samples) == 3
        fitting = [t for t in every if all(t.answer(u) == target for u, target in _turns(p))]
        assert fitting == [p.task]


def test_samples_that_do_not_tell_are_drawn_again(monkeypatch):
    # On sorted words, `copy` and `sort` agree; the last draw distinguishes them.
    drawn = ["cat egg oil", "cat egg oil sun", "apple cat egg oil sun"] * 2 + ["sun cat oil"]
    drawn += ["sun cat oil egg", "sun cat oil egg moon"]
    monkeypatch.setattr(world_words, "draw_sample", lambda *_: drawn.pop(0))
    users = world_words._telling_samples(_task("copy/plain/comma"), "samples", Random(0))
    assert users[0] == "sun cat oil" and not drawn


def test_only_samples_and_training_prompts_hold_samples():
    assert not any(p.samples or _turns(p) for p in _draws("paraphrase", 1000))
    assert not any(p.samples or _turns(p) for p in _draws("composition", 1000))


def test_no_query_is_a_sample(monkeypatch):
    # A world so small that queries would otherwise be samples all the time.
    monkeypatch.setattr(world_words, "WORDS", WORDS[:5])
    rng = Random(0)
    prompts = [p for p in _draws("samples", 200) if p.samples]
    assert all(p.draw(rng)[0] not in p.samples for p in prompts for _ in range(20))


def test_blind_ceiling_is_what_a_brute_force_finds():
    for split in SPLITS:
        # Computed independently: all answers are enumerated, the best guess counted.
        rng, best, names = Random("blind"), [], {t.name for t in tasks(split)}
        for _ in range(40):
            user, count = draw_user(rng), {}
            for operation in OPERATIONS:
                for style in STYLES:
                    for format in FORMATS:
                        task = Task(operation, style, format)
                        if task.name in names:
                            words = [style.apply(w) for w in operation.apply(user.split())]
                            text = format.apply(words)
                            count[text] = count.get(text, 0) + 1
            best.append(max(count.values()) / sum(count.values()))
        assert blind_ceiling(split, users=40) == pytest.approx(sum(best) / 40)
        assert blind_ceiling(split) < 0.02
    # A guess is right for at least one task, and seeing drawn targets does not help.
    rng = Random(1)
    asked = [(p, *p.draw(rng)) for p in _draws("composition", 3000)]
    first = sum(target == _task("first/plain/comma").answer(user) for _, user, target in asked)
    assert first / 3000 <= blind_ceiling("composition") + 0.005
    assert blind_ceiling("composition") >= 1 / len(tasks("composition"))


@pytest.mark.parametrize("split", ["train", "paraphrase", "composition"])
def test_find_recovers_the_task(split):
    for p in _draws(split, 500):
        found = find(p.system)
        if p.samples:
            assert found is None
        else:
            assert found.task == p.task and found.system == p.system


def test_find_is_tolerant_of_form_only():
    task = _task("sort/upper/bars")
    for text in (
        "Sort the words from a to z. Use only capital letters. Put bars around each word.",
        "put bars around each word.\n\nUSE ONLY  capital letters.  sort the words from A to Z",
    ):
        assert find(text).task == task
    assert find("Sort the words from a to z. Put bars around each word.").task.style is PLAIN
    for text in (
        "",
        "Sort the words from a to z.",
        "Put bars around each word. Use only capital letters.",
        "Sort the words from a to z. Put bars around each word. Be kind.",
        "Sort the words from a to z. Reverse the words. Put bars around each word.",
        "Sort the words from a to z. Put bars around each word. Quote each word.",
        "Count the words. Quote each word. Capitalize each word. Use only capital letters.",
        "Answer as in the samples.",
    ):
        assert find(text) is None


def test_unknown_split():
    with pytest.raises(DataError, match="no split 'test'; expected train, paraphrase, compos"):
        draw_prompt("test", Random(0))
