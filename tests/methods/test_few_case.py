"""Few-case tuning: it begins exactly at the card's LoRA, and what it leaves is an adapter."""

import dataclasses

import numpy as np
import peft
import pytest

from lorage_jax.config import (
    DataConfig,
    ExperimentConfig,
    GeneratorConfig,
    OptimizerConfig,
    Source,
)
from lorage_jax.data.templates import TemplateKind
from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.generator.merge import merge
from lorage_jax.generator.peft import load_adapter
from lorage_jax.generator.store import load_pool, save_generator
from lorage_jax.hf.export import export_merged
from lorage_jax.hf.load import load_model
from lorage_jax.infer.forward import forward
from lorage_jax.methods.few_case import FewCase, FewCaseSettings
from lorage_jax.methods.lora import Lora
from lorage_jax.methods.training import train
from lorage_jax.methods.turns import run_template
from tests.methods.test_lora import torch_folder
from tests.tiny import byte_tokenizer, make_generator, random_card, torch_logits

# peft asks transformers in a way that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TOKENS = np.arange(5, 25)[None]
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize(
    ("combine", "trained"),
    [pytest.param("products", "factors", marks=pytest.mark.slow), ("factors", "gates")],
)
def test_a_card_is_trained_further(pair, tmp_path, data_file, combine, trained):
    """Without a step that moves, it is the card; its experts are never changed."""
    switches = GeneratorConfig(combine=combine, top_k=2, rank=4, alpha=8.0, cloud_rank=4)
    generator, edge = make_generator(pair[0], pair[1], switches, strength=0.05), load_model(pair[1])
    save_generator(generator, tmp_path / "generator")
    card = random_card(generator)
    card = dataclasses.replace(card, about=generator.template.to_dict())
    card.save(tmp_path / "card.json")
    settings = FewCaseSettings(str(tmp_path / "generator"), str(tmp_path / "card.json"), trained)
    config = ExperimentConfig(
        cloud=str(pair[0]),
        edge=str(pair[1]),
        out=str(tmp_path / "still"),
        method="few_case",
        settings=settings,
        data=DataConfig(
            (Source(str(data_file), limit=8),),
            prompts_per_batch=8,
            max_prompt_tokens=64,
            max_query_tokens=48,
            min_bucket=48,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-12, warmup_steps=1, weight_decay=0.0),
        steps=8,
        dtype="float32",
        remat="none",
        save_every=8,
    )
    still = train(config, progress=False)
    expected = np.asarray(forward(merge(edge, generator.pool, card), TOKENS))
    found = np.asarray(forward(load_adapter(still.folder, edge), TOKENS))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())

    rate = dataclasses.replace(config.optimizer, learning_rate=0.2 if trained == "gates" else 5e-3)
    moved = train(
        dataclasses.replace(config, out=str(tmp_path / "moved"), optimizer=rate), progress=False
    )
    assert moved.losses[0][1] == pytest.approx(still.losses[0][1], rel=1e-5)
    assert moved.losses[-1][1] < still.losses[-1][1] - 1e-3
    method = FewCase.load(edge, moved.folder)
    logits = np.asarray(forward(method.place(edge, method.prepare(["?"])).model, TOKENS))
    assert np.abs(logits - expected).max() > 1e-3
    theirs = peft.PeftModel.from_pretrained(torch_folder(pair[1]), str(moved.folder)).eval()
    atol = 2e-5 * np.abs(logits).max()
    np.testing.assert_allclose(torch_logits(theirs, TOKENS), logits, atol=atol)
    model = method.place(edge, method.prepare(["?"])).model
    export_merged(model, tmp_path / "merged", base=pair[1])
    whole = torch_logits(torch_folder(tmp_path / "merged").eval(), TOKENS)
    np.testing.assert_allclose(whole, logits, atol=atol)
    pool = load_pool(tmp_path / "generator")
    assert pool.generator == generator.fingerprint
    for name, one in generator.pool.experts.items():
        np.testing.assert_array_equal(pool.experts[name]["a"], one["a"])

    def refused(error, words, **changes):
        out = str(tmp_path / "no")
        with pytest.raises(error, match=words):
            train(dataclasses.replace(config, **({"out": out} | changes)), progress=False)

    refused(ConfigError, "few_case begins with a card", settings=FewCaseSettings())
    chat = dataclasses.replace(config.data, template="chat")
    refused(ConfigError, "made in plain turns, but data.template is chat", data=chat)
    dataclasses.replace(card, generator="sha256:0").save(tmp_path / "other.json")
    other = dataclasses.replace(settings, card=str(tmp_path / "other.json"))
    refused(WeightsError, "made by generator", settings=other)


def test_auto_keeps_the_turns_of_the_card(pair, tmp_path, data_file):
    """Also where both models have a chat template, which a run that begins anew would take."""
    generator = make_generator(*pair)
    card = dataclasses.replace(random_card(generator), about={"templates": 1})
    card.save(tmp_path / "card.json")
    config = ExperimentConfig(
        *map(str, pair),
        out=str(tmp_path / "run"),
        method="few_case",
        settings=FewCaseSettings(card=str(tmp_path / "card.json")),
        data=DataConfig((Source(str(data_file)),), template="auto"),
        steps=100,
    )
    chatting = byte_tokenizer()
    chatting.chat_template = CHAT
    tokenizers = {"cloud": chatting, "edge": chatting}
    anew = dataclasses.replace(config, method="lora", settings=None)
    assert run_template(anew, tokenizers, None, Lora.begins_in(anew)).name == "chat"
    begun = FewCase.begins_in(config)
    assert run_template(config, tokenizers, None, begun) == TemplateKind("plain", 1)
    saved = {"template": TemplateKind("plain", 2).to_dict()}  # of a run that is resumed
    assert run_template(config, tokenizers, saved, begun) == TemplateKind("plain", 2)
