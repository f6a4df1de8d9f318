"""The report shows the files' values in the right columns, escaped; dashes where none."""

import functools

import numpy as np
import pytest

from lorage_jax.evaluate.paired import Gap
from lorage_jax.hf.presets import SHAPES
from lorage_jax.models.presets import parameter_count
from lorage_jax.report.controls import verdict
from lorage_jax.report.paper import TABLE_2, TABLE_3, TABLE_13, TASKS, TOOL_SCORES
from tests.report.example import (
    NAMES,
    Html,
    acc,
    evaluation,
    flops,
    markdown_tables,
    rendered,
    table,
    tools,
)

DASH = "\u2013"


@pytest.fixture
def pages(tmp_path):
    """pages(name=values, ...) -> (HTML, Markdown) of a report on these files."""
    return functools.partial(rendered, tmp_path)


def both(pages, **files):
    html, markdown = pages(**files)
    return Html(html).tables, markdown_tables(markdown)


# The paper


@pytest.mark.parametrize("line", TABLE_2, ids=lambda line: f"{line.model} {line.method}")
def test_the_papers_rows_agree_with_their_own_means(line):
    """It detects wrong digits, as AVE and HAR follow from the eight values."""
    assert len(line.scores) == len(TASKS) == 8
    assert np.mean(line.scores) == pytest.approx(line.average, abs=0.051)
    assert 8 / sum(1 / s for s in line.scores) == pytest.approx(line.harmonic, abs=0.051)


def test_the_papers_other_tables():
    for line in TABLE_3:
        assert np.mean(line.scores[:5]) == pytest.approx(line.scores[5], abs=0.051)
    with_prompt, specialized = TABLE_13[0].inference, TABLE_13[-1].inference
    assert pytest.approx(with_prompt, rel=1e-3) == 300 * 1.5435e9 + 28 * 2 * 300**2 * 1536
    assert pytest.approx(specialized, rel=1e-3) == 100 * 1.5435e9 + 28 * 2 * 100**2 * 1536


# Table 2


def test_our_numbers_stand_in_their_columns(pages):
    for tables in both(pages, scores=evaluation()):
        rows = table(tables, "Table 2")
        ours, other = rows["specialised (LoRA-Gen)"], rows["prompt in the context"]
        for task in TASKS:
            column = f"{task.short} ({'seen' if task.seen else 'unseen'})"
            assert ours[column] == f"{100 * acc('lora_gen', task.name):.1f} ± 1.1"
            assert other[column] == f"{100 * acc('in_context', task.name):.1f} ± 2.1"
            assert rows["records (n)"][column] == str(100 + NAMES.index(task.name))
        assert (ours["AVE"], ours["HAR"], ours["ms"]) == ("50.0 ± 0.4", "45.0", DASH)
        assert rows["MixLoRA"]["BoolQ (seen)"] == "73.3" and rows["MixLoRA"]["ms"] == "100.1"
        assert [task.short for task in TASKS if not task.seen] == ["HellaS", "WinoG", "PIQA"]
        apart = table(tables, "Seen and unseen")
        assert apart["specialised (LoRA-Gen)"]["seen (5 tasks)"] == "48.0"
        assert apart["specialised (LoRA-Gen)"]["unseen (3 tasks)"] == DASH
        assert apart["specialised (LoRA-Gen)"]["all that were run"] == "70.0 ± 0.6"
        assert apart["LoRAMoE"]["unseen (3 tasks)"] == f"{(45.4 + 62.0 + 74.1) / 3:.1f}"


def test_what_was_not_run_is_a_dash(pages):
    values = evaluation(tasks=("piqa", "gsm8k_like", "boolq")[::2])
    values["arms"]["lora_gen"]["tasks"]["boolq"]["acc"] = float("nan")
    values["arms"]["lora_gen"]["tasks"]["piqa"]["acc_stderr"] = None
    for tables in both(pages, scores=values):
        ours = table(tables, "Table 2")["specialised (LoRA-Gen)"]
        shown = {name: cell for name, cell in ours.items() if cell not in (DASH, "")}
        assert shown == {"": "specialised (LoRA-Gen)", "PIQA (unseen)": "75.8"}


EXACT = "exact_match,strict-match"  # as lm-eval names it


def test_other_tasks_and_metrics_have_a_table_of_their_own(pages):
    values = evaluation()
    tasks = values["arms"]["lora_gen"]["tasks"]
    tasks["gsm8k"] = {EXACT: 0.123, "exact_match_stderr,strict-match": 0.01, "n": 9}
    tasks["gsm8k"] |= {"bytes": 3.25, "bytes_stderr": 0.5, "shots": 8}
    tasks["piqa"]["acc_norm"] = 0.707
    for tables in both(pages, scores=values):
        rows = table(tables, "Other metrics")
        assert set(rows) == {"PIQA: acc_norm", f"gsm8k: {EXACT}", "gsm8k: bytes"}
        assert rows[f"gsm8k: {EXACT}"]["specialised (LoRA-Gen)"] == "12.3 ± 1.0"
        assert rows["gsm8k: bytes"]["specialised (LoRA-Gen)"] == "3.250 ± 0.500"
        assert rows["PIQA: acc_norm"]["prompt in the context"] == DASH


