"""The real SmolLM2-135M-Instruct behind `lorage serve`, as the official OpenAI client sees it.

LORAGE_TEST_DEVICES=1 pytest -m slow tests/serve/test_real_model.py -s
"""

import time

import jax
import pytest

import lorage_jax as lg
from lorage_jax import smollm2
from lorage_jax.bundled import kept_models
from tests.serve.test_bad_requests import send
from tests.serve.test_command import start

openai = pytest.importorskip("openai")

PLURAL = "I write one thing, you write many: the plural and nothing else."
PAST = "You get a verb. Answer with its simple past, one word."
WORDS = ("horse", "box")


@pytest.mark.slow
def test_the_command_answers_as_the_library_does(tmp_path):
    folder = kept_models() / smollm2.MODEL
    if not folder.is_dir():
        pytest.skip(f"{smollm2.MODEL} is not here; LORAGE_MODELS names the folder of the models")
    if jax.device_count() > 1:
        pytest.skip("set LORAGE_TEST_DEVICES=1: every virtual device would hold a copy")
    process, url = start(tmp_path, "--slots", "1", generator="smollm2", warm=48)
    took = {}
    for name, system in (("plural", PLURAL), ("past", PAST)):
        began = time.monotonic()
        status, made = send(f"{url}/v1/cards", {"system": system, "name": name})
        took[name] = time.monotonic() - began
        assert (status, made["model"]) == (201, f"edge:{name}")
    print("POST /v1/cards:", {name: f"{seconds:.2f} s" for name, seconds in took.items()})
    assert max(took.values()) < 10, "a program was compiled, or the machine is busy"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)

    def ask(model, user, system=None):
        lead = [] if system is None else [{"role": "system", "content": system}]
        messages = [*lead, {"role": "user", "content": user}]
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=16)
        return answer.choices[0].message.content

    generator = lg.load_generator("smollm2")
    edge = generator.speaking(lg.load_model(folder))
    card = lg.specialize(generator, PLURAL)
    special = lg.merge(edge, generator.pool, card)
    for word, many in zip(WORDS, ("horses", "boxes"), strict=True):
        wanted = lg.chat(special, word, max_new_tokens=16)
        assert wanted.strip() == many
        assert ask("edge:plural", word) == wanted
        assert ask("edge:auto", word, PLURAL) == wanted
        bare = ask("edge", word)
        assert bare == lg.chat(edge, word, max_new_tokens=16) != wanted
        messages = [{"role": "system", "content": PLURAL}, {"role": "user", "content": word}]
        assert ask("edge", word, PLURAL) == lg.chat(edge, messages, max_new_tokens=16)
    assert ask("edge:past", "walk").strip() == "walked"
    client.close()
    process.terminate()
    assert process.wait(30) == 0
    process.stderr.close()
