"""Parts of a comparison, and what is kept of them: tied to settings, models, data and results."""

import dataclasses
import json
from itertools import combinations
from types import SimpleNamespace

import pytest

from lorage_jax import distributed, nano
from lorage_jax.compare import kept, measure
from lorage_jax.compare.measure import combined
from lorage_jax.compare.parts import all_parts
from lorage_jax.compare.shots import WithSamples
from lorage_jax.config import CompareConfig, DataConfig, ExperimentConfig, Source, WorldQuestions
from lorage_jax.data.templates import few_shot_prompt
from lorage_jax.errors import ConfigError, OutputError
from lorage_jax.evaluate.arms import Answered, Arm
from lorage_jax.hf.load import load_model
from lorage_jax.methods.bare import Bare
from lorage_jax.methods.lorahub import SearchSettings
from lorage_jax.methods.tuned_cards import TunedCards, TuningSettings
from lorage_jax.world.samples import draw_world

DATA = DataConfig((Source("synthetic", "synthetic"),))
CONFIG = CompareConfig(
    ExperimentConfig(cloud="a", edge="b", out="out", data=DATA, steps=100),
    {"lora_gen": {}, "lora": {}},
)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"setings": None}, r"has a field 'setings'; expected .* did you mean settings"),
        ({"seed": 3}, r"the row lora sets seed, which the comparison sets"),
        ({"samples": -1}, r"samples of lora is -1"),
        (None, r"the row lora is None; expected a dictionary"),
        ({"after": ["lora"]}, r"the row lora comes after \['lora'\]; expected a row"),
        ({"after": "none"}, r"the row lora comes after 'none'; expected a row that is trained"),
        ({"after": "lora"}, r"the row lora comes after 'lora'; expected a row that is trained"),
    ],
)
def test_a_row_with_a_field_that_no_experiment_has(row, says):
    with pytest.raises(ConfigError, match=says):
        CompareConfig(CONFIG.base, {"lora": row})


def test_a_row_may_use_the_runs_of_another():
    """It has their settings and seeds, and figures of its own."""
    base = dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE))
    rows = {"ours": {"method": "lora_gen", "steps": 70}}
    rows |= {"tuned_cards": {"after": "ours", "samples": 5}}
    config = CompareConfig(base, rows)
    _, *parts = all_parts(config, ["ours", "tuned_cards"], 2)
    assert [part.name for part in parts] == [
        *("ours-0", "ours-1"),
        *("tuned_cards-0", "tuned_cards-1"),
    ]
    ours, tuned = parts[1], parts[3]
    assert tuned.experiment == ours.experiment and (tuned.method, tuned.samples) == (
        "tuned_cards",
        5,
    )
    first, own = (kept.identity(config, part, None) for part in (ours, tuned))
    learning = {"steps": 30, "learning_rate": 3e-4, "seed": 0}
    assert own == first | {"samples": 5, "method": "tuned_cards", "learning": learning}
    with pytest.raises(ConfigError, match="uses the runs of ours, so it cannot set steps"):
        CompareConfig(base, rows | {"other": {"after": "ours", "steps": 3}})
    untrained = {"bare": {}, "tuned_cards": {"after": "bare", "samples": 5}}
    for wrong, says in (
        (untrained, "uses runs of bare, a method that is not trained"),
        (rows | {"tuned_cards": {"after": "ours"}}, "learns from samples, but has none"),
    ):
        with pytest.raises(ConfigError, match=says):
            all_parts(CompareConfig(base, wrong), ["tuned_cards"], 1)


def test_a_finished_result_may_be_used_by_other_methods():
    """Each has figures of its own."""
    base = dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE))
    found = []
    for method in ("lora_gen", "tuned_cards", "tuned_fresh"):
        rows = {"row": {"method": method, "trained": nano.GENERATOR, "samples": 5}}
        config = CompareConfig(base, rows)
        found.append(kept.identity(config, all_parts(config, ["row"], 1)[1], None))
    assert all(a != b for a, b in combinations(found, 2))


def test_finished_results_may_have_a_seed(tmp_path):
    rows = {"lorahub": {"trained": str(tmp_path / "loras-{seed}"), "samples": 5}}
    found = all_parts(CompareConfig(CONFIG.base, rows), ["lorahub"], 2)[1:]
    assert [part.name for part in found] == ["lorahub-0", "lorahub-1"]
    assert [part.trained for part in found] == [tmp_path / "loras-0", tmp_path / "loras-1"]


