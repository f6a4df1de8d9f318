"""`lorage push` offline, on a folder that is not ours, and on one that is."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from lorage_jax import cli, nano, smollm2
from lorage_jax.commands.adapted import load_adapted
from lorage_jax.files.manifest import manifest_of
from lorage_jax.hf.load import load_model

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

        def list_repo_files(self, name):
            return []

        def create_commit(self, name, operations, commit_message):
            for one in operations:
                with one.as_file() as file:
                    sent[one.path_in_repo] = file.read()
            return SimpleNamespace(commit_url="https://hub/me/gen/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    return sent


@pytest.fixture(scope="module")
def special(tmp_path_factory):
    """The output of `lorage specialize`."""
    root = tmp_path_factory.mktemp("special")
    (root / "prompt.txt").write_text("Reverse the words.")
    asked = ["specialize", "--generator", "nano", "--prompt", str(root / "prompt.txt")]
    assert cli.main([*asked, "--out", str(root / "special")]) == 0
    return root / "special"


def test_what_holds_several_parts_or_none_is_not_pushed(sent, special, tmp_path, capsys):
    expected = "Expected a generator, or an exported model or adapter"
    assert cli.main(["push", str(special), "me/x"]) == 1
    error = capsys.readouterr().err
    assert f"{expected}: {special / 'adapter'} or {special / 'merged'}." in error
    asked = ["report", str(special / "card.json"), "--out", str(tmp_path / "report")]
    assert cli.main(asked) == 0
    assert cli.main(["push", str(tmp_path / "report"), "me/x"]) == 1
    assert f"{tmp_path / 'report'} cannot be pushed. {expected}." in capsys.readouterr().err
    assert not sent


def scored(folder, model):
    """A file of scores of a loaded model, as `lorage eval` records it."""
    result = json.loads((RESULTS / "seen.json").read_text("utf-8"))
    of = {"generator": None, "generator_fingerprint": None, "edge_fingerprint": model.fingerprint}
    result["model"] |= of
    (folder / "scores.json").write_text(json.dumps(result), "utf-8")
    return ["--scores", str(folder / "scores.json")]


def test_scores_of_an_adapted_edge_are_those_of_its_adapter(sent, special, tmp_path, capsys):
    adapter = str(special / "adapter")
    adapted = load_adapted(nano.EDGE, "float32", [adapter])
    assert cli.main(["push", adapter, "me/x", *scored(tmp_path, adapted)]) == 0
    assert "| 0.545 ± 0.014 |" in sent["README.md"].decode()
    merged = load_model(special / "merged")
    assert cli.main(["push", str(special / "merged"), "me/x", *scored(tmp_path, merged)]) == 0
    sent.clear()
    capsys.readouterr()
    for other in (load_adapted(nano.EDGE, "float32", [f"{adapter}=0.5"]), load_model(nano.EDGE)):
        assert cli.main(["push", adapter, "me/x", *scored(tmp_path, other)]) == 1
        assert "has scores of another model" in capsys.readouterr().err
    assert cli.main(["push", str(nano.GENERATOR), "me/x", *scored(tmp_path, merged)]) == 1
    assert "has scores of a model or adapter, and" in capsys.readouterr().err
    manifest = json.loads((special / "adapter" / "lorage.json").read_text())
    del manifest["base"]
    shutil.copytree(adapter, tmp_path / "unknown")
    (tmp_path / "unknown" / "lorage.json").write_text(json.dumps(manifest))
    assert cli.main(["push", str(tmp_path / "unknown"), "me/x", *scored(tmp_path, adapted)]) == 1
    assert "has no identity of one" in capsys.readouterr().err and not sent


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
    result["model"]["generator_fingerprint"] = manifest_of(smollm2.GENERATOR)["fingerprint"]
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