# Controls, tokens


def test_gaps_with_their_errors_and_marks(pages):
    for tables in both(pages, scores=evaluation()):
        rows = table(tables, "specialised (LoRA-Gen) minus")
        assert set(rows) == {*(task.short for task in TASKS), "AVE"}
        assert rows["PIQA"]["another task's prompt (control)"].rstrip(" *") == "+3.1 ± 0.9"
        assert rows["PIQA"]["mean gates (control)"] == "+0.4 ± 0.8"
    html, markdown = pages(scores=evaluation())
    assert html.count("+3.1 <small>± 0.9 *</small>") == 9 and "± 0.8 *" not in html
    assert markdown.count(r"+3.1 ± 0.9 \* |") == 9 and r"± 0.8 \*" not in markdown


def test_other_methods_are_no_controls_and_have_no_times(pages):
    scores = evaluation()
    scores["arms"]["mine"] = scores["arms"]["lora_gen"]
    scores["gaps"]["mine"] = scores["gaps"].pop("mean_gates")
    times = {"prefill_ms_with_prompt": 812.34, "prefill_ms_specialized": 301.12}
    latency = {"bench": "latency", "shape": "tinyllama", "layers": 22} | times
    for tables in both(pages, scores=scores, latency=latency):
        controls = table(tables, "specialised (LoRA-Gen) minus each other arm")
        assert "mine" not in controls["PIQA"]
        assert "another task's prompt (control)" in controls["PIQA"]
        others = table(tables, "specialised (LoRA-Gen) minus each other method")
        assert others["PIQA"]["mine"] == "+0.4 ± 0.8" and len(others["PIQA"]) == 2
        rows = table(tables, "Table 2")
        assert rows["specialised (LoRA-Gen)"]["ms"] == "301.1" and rows["mine"]["ms"] == DASH


EIGHT = dict.fromkeys(NAMES, (0.01, False))


@pytest.mark.parametrize(
    ("gaps", "says"),
    [
        (EIGHT | {"ave": (0.031, True)}, "+3.1 ± 0.9 points (AVE), significantly better."),
        (EIGHT | {"ave": (-0.031, True)}, "-3.1 ± 0.9 points (AVE), significantly worse."),
        (EIGHT | {"ave": (0.031, False)}, "+3.1 ± 0.9 points (AVE), not significant: this run"),
        (EIGHT | {"ave": (-0.0001, False)}, "+0.0 ± 0.9 points"),  # never minus zero
        # eval's mean is over all tasks that ran; AVE is over the paper's eight only
        ({"piqa": (0, False), "ave": (0.031, True)}, "points (mean of 1 task), significantly"),
        (EIGHT | {"gsm8k": (0, False), "ave": (0.031, True)}, "points (mean of 9 tasks)"),
        (
            {"a": (0.1, True), "b": (-0.1, True), "c": (0.1, False), "d": (0.2, True)},
            "significantly better on 2 and worse on 1 of 4 tasks",
        ),
    ],
)
def test_the_verdict_in_words(gaps, says):
    gaps = {name: Gap(gap, 0.009, significant) for name, (gap, significant) in gaps.items()}
    said = verdict("lora_gen", "shuffled", gaps)
    assert says in said and "another task's prompt (control)" in said


def test_verdicts_and_words_are_on_the_page(pages):
    for text in pages(scores=evaluation(gpt4tools=tools())):
        assert "The prompt makes a difference." in text and "Tools get through." in text
        assert text.index("The prompt makes") < text.index("Table 2 of the paper")
        assert "mean gates (control): +0.4 ± 0.8 points (AVE), not significant" in text


def test_tokens_and_their_compression(pages):
    for tables in both(pages, scores=evaluation()):
        row = table(tables, "Tokens")["BoolQ"]
        assert row["edge, prompt in context"] == "240.0" and row["edge, lora_gen"] == "60.0"
        assert row["compression"] == "4.0x" and row["cloud, once per task"] == "190"
        assert (row["cut, in context"], row["cut, lora_gen"]) == ("3", "0")


# Tables 3 and 13, Fig. 1


def test_table_3_with_both_scorers(pages):
    for tables in both(pages, scores=evaluation(tasks=(), gpt4tools=tools(), gaps={})):
        official, strict = table(tables, "Table 3"), table(tables, "The same answers")
        for index, (_, column) in enumerate(TOOL_SCORES):
            assert official["specialised (LoRA-Gen)"][column] == f"{61 + index}.0 ± 2.0"
            assert strict["specialised (LoRA-Gen)"][column] == f"{51 + index}.0"
        assert official["specialised (LoRA-Gen)"]["compression"] == "6.2x"
        assert official["LoRA, without tools"]["SRact"] == "60.9"
        assert official["LoRA-Gen"]["compression"] == "10.1x"
        assert "LoRA-Gen" not in strict  # the paper has no such figures


