"""A real HTTP server in a thread of the test's process."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import pytest

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

from lorage_jax.serve.app import Server  # noqa: E402

# System prompts of the nano pair's tasks: no two give the same answers.
PROMPTS = {
    "reverse": "Reverse the words. Put a comma between words.",
    "upper": "Write all the words in upper case.",
    "bars": "Put bars on each side of words. Write all the words in upper case. Move the last word "
    "to first place.",
}
WORDS = ["city king frog star", "bird table stone", "moon", "red lamp house tree river", "a b"]


@contextmanager
def running(service, key=None):
    """Starts a service and its server, and yields the server's URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = Server(service, key).app()
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    service.start()
    serve = server.serve(sockets=[listener])
    thread = threading.Thread(target=lambda: asyncio.run(serve), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        service.stop()
