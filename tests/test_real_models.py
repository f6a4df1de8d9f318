"""Real pretrained models through all of it; minutes each, so by name:

    LORAGE_TEST_DEVICES=1 pytest -m slow tests/test_real_models.py -s -k SmolLM2

The folders of the models are looked for in LORAGE_MODELS, by default ~/.cache/lorage-models. Each
is compared with transformers, peft and lm-eval in float32, and serves as the edge and as the cloud
of a generator that `lorage train` trains for three steps, and `lorage specialize` deploys.
`-s` shows what each stage took.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

import lorage_jax as lg
from lorage_jax.data.templates import has_chat_template
from lorage_jax.infer.generate import generate_tokens

HOME = Path(os.environ.get("LORAGE_MODELS", Path.home() / ".cache" / "lorage-models"))
MODELS = ("SmolLM2-135M-Instruct", "gemma-3-270m", "Qwen2.5-Coder-0.5B-Instruct")
RECORDS = 50  # of each lm-eval task
TEXT = "The capital of France is Paris. The capital of Italy is Rome. The capital of Germany is"
PROMPT = "Answer with one word, in upper case."

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def optimised():
    """XLA's optimisations, which other tests do without: here, programs run longer than compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(params=MODELS)
def folder(request):
    if jax.device_count() > 1:
        pytest.skip(
            "every virtual device would hold a copy of the model; set LORAGE_TEST_DEVICES=1"
        )
    found = HOME / request.param
    if not (found / "config.json").is_file():
        pytest.skip(f"{found} is not here; LORAGE_MODELS names the folder that holds the models")
    return found


@contextmanager
def stage(name):
    """Prints how long a stage took."""
    began = time.perf_counter()
    yield
    print(f"  {name}: {time.perf_counter() - began:.1f} s", flush=True)


def load_torch(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager"
    ).eval()


def assert_same_logits(model, theirs, ids, least=0.0):
    """Ours and torch's logits agree to float32's rounding, relative to the largest logit."""
    with torch.no_grad():
        want = theirs(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    got = np.asarray(lg.forward(model, ids))
    difference = np.abs(got - want).max()
    print(f"    largest difference {difference:.1e} of {np.abs(want).max():.1f}")
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    return got


def assert_same_scores(edge, theirs, data):
    """lm-eval's metrics are equal, and its log-likelihoods agree."""
    from lm_eval.models.huggingface import HFLM

    from lorage_jax.evaluate.harness import LorageLM, run_tasks
    from lorage_jax.evaluate.local_tasks import TaskData

    names, found = ("arc_easy", "piqa"), []
    hf = HFLM(theirs, tokenizer=edge.tokenizer, batch_size=8, device="cpu")
    for name, model in (("ours", LorageLM(edge)), ("lm-eval's hf", hf)):
        with stage(f"{RECORDS} records of each of {', '.join(names)}, {name}"):
            source = TaskData(str(data))
            tasks = {task: source.load(task, 0) for task in names}
            found.append(run_tasks(model, tasks, RECORDS, 1234))
    (metrics, samples), (wanted, wanted_samples) = found
    print("   ", {name: values["acc"] for name, values in metrics.items()})
    assert metrics == wanted
    assert all(values["n"] == RECORDS for values in metrics.values())
    for name in names:
        for ours, hf in zip(samples[name], wanted_samples[name], strict=True):
            assert ours["arguments"] == hf["arguments"]
            for a, b in zip(ours["filtered_resps"], hf["filtered_resps"], strict=True):
                assert a[0] == pytest.approx(b[0], abs=5e-3) and a[1] == b[1]


EXPERIMENT = """
from lorage_jax.config import *

def config():
    return ExperimentConfig(
        cloud={folder!r}, edge={folder!r}, out={out!r},
        data=DataConfig(sources=(Source({records!r}),), prompts_per_batch=8, queries_per_prompt=1,
                        max_prompt_tokens=32, max_query_tokens=32, min_bucket=32),
        generator=GeneratorConfig(rank=4, alpha=8.0, cloud_rank=4),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
        steps=3, dtype="float32", remat="none")
"""


def command(*args):
    """Runs `lorage` as users do: one device, XLA's optimisations. Returns its JSON result."""
    result = Path(args[args.index("--out") + 1]).with_suffix(".json")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "lorage_jax.cli", *map(str, args), "--json", str(result)],
        capture_output=True,
        text=True,
        timeout=1800,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(result.read_text("utf-8"))


