"""The page at `/`, in a real browser without a window."""

import json
import shutil

import pytest

from lorage_jax.infer.chat import chat
from tests.serve.server import PROMPTS, WORDS

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium: {error}"[:200])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, api, request):
    """The page, of which every error and every request to elsewhere fails the test."""
    page = browser.new_page(**getattr(request, "param", {}))
    errors, elsewhere = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith(api.url) else elsewhere.append(r.url))
    page.goto(f"{api.url}/")
    yield page
    page.close()
    assert not elsewhere
    assert not [one for one in errors if "Failed to load resource" not in one]  # a status 4xx


def specialise(page, system):
    page.fill("#system", system)
    page.click("#make")
    page.wait_for_selector("#card:not([hidden])")


def test_a_prompt_becomes_gates_and_two_answers(page, api, merged):
    assert page.is_disabled("#send")
    specialise(page, PROMPTS["bars"])
    layers, experts = api.service.shelf.get(
        page.inner_text("#card-note").split(",")[0][5:]
    ).gates.shape
    assert page.locator("#gates tr").count() == layers + 1
    assert page.locator("#gates tr:nth-child(2) td").count() == experts
    filled = [
        float(text) for text in page.locator("#gates tr:nth-child(2) td").all_inner_texts() if text
    ]
    assert sum(filled) == pytest.approx(1, abs=0.02)
    page.fill("#input", WORDS[0])
    page.click("#send")
    for side, model in (("special", merged["bars"]), ("bare", merged[None])):
        page.wait_for_selector(f"#{side} .edge[data-done]")
        assert page.inner_text(f"#{side} .edge").strip() == chat(model, WORDS[0]).strip()
        assert page.inner_text(f"#{side} .user") == WORDS[0]


def test_text_is_never_markup(page):
    specialise(page, PROMPTS["upper"])
    page.fill("#input", "<img src=x onerror=alert(1)>")
    page.click("#send")
    page.wait_for_selector("#special .edge[data-done]")
    assert page.locator("img").count() == 0


def test_answers_and_errors_are_never_markup(page):
    """A model may write anything, and a message may repeat what was sent."""
    specialise(page, PROMPTS["upper"])
    image = "<img src=x onerror=alert(1)>"
    chunk = json.dumps({"choices": [{"delta": {"content": image}}]})
    body = f"data: {chunk}\n\ndata: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body),
    )
    page.fill("#input", "moon")
    page.click("#send")
    page.wait_for_selector("#special .edge[data-done]")
    assert page.inner_text("#special .edge") == image
    error = json.dumps({"error": {"message": image}})
    page.route("**/v1/cards", lambda route: route.fulfill(status=400, body=error))
    page.click("#make")
    page.wait_for_selector("#error:not(:empty)")
    assert page.inner_text("#error") == image
    assert page.locator("img").count() == 0


def test_an_error_is_shown(page):
    page.fill("#system", "word " * 5000)
    with page.expect_response("**/v1/cards"):
        page.click("#make")
    page.wait_for_selector("#error:not(:empty)")
    assert "Shorten" in page.inner_text("#error")
    page.wait_for_selector("#make:enabled")


PHONE = {"width": 360, "height": 740}


@pytest.mark.parametrize(
    "page",
    [{"viewport": PHONE, "color_scheme": scheme} for scheme in ("light", "dark")],
    indirect=True,
)
def test_it_fits_a_phone_in_light_and_dark(page):
    specialise(page, PROMPTS["upper"])
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    text, ground = (
        sum(map(int, page.evaluate(f"getComputedStyle(document.body).{name}")[4:-1].split(",")))
        for name in ("color", "backgroundColor")
    )
    assert abs(text - ground) > 450  # readable either way
