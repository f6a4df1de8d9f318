"""A model with an adapter is scored as by lm-eval's `hf` model with `peft=` on the same folders."""

import json
from typing import Any, cast

import peft
import pytest
import torch
import transformers

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

from lorage_jax.errors import WeightsError
from lorage_jax.evaluate.harness import LorageLM, run_tasks
from lorage_jax.evaluate.local_tasks import TaskData
from lorage_jax.generator.peft import load_adapter
from lorage_jax.hf.load import load_model
from tests.commands.world import lorage
from tests.evaluate.local_data import write_tasks
from tests.evaluate.test_harness import ShortHF, assert_same_results, instances
from tests.tiny import byte_tokenizer, make_tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
NAMES = ["piqa", "gsm8k"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base as wide as its tokenizer, and an adapter on attention and FFN."""
    root = tmp_path_factory.mktemp("peft")
    make_tiny("llama", root / "base", vocab_size=len(byte_tokenizer()))
    return root / "base", adapter_of(root / "base", root / "adapter")


def adapter_of(base, adapter):
    """A random adapter that changes the answers of a base."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], r=4, lora_alpha=3
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(str(base))
    adapted: Any = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.normal_(0, 0.3)
    adapted.save_pretrained(str(adapter))
    return adapter


def hf_with(base, adapter):
    model = cast(Any, ShortHF)
    return model(str(base), peft=str(adapter), dtype="float32", device="cpu", batch_size=8)


def test_peft_in_the_harness(folders):
    base, adapter = folders
    ours, plain = LorageLM(str(base), peft=str(adapter)), LorageLM(str(base))
    theirs = hf_with(base, adapter)
    asked = instances("loglikelihood", ("A context", " goes on"), ("", "hello"), ("x", "yz"))
    found, right = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    for one, other, bare in zip(found, right, plain.loglikelihood(asked), strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-3) and one[1] == other[1]
        assert abs(one[0] - bare[0]) > 0.1
    said = instances("generate_until", ("Say something", {"until": ["zz"], "max_gen_toks": 12}))
    assert ours.generate_until(said) == theirs.generate_until(said) != plain.generate_until(said)
    with pytest.raises(WeightsError, match="not a PEFT folder"):
        LorageLM(str(base), peft=str(base))


@pytest.mark.parametrize("family", ["llama", "gemma"])  # a head of its own, or tied
def test_a_vocabulary_wider_than_the_tokenizer(tiny, tmp_path, family):
    """`hf` cuts such embeddings to the tokenizer's size when it loads an adapter."""
    base, adapter = tiny(family)[0], adapter_of(tiny(family)[0], tmp_path / "adapter")
    ours, theirs = LorageLM(str(base), peft=str(adapter)), hf_with(base, adapter)
    asked = instances("loglikelihood", ("A context", " goes on"), ("x", "yz"))
    found, right = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    for one, other in zip(found, right, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-3) and one[1] == other[1]
    whole = LorageLM(load_adapter(adapter, load_model(base)))
    assert whole.loglikelihood(asked)[0][0] != pytest.approx(right[0][0], abs=1e-2)


def test_eval_with_an_adapter(tiny, tmp_path):
    """`lorage eval --adapter`, on the records and few-shot samples that `hf` is given.

    The vocabulary is wider than the tokenizer: `hf` cuts it, below an adapter only.
    """
    base, adapter = tiny("llama")[0], adapter_of(tiny("llama")[0], tmp_path / "adapter")
    data = write_tasks(tmp_path / "tasks", records=6)
    args = ["--tasks", ",".join(NAMES), "--shots", "1", "--data", data, "--max-new-tokens", "12"]
    scored = {}
    for name, given in {"base": [], "adapted": ["--adapter", adapter]}.items():
        files = ["--json", tmp_path / f"{name}.json", "--samples", tmp_path / f"{name}.jsonl"]
        assert lorage("eval", "--model", base, *args, *given, *files) == 0
        scored[name] = json.loads((tmp_path / f"{name}.json").read_text())
    tasks = TaskData(str(data))

    def run(lm):
        return run_tasks(lm, {name: tasks.load(name, 1) for name in NAMES}, None, 1234)

    right = run(hf_with(base, adapter))
    assert_same_results(run(LorageLM(str(base), peft=str(adapter), max_gen_toks=12)), right, NAMES)
    for name in NAMES:
        found = scored["adapted"]["results"][name]
        assert {key: found[key] for key in right[0][name]} == right[0][name]
    bare, own = (scored[name]["model"]["edge_fingerprint"] for name in ("base", "adapted"))
    assert bare != own
    rows = [json.loads(line) for line in (tmp_path / "adapted.jsonl").read_text().splitlines()]
    piqa = [row["loglikelihoods"] for row in rows if row["task"] == "piqa"]
    for row, sample in zip(piqa, right[1]["piqa"], strict=True):
        wanted = [answer[0] for answer in sample["filtered_resps"]]
        assert row == pytest.approx(wanted, abs=1e-3)
    others = (tmp_path / "base.jsonl").read_text()
    assert others != (tmp_path / "adapted.jsonl").read_text()
