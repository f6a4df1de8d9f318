"""`lorage report` from the command line: a complete folder, or one message and no change."""

import json
import re
import shutil

import pytest
from PIL import Image

from lorage_jax.commands import report as report_module
from lorage_jax.files.manifest import write_manifest
from tests.commands.world import contents, lorage
from tests.report.example import Html, evaluation, make_card, markdown_tables, table


@pytest.fixture
def files(tmp_path):
    """A folder with scores.json and a card in a folder of its own."""
    root = tmp_path / "files"
    (root / "special").mkdir(parents=True)
    (root / "scores.json").write_text(json.dumps(evaluation()))
    make_card([{0: 0.75, 1: 0.25}] * 2, prompt="Say 7.").save(root / "special" / "card.json")
    return root


@pytest.fixture
def refused(tmp_path, capfd):
    """Runs a report that must fail with one message that has all of `says`, and change nothing."""

    def check(*args, says, code=1):
        before = contents(tmp_path)
        capfd.readouterr()
        assert lorage("report", *args) == code
        error = capfd.readouterr().err
        assert error.startswith("lorage: ") and error.count("lorage: ") == 1, error
        assert "Traceback" not in error and "Error(" not in error
        for words in says:
            assert re.search(words, error), error
        assert contents(tmp_path) == before

    return check


def test_a_report_is_whole(files, tmp_path, capfd):
    out, result = tmp_path / "out", tmp_path / "result.json"
    inputs = [files / "scores.json", files / "special" / "card.json"]
    assert lorage("report", *inputs, "--out", out, "--json", result) == 0
    assert f"Report: {out / 'report.html'}" in capfd.readouterr().out
    said = json.loads(result.read_text())
    assert said["html"] == str(out / "report.html") and said["inputs"] == [str(p) for p in inputs]
    page = Html((out / "report.html").read_text("utf-8"))
    markdown = (out / "report.md").read_text("utf-8")
    for tables in (page.tables, markdown_tables(markdown)):
        assert table(tables, "Table 2")["specialised (LoRA-Gen)"]["PIQA (unseen)"] == "75.8 ± 1.1"
        assert table(tables, "Expert usage")["special"]["e0"] == "1.00"
    pictures = re.findall(r"\]\(([^)]*\.png)\)", markdown)
    assert [str(out / name) for name in pictures] == said["pictures"] and len(pictures) == 2
    for name in pictures:
        Image.open(out / name).load()
    names = {path.name for path in out.iterdir()}
    assert names == {"report.html", "report.md", "lorage.json", *pictures}
    assert set(json.loads((out / "lorage.json").read_text())["files"]) == names


def test_what_other_commands_leave_is_taken_too(files, tmp_path):
    """A folder with a card, the result of inspect, and a file given twice."""
    again, inspected = tmp_path / "first.json", tmp_path / "inspected.json"
    assert lorage("inspect", files / "special", "--json", inspected) == 0
    paths = (files / "special", inspected, files / "scores.json", files / "scores.json")
    assert lorage("report", *paths, "--out", tmp_path / "first", "--json", again) == 0
    assert lorage("report", again, "--out", tmp_path / "second") == 0
    tables = Html((tmp_path / "first" / "report.html").read_text("utf-8")).tables
    assert set(table(tables, "Expert usage")) == {"special", "inspected.json"}
    assert set(table(tables, "The models")) == {"scores.json"}
    tables = Html((tmp_path / "second" / "report.html").read_text("utf-8")).tables
    assert str(tmp_path) in table(tables, "report: first.json")["markdown"]["value"]


def test_every_bad_file_is_named_at_once(files, tmp_path, refused):
    bad = {
        "binary.json": b"\xff\xfe\x00",
        "text.json": b"not json",
        "deep.json": b"[" * 100_000,
        "list.json": b"[1]",
        "strange.json": b'{"kind": "weather"}',
        "card.json": b'{"format": "lorage-card/1"}',
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    paths = [files / "scores.json", *(tmp_path / name for name in bad), tmp_path / "nowhere.json"]
    refused(
        *paths,
        "--out",
        tmp_path / "out",
        says=[
            r"binary\.json is not JSON",
            r"text\.json is not JSON",
            r"deep\.json is not JSON",
            r"list\.json is not a result: it holds a list",
            r"strange\.json is JSON, but not a result of lorage and not a card",
            r"card\.json is damaged: generator is missing",
            r"nowhere\.json does not exist",
            "Expected files that --json of lorage eval",
        ],
    )
    refused(tmp_path, "--out", tmp_path / "out", says=["is damaged"])
    shutil.copytree(files / "special", tmp_path / "special")
    part = tmp_path / "special" / "report.json"
    part.write_text("{}")
    (tmp_path / "special" / "lorage.json").write_text(json.dumps({"files": ["report.json"]}))
    refused(part, "--out", tmp_path / "out", says=[rf"give the folder, {part.parent}\."])
    refused(files, "--out", tmp_path / "out", says=["contains no card", "Expected files"])


def test_the_target_is_checked_and_replaced_only_when_ours(files, tmp_path, refused):
    out, scores = tmp_path / "out", files / "scores.json"
    refused(scores, "--out", files, says=["is not empty"])
    refused(scores, "--out", files, "--overwrite", says=["did not write it"])
    refused(tmp_path / "nowhere.json", "--out", files, says=["is not empty"])  # the place first
    assert lorage("report", scores, files / "special", "--out", out) == 0
    assert (out / "gates-1-1.png").exists()
    refused(scores, "--out", out, says=["--overwrite"])
    assert lorage("report", scores, "--out", out, "--overwrite") == 0
    assert not (out / "gates-1-1.png").exists()
    special = shutil.copytree(files / "special", tmp_path / "special")
    write_manifest(special, {"format": "lorage-special/1"})
    refused(special / "card.json", "--out", special, "--overwrite", says=["would be replaced, but"])
    assert (special / "card.json").exists()


def test_an_interruption_leaves_nothing(files, tmp_path, refused, monkeypatch):
    def stop(page):
        raise KeyboardInterrupt

    monkeypatch.setattr(report_module, "to_markdown", stop)
    refused(files / "scores.json", "--out", tmp_path / "out", says=["interrupted"], code=130)
