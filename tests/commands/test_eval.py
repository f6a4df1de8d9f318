"""`lorage eval`: the contract of its files, continuing after a kill, and user errors."""

import json
import shutil
import sys

import pytest
from transformers import AutoTokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

from lorage_jax.evaluate import answers
from lorage_jax.evaluate.harness import LorageLM, run_tasks
from lorage_jax.evaluate.host_chat import NO_SYSTEM, HostChat
from lorage_jax.evaluate.local_tasks import TaskData
from lorage_jax.infer import score as scoring
from lorage_jax.world.tools import draw
from tests.commands.world import contents, lorage
from tests.evaluate.local_data import write_tasks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), records=5)


def model_args(world, folder, tmp_path, tasks="arc_challenge,boolq", **options):
    options = {
        "model": world.root / "edge",
        "tasks": tasks,
        "shots": 0,
        "data": folder,
        "json": tmp_path / "scores.json",
    } | options
    return ["eval", *(part for name, value in options.items() for part in (f"--{name}", value))]


def test_scores_and_samples_are_written(world, data, tmp_path, capsys):
    args = model_args(world, data, tmp_path, samples=tmp_path / "samples.jsonl", limit=4)
    assert lorage(*args) == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    scores = result["results"]["arc_challenge"]
    assert scores["n"] == 4 and {"acc", "acc_norm", "acc_stderr"} <= set(scores)
    assert "acc_norm" not in result["results"]["boolq"]
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    arc = [row for row in rows if row["task"] == "arc_challenge"]
    assert [row["doc_id"] for row in arc] == [0, 1, 2, 3]
    assert all(len(row["loglikelihoods"]) == 4 for row in arc)
    for row in rows:
        best = max(range(len(row["loglikelihoods"])), key=row["loglikelihoods"].__getitem__)
        assert row["prediction"] == best
    right = [row["prediction"] == row["label"] for row in arc]
    assert scores["acc"] == sum(right) / 4
    assert result["provenance"]["command"].startswith("lorage eval --model")
    assert result["model"]["tokenizer"] and result["seeds"] == {"seed": 1234}
    assert result["config"]["template"] == "trained"
    assert result["data"]["arc_challenge"]["test"].startswith("sha256:")
    assert "arc_challenge  acc" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.jsonl", "scores.json"]


def test_a_generator_is_scored_with_controls_and_told_in_words(world, data, tmp_path, capsys):
    args = ["eval", "--generator", world.generator, "--tasks", "piqa", "--shots", "1"]
    args += ["--data", data, "--json", tmp_path / "scores.json"]
    assert lorage(*args) == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["main"] == "lora_gen"
    assert set(result["arms"]) == {
        *("lora_gen", "in_context", "few_shot", "shuffled", "random", "mean_gates"),
        "bare",
    }
    assert set(result["gaps"]) == {"shuffled", "random", "mean_gates", "bare"}
    assert result["results"] == result["arms"]["lora_gen"]["tasks"]
    assert result["cards"]["piqa"]["layers"] == 3
    out = capsys.readouterr().out
    assert "to the cloud" in out and "The prompt" in out and "tokenizer" in out
    assert lorage(*args, "--no-controls", "--no-baseline") == 0
    assert set(json.loads((tmp_path / "scores.json").read_text())["arms"]) == {"lora_gen"}


