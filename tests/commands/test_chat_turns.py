"""A generator trained in chat turns, from its data to folders that answer in the same turns."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

import lorage_jax as lg
from lorage_jax.commands.experiment import load_experiment
from lorage_jax.data.batches import Encoder, Group
from lorage_jax.data.task_table import get_task
from lorage_jax.data.templates import TemplateKind, question
from tests.commands.world import EXPERIMENT, PROMPT, lorage
from tests.evaluate.local_data import record, write_tasks
from tests.tiny import byte_tokenizer, torch_logits

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT = (  # of the edge, as SmolLM2's and Qwen2.5's: a system message that nobody asked for
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
ASKED, ANSWER = "go 14", "7 7"


@pytest.fixture(scope="module")
def chat(tmp_path_factory, pair, data_file):
    """The outputs of train and specialize, with the token ids of one trained query."""
    root = tmp_path_factory.mktemp("chat")
    for name, folder, template in (("cloud", pair[0], CHATML), ("edge", pair[1], DEFAULT)):
        shutil.copytree(folder, root / name)
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(str(root / name))
    shutil.copy(data_file, root / "train.jsonl")
    experiment = EXPERIMENT.format(root=root).replace("min_bucket=48", 'template="chat"')
    (root / "exp.py").write_text(experiment.replace('"chat"', '"chat", min_bucket=48'))
    (root / "prompt.txt").write_text(PROMPT)
    assert lorage("train", root / "exp.py", "--out", root / "run") == 0
    generator = root / "run" / "generator"
    given = ("--generator", generator, "--prompt", root / "prompt.txt")
    assert lorage("specialize", *given, "--out", root / "special") == 0
    tokenizers = [AutoTokenizer.from_pretrained(root / name) for name in ("cloud", "edge")]
    data = load_experiment(root / "exp.py").data
    encoder = Encoder(data, *tokenizers, TemplateKind("chat"))
    trained = encoder.tokens(Group(PROMPT, ((ASKED, ANSWER),), 0))
    (query,) = trained.queries
    count = query.loss_mask.index(True)
    return SimpleNamespace(
        root=root,
        generator=generator,
        special=root / "special",
        prompt=trained.prompt,
        asked=query.tokens[:count],
        said=query.tokens[count:],
    )


def rendered(tokenizer, messages, cue=True):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=cue, return_dict=False)


def torch_model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()


def test_the_turns_of_training_travel_with_the_weights(chat):
    """transformers renders a user's message to the trained ids, without the default system turn."""
    generator = lg.load_generator(chat.generator)
    assert generator.template.name == "chat"
    assert generator.reads.read(PROMPT) == chat.prompt
    for name in ("merged", "adapter"):
        exported = AutoTokenizer.from_pretrained(chat.special / name)
        assert rendered(exported, question(ASKED)) == chat.asked
        answered = [*question(ASKED), {"role": "assistant", "content": ANSWER}]
        full = rendered(exported, answered, cue=False)
        assert full[: len(chat.asked + chat.said)] == chat.asked + chat.said
        assert exported.decode(full).count("<|im_start|>") == 2
    original = AutoTokenizer.from_pretrained(chat.root / "edge")
    assert "You help." in original.decode(rendered(original, question(ASKED)))  # else no test


def test_the_end_of_the_trained_turns_travels_with_the_weights(chat):
    """The merged folder names it beside the edge's own eos, and keeps other settings."""
    edge, merged = (
        json.loads((folder / "generation_config.json").read_text())
        for folder in (chat.root / "edge", chat.special / "merged")
    )
    end = AutoTokenizer.from_pretrained(chat.root / "edge").convert_tokens_to_ids("<|im_end|>")
    assert edge.pop("eos_token_id") == 2 and merged.pop("eos_token_id") == [2, end]
    edge.pop("_from_model_config", None)  # else transformers 4 would take config.json's instead
    assert edge == merged


def test_answers_are_transformers_own(chat, tmp_path):
    folder = chat.special / "merged"
    model, theirs = lg.load_model(folder), torch_model(folder)
    exported = AutoTokenizer.from_pretrained(folder)
    assert model.template.name == "chat"
    for asked in (ASKED, "b</s><|im_end|>"):  # a user's text cannot end the turn
        ids = torch.tensor([model.template.prompt(asked)])
        said = theirs.generate(ids, do_sample=False, max_new_tokens=12)
        right = exported.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
        assert lg.chat(model, asked, max_new_tokens=12) == right
    made = ("--input", ASKED, "--max-new-tokens", "12", "--json", tmp_path / "said.json")
    assert lorage("generate", "--model", folder, *made) == 0
    said = json.loads((tmp_path / "said.json").read_text())
    assert lg.chat(model, ASKED, max_new_tokens=12) in said.values()


def test_the_evaluation_asks_in_the_same_turns(chat, tmp_path):
    """Tokens and log-likelihoods are those of torch on what transformers renders."""
    data = write_tasks(tmp_path / "data", records=2)
    args = ("--generator", chat.generator, "--tasks", "arc_easy", "--data", data, "--shots", "0")
    made = ("--json", tmp_path / "scores.json", "--samples", tmp_path / "samples.jsonl")
    assert lorage("eval", *args, *made, "--no-controls") == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    rows = [json.loads(row) for row in (tmp_path / "samples.jsonl").read_text().splitlines()]
    prompt = result["cards"]["arc_easy"]["about"]["prompt"]
    (tmp_path / "prompt.txt").write_text(prompt)
    given = ("--generator", chat.generator, "--prompt", tmp_path / "prompt.txt")
    assert lorage("specialize", *given, "--save", "merged", "--out", tmp_path / "special") == 0
    merged = tmp_path / "special" / "merged"
    exported = AutoTokenizer.from_pretrained(merged)
    records = [record("arc_easy", i + 200) for i in range(2)]  # the test split's
    examples = [get_task("arc_easy").to_example(row, "here") for row in records]
    for arm, folder, system in (
        ("lora_gen", merged, None),
        ("in_context", chat.root / "edge", prompt),
    ):
        model, counts = torch_model(folder), []
        for number, example in enumerate(examples):
            asked = rendered(exported, question(example.user, system))
            counts.append(len(asked))
            right = []
            for choice in example.choices:
                ids = asked + exported.encode(choice, add_special_tokens=False)
                logits = torch_logits(model, np.array([ids]))[0, len(asked) - 1 : -1]
                scores = torch.log_softmax(torch.tensor(logits), -1).numpy()
                right.append(float(sum(scores[i, t] for i, t in enumerate(ids[len(asked) :]))))
            (row,) = [r for r in rows if r["arm"] == arm and r["doc_id"] == number]
            assert row["loglikelihoods"] == pytest.approx(right, abs=2e-3)
        assert result["arms"][arm]["tasks"]["arc_easy"]["edge_tokens"] == np.mean(counts)
