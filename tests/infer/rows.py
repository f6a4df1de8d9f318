"""Rows of tokens, and models that end them where a test says so."""

import dataclasses

PROMPTS = [[1, 70, 101, 44, 9], [1, 33], [1, *range(40, 62)]]  # the last reaches past the window


def with_eos(model, *ids):
    """The same model, ended by `ids` only (filled up to three: one shape, one program)."""
    ids = (*ids, 9998, 9999, 10000)[:3]
    return model.replace(config=dataclasses.replace(model.config, eos_ids=ids), tokenizer=None)
