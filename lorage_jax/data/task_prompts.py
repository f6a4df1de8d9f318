"""Training prompts of written tasks: a drawn paraphrase, drawn samples, or both."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from lorage_jax.config import PromptForms
from lorage_jax.data.templates import few_shot_prompt
from lorage_jax.data.written_tasks import Instance, WrittenTask
from lorage_jax.errors import listed


class TaskPrompts:
    """Groups of questions of one task each, and prompts drawn for them.

    Args:
        tasks: of one split, as `divide` gives them.
        forms: how often a prompt has which form; a task without definitions has samples.
        shots: fewest and most samples.
        queries: the most questions per group.

    Attributes:
        chunks: (task, its questions) of each group.
        places: the origin of each group.
        note: the tasks that cannot be asked, in words; empty if there are none.
    """

    def __init__(
        self,
        tasks: Sequence[WrittenTask],
        forms: PromptForms,
        shots: tuple[int, int],
        queries: int,
    ):
        self._forms, self._shots = forms, (max(1, shots[0]), shots[1])
        self.chunks: list[tuple[WrittenTask, tuple[Instance, ...]]] = []
        self.places: list[str] = []
        unused = []
        for task in tasks:
            size = queries
            asked = {one.key for one in task.instances}
            if not self._defined(task) and asked.issuperset(one.key for one in task.examples):
                size = min(size, len(asked) - 1)  # one is left for a sample
            if size < 1 or not (self._defined(task) or self._shots[1] > 0):
                unused.append(task.name)
                continue
            for at in range(0, len(task.instances), size):
                self.chunks.append((task, task.instances[at : at + size]))
                self.places.append(f"{task.place} (task {task.name}, instance {at + 1})")
        self.note = ""
        if unused:
            self.note = (
                f"{len(unused)} tasks cannot be asked, as they have neither a definition nor "
                f"instances enough for samples: {listed(unused, 5)}."
            )

    def _defined(self, task: WrittenTask) -> bool:
        """True if prompts of the task may have a definition."""
        return bool(task.definitions) and self._forms.definition + self._forms.both > 0

    def draw(self, index: int, rng: Random) -> tuple[str, tuple[tuple[str, str], ...]]:
        """A prompt for group `index`, and its (user, target) pairs.

        No sample has the input of a question of the group.
        """
        task, asked = self.chunks[index]
        taken = {one.key for one in asked}
        bank = {one.key: one for one in (*task.instances, *task.examples) if one.key not in taken}
        definition, samples = self._form(task, bool(bank), rng)
        drawn: list[Instance] = []
        if samples:
            count = min(rng.randint(*self._shots), len(bank))
            drawn = rng.sample(list(bank.values()), count)
        text = rng.choice(task.definitions) if definition else ""
        prompt = few_shot_prompt(text, [(one.input, one.outputs[0]) for one in drawn]).strip()
        return prompt, tuple((one.input, one.outputs[0]) for one in asked)

    def _form(self, task: WrittenTask, bank: bool, rng: Random) -> tuple[bool, bool]:
        """(has the prompt a definition, has it samples), drawn among what the task allows."""
        forms = self._forms
        defined, sampled = bool(task.definitions), bank and self._shots[1] > 0
        shares = {
            (True, False): forms.definition * defined,
            (False, True): forms.samples * sampled,
            (True, True): forms.both * (defined and sampled),
        }
        if not any(shares.values()):  # not as asked, but a prompt
            return defined, not defined
        return rng.choices(list(shares), list(shares.values()))[0]
