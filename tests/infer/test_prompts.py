"""Prompts in the forms that tokenizers return."""

import numpy as np

from lorage_jax.infer.chat import Lead
from lorage_jax.infer.prompts import is_one, several


def test_a_batch_of_a_tokenizer_is_its_rows_without_padding():
    ids, mask = np.array([[1, 2, 0], [3, 4, 5]]), np.array([[1, 1, 0], [1, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": mask}
    assert not is_one(batch) and several(batch) == [[1, 2], [3, 4, 5]]
    assert several({"input_ids": [[1], [2, 3]]}) == [[1], [2, 3]]
    assert is_one({"input_ids": [1, 2]}) and is_one({"input_ids": np.array([1, 2])})


def test_what_was_held_back_for_a_lead_comes_at_the_end():
    for text, pieces in (("<th", ["<", "th"]), ("yes", ["<think>", "yes"]), ("", ["<think>"])):
        lead = Lead("<think>")
        assert "".join(map(lead, pieces)) + lead.end() == text
        assert lead.end() == ""
