"""Our models in lm-eval against its own `hf` model: same requests, same answers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from lorage_jax.errors import ConfigError, DataError
from lorage_jax.evaluate.harness import LorageLM, run_tasks
from lorage_jax.evaluate.local_tasks import TaskData
from tests.evaluate.local_data import TASKS, write_tasks
from tests.tiny import byte_tokenizer, make_tiny

SHARED = Path(__file__).parents[3] / "shared"
STORIES, DATA = SHARED / "models" / "stories260K", SHARED / "data"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class ShortHF(HFLM):
    max_gen_toks = 12  # for tasks that set no number


def hf(folder):
    return ShortHF(str(folder), dtype="float32", device="cpu", batch_size=8)


def instances(kind, *arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=i, metadata=("t", i, 1))
        for i, one in enumerate(arguments)
    ]


def assert_same_results(ours, theirs, names):
    """Metrics to the last digit, log-likelihoods within 1e-3, greedy or not, generated text."""
    metrics, samples = ours
    wanted, wanted_samples = theirs
    assert metrics == wanted
    for name in names:
        pairs = zip(samples[name], wanted_samples[name], strict=True)
        for found, expected in pairs:
            assert found["arguments"] == expected["arguments"]
            for a, b in zip(found["filtered_resps"], expected["filtered_resps"], strict=True):
                if isinstance(a, str):
                    assert a == b
                else:
                    assert a[0] == pytest.approx(b[0], abs=1e-3) and a[1] == b[1]


def compare(folder, data, names, shots, limit=None):
    """Runs tasks with both models, with `shots` few-shot samples."""
    ours, theirs = LorageLM(str(folder), max_gen_toks=12), hf(folder)
    results = [
        run_tasks(lm, {name: data.load(name, shots) for name in names}, limit, 1234)
        for lm in (ours, theirs)
    ]
    assert_same_results(*results, names)
    return results[0][0]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return TaskData(str(write_tasks(tmp_path_factory.mktemp("tasks"), records=10)))


@pytest.mark.parametrize(
    "family",
    ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "gemma2"))],
)
def test_all_tasks_agree_with_the_hf_model(tiny, local, family):
    """With every task's own layout, few-shot samples, partial evaluation and generation."""
    metrics = compare(tiny(family)[0], local, list(TASKS), shots=1)
    assert all(values["n"] == 10 for values in metrics.values())
    assert "acc_norm" in metrics["hellaswag"] and "acc_stderr" in metrics["winogrande"]
    assert "exact_match,strict-match" in metrics["gsm8k"]


def test_contexts_that_are_too_long_are_cut_alike_and_counted(tiny, local):
    """Five samples of each task exceed 256 positions of a byte tokenizer."""
    folder = tiny("llama")[0]
    compare(folder, local, ["boolq", "arc_easy"], shots=5)
    model = LorageLM(str(folder))
    run_tasks(model, {"boolq": local.load("boolq", 5)}, None, 1234)
    assert model.counts["truncated"] == model.counts["requests"] == 20
    assert model.counts["edge_tokens"] <= 20 * 256


def test_rolling_and_empty_contexts(tiny):
    folder = tiny("qwen2")[0]
    ours, theirs = LorageLM(str(folder)), hf(folder)
    texts = [("A short text.",), ("long " * 130,)]  # of 650 bytes: three windows
    found = ours.loglikelihood_rolling(instances("loglikelihood_rolling", *texts))
    wanted = theirs.loglikelihood_rolling(instances("loglikelihood_rolling", *texts))
    assert found == pytest.approx(wanted, abs=3e-3)
    pairs = [("", "hello there"), ("ends in space ", "then goes on"), ("</s> odd", " one")]
    found = ours.loglikelihood(instances("loglikelihood", *pairs))
    wanted = theirs.loglikelihood(instances("loglikelihood", *pairs))
    for a, b in zip(found, wanted, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-3) and a[1] == b[1]


def test_a_tokenizer_that_begins_with_bos_by_itself(tiny, tmp_path):
    """Llama's adds it once before a context, but not before a continuation alone."""
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama")[0], folder)
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(str(folder))
    ours, theirs = LorageLM(str(folder)), hf(folder)
    assert ours.tok_encode("a")[0] == 1 and ours.tok_encode("<s>a") == ours.tok_encode("a")
    pairs = [("", "hello"), ("A context", " goes on"), ("<s>It has one", " already")]
    found = ours.loglikelihood(instances("loglikelihood", *pairs))
    wanted = theirs.loglikelihood(instances("loglikelihood", *pairs))
    for a, b in zip(found, wanted, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-3) and a[1] == b[1]