def test_the_switches_for_chat_models(world, data, tmp_path, capfd, refuse):
    """Scores are those of the same chat by itself; other arms than a model's are refused."""
    folder = tmp_path / "chat"
    shutil.copytree(world.root / "edge", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    chat = ("--apply-chat-template", "--system-instruction", "Be brief.")
    asked = ("--shots", "1", "--limit", "4", "--samples", tmp_path / "samples.jsonl")
    args = ["eval", "--model", folder, "--tasks", "arc_easy", "--data", data, *asked]
    assert lorage(*args, *chat, "--json", tmp_path / "scores.json") == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    assert NO_SYSTEM in result["words"] and NO_SYSTEM in capfd.readouterr().out
    assert result["config"]["apply_chat_template"] and result["config"]["fewshot_as_multiturn"]
    rows = [json.loads(row) for row in (tmp_path / "samples.jsonl").read_text().splitlines()]
    task = {"arc_easy": TaskData(str(data)).load("arc_easy", 1)}
    _, right = run_tasks(LorageLM(str(folder)), task, 4, 1234, HostChat(True))
    for row, sample in zip(rows, right["arc_easy"], strict=True):
        wanted = [value for value, _ in sample["filtered_resps"]]
        assert row["loglikelihoods"] == pytest.approx(
            wanted[: len(row["loglikelihoods"])], abs=1e-4
        )
    plain = ["eval", "--model", world.root / "edge", "--tasks", "arc_easy", "--data", data]
    refuse(*plain, *chat, says="the model's tokenizer has no chat template")
    refuse(*plain, "--no-fewshot-as-multiturn", says="goes with --apply-chat-template")
    refuse(*plain[:3], "--tasks", "gpt4tools", *chat, says="gpt4tools is asked in turns of its own")
    generator = ["eval", "--generator", world.generator, "--tasks", "arc_easy", "--data", data]
    refuse(*generator, *chat[1:], says=r"go with --model: the edge of a generator is asked in the")


def test_a_file_of_tasks_is_scored_in_all_arms(world, tmp_path, capsys):
    def row(name, **more):
        asked = [{"input": f"{name} {i}", "output": "ab", **more} for i in range(9)]
        return {"name": name, "definition": [f"Do {name}.", f"{name}!"], "instances": asked}

    path = tmp_path / "tasks.jsonl"
    rows = [row("free"), row("choosing", choices=["ab", "c"])]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    args = ["eval", "--generator", world.generator, "--tasks", path, "--limit", "3"]
    assert lorage(*args, "--shots", "1", "--json", tmp_path / "scores.json") == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    assert len(result["arms"]) == 7
    for arm in result["arms"].values():
        assert {"exact_match", "exact_match_stderr", "f1"} <= set(arm["tasks"]["free"])
        assert {"acc", "acc_norm", "acc_stderr"} <= set(arm["tasks"]["choosing"])
        assert arm["tasks"]["free"]["n"] == 3
    prompt = result["cards"]["free"]["about"]["prompt"]
    assert prompt.split("\n")[0] in ("Do free.", "free!") and prompt.count("User: ") == 1
    assert result["gaps"]["shuffled"].keys() == {"free", "choosing", "ave"}
    assert result["arms"]["shuffled"]["tasks"]["free"]["prompt_of"] == "choosing"
    assert result["data"]["free"]["tasks.jsonl"].startswith("sha256:")
    capsys.readouterr()
    assert lorage(*args[:3], "--tasks", tmp_path / "none.jsonl") == 1
    assert "none.jsonl: no such file" in capsys.readouterr().err


def test_gpt4tools_says_what_it_was_scored_on(world, tmp_path, capsys, monkeypatch):
    """256 positions hold little with a byte tokenizer: everything is cut, nothing fails."""
    made = ["--json", tmp_path / "scores.json", "--limit", "2", "--max-new-tokens", "8"]
    asked = ["eval", "--generator", world.generator, "--tasks", "gpt4tools", "--no-controls"]
    assert lorage(*asked, *made, "--samples", tmp_path / "samples.jsonl") == 0
    sets = json.loads((tmp_path / "scores.json").read_text())["gpt4tools"]["sets"]
    assert list(sets) == ["generated_seen", "generated_unseen"]
    result = sets["generated_unseen"]
    assert "2 generated records with unseen tools" in result["source"]
    assert {"lora_gen", "in_context", "no_tools", "lora_gen_tools"} == set(result["arms"])
    arm = result["arms"]["in_context"]
    assert arm["truncated"] == arm["n"] == 2 and set(arm["official"]) > {"iou", "average"}
    rows = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(row)["task"] for row in rows] == ["gpt4tools"] * 4

    (tmp_path / "data" / "gpt4tools").mkdir(parents=True)
    for name in ("test_seen.json", "gpt4tools_71k.json", "test_seen.json.bak"):
        path = tmp_path / "data" / "gpt4tools" / name
        path.write_text(json.dumps(draw("train", 3, seed=1)))
    rows, generate = [], answers.generate_tokens

    def counted(model, asked, **options):
        rows.append(len(asked))
        return generate(model, asked, **options)

    monkeypatch.setattr(answers, "generate_tokens", counted)
    small = ["--data", tmp_path / "data", "--batch-tokens", "1"]
    assert lorage(*asked, *made, *small) == 0
    assert set(rows) == {1}
    assert "Left out, as it is for training: gpt4tools_71k.json." in capsys.readouterr().out
    result = json.loads((tmp_path / "scores.json").read_text())
    assert list(result["gpt4tools"]["sets"]) == ["test_seen"]
    assert result["gpt4tools"]["sets"]["test_seen"]["source"] == "3 records of test_seen.json"
    assert result["data"]["gpt4tools/test_seen"]["records"].startswith("sha256:")


