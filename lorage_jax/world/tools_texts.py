"""The texts of `world.tools`: verbs, objects, and the wordings of prompts and requests.

The last third of the wordings of one thing is kept for the split `paraphrase`; all words in them
occur in the other wordings, too. Requests use the same wordings in every split.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

Wordings = tuple[str, ...]


def wording(wordings: Wordings, split: str, rng: Random) -> str:
    """Draws a wording that the split may use."""
    kept = len(wordings) // 3
    return rng.choice(wordings[-kept:] if split == "paraphrase" else wordings[:-kept])


@dataclass(frozen=True, eq=False)  # compared by identity: drawing does it all the time
class Verb:
    """A kind of work that tools do. In texts, {o} is an object and {x} the further argument."""

    words: tuple[str, str, str]  # in tool names, one per kind of dialect
    does: Wordings  # in descriptions
    asks: Wordings  # in requests
    extra: str = ""  # name of the further argument
    extras: Wordings = ()
    reports: Wordings = ()  # observations; without any, the tool makes a new image


COLOURS = ("red", "blue", "green", "yellow", "white", "black")
THINGS = ("balls", "stones", "lamps", "boxes", "plants", "toys")
WORDS = ("hello", "mine", "sold", "new", "open", "stop")

# The numbers of verbs and of objects are multiples of four: `tools.library` holds out a quarter.
VERBS = (
    Verb(
        ("Blur", "Smudge", "Soften"),
        (
            "blur the {o} in an image",
            "make the {o} hard to recognise",
            "blur the {o} to make them hard to recognise",
        ),
        ("blur the {o}", "make the {o} blurry"),
    ),
    Verb(
        ("Outline", "Contour", "Encircle"),
        (
            "draw a line around the {o}",
            "mark the edges of the {o} in an image",
            "draw a line around the edges of the {o}",
        ),
        ("draw a line around the {o}", "mark the edges of the {o}"),
    ),
    Verb(
        ("Erase", "Remove", "Delete"),
        (
            "take the {o} out of an image",
            "make an image without the {o}",
            "take the {o} out to make an image without them",
        ),
        ("take out the {o}", "get rid of the {o}"),
    ),
    Verb(
        ("Brighten", "Lighten", "Light"),
        (
            "put more light on the {o}",
            "make the {o} in an image brighter",
            "make the {o} brighter with more light",
        ),
        ("put more light on the {o}", "make the {o} brighter"),
    ),
    Verb(
        ("Enlarge", "Magnify", "Grow"),
        (
            "make the {o} in an image bigger",
            "show the {o} at double size",
            "make the {o} bigger, at double size",
        ),
        ("make the {o} bigger", "double the size of the {o}"),
    ),
    Verb(
        ("Count", "Tally", "Number"),
        (
            "count the {o} in an image",
            "tell how many {o} there are",
            "count how many {o} there are in an image",
        ),
        ("count the {o}", "tell how many {o} there are"),
        reports=("2", "3", "5", "7", "none"),
    ),
    Verb(
        ("Find", "Locate", "Detect"),
        (
            "find the {o} in an image",
            "tell where the {o} are",
            "find where the {o} are in an image",
        ),
        ("find the {o}", "tell where the {o} are"),
        reports=("left", "right", "top", "middle"),
    ),
    Verb(
        ("Paint", "Tint", "Color"),
        (
            "give the {o} another colour",
            "change the colour of the {o} in an image",
            "change the {o} in an image to another colour",
        ),
        ("make the {o} {x}", "change the {o} to {x}"),
        extra="colour",
        extras=COLOURS,
    ),
    Verb(
        ("Replace", "Swap", "Exchange"),
        (
            "put other things in place of the {o}",
            "turn the {o} in an image into other things",
            "put things into an image in place of the {o}",
        ),
        ("put {x} in place of the {o}", "turn the {o} into {x}"),
        extra="things",
        extras=THINGS,
    ),
    Verb(
        ("Label", "Tag", "Note"),
        (
            "write a word beside the {o}",
            "put a word on the {o} in an image",
            "write a word on the {o} in an image",
        ),
        ("write {x} beside the {o}", "put the word {x} on the {o}"),
        extra="word",
        extras=WORDS,
    ),
    Verb(
        ("Crop", "Extract", "Isolate"),
        (
            "show nothing but the {o}",
            "keep only the {o} of an image",
            "keep nothing of an image but the {o}",
        ),
        ("show nothing but the {o}", "keep only the {o}"),
    ),
    Verb(
        ("Flip", "Invert", "Reverse"),
        (
            "turn the {o} upside down",
            "show the {o} in an image upside down",
            "turn the {o} in an image upside down",
        ),
        ("turn the {o} upside down", "flip the {o}"),
    ),
)
OBJECTS = tuple(
    "faces cars trees birds dogs cats windows flowers shoes hats boats chairs clouds signs books "
    "bottles".split()
)
FILES = (
    "lake hill park river beach road street garden kitchen market forest island castle harbor "
    "bridge tower school station winter summer morning evening party picnic"
).split()

# The system prompt: PREAMBLE, the tools, RULES.
WHO = (
    "Workbench is a helper that can answer questions and change images.",
    "Workbench helps people with questions about images and with changes to them.",
    "Workbench is made for people who want to change images.",
    "Workbench can help with many tasks around images.",
    "Workbench is a helper for people with questions about images.",
    "Workbench is made to answer questions and to change images.",
)
SIGHT = (
    "It cannot see an image directly, but its tools can.",
    "It cannot look at images itself and has to use tools for that.",
    "As it reads only text, it has to use a tool to see or change an image.",
    "It reads text only, so each task with an image needs a tool.",
    "It reads only text and cannot see images itself, so it has to use tools.",
    "It cannot look at an image directly, but each tool can.",
)
NAMES = (
    "It knows an image by its file name and never makes up a name.",
    "Each image has a file name, which it never changes.",
    "It copies every file name as it is and never makes up a new one.",
    "It is strict about file names and copies them letter by letter.",
    "It knows each image by a file name and copies every name letter by letter.",
    "It is strict about names and never makes up a file name.",
)
OFFER = (
    "Workbench can use these tools:",
    "Workbench has access to the following tools:",
    "These are the tools of Workbench:",
    "The following tools can be used:",
    "Workbench can use the following tools:",
    "These tools can be used:",
)
PREAMBLE = "{who} {sight} {names}\nTOOLS:\n------\n\n{offer}\n\n"

LEAD = (
    "useful when you want to {do}.",
    "it can {do}.",
    "use it to {do}.",
    "this tool can {do}.",
    "use this tool to {do}.",
    "useful to {do}.",
)
INPUT = (
    "The input is {form}.",
    "Its input is {form}.",
    "Write the input as {form}.",
    "The input should be {form}.",
    "Write its input as {form}.",
    "Its input should be {form}.",
)

USE = (
    "To use a tool, write:",
    "To use a tool, use the following format:",
    "When a tool is needed, write in this format:",
    "A tool is used in the following way:",
    "When a tool is needed, use this format:",
    "To use a tool, write in the following format:",
)
ACTION = (
    "the tool to use, should be one of",
    "the name of the tool, one of",
    "the action to take, should be one of",
    "the action to take, one of",
    "the name of the tool to use, should be one of",
    "the tool to use, one of",
)
GIVEN = ("the input to the action", "the input to the tool", "the input")
RESULT = ("the result of the action", "what the tool gives back", "the result of the tool")
ANSWER = (
    "To answer, or if no tool is needed, write:",
    "When you have an answer, or do not need a tool, use the format:",
    "If you do not need a tool, or know the answer, write:",
    "To give the answer, or when no tool helps, use this format:",
    "If no tool is needed, or to give the answer, use the format:",
    "When you have the answer, or no tool helps, write:",
)
SAYS = ("[your answer]", "[the answer]", "[answer]")
NONE = (
    "If no tool does what is asked,",
    "When there is no tool for the task,",
    "Never use a tool that is not in the list, but",
    "Never make up a tool; if none helps,",
    "If there is no tool in the list for the task,",
    "When no tool helps,",
)
LAST = (
    "A new image has the name in the last observation.",
    "What a tool has made has the file name of the last observation.",
    "Remember the file name that the last tool gives back.",
    "The last observation has the name of the new image.",
    "Remember the name of the new image in the last observation.",
    "A new image has the file name that the last tool gives back.",
)
RULES = """
{use}

```
Thought: Do I need to use a tool? Yes
Action: {action} [{tools}]
Action Input: {given}
Observation: {result}
```

{answer}

```
Thought: Do I need to use a tool? No
AI: {says}
```

{none} say: {missing} {last} Let's think step by step.

"""

# The turn that follows the system prompt, and the outputs of the model.
TURN = "Previous conversation:\n\nNew input: {ask}\n"
CALL = "Thought: Do I need to use a tool? Yes\nAction: {name}\nAction Input: {given}\nObservation:"
REPLY = "Thought: Do I need to use a tool? No\nAI: {answer}\n"
MISSING = "None of the tools can do that."
DONE = "The result is {seen}."
CHATS = (
    ("Thank you, that is all.", "You are welcome."),
    ("Good morning! Who are you?", "I am Workbench, and I work on images."),
    ("Please wait a moment.", "I am waiting."),
    ("That was good work.", "I am glad to hear that."),
)
