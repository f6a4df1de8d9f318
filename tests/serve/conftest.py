"""The bundled nano pair, and a server of it."""

from types import SimpleNamespace

import pytest

from lorage_jax import nano
from lorage_jax.generator.generator import specialize
from lorage_jax.generator.merge import merge
from lorage_jax.generator.store import load_generator
from lorage_jax.hf.load import load_model
from tests.serve.server import PROMPTS, running


@pytest.fixture(scope="session")
def nano_pair():
    """The nano generator, and its edge in the turns of its training."""
    generator = load_generator(nano.GENERATOR)
    return generator, generator.speaking(load_model(nano.EDGE))


@pytest.fixture(scope="session")
def nano_service(nano_pair, tmp_path_factory):
    """nano_service(folder of cards, limits) -> a service, whose threads do not run yet."""
    from lorage_jax.serve.service import Limits, Service

    def make(folder=None, **limits):
        cards = folder or tmp_path_factory.mktemp("cards") / "cards"
        return Service(*nano_pair, cards, Limits(**limits))

    return make


@pytest.fixture(scope="session")
def merged(nano_pair):
    """The edge merged with the card of every one of PROMPTS, and as it is: `None`."""
    generator, edge = nano_pair
    cards = specialize(generator, list(PROMPTS.values()))
    found = {
        name: merge(edge, generator.pool, card) for name, card in zip(PROMPTS, cards, strict=True)
    }
    return {None: edge, **found}


@pytest.fixture(scope="module")
def api(nano_service):
    """A server for a module's tests: its URL, its service, and an OpenAI client."""
    openai = pytest.importorskip("openai")
    service = nano_service(slots=4, queue=64)
    with running(service) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
        yield SimpleNamespace(url=url, service=service, client=client)
        client.close()