def test_gpt4tools_alone(pages):
    """There is no main arm then, and the origin of the records must be conspicuous."""
    values = evaluation(main=None, arms={}, gaps={}, gpt4tools=tools())
    html, markdown = pages(scores=values)
    assert '<tr class="ours"><td class="text">specialised (LoRA-Gen)</td>' in html
    for text in (html, markdown):
        assert "gen-folder on edge-folder (scores.json): 9 of them." in text


def test_what_each_arm_means_is_told_once(pages):
    html, _ = pages(scores=evaluation(), again=evaluation())
    assert html.count("prompt in the context: what in_context means.") == 1


def test_table_13_and_all_figures_of_a_bench(pages):
    old = {"bench": "merge", "lorage_seconds": 2.0961, "nested": {"deep": [1] * 200}, "ok": True}
    html, markdown = pages(flops=flops(), old=old)
    for tables in (Html(html).tables, markdown_tables(markdown)):
        rows = table(tables, "Table 13")
        ours = rows["instruction in the prompt (base, LoRA)"]
        assert list(ours.values())[1:] == ["4.600e+11", "2.00x"]
        assert list(rows["cloud pass, once per prompt"].values())[1:] == [DASH, DASH]
        assert list(rows["MixLoRA"].values())[1:] == ["5.048e+11", "3.25x"]
        plain = table(tables, "bench merge: old.json")
        assert plain["lorage_seconds"]["value"] == "2.096" and plain["ok"]["value"] == "yes"
        assert plain["nested.deep"]["value"] == "200 values"
    assert "paid for itself after 6 requests" in html and "lorage bench flops" in markdown
    assert "old.json: the command was not recorded" in markdown


KEPT = "prompt in the context, its keys kept"


def test_times_of_requests_with_the_prompt_read_anew_kept_and_without_it(pages):
    ways = {"with_prompt": (300, 812.34), "prompt_cached": (100, 450.5), "specialized": (100, 300)}
    latency = {"bench": "latency", "shape": "tinyllama", "depth": "all 22 layers", "layers": 22}
    for number, (way, (tokens, request)) in enumerate(ways.items()):
        latency |= {
            f"tokens_{way}": tokens,
            f"prefill_ms_{way}": request / 2,
            f"decode_per_token_ms_{way}": 11.0 + number,
            f"request_ms_{way}": request,
        }
    values = evaluation()
    values["arms"]["in_context_cached"] = values["arms"]["in_context"]
    html, markdown = pages(scores=values, latency=latency)
    for tables in (Html(html).tables, markdown_tables(markdown)):
        rows = table(tables, "Time of a request")
        found = {label: list(cells.values())[1:] for label, cells in rows.items()}
        anew, kept = found["prompt in the context, read anew"], found[KEPT]
        assert anew == ["300", "406.2", "11.0", "812.3", "2.71x"]
        assert kept == ["100", "225.2", "12.0", "450.5", "1.50x"]
        assert found["specialised, no prompt"] == ["100", "150.0", "13.0", "300.0", "1.00x"]
        assert table(tables, "Table 2")[KEPT]["ms"] == "225.2"
    routed = "MixLoRA's experts beside the edge, prompt in the context"
    assert routed not in rows
    values = {"tokens_mixlora": 300, "prefill_ms_mixlora": 500.04}
    rows = table(Html(pages(latency=latency | values)[0]).tables, "Time of a request")
    assert list(rows[routed].values())[1:] == ["300", "500.0", DASH, DASH, DASH]
    old = {name: value for name, value in latency.items() if "cached" not in name}
    rows = table(Html(pages(latency=old)[0]).tables, "Time of a request")
    assert list(rows[KEPT].values())[1:] == [DASH] * 5
    assert "Time of a request" not in pages(flops=flops())[0]


def test_a_latency_counts_only_for_a_model_as_large(pages):
    assert evaluation()["model"]["parameters"] == parameter_count(SHAPES["tinyllama"])
    times = {"prefill_ms_with_prompt": 812.34, "prefill_ms_specialized": 301.12}
    latency = {"bench": "latency", "shape": "tinyllama", "layers": 22} | times
    cases = (({}, ("301.1", "812.3")), ({"layers": 4}, (DASH, DASH)), ({"shape": "x"}, (DASH,) * 2))
    for changes, expected in cases:
        html, _ = pages(scores=evaluation(), latency=latency | changes)
        rows = table(Html(html).tables, "Table 2")
        arms = ("specialised (LoRA-Gen)", "prompt in the context")
        assert tuple(rows[arm]["ms"] for arm in arms) == expected
        assert ("Filled: 2 of ours" in html) == (not changes)
        assert ("There is no point of ours" in html) == bool(changes)


def test_the_processor_is_named_where_a_file_says_it(pages):
    values = evaluation()
    machine = values["provenance"]["machine"]
    for cpu, said in ((None, "1 x cpu, 2 cores"), ("Xeon 8", "1 x cpu, 2 cores of Xeon 8")):
        values["provenance"]["machine"] = machine | ({} if cpu is None else {"cpu": cpu})
        rows = table(Html(pages(scores=values)[0]).tables, "The files of this report")
        assert [cells["machine"] for cells in rows.values()] == [said]
