"""Sets of tool records: which files are scored, and where generated records say they are from."""

import json

import pytest

from lorage_jax.errors import DataError
from lorage_jax.world.tool_sets import benchmark_files, benchmark_set, generated_set
from lorage_jax.world.tools import draw, find, library


def test_training_files_are_left_out(tmp_path):
    names = ("test_unseen.json", "test_seen.jsonl", "gpt4tools_71k.json", "train.json", "notes.txt")
    for name in names:
        (tmp_path / name).write_text(json.dumps(draw("train", 3, seed=1)))
    scored, training = benchmark_files(tmp_path)
    assert [path.name for path in scored] == ["test_seen.jsonl", "test_unseen.json"]
    assert [path.name for path in training] == ["gpt4tools_71k.json", "train.json"]
    found = benchmark_set(tmp_path / "test_unseen.json")
    assert (found.name, found.source) == ("test_unseen", "3 records of test_unseen.json")
    assert len(found.records) == 3 and found.files.startswith("sha256:")


def test_a_folder_without_test_files_is_told(tmp_path):
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(DataError, match="no test records; expected GPT4Tools'"):
        benchmark_files(tmp_path)


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_generated_records_have_the_tools_that_they_say(split):
    found = generated_set(split, 20, seed=3)
    assert found == generated_set(split, 20, seed=3)
    assert found.source == f"20 generated records with {split} tools (seed 3)"
    assert len(found.records) == 20
    prompts = [find(f"Tools:\n{record.instruction.tools}") for record in found.records]
    tools = {tool for prompt in prompts for tool in prompt.tools}
    assert len(tools) > 20 and tools <= set(library("train" if split == "seen" else "unseen"))
