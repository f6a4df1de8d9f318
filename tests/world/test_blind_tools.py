"""Generated tool calls without their prompt: nobody is right more often than the blind ceiling."""

import math
import re
from collections import Counter, defaultdict
from random import Random

import pytest

from lorage_jax.world.tools import LACKING, SPLITS, _tools, blind_ceiling, draw_prompt
from tests.world.tool_texts import parts_of, read, style

MANY = 3000


@pytest.fixture(scope="module", params=SPLITS)
def split(request):
    return request.param


@pytest.fixture(scope="module")
def blind(split):
    """(what a blind answerer sees, the right output) of turns under as many prompts.

    Seen is (kind, the next step's verb and object, those of the step before, its dialect).
    """
    rng, found = Random(f"blind/{split}"), []
    for _ in range(MANY):
        user, target = draw_prompt(split, rng).draw(rng)
        kind, want, _ = read(user)
        before = re.search("Action: (.+)", user)
        what = want and want[:2]
        seen = (kind, what, before and parts_of(before[1]), before and style(user))
        found.append((seen, style(target)))
    return found


def right_blindly(turns, view):
    """Share of right answers of the best constant per `view`, found on the first half."""
    half = len(turns) // 2
    counts = defaultdict(Counter)
    for seen, right in turns[:half]:
        counts[view(seen)][right] += 1
    best = {key: count.most_common(1)[0][0] for key, count in counts.items()}
    return sum(best.get(view(seen)) == right for seen, right in turns[half:]) / (len(turns) - half)


VIEWS = {
    "kind": lambda seen: seen[0],
    "kind and dialect": lambda seen: (seen[0], seen[3]),
    "verb": lambda seen: (seen[0], seen[1] and seen[1][0], seen[3]),
    "object": lambda seen: (seen[0], seen[1] and seen[1][1], seen[3]),
    "tool": lambda seen: (seen[0], seen[1], seen[3]),
    "everything": lambda seen: seen,
}


@pytest.mark.parametrize("view", VIEWS)
def test_no_blind_answerer_is_above_the_ceiling(blind, split, view):
    ceiling = blind_ceiling(split)
    error = math.sqrt(ceiling * (1 - ceiling) / (MANY / 2))
    assert right_blindly(blind, VIEWS[view]) < ceiling + 3 * error


def test_the_ceiling_is_reached(blind, split):
    """By refusing every request and continuing in the dialect of a trace."""

    def guess(seen):
        return {"request": "none", "next": seen[3]}.get(seen[0], "reply")

    share = sum(guess(seen) == right for seen, right in blind) / MANY
    ceiling = blind_ceiling(split)
    assert abs(share - ceiling) < 3 * math.sqrt(ceiling * (1 - ceiling) / MANY)
    assert ceiling == pytest.approx(0.8 * 0.25 + 0.1 + 0.05 + 0.05 * 0.75)


def test_what_is_asked_does_not_tell_whether_it_is_served(blind):
    """By verb, object and both; for second steps, by what they share with the first."""
    asked = [(seen, right == "none") for seen, right in blind if seen[0] in ("request", "next")]
    groups = defaultdict(list)
    for (kind, what, before, _), missing in asked:
        for key in ("all", ("verb", what[0]), ("object", what[1])):
            groups[key].append(missing)
        if kind == "next":
            groups[what[0] is before[0], what[1] == before[1]].append(missing)
    for key, group in groups.items():
        error = math.sqrt(0.25 * 0.75 / len(group))
        assert abs(sum(group) / len(group) - 0.25) < 4 * error, key
    pairs = defaultdict(list)  # too few each for that, but not together
    for (_, what, _, _), missing in asked:
        pairs[what].append(missing)
    squares = [(sum(g) / len(g) - 0.25) ** 2 * len(g) / (0.25 * 0.75) for g in pairs.values()]
    assert sum(squares) / len(squares) < 1 + 4 * math.sqrt(2 / len(squares))


def test_what_is_lacking_is_as_near_to_a_tool_as_the_other_tools(split):
    rng, shares = Random(0), Counter()
    for _ in range(MANY):
        tools, lacking = _tools(split, rng)
        assert len(lacking) == LACKING and not set(tools) & set(lacking)
        for name, other in (("tool", tools[1]), ("lacking", lacking[0]), ("last", lacking[-1])):
            alike = other.verb is tools[0].verb, other.object == tools[0].object
            shares[name, alike] += 1 / MANY
    for name, alike in shares:
        share = shares["tool", alike]
        assert abs(shares[name, alike] - share) < 4 * math.sqrt(2 * share * (1 - share) / MANY)