def test_generation_stops_where_the_hf_model_stops(tiny):
    folder = tiny("llama")[0]
    ours, theirs = LorageLM(str(folder)), hf(folder)
    free = theirs.generate_until(
        instances("generate_until", ("Say something", {"max_gen_toks": 24}))
    )[0]
    stop = free[10:12]
    settings = {"until": [stop], "max_gen_toks": 24}
    requests = instances(
        "generate_until", *[(text, settings) for text in ("Say something", "Other", "x" * 300)]
    )
    found, wanted = ours.generate_until(requests), theirs.generate_until(requests)
    assert found == wanted
    assert stop not in found[0] and len(found[0]) < len(free)


def test_rows_that_have_ended_are_not_decoded_while_others_go_on(tiny, monkeypatch):
    """Each check of the stop strings decodes a row once."""
    model, decoded = LorageLM(str(tiny("llama")[0])), []
    decode = model.tokenizer.decode
    checks = []

    def generate(_model, rows, *, watch, **_):
        monkeypatch.setattr(model.tokenizer, "decode", lambda *a, **b: decoded.append(a) or "text.")
        for ended in ([False, True], [True, True]):
            checks.append((watch([[5, 6], [7]], ended), len(decoded)))
        monkeypatch.setattr(model.tokenizer, "decode", decode)
        return [[5, 6], [7]]

    monkeypatch.setattr("lorage_jax.evaluate.harness.generate_tokens", generate)
    model._generate([[1], [1]], ("no",), 24, 1.0)
    assert checks == [([False, True], 1), ([True, True], 1)]
    checks.clear()
    model._generate([[1], [1]], (".",), 24, 1.0)
    assert checks[0][0] == [True, True]


@pytest.mark.slow
def test_a_model_that_is_not_there_is_one_line_on_lm_evals_own_command_line(tmp_path):
    command = [
        *(sys.executable, "-m", "lorage_jax.evaluate.harness", "run", "--model", "lorage"),
        *("--model_args", f"pretrained={tmp_path}/nope", "--tasks", "piqa"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"lorage: {tmp_path}/nope is not a folder.")


@pytest.mark.slow
def test_lm_evals_own_command_line_knows_the_model(tiny, tmp_path):
    """`python -m lorage_jax.evaluate.harness` with a user's own task file, asked in chats."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"q": f"{i} and", "a": str(i + 1)}) + "\n" for i in range(4))
    )
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path}/rows.jsonl\noutput_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: ["{{a}}", "none"]\ndoc_to_target: 0\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    shutil.copytree(tiny("llama")[0], tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    )
    tokenizer.save_pretrained(str(tmp_path / "model"))
    command = [
        *(sys.executable, "-m", "lorage_jax.evaluate.harness", "run", "--model", "lorage"),
        *("--model_args", f"pretrained={tmp_path}/model,dtype=float32", "--tasks", "mine"),
        *("--include_path", str(tmp_path), "--apply_chat_template"),
        *(
            "--system_instruction",
            "Count.",
            "--log_samples",
            "--output_path",
            str(tmp_path / "out"),
        ),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "lorage" in done.stdout and "acc" in done.stdout
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    assert "system: Count.user: 0 and" in samples.read_text()
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["chat_template"] == tokenizer.chat_template


def test_sampling_and_too_many_tokens_are_refused(tiny):
    model = LorageLM(str(tiny("llama")[0]))
    sampled = ("Hi", {"do_sample": True, "temperature": 0.7})
    with pytest.raises(ConfigError, match="decoding is greedy"):
        model.generate_until(instances("generate_until", sampled))
    with pytest.raises(DataError, match="300 new tokens were requested, but the"):
        model.generate_until(instances("generate_until", ("Hi", {"max_gen_toks": 300})))
    with pytest.raises(ConfigError, match="encoding is 'other'"):
        LorageLM(str(tiny("llama")[0]), encoding="other")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason=f"needs the real data sets in {DATA}")
@pytest.mark.parametrize(
    ("names", "limit"),
    [
        (["arc_challenge", "openbookqa"], None),
        (["arc_easy", "boolq", "social_iqa", "piqa", "winogrande", "hellaswag"], 200),
    ],
)
def test_a_trained_checkpoint_on_the_real_tasks(names, limit):
    """stories260K: whole test splits of ARC-c and OpenBookQA, 200 records of the others."""
    compare(STORIES, TaskData(str(DATA)), names, shots=0, limit=limit)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason=f"needs the real data sets in {DATA}")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize(
    ("names", "limit"),
    [
        (["arc_challenge", "openbookqa"], None),
        (["arc_easy", "boolq", "social_iqa", "piqa", "winogrande", "hellaswag"], 200),
    ],
)
def test_random_models_on_the_real_tasks(tmp_path, family, names, limit):
    """With a token per byte, the longest endings exceed the tiny models' default 256 positions."""
    make_tiny(family, tmp_path / "model", max_position_embeddings=1024)
    compare(tmp_path / "model", TaskData(str(DATA)), names, shots=0, limit=limit)
