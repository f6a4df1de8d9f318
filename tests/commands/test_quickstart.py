"""`lorage quickstart` and the bundled pair, as a new user sees them."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file

import lorage_jax as lg
from lorage_jax import nano, smollm2
from lorage_jax.bundled import kept_models
from lorage_jax.cli import main
from lorage_jax.commands import quickstart
from lorage_jax.commands.experiment import load_experiment
from lorage_jax.config import ExperimentConfig, PretrainConfig
from lorage_jax.data.templates import (
    PlainTemplate,
    edge_prompt,
    edge_prompt_with_system,
    encode,
    encode_target,
)
from lorage_jax.evaluate import answers
from lorage_jax.world import prompts as world_prompts

PARTS = {"prompt.txt", "card.json", "adapter", "merged", "report.json", "gates.png", "lorage.json"}
TIMED = {"bare", "in_context", "lora_gen"}
ARMS = {*TIMED, "shuffled"}
FEW = 6  # questions, where their number does not matter
KNOWN = "Reverse the words. Put a comma between words."


def run(out, *more):
    assert main(["quickstart", "--out", str(out), *more]) == 0
    return json.loads((out / "report.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "made"
    return out, run(out)


def test_every_part_is_there(made):
    out, _ = made
    assert {path.name for path in out.iterdir()} == PARTS
    assert not list(out.parent.glob(".*")), "a temporary folder was left"
    assert (out / "gates.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_what_was_measured(made):
    _, report = made
    assert {"adapter", "merged", "reloaded", "transformers"} == {
        name.removeprefix("unmerged_vs_") for name in report["parity"]
    } - {"max_abs_logit_diff"}
    assert report["parity"]["max_abs_logit_diff"] < 2e-4
    assert len(report["answers"]) == report["questions"] == quickstart.QUESTIONS
    assert set(report["exact_match"]) == ARMS
    for way, score in report["exact_match"].items():
        right = [answer[way] == answer["expected"] for answer in report["answers"]]
        assert score == pytest.approx(np.mean(right))
    tokens, tokenizer = report["tokens_per_request"], lg.load_model(nano.EDGE).tokenizer
    users = [answer["user"] for answer in report["answers"]]
    assert len(set(users)) == len(users)
    for way, texts in {
        "bare": [edge_prompt(user) for user in users],
        "lora_gen": [edge_prompt(user) for user in users],
        "in_context": [edge_prompt_with_system(report["prompt"], user) for user in users],
    }.items():
        lengths = [len(encode(tokenizer, text, bos=True)) for text in texts]
        assert tokens[way] == pytest.approx(np.mean(lengths))
    assert tokens["lora_gen"] < tokens["in_context"]
    assert set(report["seconds_per_request"]) == {*TIMED, "in_context_cached"}


def test_the_prompt_is_what_does_it(made):
    """No training used the prompt; without it, or with another, hardly any answer is right."""
    _, report = made
    prompt = world_prompts.find(report["prompt"])
    for answer in report["answers"]:
        assert prompt.answer(answer["user"]) == answer["expected"]
    match = report["exact_match"]
    assert match["lora_gen"] >= 0.8
    assert match["bare"] <= 0.1 and match["shuffled"] <= 0.1
    assert report["control"]["prompt"] != report["prompt"]
    assert report["control"]["exact_match"] == match["shuffled"]


def test_who_is_asked_what_and_timed(made, monkeypatch):
    """Four arms; the first three are timed on the same requests, without an eos.

    So are those with the prompt in context after its kept keys.
    """
    out, report = made
    questions = [(answer["user"], answer["expected"]) for answer in report["answers"]]
    calls, texts = [], [f" {target}\n" for _, target in questions]

    def answer(model, asked, max_new_tokens):
        calls.append((model, asked, max_new_tokens))
        return texts

    def write(model, rows, max_new_tokens, **_):
        asked = [model.tokenizer.decode(row) for row in rows]
        answer(model, asked, max_new_tokens)
        users = [text.split("User: ")[-1].removesuffix("\nAssistant:") for text in asked]
        known = dict(questions)
        return [encode(model.tokenizer, f" {known[user]}", bos=False) for user in users]

    cached = []

    def continue_cached(model, rows, max_new_tokens, prefixes):
        cached.append((model, rows, max_new_tokens, prefixes))
        return texts

    monkeypatch.setattr(quickstart, "generate", answer)
    monkeypatch.setattr(quickstart, "generate_tokens", continue_cached)
    monkeypatch.setattr(answers, "generate_tokens", write)
    monkeypatch.setattr(
        quickstart,
        "in_turn",
        lambda actions, repeats: {way: [action() and 48.0] for way, action in actions.items()},
    )
    generator = lg.load_generator("nano", dtype="float32")
    found = quickstart._ask(out, questions, generator, nano.EDGE, KNOWN)
    assert found["exact_match"] == dict.fromkeys(found["exact_match"], 1.0)
    assert found["seconds_per_request"] == dict.fromkeys(
        (*TIMED, "in_context_cached"), 48.0 / len(questions)
    )

    edge = lg.load_model(nano.EDGE, dtype="float32")
    special, other = (
        lg.merge(edge, generator.pool, lg.specialize(generator, text))
        for text in (report["prompt"], KNOWN)
    )
    bare = [edge_prompt(user) for user, _ in questions]
    told = [edge_prompt_with_system(report["prompt"], user) for user, _ in questions]
    expected = [(edge, bare), (edge, told), (special, bare), (other, bare)]
    longest = max(len(encode_target(edge.tokenizer, target)) for _, target in questions)
    ((model, rows, new, prefixes),) = cached
    assert rows == [encode(edge.tokenizer, text, bos=True) for text in told]
    assert new == longest and model.config.eos_ids == ()
    shared = {prefix.shared(row) for prefix, row in zip(prefixes, rows, strict=True)}
    assert len(shared) == 1 and min(map(len, rows)) > shared.pop() > len(rows[0]) / 2
    for number, (model, asked, new) in enumerate(calls):
        wanted, shown = expected[number % 4]
        timed = number >= 4
        turns = PlainTemplate(edge.tokenizer, 1)
        asked = [one if isinstance(one, str) else turns.text(one) for one in asked]
        assert sorted(asked) == sorted(shown) and new == (longest if timed else quickstart.LONGEST)
        assert (model.config.eos_ids == ()) is timed
        np.testing.assert_allclose(
            model.params["layers"]["up"], wanted.params["layers"]["up"], atol=1e-6
        )
    assert len(calls) == 4 + 3


def test_the_merged_folder_answers(made):
    out, report = made
    special = lg.load_model(out / "merged")
    asked = [edge_prompt(answer["user"]) for answer in report["answers"]]
    said = lg.generate(special, asked, max_new_tokens=32)
    assert [text.strip() for text in said] == [a["lora_gen"] for a in report["answers"]]
    # The edge is bfloat16; the merged weights are not rounded to it.
    weight = load_file(out / "merged" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == np.float32
    assert np.mean(weight == weight.astype(ml_dtypes.bfloat16)) < 0.1


def test_a_prompt_of_the_users_own(tmp_path, capfd, monkeypatch):
    """If the built-in world knows it, answers are scored; otherwise they are only shown."""
    monkeypatch.setattr(quickstart, "QUESTIONS", FEW)
    report = run(tmp_path / "known", "--prompt", KNOWN)
    assert (report["prompt"], report["task"]) == (KNOWN, "reverse/plain/comma")
    assert report["exact_match"]["lora_gen"] > report["exact_match"]["bare"]
    report = run(tmp_path / "unknown", "--prompt", "Be kind to animals.")
    assert report["prompt"] == "Be kind to animals."
    assert report["exact_match"] is None and report["control"]["exact_match"] is None
    assert {answer["expected"] for answer in report["answers"]} == {None}
    assert "Your system prompt: Be kind to animals." in capfd.readouterr().out


def test_the_control_is_another_task():
    task = world_prompts.find(KNOWN)
    for seed in range(40):
        questions = quickstart._questions(task, seed)
        other = quickstart._other(task, questions, seed)
        assert all(other.answer(user) != target for user, target in questions)


@pytest.mark.slow
def test_a_prompt_of_tools(tmp_path, capsys):
    """Its calls follow the prompt's dialect only; the control's follow another."""
    report = run(tmp_path / "tools", "--family", "tools", "--seed", "2")
    task, shown = world_prompts.find(report["prompt"]), capsys.readouterr().out
    assert (task.family, task.task) == ("tools", report["task"])
    other = world_prompts.find(report["control"]["prompt"])
    assert all(other.parts[kind] != task.parts[kind] for kind in ("word", "pattern", "input"))
    calls = [a for a in report["answers"] if "Action:" in a["expected"]]
    assert len(calls) > len(report["answers"]) / 2
    for way, most in {"lora_gen": 1.0, "bare": 0.1}.items():
        right = np.mean([a[way] == a["expected"] for a in calls])
        assert most - 0.1 <= right <= most, way
    assert report["blind_ceiling"] == world_prompts.blind_ceiling("paraphrase", "tools")
    assert f"upper bound without the prompt{'9.3':>27}" in shown


@pytest.mark.slow
def test_a_known_prompt_of_tools(tmp_path):
    """A user's own prompt that is a list of tools is asked all of their questions."""
    drawn = world_prompts.draw_groups("paraphrase", 1, 1, 2, "tools")[0][0]
    report = run(tmp_path / "own", "--prompt", drawn.system)
    assert report["task"] == world_prompts.find(drawn.system).task
    assert report["exact_match"]["lora_gen"] > 0.6


