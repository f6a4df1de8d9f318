"""The edge's text, as lm-eval expands it."""

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

from lm_eval.utils import apply_template

from lorage_jax.data.task_table import TASKS
from lorage_jax.evaluate.protocol import edge_text, verbatim


@pytest.mark.parametrize(
    "text",
    [
        "Plain.",
        "",
        "{{ doc }} {% if x %} {# none #} {",
        "a {% endraw %} b {{ doc }} {% endraw %}",
        "{%endraw%}{%- endraw -%}{%+ endraw %}{%\n endraw %}",
        "{% raw %} x {% endraw %} {%",
        "{%{% endraw %}",
    ],
)
def test_a_text_is_what_lm_eval_makes_of_its_template(text):
    assert apply_template(verbatim(text), {"doc": 1}) == text
    fields = edge_text(TASKS["piqa"], "harness", None, text)
    assert apply_template(fields["description"], {"doc": 1}) == f"{text}\n\n"
