"""A generator goes on in the chat templates of its training, and notices that one was changed."""

import dataclasses
import json
import logging

import pytest

import lorage_jax as lg
from lorage_jax.config import DataConfig, ExperimentConfig, GeneratorConfig, Source
from lorage_jax.data.templates import question
from lorage_jax.data.templates.template import PROBE
from lorage_jax.errors import ConfigError, TrainingError, WeightsError
from lorage_jax.methods.training import train
from lorage_jax.train.generator import begun_generator
from tests.data.test_chat_templates import CHATML, GEMMA, with_template
from tests.generator.test_adapter_turns import chat_folder

CHAT = question("hi there")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_file):
    """A folder with cloud, edge and a generator that was trained in chat turns; the config."""
    root = tmp_path_factory.mktemp("chat")
    chat_folder(root / "cloud", GEMMA, seed=3)
    chat_folder(root / "edge", CHATML, seed=4)
    config = ExperimentConfig(
        cloud=str(root / "cloud"),
        edge=str(root / "edge"),
        out=str(root / "run"),
        data=DataConfig(
            (Source(str(data_file)),),
            prompts_per_batch=8,
            max_prompt_tokens=64,
            max_query_tokens=64,
            min_bucket=64,
            template="chat",
        ),
        generator=GeneratorConfig(rank=2, cloud_rank=2),
        steps=60,
        dtype="float32",
        remat="none",
        save_every=1,
    )
    config = dataclasses.replace(
        config, steps=1, optimizer=dataclasses.replace(config.optimizer, warmup_steps=0)
    )
    train(config, progress=False)
    return root, config


@pytest.fixture
def change(run):
    """change(role, template): writes another chat template into a model's folder, for one test."""
    root, before = run[0], {}

    def write(role, text):
        path = root / role / "chat_template.jinja"
        before.setdefault(path, path.read_text())
        path.write_text(text)

    yield write
    for path, text in before.items():
        path.write_text(text)


def card_edge(run, change):
    """The edge's folder as it was in training."""
    change("edge", CHATML)
    return run[0] / "edge"


def load(root):
    return lg.load_generator(root / "run" / "generator")


def test_the_texts_travel_with_the_generator(run):
    made = load(run[0])
    assert made.chat_templates == {"cloud": GEMMA, "edge": CHATML}
    edge = lg.load_model(run[0] / "edge")
    assert made.turns == {"cloud": made.reads.read_digest(), "edge": edge.template.digest()}
    assert lg.specialize(made, "Say it twice.").about["turns"] == edge.template.digest()


def test_a_changed_cloud_is_read_as_in_training(run, change, caplog):
    ids, card = load(run[0]).reads.read("Say it."), lg.specialize(load(run[0]), "Say it.")
    change("cloud", CHATML)
    with caplog.at_level(logging.WARNING):
        made = load(run[0])
    assert f"The chat template of {run[0] / 'cloud'} was changed" in caplog.text
    assert made.reads.read("Say it.") == ids
    assert (lg.specialize(made, "Say it.").gates == card.gates).all()


def test_a_changed_edge_answers_as_in_training(run, change, caplog, tmp_path):
    made, edge = load(run[0]), lg.load_model(run[0] / "edge")
    card = lg.specialize(made, "Say it.")
    card.save(tmp_path / "card.json")
    right = lg.merge(edge, made.pool, card).template.ids(CHAT)
    change("edge", GEMMA)
    other = lg.load_model(run[0] / "edge")
    assert other.template.ids(CHAT) != right
    with caplog.at_level(logging.WARNING):
        special = lg.merge(other, made.pool, card)
        speaking = made.speaking(other)
    assert f"The chat template of {run[0] / 'edge'} was changed" in caplog.text
    assert special.template.ids(CHAT) == speaking.template.ids(CHAT) == right
    lg.export_merged(special, tmp_path / "merged")
    assert lg.load_model(tmp_path / "merged").template.ids(CHAT) == right
    # A card from a file has no text to go by.
    loaded = lg.load_card(tmp_path / "card.json")
    for use in (
        lambda: lg.merge(other, made.pool, loaded),
        lambda: lg.chat(other, "hi", gates=loaded, pool=made.pool, max_new_tokens=1),
        lambda: lg.export_adapter(made.pool, loaded, other, tmp_path / "adapter"),
    ):
        with pytest.raises(WeightsError, match="does not tokenize as in training"):
            use()
    lg.export_adapter(made.pool, loaded, lg.load_model(card_edge(run, change)), tmp_path / "ours")
    adapted = lg.load_adapter(tmp_path / "ours", other)  # it has the text beside it
    assert adapted.template.ids(CHAT) == right
    (tmp_path / "ours" / "chat_template.jinja").write_text(GEMMA)
    with pytest.raises(WeightsError, match="does not tokenize as in training"):
        lg.load_adapter(tmp_path / "ours", other)
    change("edge", CHATML.replace("{% for", "{# a note #}{% for"))
    same = lg.load_model(run[0] / "edge")  # another text with the same turns is no fault
    assert lg.merge(same, made.pool, loaded).template.ids(CHAT) == right


def test_another_tokenizer_is_refused(run):
    made, edge = load(run[0]), lg.load_model(run[0] / "edge")
    tokenizer = with_template(CHATML)
    tokenizer.add_tokens(["twice"])
    assert len(tokenizer(PROBE).input_ids) < len(edge.tokenizer(PROBE).input_ids)
    other = edge.replace(tokenizer=tokenizer)
    with pytest.raises(WeightsError, match="does not tokenize as in training"):
        made.speaking(other)
    with pytest.raises(WeightsError, match="does not tokenize as in training"):
        lg.merge(other, made.pool, lg.specialize(made, "Say it."))
    cloud = made.cloud.replace(tokenizer=tokenizer)
    with pytest.raises(WeightsError, match="cloud does not tokenize as in training"):
        lg.specialize(lg.load_generator(run[0] / "run" / "generator", cloud=cloud), "Say it.")


def test_training_does_not_go_on_in_other_turns(run, change):
    root, config = run
    models = {name: lg.load_model(root / name) for name in ("cloud", "edge")}
    begun = dataclasses.replace(config, init=str(root / "run" / "generator"))
    assert begun_generator(begun, models) is not None
    change("edge", CHATML.replace("user", "human") + "{# another #}")
    models["edge"] = lg.load_model(root / "edge")
    with pytest.raises(ConfigError, match="another chat template of the edge"):
        begun_generator(begun, models)
    with pytest.raises(TrainingError, match="edge_chat_template: saved"):
        train(dataclasses.replace(config, steps=2), resume=True, progress=False)


def test_a_generator_without_the_texts_loads(run, tmp_path):
    """As earlier versions wrote it: the turns are those of the folders."""
    path = run[0] / "run" / "generator" / "lorage.json"
    kept = path.read_text()
    values = json.loads(kept)
    for role in ("cloud", "edge"):
        values[role] = {
            k: v for k, v in values[role].items() if k not in ("chat_template", "turns")
        }
    path.write_text(json.dumps(values))
    try:
        made = load(run[0])
        values["cloud"]["chat_template"] = 3
        path.write_text(json.dumps(values))
        with pytest.raises(WeightsError, match="chat_template is 3; expected str"):
            load(run[0])
    finally:
        path.write_text(kept)
    edge = lg.load_model(run[0] / "edge")
    assert made.speaking(edge).template.ids(CHAT) == edge.template.ids(CHAT)
    assert "turns" not in lg.specialize(made, "Say it.").about