def test_a_prompt_too_long_for_the_edge_alone(tmp_path, monkeypatch, capsys):
    """It is reported before any work."""
    monkeypatch.setattr(quickstart, "deploy", None)
    room = lg.load_model(nano.EDGE).config.max_positions
    monkeypatch.setattr(quickstart, "LONGEST", room - 20)
    assert main(["quickstart", "--out", str(tmp_path / "new"), "--prompt", KNOWN]) == 1
    assert "has room for 20. Shorten the prompt." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_training_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "TRAIN_STEPS", 3)
    monkeypatch.setattr(quickstart, "QUESTIONS", FEW)
    report = run(tmp_path / "made", "--train")
    assert set(report["generator_loss"]) == {"first", "last"}
    folder = tmp_path / "made" / "training" / "generator"
    card = lg.load_card(tmp_path / "made" / "card.json")
    assert lg.load_generator(folder).fingerprint == card.generator
    assert lg.load_generator("nano").fingerprint != card.generator


@pytest.mark.slow
def test_a_real_model(tmp_path, capsys):
    """A wording that training did not have; then the user's own prompt and questions."""
    if not (kept_models() / smollm2.MODEL).is_dir():
        pytest.skip(f"{smollm2.MODEL} is not here; LORAGE_MODELS names the folder of the models")
    plural = "I write one thing, you write many: the plural and nothing else."
    report = run(tmp_path / "known", "--real", "--prompt", plural)
    assert report["task"] == "plural" and report["parity"]["max_abs_logit_diff"] < 2e-4
    match = report["exact_match"]
    assert match["lora_gen"] > 0.8 > 0.2 > max(match["bare"], match["shuffled"])
    asked = ("horse", "box")
    own = ("--prompt", "Give me the plural.", "--ask", *asked)
    report = run(tmp_path / "own", "--real", *own)
    assert [answer["user"] for answer in report["answers"]] == list(asked)
    assert [answer["lora_gen"] for answer in report["answers"]] == ["horses", "boxes"]
    assert "answers are not scored" in capsys.readouterr().out