def test_samples_are_learnt_from_or_read():
    """A method that learns from samples gets them; every other one reads them as text."""
    edge = load_model(nano.EDGE)
    asked = WorldQuestions(prompts=2, queries=1, families=("words",))
    base = dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE))
    rows = {
        "tuned_cards": {"trained": str(nano.GENERATOR), "samples": 3},
        "in_context": {"samples": 3},
        "slower": {
            "method": "tuned_cards",
            "trained": str(nano.GENERATOR),
            "samples": 3,
            "learning": TuningSettings(7, 2e-4),
        },
    }
    config = CompareConfig(base, rows, asked)
    _, *parts = all_parts(config, list(rows), 1)
    learning, reading, slower = (measure.load_method(config, part, edge) for part in parts)
    prompt = measure.questions(config)[0].prompts[0]
    assert isinstance(learning, TunedCards) and isinstance(reading, WithSamples)
    pairs = learning.solved[prompt]
    assert len(pairs) == 3
    assert reading.texts[prompt] == few_shot_prompt(prompt, pairs)
    assert (learning.tuning, slower.tuning) == (TuningSettings(), TuningSettings(7, 2e-4))
    first, other = (kept.identity(config, part, None)["learning"] for part in parts[::2])
    assert (first["steps"], other["steps"], other["learning_rate"]) == (30, 7, 2e-4)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"learning": TuningSettings()}, "in_context does not learn from samples"),
        (
            {"method": "tuned_cards", "learning": SearchSettings()},
            "is of type SearchSettings; expected TuningSettings of lorage_jax.methods.tuned_cards",
        ),
    ],
)
def test_settings_of_another_methods_learning_are_told(row, says):
    config = CompareConfig(CONFIG.base, {"in_context": row | {"trained": "x"}})
    with pytest.raises(ConfigError, match=says):
        all_parts(config, ["in_context"], 1)


def test_figures_are_kept_and_belong_to_their_settings(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(measure, "_figures", lambda *_: said.append(1) or {"x": 1})
    base = dataclasses.replace(
        CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE), out=str(tmp_path)
    )
    config = dataclasses.replace(CONFIG, base=base)
    _, part = all_parts(config, ["lora"], 1)
    assert measure.measured(config, part, 3) == measure.measured(config, part, 3) == {"x": 1}
    assert len(said) == 1
    assert measure.measured(config, part) == {"x": 1} and len(said) == 2
    file = tmp_path / "results" / "lora-0-3.json"
    file.write_text(file.read_text().replace(f'"figures": {kept.FIGURES}', '"figures": 1'))
    assert measure.measured(config, part, 3) == {"x": 1} and len(said) == 3  # of an older version
    other = dataclasses.replace(config, base=dataclasses.replace(base, steps=101))
    with pytest.raises(OutputError, match=r"lora-0-3\.json was measured with other settings"):
        measure.measured(other, all_parts(other, ["lora"], 1)[1], 3)


def test_figures_may_be_kept_beside_the_code(tmp_path, monkeypatch):
    """Those of all questions; a check with a limit leaves nothing there."""
    monkeypatch.setattr(measure, "_figures", lambda *_: {"x": 1})
    base = dataclasses.replace(
        CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE), out=str(tmp_path / "runs")
    )
    config = dataclasses.replace(CONFIG, base=base, figures=str(tmp_path / "kept"))
    part = all_parts(config, ["lora"], 1)[1]
    measure.measured(config, part, 3)
    assert not (tmp_path / "kept").exists()
    measure.measured(config, part)
    file = tmp_path / "kept" / "lora-0.json"
    text = file.read_text()
    assert '"path": "synthetic"' in text
    file.write_text(text.replace('"path": "synthetic"', '"path": "/elsewhere/synthetic"'))
    monkeypatch.setattr(measure, "_figures", lambda *_: pytest.fail("measured again"))
    assert measure.measured(config, part) == {"x": 1}, "kept where data lay elsewhere"
    origin = json.loads(text)["provenance"]
    assert origin["machine"]["cpu_cores"] and "command" not in origin


def test_costs_are_kept_for_the_rows_of_one_run(tmp_path):
    base = dataclasses.replace(
        CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE), out=str(tmp_path)
    )
    config = dataclasses.replace(CONFIG, base=base)
    runs = []

    def costs(config, rows):
        def measure():
            runs.append(rows)
            return {row: {"seconds_per_request": len(runs)} for row in ("bare", *rows)}

        return kept.costs(config, all_parts(config, rows, 2), None, measure)

    both = costs(config, ["lora", "lora_gen"])
    assert list(both) == ["bare", "lora", "lora_gen"]
    assert costs(config, ["lora"]) == {row: both[row] for row in ("bare", "lora")}
    assert len(runs) == 1, "measured again"
    other = dataclasses.replace(config, base=dataclasses.replace(base, steps=101))
    assert costs(other, ["lora"])["lora"] == {"seconds_per_request": 2}
    assert costs(other, ["lora", "lora_gen"])["lora"] == {"seconds_per_request": 3}


