"""Places of results: no input and no file of another kind is replaced."""

import json
import shutil
from pathlib import Path

import pytest

from lorage_jax import cli
from lorage_jax.commands import places
from lorage_jax.report.comparison import to_markdown
from tests.commands.world import REPOSITORY, lorage

RESULTS = REPOSITORY / "experiments" / "results"


@pytest.mark.parametrize(
    ("args", "option"),
    [
        ("eval --model m --tasks a.jsonl --json a.jsonl", "tasks"),
        ("eval --model m --tasks piqa,./a.jsonl --json a.jsonl", "tasks"),
        ("eval --model m --tasks piqa --json new --samples new", "samples"),
        ("adapters --generator nano --out o --prompts a.jsonl --json a.jsonl", "prompts"),
        ("specialize --generator nano --out o --prompt a.jsonl --json a.jsonl", "prompt"),
        ("specialize --generator nano --out o --prompt - --samples a.jsonl --json a.jsonl", ""),
        ("report other.json a.jsonl --out o --json a.jsonl", "results"),
        ("push folder me/x --scores a.jsonl --json a.jsonl", "scores"),
        ("export m --gguf x.gguf --json x.gguf", "gguf"),
    ],
)
def test_a_file_that_another_option_names_is_refused(tmp_path, monkeypatch, capfd, args, option):
    """It is, even if it is itself an earlier result."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: pytest.fail("the work began"))
    text = json.dumps({"provenance": {"format": "lorage-results/1"}})
    Path("a.jsonl").write_text(text)
    assert lorage(*args.split()) == 1
    assert f"the command's {option}" in capfd.readouterr().err
    assert Path("a.jsonl").read_text() == text


@pytest.mark.parametrize(
    ("there", "replaced"),
    [
        ("", True),
        (json.dumps({"a": 1, "provenance": {"format": "lorage-results/1"}}), True),
        (json.dumps({"bench": "decode"}), True),
        (json.dumps({"provenance": {"format": "another"}}), False),
        (json.dumps({"provenance": 1, "bench": "decode"}), False),
        (json.dumps({"format": "lorage-card/1"}), False),
        ('{"name": "a"}\n{"name": "b"}\n', False),
        ("[1]", False),
        ("\udcff", False),
    ],
)
def test_only_a_result_is_replaced_by_a_result(world, tmp_path, capfd, there, replaced):
    file = tmp_path / "x.json"
    file.write_text(there, "utf-8", "surrogateescape")
    before = file.read_bytes()
    assert lorage("inspect", world.special / "card.json", "--json", file) == (not replaced)
    if not replaced:
        assert "is not a result that lorage wrote with --json, so" in capfd.readouterr().err
    assert (file.read_bytes() == before) != replaced


def test_a_file_that_the_work_itself_wrote_is_kept(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"mine": 1}')
    with pytest.raises(places.OutputError, match="so it is not replaced"):
        places.write_result(file, "{}", places.RESULT)
    assert file.read_text() == '{"mine": 1}'


def test_records_replace_records_alone(world, tmp_path, refuse):
    """And not the file of tasks, which the command reads."""
    file = tmp_path / "t.jsonl"
    rows = [{"name": "t", "definition": "x", "instances": [{"input": "a", "output": ["b"]}]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ("eval", "--model", world.root / "edge", "--samples", file, "--tasks")
    refuse(*args, file, says="the command's tasks names, too")
    refuse(*args, "gpt4tools", says="is not records that lorage eval wrote")
    assert places.RECORDS.ours('{"task": "piqa", "arm": "bare", "doc_id": 0}\n')
    assert places.RECORDS.ours('{"task": "gpt4tools", "set": "seen", "scores": {}}\n')


def test_a_table_replaces_a_table_alone(world, tmp_path, refuse):
    shutil.copy(RESULTS / "README.md", tmp_path / "table.md")
    name = REPOSITORY / "experiments" / "nano" / "compare.py"
    refuse("compare", name, "--table", tmp_path / "table.md", says="is not a table that lorage")
    table = (RESULTS / "nano_methods.md").read_text("utf-8")
    result = json.loads((RESULTS / "nano_methods.json").read_text())
    assert places.TABLE.ours(table) and places.TABLE.ours(to_markdown(result))


def test_the_result_is_not_a_part_of_a_folder_that_is_replaced(world, specialize, refuse, tmp_path):
    asked = specialize(json=tmp_path / "out" / "card.json")
    refuse(*asked, says=r"is inside --out .*such as .*out\.json")
