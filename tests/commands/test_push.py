"""`lorage push` offline, on a folder that is not ours, and on one that is."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from lorage_jax import cli, nano, smollm2
from lorage_jax.files.manifest import stored

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "real"


@pytest.mark.parametrize(
    ("folder", "name", "says"),
    [
        (nano.GENERATOR, "me/gen", "HF_HUB_OFFLINE is set"),
        (nano.GENERATOR, "gen", "expected OWNER/NAME"),
        (Path("nowhere"), "me/gen", "not a folder that lorage_jax wrote"),
    ],
)
def test_what_cannot_be_pushed_is_one_message(folder, name, says, capsys):
    assert cli.main(["push", str(folder), name]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lorage: ") and says in error and "Traceback" not in error


@pytest.fixture
def sent(monkeypatch):
    """All that the Hub was sent: the repository, and the content of each file."""
    sent = {}

    class Client:
        def __init__(self, **_):
            pass

        def create_repo(self, name, private, exist_ok):
            sent["repository"] = (name, private)

        def create_commit(self, name, operations, commit_message):
            for one in operations:
                with one.as_file() as file:
                    sent[one.path_in_repo] = file.read()
            return SimpleNamespace(commit_url="https://hub/me/gen/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    return sent


def test_a_generator_is_pushed(sent, capsys):
    assert cli.main(["push", str(nano.GENERATOR), "me/gen", "--private"]) == 0
    assert sent.pop("repository") == ("me/gen", True)
    assert sent.keys() == {"README.md", "generator.safetensors", "lorage.json"}
    assert sent["README.md"] == (nano.GENERATOR / "README.md").read_bytes()
    assert "https://hub/me/gen/commit/1" in capsys.readouterr().out


def test_scores_enter_the_page(sent, tmp_path, capsys):
    """In the place of those of before, with controls; scores of another generator are refused."""
    before = (smollm2.GENERATOR / "README.md").read_text("utf-8")
    result = json.loads((RESULTS / "seen.json").read_text("utf-8"))
    result["model"]["generator_fingerprint"] = stored(smollm2.GENERATOR)["fingerprint"]
    tools = {"arms": {"lora_gen": {"official": {"success": 0.5}, "n": 2}}, "gaps": {}, "words": []}
    result["gpt4tools"] = {"sets": {"seen": tools, "unseen": tools}}
    (tmp_path / "scores.json").write_text(json.dumps(result), "utf-8")
    scores = ["--scores", str(tmp_path / "scores.json")]
    assert cli.main(["push", str(smollm2.GENERATOR), "me/gen", *scores]) == 0
    page = sent["README.md"].decode()
    assert "| specialised (LoRA-Gen) | 0.545 ± 0.014 | 21 |" in page
    assert "| another task's prompt (control) | 0.111 ± 0.011 | 21 |" in page
    assert "Scored by `lorage eval` on cpu." in page and "seen.jsonl" not in page
    headings = [line for line in before.splitlines() if line.startswith("#")]
    assert [line for line in page.splitlines() if line.startswith("#")] == headings
    assert before.partition("## Scores")[0] == page.partition("## Scores")[0]
    assert (smollm2.GENERATOR / "README.md").read_text("utf-8") == before
    sent.clear()
    assert cli.main(["push", "nowhere", "me/gen", "--scores", "nowhere.json"]) == 1
    assert "not a folder that lorage_jax wrote" in capsys.readouterr().err
    assert cli.main(["push", str(nano.GENERATOR), "me/gen", *scores]) == 1
    assert "has scores of another model" in capsys.readouterr().err
    wrong = ["--scores", str(RESULTS.parent / "bench_merge.json")]
    assert cli.main(["push", str(nano.GENERATOR), "me/gen", *wrong]) == 1
    assert "holds no scores of tasks" in capsys.readouterr().err and not sent