def trained_generator(folder, out):
    """Three steps with the model as cloud and as edge; the folder of the generator they leave."""
    prompts = ["Answer with one word.", "Answer in French.", "Repeat the text.", "Count the words."]
    out.mkdir()
    records, experiment = out / "records.jsonl", out / "experiment.py"
    rows = [
        {"system": f"{prompts[i % 4]} Number {i}.", "user": f"bird {i}", "target": f"BIRD {i}"}
        for i in range(24)
    ]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    places = {"folder": str(folder), "out": str(out / "run"), "records": str(records)}
    experiment.write_text(EXPERIMENT.format(**places), "utf-8")
    losses = command("train", experiment, "--out", out / "run")["losses"]
    losses = [loss for _, loss in losses]
    print("    losses", [round(loss, 3) for loss in losses])
    assert len(losses) == 3 and all(0 < loss < 20 for loss in losses)
    return out / "run" / "generator"


def assert_chats_as_transformers(edge, theirs):
    """`lg.chat` gives what transformers' chat template and greedy `generate` give."""
    asked = [{"role": "user", "content": "Name three colours."}]
    text = edge.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ids = edge.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        made = theirs.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    answer = lg.chat(edge, asked, max_new_tokens=16)
    print("   ", repr(answer))
    assert answer == edge.tokenizer.decode(made, skip_special_tokens=True)


def assert_deploys(generator, out):
    """`lorage specialize` in the base's own dtype; transformers reads what it wrote."""
    prompt = out.with_suffix(".txt")
    prompt.write_text(PROMPT, "utf-8")
    report = command(
        "specialize", "--generator", generator, "--prompt", prompt, "--out", out, "--save", "merged"
    )
    parity, merge = report["parity"], report["merge"]
    print("   ", {name: f"{value:.1e}" for name, value in parity.items()})
    print("   ", {key: merge[key] for key in ("rounding", "update_kept", "kl_lost", "kl_effect")})
    assert "unmerged_vs_transformers" in parity and merge["kl_effect"] > 0
    assert merge["kl_lost"] < 0.1 * merge["kl_effect"]
    return out / "merged"


def test_all_of_it(folder, shared, tmp_path):
    print(f"\n{folder.name}")
    with stage("load"):
        edge = lg.load_model(folder, dtype="float32")
    theirs = load_torch(folder)
    ids = np.asarray(edge.tokenizer(TEXT, return_tensors="np")["input_ids"], np.int32)
    with stage("logits, as transformers"):
        before = assert_same_logits(edge, theirs, ids)
    with stage("greedy text"):
        (ours,) = generate_tokens(edge, [ids[0].tolist()], max_new_tokens=16)
    asked = torch.tensor(ids, dtype=torch.long)
    made = theirs.generate(asked, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    print("   ", repr(edge.tokenizer.decode(ours)))
    assert ours == made.tolist()
    if has_chat_template(edge.tokenizer):
        with stage("chat, ours and transformers'"):
            assert_chats_as_transformers(edge, theirs)
    assert_same_scores(edge, theirs, shared / "data" / "commonsense")

    with stage("three training steps, as edge and as cloud"):
        made = trained_generator(folder, tmp_path / "training")
    generator = lg.load_generator(made)
    changed = jax.tree.map(lambda x: float(np.abs(x).max()), generator.trained)
    for part in (changed["pool"], changed["adapters"]):
        assert all(one["b"] > 0 for one in part.values()), part  # they begin at zero
    with stage("specialise"):
        card = lg.specialize(generator, PROMPT)
    with stage("merge"):
        special = lg.merge(edge, generator.pool, card)
    with stage("export"):
        lg.export_merged(special, tmp_path / "merged")
        lg.export_adapter(generator.pool, card, edge, tmp_path / "adapter")
    unmerged = np.asarray(lg.forward(edge, ids, gates=card, pool=generator.pool))
    with stage("PEFT folder, as peft"):
        adapted = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()
        after = assert_same_logits(special, adapted, ids)
    largest = np.abs(after).max()
    assert np.abs(after - before).max() > 1e-3 * largest
    np.testing.assert_allclose(unmerged, after, atol=1e-4 * largest)
    del adapted, theirs, generator, edge
    with stage("lorage specialize, with transformers' logits of the merged folder"):
        assert_deploys(made, tmp_path / "special")
    with stage("merged folder, as transformers"):
        # The folder keeps the base's bfloat16: so does what it is compared with.
        again = lg.load_model(tmp_path / "merged", dtype="float32")
        assert_same_logits(again, load_torch(tmp_path / "merged"), ids)
    np.testing.assert_allclose(lg.forward(again, ids), after, atol=0.05 * largest)
