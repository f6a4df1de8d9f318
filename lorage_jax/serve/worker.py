"""A thread that works while there is something to do, until it is stopped."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from lorage_jax.serve.errors import Stopping


class Worker(ABC):
    """A thread of its own, with a queue that others fill.

    A subclass holds the queue, says what is due, and does it. It holds `_changed`, and notifies it,
    where it adds to what the thread waits for.
    """

    def __init__(self, name: str):
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Ends the thread; what has not finished gets an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        """True while there can be work: before the start, too."""
        return self._thread.ident is None or self._thread.is_alive()

    def _check_open(self) -> None:
        """Raises Stopping if nothing more is taken."""
        if self._stopping or not self.alive:
            raise Stopping("the server is stopping.")

    @abstractmethod
    def _due(self) -> bool:
        """True if there is something to do; called with `_changed` held."""

    @abstractmethod
    def _turn(self) -> None:
        """Does a part of it, on the thread."""

    @abstractmethod
    def _fail(self, error: Exception) -> None:
        """Gives everybody who waits an error, after a turn that raised it or at the end."""

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._due() or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    break
            try:
                self._turn()
            except Exception as error:
                self._fail(error)
        self._fail(Stopping("the server is stopping."))
