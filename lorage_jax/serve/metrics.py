"""Counters and gauges as Prometheus reads them."""

from __future__ import annotations

import threading
from collections import Counter

from lorage_jax.serve.service import Service

PREFIX = "lorage"
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts of the server's requests, beside those of the scheduler and the card maker."""

    def __init__(self):
        self._requests: Counter[tuple[str, int]] = Counter()
        self._first_seconds, self._firsts = 0.0, 0
        self._lock = threading.Lock()

    def answered(self, path: str, status: int) -> None:
        """Counts a request by its route and status."""
        with self._lock:
            self._requests[path, status] += 1

    def first_token(self, seconds: float) -> None:
        """Adds the time from a request to its first token."""
        with self._lock:
            self._first_seconds += seconds
            self._firsts += 1

    def text(self, service: Service) -> str:
        """All values in the text format."""
        counts, scheduler, maker = service.scheduler.counts, service.scheduler, service.maker
        lines = []
        one = lines.append
        one(f"# TYPE {PREFIX}_requests_total counter")
        with self._lock:
            for (path, status), count in sorted(self._requests.items()):
                one(f'{PREFIX}_requests_total{{path="{path}",status="{status}"}} {count}')
            one(f"# TYPE {PREFIX}_first_token_seconds summary")
            one(f"{PREFIX}_first_token_seconds_sum {self._first_seconds:.6f}")
            one(f"{PREFIX}_first_token_seconds_count {self._firsts}")
        totals = {
            "prompts": counts.prompts,
            "prompt_tokens": counts.prompt_tokens,
            "generated_tokens": counts.answer_tokens,
            "cancelled": counts.cancelled,
            "failed": counts.failed,
            "busy_seconds": round(counts.seconds, 6),
            "cards_made": maker.made,
            "card_seconds": round(maker.seconds, 6),
        }
        gauges = {
            "slots": scheduler.slots,
            "running": scheduler.running,
            "waiting": scheduler.waiting,
        }
        for names, kind, ending in ((totals, "counter", "_total"), (gauges, "gauge", "")):
            for name, value in names.items():
                one(f"# TYPE {PREFIX}_{name}{ending} {kind}")
                one(f"{PREFIX}_{name}{ending} {value}")
        return "\n".join(lines) + "\n"
