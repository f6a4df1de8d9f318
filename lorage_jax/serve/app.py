"""The HTTP side: OpenAI's API, the cards, health, metrics, and the page at `/`."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lorage_jax.errors import LorageError
from lorage_jax.generator.card import Card
from lorage_jax.provenance import versions
from lorage_jax.serve.answers import Answer, Form, deltas
from lorage_jax.serve.cards import AUTO, EDGE
from lorage_jax.serve.errors import Failed, NotFound, RequestError
from lorage_jax.serve.metrics import TYPE, Metrics
from lorage_jax.serve.requests import (
    Fields,
    Settings,
    read_messages,
    read_prompts,
    read_settings,
)
from lorage_jax.serve.service import Service

_log = logging.getLogger(__name__)

BODY_SECONDS = 30.0  # in which a request must have arrived
GONE = 499  # status of requests whose client has gone, in the metrics
FORMATS = ("json", "peft", "gguf")

Endpoint = Callable[[Request], Awaitable[Response]]


class Server:
    """The endpoints of one service.

    Args:
        service: what is served; its threads must run.
        key: the API key that clients must send, if any.
    """

    def __init__(self, service: Service, key: str | None = None):
        self.service, self.key, self.metrics = service, key, Metrics()
        self.began = int(time.time())
        self._page = resources.files("lorage_jax.serve").joinpath("page.html").read_text("utf-8")

    def app(self) -> Starlette:
        """The application, for any ASGI server."""
        routes = [
            self._route("/v1/models", self.models),
            self._route("/v1/models/{name:path}", self.model),
            self._route("/v1/chat/completions", self.chat, "POST"),
            self._route("/v1/completions", self.completions, "POST"),
            self._route("/v1/cards", self.new_card, "POST"),
            self._route("/v1/cards", self.cards),
            self._route("/v1/cards/{name}", self.card),
            self._route("/v1/cards/{name}", self.delete_card, "DELETE"),
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            Route("/", self.page),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    def _route(self, path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        return Route(path, partial(self._guarded, path, endpoint), methods=[method])

    async def _guarded(self, path: str, endpoint: Endpoint, request: Request) -> Response:
        """An endpoint's response, or its error in OpenAI's form, counted either way."""
        try:
            self._check_key(request)
            response = await endpoint(request)
        except ClientDisconnect:
            response = Response(status_code=GONE)
        except Exception as error:
            response = _error(error)
        self.metrics.answered(path, response.status_code)
        return response

    def _check_key(self, request: Request) -> None:
        if self.key is None:
            return
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        # A header is text in Latin-1, but most clients send the bytes of UTF-8.
        key = self.key.encode("utf-8", "surrogateescape")
        if not any(hmac.compare_digest(sent.encode(how), key) for how in ("utf-8", "latin-1")):
            raise RequestError(
                "the API key is missing or wrong; send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
                status=401,
            )

    async def _fields(self, request: Request) -> Fields:
        """The body's fields. Raises RequestError for one too large, too slow, or not JSON."""
        most = self.service.limits.body
        too_large = RequestError(
            f"the body has more than {most} bytes.", code="body_too_large", status=413
        )
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    body.extend(part)
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise RequestError("the body did not arrive in time.", status=408) from None
        return Fields(bytes(body))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        fields = await self._fields(request)
        settings, messages = read_settings(fields, chat=True), read_messages(fields)
        making = partial(self.service.chat, settings, messages)
        return await _unless_gone(request, self._respond(making, settings, chat=True))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        fields = await self._fields(request)
        settings, prompts = read_settings(fields, chat=False), read_prompts(fields)
        making = partial(self.service.continuations, settings, prompts)
        return await _unless_gone(request, self._respond(making, settings, chat=False))

    async def _respond(
        self, making: Callable[[], Awaitable[list[Answer]]], settings: Settings, chat: bool
    ) -> Response:
        """The response of the answers that `making` gives: whole, or a stream that has begun."""
        began, answers = time.monotonic(), await making()
        form = Form(settings.model, chat, settings.alternatives, self.service.spell)
        running = deltas(self.service.scheduler, answers, whole=not settings.stream)
        if settings.stream:
            # The first piece comes before the status: a full queue is an error, not a stream.
            first = await anext(running)
            events = _events(running, first, answers, form, settings.usage)
            response = StreamingResponse(events, media_type="text/event-stream", headers=UNCACHED)
        else:
            async for _ in running:
                pass
            if settings.alternatives is None:
                response = JSONResponse(form.whole(answers))
            else:  # it can have thousands of numbers
                response = await asyncio.to_thread(lambda: JSONResponse(form.whole(answers)))
        first_at = min(one.first_at for one in answers if one.first_at is not None)
        self.metrics.first_token(first_at - began)
        return response

    async def models(self, request: Request) -> Response:
        """GET /v1/models: the base, `edge:auto`, and every card."""
        cards = await asyncio.to_thread(self.service.shelf.all)
        names = [(EDGE, None), (f"{EDGE}:{AUTO}", None)]
        names += [(f"{EDGE}:{name}", card) for name, card in cards.items()]
        return JSONResponse({"object": "list", "data": [self._model(*one) for one in names]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        name = request.path_params["name"]
        if name in (EDGE, f"{EDGE}:{AUTO}"):
            return JSONResponse(self._model(name, None))
        card = await self.service.card(name)
        return JSONResponse(self._model(f"{EDGE}:{name.removeprefix(f'{EDGE}:')}", card))

    def _model(self, name: str, card: Card | None) -> dict[str, Any]:
        created = self.began if card is None else card.about.get("created", self.began)
        parent = None if name == EDGE else EDGE
        own = {"owned_by": "lorage", "parent": parent, "root": name.partition(":")[2] or EDGE}
        length = {"max_model_len": self.service.context}
        return {"id": name, "object": "model", "created": created, **own, **length}

    async def new_card(self, request: Request) -> Response:
        """POST /v1/cards: makes the card of a system prompt, or takes one made elsewhere."""
        fields = await self._fields(request)
        name, values = fields.get("name", str, "a text"), fields.get("card", dict, "a card")
        if values is not None and fields.values.get("system") is not None:
            raise RequestError("both card and system were given; send one of them.", "system")
        system = None if values is not None else fields.text("system")
        making = self.service.new_card(system, name, values)
        name, card = await _unless_gone(request, making)
        return JSONResponse(_card(name, card), status_code=201)

    async def cards(self, request: Request) -> Response:
        """GET /v1/cards: all of them, without gates."""
        found = await asyncio.to_thread(self.service.shelf.all)
        data = [{k: v for k, v in _card(*one).items() if k != "card"} for one in found.items()]
        return JSONResponse({"object": "list", "data": data})

    async def card(self, request: Request) -> Response:
        """GET /v1/cards/NAME, with ?format=json, peft or gguf for a device."""
        name = request.path_params["name"].removeprefix(f"{EDGE}:")
        kind = request.query_params.get("format", "json")
        if kind not in FORMATS:
            raise RequestError(f"format is {kind[:40]!r}; expected {', '.join(FORMATS)}.", "format")
        card = await self.service.card(name)
        if kind == "json":
            return JSONResponse(_card(name, card))
        data, file = await asyncio.to_thread(self.service.export, name, card, kind)
        headers = {"Content-Disposition": f'attachment; filename="{file}"'}
        media = "application/zip" if kind == "peft" else "application/octet-stream"
        return Response(data, media_type=media, headers=headers)

    async def delete_card(self, request: Request) -> Response:
        """DELETE /v1/cards/NAME."""
        name = request.path_params["name"].removeprefix(f"{EDGE}:")
        await asyncio.to_thread(self.service.shelf.delete, name)
        return JSONResponse({"id": name, "object": "card", "deleted": True})

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while requests can be served."""
        alive = self.service.scheduler.alive and self.service.maker.alive
        values = {
            "status": "ok" if alive else "failed",
            "version": versions()["lorage_jax"],
            "edge": self.service.edge.fingerprint,
            "generator": self.service.generator.fingerprint,
            "running": self.service.scheduler.running,
            "waiting": self.service.scheduler.waiting,
        }
        return JSONResponse(values, status_code=200 if alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(self.service), media_type=TYPE)

    async def page(self, request: Request) -> Response:
        """GET /: a page for people."""
        return HTMLResponse(self._page, headers={"Content-Security-Policy": POLICY})


UNCACHED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)


def _card(name: str, card: Card) -> dict[str, Any]:
    created = card.about.get("created")
    own = {"id": name, "object": "card", "model": f"{EDGE}:{name}", "created": created}
    return own | {"card": card.to_dict()}


async def _events(
    running: AsyncIterator[tuple[int, Any]],
    first: tuple[int, Any],
    answers: list[Answer],
    form: Form,
    usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events of answers that have begun."""
    try:
        if form.chat:
            for number in range(len(answers)):
                yield _event(form.first(number))
        for chunk in form.part(*first):
            yield _event(chunk)
        async for number, delta in running:
            for chunk in form.part(number, delta):
                yield _event(chunk)
        if usage:
            yield _event(form.usage(answers))
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield f"data: {bytes(_error(error).body).decode()}\n\n"
    finally:
        await running.aclose()  # pyright: ignore[reportAttributeAccessIssue]  a generator


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is cancelled when the client goes. Raises ClientDisconnect."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _error(error: Exception) -> JSONResponse:
    """The response to an error; one that is ours is logged, and shows nothing of itself."""
    if not isinstance(error, RequestError):
        if isinstance(error, LorageError):
            error = RequestError(str(error))
        else:
            _log.error("A request failed.", exc_info=error)
            error = Failed("the server failed on this request; its log says why.")
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of the routes: an unknown path, a method that it does not have."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:80]}: {error.detail}."
    own = NotFound(message) if error.status_code == 404 else RequestError(message)
    return JSONResponse(own.body(), status_code=error.status_code, headers=error.headers)
