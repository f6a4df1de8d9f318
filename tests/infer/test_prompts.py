"""Prompts in the forms that tokenizers return."""

import jax.numpy as jnp
import numpy as np
import pytest

from lorage_jax.errors import DataError
from lorage_jax.infer.chat import Lead
from lorage_jax.infer.prompts import is_one, prompt_rows, several
from lorage_jax.models.model import Model


def rows_of(prompts):
    """The rows that `generate` reads of them, on a model of which nothing is asked."""
    model = Model.__new__(Model)
    return prompt_rows(model, [prompts] if is_one(prompts) else several(prompts))


def test_a_batch_of_a_tokenizer_is_its_rows_without_padding():
    ids, mask = np.array([[1, 2, 0], [3, 4, 5]]), np.array([[1, 1, 0], [1, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": mask}
    assert not is_one(batch) and several(batch) == [[1, 2], [3, 4, 5]]
    assert several({"input_ids": [[1], [2, 3]]}) == [[1], [2, 3]]
    assert is_one({"input_ids": [1, 2]}) and is_one({"input_ids": np.array([1, 2])})


def test_a_single_prompt_of_a_tokenizer_is_without_padding():
    one = {"input_ids": [0, 0, 1, 2], "attention_mask": [0, 0, 1, 1]}
    assert rows_of(one) == [[1, 2]] and rows_of([one, [3]]) == [[1, 2], [3]]
    arrays = {name: jnp.array(value) for name, value in one.items()}
    assert rows_of(arrays) == [[1, 2]]


def test_arrays_of_jax_are_token_ids_as_those_of_numpy():
    for kind in (np, jnp):
        assert rows_of(kind.array([1, 2])) == [[1, 2]]
        assert rows_of(kind.array([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]
        assert rows_of([kind.array([1, 2]), [3]]) == [[1, 2], [3]]
        with pytest.raises(DataError, match="list of token ids"):
            rows_of(kind.array([1.0, 2.0]))
    ids, mask = jnp.array([[1, 2, 0], [3, 4, 5]]), jnp.array([[1, 1, 0], [1, 1, 1]])
    assert rows_of({"input_ids": ids, "attention_mask": mask}) == [[1, 2], [3, 4, 5]]


def test_a_mask_that_does_not_fit_its_ids_is_refused():
    for ids, mask in (([1, 2], [1]), ([[1, 2], [3]], [[1, 1], [1, 1]]), ([[1, 2]], [1])):
        with pytest.raises(DataError, match="attention_mask"):
            rows_of({"input_ids": ids, "attention_mask": mask})
    with pytest.raises(DataError, match="one mask for each row"):
        rows_of({"input_ids": [[1], [2]], "attention_mask": [[1]]})


def test_what_was_held_back_for_a_lead_comes_at_the_end():
    for text, pieces in (("<th", ["<", "th"]), ("yes", ["<think>", "yes"]), ("", ["<think>"])):
        lead = Lead("<think>")
        assert "".join(map(lead, pieces)) + lead.end() == text
        assert lead.end() == ""
