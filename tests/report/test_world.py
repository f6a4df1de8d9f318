"""Several runs to one table: errors over seeds or prompts, and Markdown."""

import json
import math

import pytest

from lorage_jax.errors import DataError
from lorage_jax.evaluate.gpt4tools import SCORES
from lorage_jax.report.world import combine, to_markdown
from lorage_jax.world.scores import from_json

SPLITS = ("words/paraphrase", "tools/tools")


def measured(by_prompt, scores=None, stderr=0.25):
    mean = sum(by_prompt) / len(by_prompt)
    one = {"exact_match": mean, "stderr": 0.5, "by_prompt": by_prompt}
    one |= {"prompts": len(by_prompt), "records": 3 * len(by_prompt)}
    if scores is not None:
        figures = {"mean": dict.fromkeys(SCORES, scores), "stderr": dict.fromkeys(SCORES, stderr)}
        one["scores"] = {"official": figures, "strict": figures}
    return one


def result(**methods):
    return from_json(values(**methods))


def values(**methods):
    return {
        split: {
            "methods": {
                name: measured(values, values[0] if split == "tools/tools" else None)
                for name, values in methods.items()
            }
        }
        for split in SPLITS
    }


def base(**methods):
    facts = {
        "blind_ceiling": 0.125,
        "tokens": {"without_prompt": 10.0, "with_prompt": 45.0, "compression": 4.5},
    }
    return from_json({split: one | facts for split, one in values(**methods).items()})


BASE = base(in_context=[1.0, 0.5], bare=[0.0, 0.0])
SEEDS = [
    result(lora_gen=[0.9, 0.7], shuffled=[0.1, 0.1]),
    result(lora_gen=[0.5, 0.5], shuffled=[0.1, 0.3]),
    result(lora_gen=[1.0, 0.3], shuffled=[0.1, 0.2]),
]
SECONDS = {
    "words/paraphrase": {
        "batch": {"in_context": 0.009, "lora_gen": 0.002, "ratio": 4.5},
        "single": {"in_context": 0.02, "lora_gen": 0.01, "ratio": 2.0},
        "rows": 32,
        "new_tokens": 7,
    }
}


def test_errors_over_seeds_and_over_prompts():
    table = combine(SEEDS, BASE, [result(lora=[0.25, 0.75])], SECONDS)
    split = table["splits"]["words/paraphrase"]
    # Seeds' means 0.8, 0.5, 0.65: variance 0.0225.
    assert split["methods"]["lora_gen"] == pytest.approx(
        {
            "mean": 0.65,
            "stderr": math.sqrt(0.0225 / 3),
            "over": "seeds",
            # Prompts' means 0.8 and 0.5.
            "stderr_prompts": math.sqrt(0.045 / 2),
            "seeds": 3,
            "n": 2,
            "records": 6,
        }
    )
    over_prompts = {"over": "prompts", "n": 2, "records": 6}
    assert split["methods"]["in_context"] == pytest.approx(
        {"mean": 0.75, "stderr": 0.25, "stderr_prompts": 0.25, "seeds": 0, **over_prompts}
    )
    assert split["methods"]["lora"] == pytest.approx(
        {"mean": 0.5, "stderr": 0.25, "stderr_prompts": 0.25, "seeds": 1, **over_prompts}
    )
    assert list(split["methods"]) == [
        "bare",
        "lora",
        "lora_gen",
        "in_context",
        "shuffled",
    ]
    assert split["blind_ceiling"] == 0.125 and split["tokens"]["compression"] == 4.5
    assert table["seconds_per_request"] == SECONDS
    # The tools' scores: 0.9, 0.5, 1.0 over seeds; 1.0 with its own error over prompts.
    methods = table["splits"]["tools/tools"]["methods"]
    variance = ((0.9 - 0.8) ** 2 + (0.5 - 0.8) ** 2 + (1.0 - 0.8) ** 2) / 2
    assert methods["lora_gen"]["scores"]["strict"]["iou"] == pytest.approx(
        {"mean": 0.8, "stderr": math.sqrt(variance / 3)}
    )
    assert methods["in_context"]["scores"]["official"]["args"] == {
        "mean": 1.0,
        "stderr": 0.25,
    }
    assert json.loads(json.dumps(table)) == table


def test_one_seed_has_an_error_over_prompts():
    one = combine(SEEDS[:1], BASE)["splits"]["words/paraphrase"]["methods"]["lora_gen"]
    assert (one["seeds"], one["over"]) == (1, "prompts")
    assert one["stderr"] == one["stderr_prompts"] == pytest.approx(0.1)


def test_without_trained_methods():
    table = combine([], BASE)
    assert list(table["splits"]["tools/tools"]["methods"]) == list(BASE["tools/tools"].arms)[::-1]
    assert "±" in to_markdown(table)


def test_runs_on_other_samples_are_refused():
    with pytest.raises(DataError, match="same samples"):
        combine([SEEDS[0], {SPLITS[0]: SEEDS[1][SPLITS[0]]}], BASE)
    with pytest.raises(DataError, match=r"\[2, 3\] prompts"):
        combine([SEEDS[0], result(lora_gen=[0.1, 0.2, 0.3], shuffled=[0.1, 0.1])], BASE)


def test_markdown():
    text = to_markdown(combine(SEEDS, BASE, seconds=SECONDS))
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# The built-in world",
        "## words",
        "## tools",
    ]
    header = "split | bare | lora_gen | in_context | shuffled | blind_ceiling"
    assert f"| {header} |" in lines
    figures = "0.000 ± 0.000 | 0.650 ± 0.087 | 0.750 ± 0.250 | 0.150 ± 0.029 | 0.125"
    assert f"| paraphrase | {figures} |" in lines
    assert "| paraphrase | 45.0 | 10.0 | 4.50x |" in lines
    assert "| paraphrase, 32 at once | 9.00 | 2.00 | 4.50x |" in lines
    assert "| paraphrase, one at a time | 20.00 | 10.00 | 2.00x |" in lines
    score = "0.800 ± 0.153"
    assert lines.count(f"| **lora_gen** |{f' {score} |' * 5}") == 2  # official and strict
    words = text[: text.index("## tools")]
    assert "GPT4Tools" not in words and "Milliseconds" not in text[len(words) :]
    assert "over 3 seeds" in text
    assert "2 prompts per split, 6 requests." in text


def test_times_of_old_files_come_under_todays_names():
    """Files of version 0.1 have them under other names."""
    old = {"with_prompt": 0.009, "specialized": 0.002, "ratio": 4.5}
    table = combine([], BASE, seconds={"words/paraphrase": {"batch": old, "rows": 32}})
    found = table["seconds_per_request"]["words/paraphrase"]
    assert found == {"batch": {"in_context": 0.009, "lora_gen": 0.002, "ratio": 4.5}, "rows": 32}
