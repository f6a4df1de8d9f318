"""Errors of requests, in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

from lorage_jax.errors import LorageError


class RequestError(LorageError):
    """A request that cannot be served; the client gets the message with an HTTP status.

    Attributes:
        status: of HTTP.
        param: the field of the request that is wrong.
        code: a word for programs.
        kind: the `type` of OpenAI's form.
    """

    status = 400
    kind = "invalid_request_error"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
    ):
        super().__init__(message)
        self.param, self.code = param, code
        self.status = status or self.status

    def body(self) -> dict[str, Any]:
        """The error as JSON values."""
        values = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": values}


class NotFound(RequestError):
    """A model, card or path that does not exist."""

    status = 404


class Busy(RequestError):
    """The queue is full."""

    status, kind = 429, "rate_limit_error"

    def __init__(self, message: str):
        super().__init__(message, code="queue_full")


class Stopping(RequestError):
    """The server takes no more requests."""

    status, kind = 503, "server_error"

    def __init__(self, message: str):
        super().__init__(message, code="stopping")


class Failed(RequestError):
    """A fault of the server."""

    status, kind = 500, "server_error"
