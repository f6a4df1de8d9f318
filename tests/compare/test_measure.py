"""What a comparison asks: every arm of a generator in the turns of the generator's training."""

import pytest

from lorage_jax import nano
from lorage_jax.compare.measure import asked
from lorage_jax.compare.shots import WithSamples
from lorage_jax.data.templates import TemplateKind
from lorage_jax.evaluate.arms import Arm
from lorage_jax.evaluate.controls import MeanGates, Shuffled
from lorage_jax.hf.load import load_model
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.lora_gen import LoraGen
from lorage_jax.world.samples import draw_world, other_tasks

# Far longer than the plain turns that the nano pair was trained in.
TURNS = (
    "{% for m in messages %}This is a turn of {{ m.role }}, which says: {{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}This is the answer: {% endif %}"
)


@pytest.fixture(scope="module")
def edge():
    """The nano edge, which would chat in turns of its own."""
    model = load_model(nano.EDGE)
    return model.replace(template=TemplateKind("chat", source=TURNS).on(model.tokenizer))


def test_controls_answer_in_the_turns_of_the_method(edge):
    sample = draw_world(4, 2, seed=1, families=("words",))[0]
    method = LoraGen.load(edge, nano.GENERATOR)
    others = [sample.prompts[i] for i in other_tasks(sample, 0)]
    arms = {
        "lora_gen": method,
        "shuffled": Shuffled(method, others),
        "mean_gates": MeanGates(method),
        "samples": WithSamples(method, {one: one for one in sample.prompts}),
    }
    tokens = {
        name: asked(Arm(name, one), edge, sample)["edge_tokens"] for name, one in arms.items()
    }
    assert len(set(tokens.values())) == 1, tokens
    assert asked(Arm("bare", Bare()), edge, sample)["edge_tokens"] > tokens["lora_gen"] + 5