def test_a_run_that_was_stopped_goes_on(world, data, tmp_path, monkeypatch, capsys):
    args = model_args(world, data, tmp_path)
    assert lorage(*args) == 0
    whole = json.loads((tmp_path / "scores.json").read_text())["results"]
    (tmp_path / "scores.json").unlink()
    asked, run = [], scoring._Runner.__call__

    def counts(self, batch):
        asked.extend(row for row in batch)
        return run(self, batch)

    def stops(self, batch):
        if asked:  # the first task is done, the second has begun
            raise KeyboardInterrupt
        return counts(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(scoring._Runner, "__call__", stops)
        assert lorage(*args) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json.progress"]
    assert len(asked) == 5  # questions of arc_challenge
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(scoring._Runner, "__call__", counts)
        assert lorage(*args) == 0
    assert len(asked) == 5  # those of boolq alone
    assert "found 20 finished requests" in capsys.readouterr().out
    found = json.loads((tmp_path / "scores.json").read_text())["results"]
    for scores in (*whole.values(), *found.values()):
        del scores["seconds"]
    assert found == whole
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks": "arc_chalenge"}, r"there is no task 'arc_chalenge'; did you mean arc_challenge"),
        ({"tasks": ","}, r"--tasks names no task"),
        ({"data": "nowhere"}, r"--data nowhere: no such folder"),
        ({"shots": "many"}, r"--shots is 'many'; expected a number of 0 or more"),
        ({"shots": "5,piqa=-1"}, r"--shots is '5,piqa=-1'; expected a number"),
        ({"shots": "5,bolq=0"}, r"'bolq', which is not among --tasks; did you mean boolq"),
        ({"shots": "5,hellaswag=0"}, r"'hellaswag', which is not among --tasks"),
        ({"shots": "5,10"}, r"--shots is '5,10', with two numbers for all tasks"),
        ({"shots": "boolq=1,boolq=2"}, r"two numbers for boolq"),
        ({"limit": 0}, r"--limit is 0; expected 1 or more"),
        ({"model": "nowhere"}, r"nowhere is not a folder"),
        ({"edge": "x"}, r"--edge and --cloud go with --generator"),
        ({"generator": "x"}, r"give either --model"),
        ({"batch-tokens": 0}, r"--batch-tokens is 0"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(world, refuse, data, tmp_path, changes, says):
    refuse(*model_args(world, data, tmp_path, **changes), says=says)


def test_a_folder_of_records_is_of_named_tasks(world, refuse, data, tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"name": "a", "instances": [{"input": "b", "output": "c"}]}\n')
    says = r"--data .* holds records of lm-eval's tasks and gpt4tools, .* only files"
    refuse(*model_args(world, data, tmp_path, tasks=path), says=says)


def test_switches_of_a_generator_are_no_ones_for_a_model(world, data, tmp_path, capfd):
    args = model_args(world, data, tmp_path, limit=1)
    assert lorage(*args, "--no-controls", "--no-baseline", "--template", "trained") == 0
    told = [line for line in capfd.readouterr().err.splitlines() if "does not depend" in line]
    flags = "--template and --no-controls and --no-baseline"
    assert [line.partition(":")[2].partition(":")[0].strip() for line in told] == [flags]


def test_a_model_is_asked_for_tools_in_the_format_that_is_named(world, data, tmp_path):
    args = model_args(world, data, tmp_path, tasks="gpt4tools", limit=1)
    for template in ("trained", "harness"):
        assert lorage(*args, "--max-new-tokens", 4, "--template", template) == 0
        result = json.loads((tmp_path / "scores.json").read_text())
        assert result["config"]["template"] == template


def test_a_folder_of_tasks_needs_a_slash(world, refuse, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    args = model_args(world, data, tmp_path, tasks="mine,piqa")
    refuse(*args, says="no task 'mine'; for the files of the folder mine, write mine/")


def test_a_missing_split_is_told_before_any_work(world, refuse, tmp_path, data):
    lacking = write_tasks(tmp_path / "lacking", splits=("test", "validation"))
    args = model_args(world, lacking, tmp_path, tasks="boolq,piqa", shots=2)
    refuse(*args, says=r"draws its 2 samples from the train split")


def test_samples_by_task(world, data, tmp_path):
    args = model_args(world, data, tmp_path, tasks="arc_easy,piqa", shots="1,piqa=0")
    assert lorage(*args) == 0
    result = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert [result[name]["shots"] for name in ("arc_easy", "piqa")] == [1, 0]


def test_tasks_of_other_kinds_than_choices(world, tmp_path, capsys):
    """wikitext, a perplexity task of lm-eval; a user's own YAML would be treated alike."""
    (tmp_path / "data" / "wikitext").mkdir(parents=True)
    (tmp_path / "data" / "wikitext" / "test.jsonl").write_text(
        "".join(json.dumps({"page": f"A page about bird {i}."}) + "\n" for i in range(3))
    )
    args = model_args(world, tmp_path / "data", tmp_path, tasks="wikitext")
    assert lorage(*args, "--samples", tmp_path / "samples.jsonl") == 0
    result = json.loads((tmp_path / "scores.json").read_text())["results"]["wikitext"]
    assert result["byte_perplexity"] > 1 and result["n"] == 3


def test_the_same_file_twice_is_refused(world, refuse, data, tmp_path):
    args = model_args(world, data, tmp_path, samples=tmp_path / "scores.json")
    refuse(*args, says="a file that the command's samples names, too")
    args = model_args(world, data, tmp_path, samples=tmp_path / "scores.json.progress")
    refuse(*args, says="in which --json keeps its progress")


def test_what_does_not_fit_is_told_before_any_work(world, refuse, data, tmp_path):
    args = model_args(world, data, tmp_path, tasks="arc_easy,gpt4tools")
    refuse(*args, says=r"max_new_tokens is 512.*--max-new-tokens")
    args = model_args(world, data, tmp_path, tasks="arc_easy,gsm8k", **{"max-new-tokens": 256})
    refuse(*args, says=r"256 new tokens were requested, but the model's context is 256")


def test_without_lm_eval_it_is_said(world, refuse, data, tmp_path, monkeypatch):
    from lorage_jax.evaluate import local_tasks

    local_tasks._index.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    refuse(*model_args(world, data, tmp_path), says=r'pip install "lorage_jax\[eval\]"')


def test_neither_model_nor_generator(refuse, data, tmp_path):
    refuse("eval", "--tasks", "piqa", "--data", data, says="give either --model")
    args = ("--generator", tmp_path, "--adapter", tmp_path, "--tasks", "piqa", "--data", data)
    refuse("eval", *args, says="--adapter goes with --model")


def test_another_file_in_the_place_of_the_progress_is_left_alone(world, refuse, data, tmp_path):
    (tmp_path / "scores.json.progress").write_text("mine\n")
    before = contents(tmp_path)
    refuse(*model_args(world, data, tmp_path), says="not a record of finished requests")
    assert contents(tmp_path) == before
