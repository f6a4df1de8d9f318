"""Prompts with tool lists are recognised, whatever their wording."""

import re
from random import Random

import pytest

from lorage_jax.world.tools import SPLITS, draw_prompt, find


@pytest.mark.parametrize("split", SPLITS)
def test_find_recovers_tools_and_dialect(split):
    """From the text alone, whatever its wording; faults in it are detected."""
    for seed in range(100):
        prompt = draw_prompt(split, Random(seed))
        found = find(prompt.system.strip())
        assert (found.dialect, found.tools) == (prompt.dialect, prompt.tools)
        once, again = ([found.draw(Random(i)) for i in range(20)] for _ in range(2))
        assert once == again
        names = {prompt.dialect.name(tool) for tool in prompt.tools}
        called = {re.search("Action: (.*)", out)[1] for _, out in once if "Action:" in out}
        assert called and called <= names


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("> Blur Faces:", "> blur_faces:"),  # two dialects in one list
        ("> Blur Faces:", "> Melt Faces:"),  # no such tool
        ("[name.png, colour]", "image/name.png, colour"),
        ("[name.png, colour]", "[name.png]"),
        ("> Paint Dogs:", "- Paint Dogs:"),  # one tool is left
    ],
)
def test_find_takes_no_other_list(old, new):
    system = "Tools:\n> Blur Faces: it blurs. As [name.png].\n> Paint Dogs: As [name.png, colour]."
    found = find(system)
    assert [(tool.verb.words[0], tool.object) for tool in found.tools] == [
        ("Blur", "faces"),
        ("Paint", "dogs"),
    ]
    assert old in system and find(system.replace(old, new)) is None
