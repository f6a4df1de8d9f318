"""`lorage serve`: one small model and many cards behind OpenAI's API."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorage_jax.commands.places import PORT, check_place, write_result
from lorage_jax.distributed import alone
from lorage_jax.errors import ConfigError
from lorage_jax.generator.store import (
    edge_path,
    generator_path,
    load_generator,
    read_values,
)
from lorage_jax.hf.family import from_values
from lorage_jax.hf.load import load_model
from lorage_jax.models.presets import parameter_count

if TYPE_CHECKING:
    from lorage_jax.commands.options import Serve

_log = logging.getLogger(__name__)

KEY = "LORAGE_API_KEY"
THREADS = "PJRT_NPROC"  # the variable that tells XLA how many processors a CPU has
SMALL = 10_000_000  # parameters
SWITCH_SECONDS = 5e-4  # between the scheduler's thread and that of the connections
GRACE_SECONDS = 30  # in which requests may finish after SIGTERM


def run(options: Serve) -> dict[str, Any]:
    """Serves until SIGTERM or Ctrl-C, then lets the running requests finish."""
    alone("lorage serve")
    _check_extra()
    from lorage_jax.serve.app import Server
    from lorage_jax.serve.cards import check_folder
    from lorage_jax.serve.service import Limits, Service

    began = time.monotonic()
    if options.port_file is not None:
        check_place(options.port_file, PORT, options)
    check_folder(options.cards)
    if options.warm < 0:
        raise ConfigError(f"--warm is {options.warm}; expected 0 (compile nothing) or more.")
    limits = Limits(options.slots, options.queue, options.context, options.max_body)
    key = options.api_key or os.environ.get(KEY) or None
    with _listening(options.host, options.port) as listener:
        if key is None:
            _warn_of_strangers(listener.getsockname()[0])
        source = generator_path(options.generator)
        values = read_values(source)
        folder = edge_path(values, source, options.edge)
        use_few_threads(values)
        generator = load_generator(source, options.cloud)
        edge = load_model(folder, options.dtype)
        service = Service(generator, edge, options.cards, limits)
        print("Compiling programs ...", file=sys.stderr, flush=True)
        service.start(options.warm)
        server = Server(service, key)
        try:
            _serve(server.app(), listener, options.port_file)
        finally:
            service.stop()
    counts = service.scheduler.counts
    print(f"Stopped after {counts.prompts} prompts.", file=sys.stderr)
    return {
        "seconds": time.monotonic() - began,
        "prompts": counts.prompts,
        "prompt_tokens": counts.prompt_tokens,
        "answer_tokens": counts.answer_tokens,
        "cards_made": service.maker.made,
    }


def use_few_threads(values: dict[str, Any]) -> None:
    """Has XLA use one thread of a CPU for a small edge; to be called before XLA starts.

    Its operations are over before a second thread has begun, and threads that wait for them take
    the time of the server's own.
    """
    config = values["edge"].get("config")
    if isinstance(config, dict) and parameter_count(from_values(config)) < SMALL:
        os.environ.setdefault(THREADS, "1")


def _check_extra() -> None:
    """Raises ConfigError unless the packages of the extra are installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'lorage serve needs {error.name}: pip install "lorage_jax[serve]", or in a checkout '
            'pip install -e ".[serve]".'
        ) from None


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port in use is noticed before anything is loaded."""
    if not 0 <= port < 65536:
        raise ConfigError(f"--port is {port}; expected 0 (any free one) to 65535.")
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # of a host that is no name
        if listener is not None:
            listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}. Choose "
            "another --host or --port (0: any free one)."
        ) from None
    return listener


def _warn_of_strangers(host: str) -> None:
    """Warns if other machines may send requests to this address, since there is no key."""
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        _log.warning(
            "Without --api-key (or the variable %s), whoever reaches %s can use this server and "
            "make and delete its cards.",
            KEY,
            host,
        )


def _serve(app: Any, listener: socket.socket, port_file: Path | None) -> None:
    """Runs the HTTP server until a signal."""
    import uvicorn

    host, port = listener.getsockname()[:2]
    where = f"[{host}]" if ":" in host else host

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if port_file is not None:
                write_result(port_file, f"{port}\n", PORT)
            print(f"Serving on http://{where}:{port} (Ctrl-C stops)", file=sys.stderr, flush=True)

    sys.setswitchinterval(SWITCH_SECONDS)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )
    try:
        Announcing(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again after a graceful stop
        return