def test_a_real_model_that_is_not_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LORAGE_MODELS", str(tmp_path))
    assert main(["quickstart", "--real", "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert (
        f"--real needs the model {smollm2.MODEL}, but {tmp_path} (named by LORAGE_MODELS)" in told
    )
    assert f"{smollm2.README} has the commands" in told and smollm2.README.is_file()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--real", "--train", "--overwrite"), "--train trains the bundled pair"),
        ((), "--overwrite"),
        (("--generator", "nano", "--overwrite"), "--generator needs --real"),
        (("--prompt", " "), "--prompt is empty"),
        (("--family", "tools", "--train", "--overwrite"), "--train trains the bundled pair on"),
        (("--prompt", "kind " * 3000, "--overwrite"), "Shorten the prompt"),
    ],
)
def test_bad_use_is_refused(made, capsys, more, says):
    out, _ = made
    before = (out / "report.json").read_bytes()
    assert main(["quickstart", "--out", str(out), *more]) == 1
    assert says in capsys.readouterr().err
    assert (out / "report.json").read_bytes() == before


def test_the_pair_differs_and_is_small():
    """Families, widths, depths, tokenizers, bfloat16 and licence; it loads in transformers."""
    edge, cloud = lg.load_model(nano.EDGE), lg.load_model(nano.CLOUD)
    assert (edge.config.family, cloud.config.family) == ("qwen2", "llama")
    assert edge.config.width < cloud.config.width and edge.config.layers != cloud.config.layers
    assert edge.tokenizer.get_vocab() != cloud.tokenizer.get_vocab()
    files = [path for path in nano.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40 << 20
    for file in (nano.EDGE / "model.safetensors", nano.CLOUD / "model.safetensors"):
        with safe_open(file, "numpy") as tensors:
            assert {tensors.get_tensor(name).dtype.name for name in tensors.keys()} == {"bfloat16"}  # noqa: SIM118
    assert "Apache" in (nano.FOLDER / "README.md").read_text("utf-8")
    for folder, model in ((nano.EDGE, edge), (nano.CLOUD, cloud)):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert theirs.num_parameters() == sum(x.size for x in jax.tree.leaves(model.params))
        text = "Reverse the words. User: sun cat oil"
        assert (
            transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
            == model.tokenizer(text)["input_ids"]
        )


def test_the_recipe_says_what_the_experiments_do():
    """The README's steps are those of the files; each stage begins where another ended."""
    root = nano.FOLDER.parents[1]
    if not (root / "experiments").is_dir():
        pytest.skip("the recipe is tested in a checkout, where experiments/ is")
    text = (nano.FOLDER / "README.md").read_text("utf-8")
    steps = re.findall(r"lorage (pretrain|train) (experiments/\S+) .*?(\d+) (?:more )?steps", text)
    assert len(steps) == 8
    made = set()
    for command, path, count in steps:
        kind = PretrainConfig if command == "pretrain" else ExperimentConfig
        config = load_experiment(str(root / path), kind)
        assert config.steps == int(count), path
        assert getattr(config, "init", "") in {"", *made}, path
        made.add(f"{config.out}/{'model' if command == 'pretrain' else 'generator'}")
    bundled = re.findall(r"bundle.py \w+ (\S+)", text)
    assert set(bundled) < made and bundled[2] == f"{config.out}/generator"


def test_nano_is_a_name(tmp_path, monkeypatch):
    """The name of the bundled generator for all commands, unless a folder here has that name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_text(KNOWN)
    args = ["--prompt", "prompt.txt", "--out", "special", "--save", "card"]
    assert main(["specialize", "--generator", "nano", *args]) == 0
    card = lg.load_card(tmp_path / "special")
    assert card.generator == lg.load_generator(nano.GENERATOR).fingerprint
    with pytest.raises(lg.LorageError, match="is not a folder"):
        lg.load_generator(tmp_path / "nano")
    assert main(["inspect", "nano"]) == 0
    (tmp_path / "nano").mkdir()
    with pytest.raises(lg.LorageError, match="holds no lorage"):
        lg.load_generator("nano")
