"""What lm-eval's `hf` model takes: the same answers from `LorageLM`, or a sentence of refusal."""

import dataclasses
import json
import shutil
from typing import Any, cast

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")

from lm_eval.models.huggingface import HFLM

from lorage_jax.errors import ConfigError, WeightsError
from lorage_jax.evaluate.harness import LorageLM
from lorage_jax.evaluate.host_settings import check_device, check_generation, unobeyed
from lorage_jax.hf.load import load_model
from lorage_jax.infer.defaults import default_penalty
from lorage_jax.infer.generate import generate
from tests.evaluate.test_harness import hf, instances

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TEXT = "Once upon a time, there was a little girl named"


@pytest.fixture(scope="module")
def stories(shared):
    return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def penal(stories, tmp_path_factory):
    """A folder whose generation_config.json penalises repetition."""
    folder = tmp_path_factory.mktemp("penal") / "model"
    shutil.copytree(stories, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    folder.chmod(0o755)
    path = folder / "generation_config.json"
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | {"repetition_penalty": 1.3, "temperature": 0.6}))
    return folder


def answer(model, **settings):
    asked = instances("generate_until", (TEXT, {"until": ["\n"], "max_gen_toks": 24, **settings}))
    return model.generate_until(asked)


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5}, {"repetition_penalty": 1.0}])
def test_repetition_penalties_are_obeyed_as_by_hf(penal, settings):
    ours = LorageLM(str(penal))
    assert answer(ours, **settings) == answer(hf(penal), **settings)
    if settings:
        assert answer(ours, **settings) != answer(ours)  # also from the journal


def test_arguments_of_hf_are_taken(stories):
    plain = LorageLM(str(stories), dtype="auto", batch_size="auto", revision="main", device="cpu")
    same = {"tokenizer": str(stories), "trust_remote_code": False, "logits_cache": True}
    assert answer(LorageLM(str(stories), **same)) == answer(plain)
    for added in (True, False):
        ours, theirs = LorageLM(str(stories), add_bos_token=added), cast(Any, hf(stories))
        theirs.add_bos_token = added
        assert ours.tok_encode(TEXT) == theirs.tok_encode(TEXT)
    assert ours.tok_encode(TEXT) != plain.tok_encode(TEXT)
    short = LorageLM(str(stories), max_length=8)
    asked = instances("loglikelihood", (TEXT, " Lily"))
    cut = short.loglikelihood(asked)
    assert short.counts["truncated"] == 1 and cut != plain.loglikelihood(asked)
    theirs = cast(Any, hf(stories))
    theirs._max_length = 8
    assert cut[0][0] == pytest.approx(theirs.loglikelihood(asked)[0][0], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"revision": "v2"}, "revision='v2' is not supported by the model lorage; leave it out"),
        ({"parallelize": True}, "parallelize=True is not supported"),
        ({"autogptq": "x"}, "autogptq='x' is not supported"),
        ({"load_in_4bit": True}, "has no argument load_in_4bit"),
        ({"device": "cuda:1"}, "JAX runs on cpu"),
        ({"max_length": 10_000}, "max_length is 10000; expected 1 to 512"),
        ({"max_length": "many"}, "max_length is 'many'; expected a whole number"),
        ({"batch_tokens": "many"}, "batch_tokens is 'many'; expected a whole number"),
        ({"max_gen_toks": "many"}, "max_gen_toks is 'many'; expected a whole number"),
        ({"prefix_token_id": "<s>"}, "prefix_token_id is '<s>'; expected a whole number"),
    ],
)
def test_the_others_are_refused_in_a_sentence(stories, arguments, says):
    with pytest.raises(ConfigError, match=says):
        LorageLM(str(stories), **arguments)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True},
        {"no_repeat_ngram_size": 3},
        {"num_beams": 4},
        {"min_new_tokens": 5},
        {"eos_token_id": 7},
        {"max_length": 60},
        {"suppress_tokens": [1]},
        {"something_new": 1},
    ],
)
def test_settings_that_are_not_obeyed_are_refused_by_name(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        check_generation(settings, {})
    if not {"do_sample", "eos_token_id", "max_length"} & set(settings):
        with pytest.raises(ConfigError, match=r"of the model's generation_config.json") as error:
            check_generation({}, settings)
        assert "Remove it there" in str(error.value) and "Leave" not in str(error.value)


def test_each_setting_that_is_refused_has_its_place():
    with pytest.raises(ConfigError) as error:
        check_generation({"num_beams": 2, "max_length": 9}, {"min_length": 3, "num_beams": 4})
    assert str(error.value) == (
        "max_length=9, num_beams=2, and min_length=3 of the model's generation_config.json or "
        "config.json, would change the answers and are not supported; decoding is greedy. Leave "
        "them out, or give the value by which nothing changes (such as repetition_penalty=1.0, "
        "no_repeat_ngram_size=0). The length of an answer is max_gen_toks."
    )


def test_settings_of_generation_that_are_no_numbers_are_refused(stories):
    model = LorageLM(str(stories), batch_tokens="64", max_gen_toks="8", max_length="32")
    assert (model.batch_tokens, model.max_gen_toks, model.max_length) == (64, 8, 32)
    for name in ("max_gen_toks", "max_new_tokens", "temperature", "repetition_penalty"):
        asked = instances("generate_until", (TEXT, {name: "many"}))
        with pytest.raises(ConfigError, match=f"{name} is 'many'; expected a"):
            model.generate_until(asked)


def test_settings_without_effect_pass():
    defaults = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "no_repeat_ngram_size": 2}
    check_generation({"no_repeat_ngram_size": 0, "temperature": 0.0, "num_beams": 1}, defaults)
    check_generation({"max_length": None}, {"max_length": 20})
    assert unobeyed({"min_length": 0, "guidance_scale": None, "eos_token_id": [1]}) == []
    check_device("cuda:1", "gpu")
    check_device(None, "tpu")
    check_device("cuda:0", "cpu")  # the default of lm-eval's command line