@pytest.mark.parametrize(
    "content", [b"not json", b"\xff", b"[]", b'{"x": 1}', b'{"identity": 1, "rows": 1}']
)
def test_a_file_of_others_is_told_and_left(tmp_path, content):
    base = dataclasses.replace(
        CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE), out=str(tmp_path)
    )
    config = dataclasses.replace(CONFIG, base=base)
    bare, part = all_parts(config, ["lora"], 1)
    (tmp_path / "results").mkdir()
    for name, keep in (("lora-0", kept.figures), ("costs", kept.costs)):
        file = tmp_path / "results" / f"{name}.json"
        file.write_bytes(content)
        about = part if keep is kept.figures else [bare, part]
        with pytest.raises(OutputError, match=rf"{name}\.json is not a file of lorage compare"):
            keep(config, about, None, lambda: pytest.fail("measured"))
        assert file.read_bytes() == content


def test_processes_with_other_data_are_told(monkeypatch):
    base = dataclasses.replace(CONFIG.base, cloud=str(nano.CLOUD), edge=str(nano.EDGE))
    config = dataclasses.replace(CONFIG, base=base)
    others = lambda text: [text, text.replace("synthetic", "x")]  # noqa: E731  of two processes
    monkeypatch.setattr(distributed, "gather_texts", others)
    part = all_parts(config, ["lora"], 1)[1]
    with pytest.raises(
        ConfigError, match=r"^experiment of lora-0 is .* on process 1, .*same models"
    ):
        kept.figures(config, part, None, lambda: pytest.fail("measured"))


def test_parts_of_a_comparison():
    found = all_parts(CONFIG, ["lora_gen", "lora"], 2)
    assert [one.name for one in found] == ["bare", "lora_gen-0", "lora_gen-1", "lora-0", "lora-1"]
    assert found[-1].experiment.method == "lora" and found[-1].experiment.seed == 1
    assert found[-1].experiment.out == "out/lora-1"
    assert [one.name for one in all_parts(CONFIG, ["in_context", "bare"], 2)] == [
        "in_context",
        "bare",
    ]
    assert not any(one.samples for one in found)
    rows = {
        "three": {"method": "in_context", "samples": 3},
        "shown": {"method": "lora", "steps": 70},
    }
    more = dataclasses.replace(CONFIG, methods=rows)
    _, three, shown = all_parts(more, ["three", "shown"], 1)
    assert (three.name, three.method, three.samples) == ("three", "in_context", 3)
    assert shown.name == "shown-0" and shown.experiment is not None
    run = shown.experiment
    assert (run.method, run.steps, run.out) == ("lora", 70, "out/shown-0")
    with pytest.raises(ConfigError, match="samples of x is -1; expected a number, 0 or more"):
        dataclasses.replace(CONFIG, methods={"x": {"samples": -1}})
    with pytest.raises(ConfigError, match="no method 'direct'; expected lora_gen, lora"):
        all_parts(CONFIG, ["direct"], 1)
    with pytest.raises(ConfigError, match="no method 'nothing'"):
        all_parts(CONFIG, ["nothing"], 1)
    with pytest.raises(ConfigError, match="nothing was measured"):
        combined(CONFIG, {}, set())


def test_lengths_are_of_the_turns_that_a_method_speaks(monkeypatch):
    edge = load_model(nano.EDGE)
    spoken = dataclasses.replace(edge)
    sample = draw_world(prompts=2, queries=1, seed=1, families=("words",))[0]

    def ask(arms, model, units, answer):
        assert model is edge
        answers = [record.target for record in sample.records]
        monkeypatch.setattr(measure.Answering, "__call__", lambda *_: Answered(answers, 5.0))
        answered = answer(arms[0], units[0], SimpleNamespace(model=spoken), [])
        return {"bare": {sample.name: SimpleNamespace(answered=answered)}}

    monkeypatch.setattr(measure, "ask", ask)
    monkeypatch.setattr(
        measure, "tokens_read", lambda model, *_, shown: 9.0 if model is spoken else 0.0
    )
    found = measure.asked(Arm("bare", Bare()), edge, sample)
    assert (found["edge_tokens"], found["context_tokens"]) == (5.0, 9.0)
    assert found["exact_match"] == 1.0