def test_a_damaged_generation_config_is_named(penal):
    class Folder:
        source = penal

    kept = (penal / "generation_config.json").read_text()
    for text in ("{", "[]", '{"repetition_penalty": "much"}'):
        (penal / "generation_config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"generation_config.json"):
            default_penalty(Folder())  # type: ignore[arg-type]
    (penal / "generation_config.json").write_text(kept)


@pytest.fixture(scope="module")
def nameless(tiny, tmp_path_factory):
    """A folder whose tokenizer has neither bos nor eos, as some byte-level ones."""
    folder = tmp_path_factory.mktemp("nameless") / "model"
    shutil.copytree(tiny("llama")[0], folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"bos_token": None, "eos_token": None}))
    return folder


def test_a_tokenizer_without_bos_and_eos(nameless, tiny):
    """An empty context is the config's bos: `hf`, which fails here, with it as prefix_token_id."""
    ours = LorageLM(str(nameless))
    assert ours.tokenizer.bos_token_id is None and ours.eot_token_id is None
    theirs = cast(Any, HFLM)(
        pretrained=str(nameless), dtype="float32", device="cpu", prefix_token_id=1
    )
    asked = instances("loglikelihood", ("", "ab"), ("", "c"), ("x", "yz"))
    for one, other in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-3) and one[1] == other[1]
    rolled = instances("loglikelihood_rolling", ("ab cd",))
    right = theirs.loglikelihood_rolling(rolled)
    assert ours.loglikelihood_rolling(rolled) == pytest.approx(right, abs=1e-3)
    said = ours.generate_until(instances("generate_until", ("", {"until": [], "max_gen_toks": 4})))
    begun = generate(load_model(nameless), [1], max_new_tokens=4)
    assert said == [begun]
    named = LorageLM(str(nameless), prefix_token_id=7)
    assert named.prefix_token_id == 7 and named.loglikelihood(asked) != ours.loglikelihood(asked)


def test_neither_tokenizer_nor_config_has_one(nameless):
    ours = LorageLM(str(nameless))
    config = dataclasses.replace(ours.model.config, bos_id=None, eos_ids=())
    ours.reset(ours.model.replace(config=config))
    with pytest.raises(ConfigError, match="pass prefix_token_id="):
        ours.loglikelihood(instances("loglikelihood", ("", "ab")))
    assert ours.loglikelihood(instances("loglikelihood", ("x", "ab")))
