"""What a server counts, as text that Prometheus reads (exposition format 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from vsr1_core.serve.engine import Engine


@dataclass
class RequestCounts:
    """Requests by method and status, and the seconds until their answer began."""

    num: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, method: str, status: int, seconds: float) -> None:
        """Count one request. Methods that no client should use are counted together."""
        known = method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self.num[known, status] += 1
        self.seconds += seconds


def exposition(requests: RequestCounts, engine: Engine, num_open: int) -> str:
    """All counts. num_open: how many datasets have their models open."""
    return "".join(f"{line}\n" for line in _lines(requests, engine, num_open))


def _lines(requests: RequestCounts, engine: Engine, num_open: int) -> Iterator[str]:
    yield from _head("vsr1_requests_total", "counter", "Requests by method and status.")
    for (method, status), number in sorted(requests.num.items()):
        yield f'vsr1_requests_total{{method="{method}",status="{status}"}} {number}'
    counts = engine.counts
    for name, kind, says, value in (
        ("vsr1_request_seconds_total", "counter", "Seconds until answers began.", requests.seconds),
        ("vsr1_searches_total", "counter", "Searches that ended with a result.", counts.num_searches),
        ("vsr1_searches_failed_total", "counter", "Searches that failed or waited too long.", counts.num_failed),
        ("vsr1_searches_refused_total", "counter", "Searches refused because too many waited.", counts.num_refused),
        ("vsr1_search_batches_total", "counter", "Batches in which searches ran.", counts.num_batches),
        ("vsr1_search_seconds_total", "counter", "Seconds in which batches ran.", counts.seconds),
        ("vsr1_search_batch_largest", "gauge", "Searches of the largest batch.", counts.largest_batch),
        ("vsr1_searches_waiting", "gauge", "Searches that wait now.", engine.num_waiting),
        ("vsr1_datasets_open", "gauge", "Datasets whose models are open.", num_open),
    ):
        yield from _head(name, kind, says)
        yield f"{name} {value:g}"


def _head(name: str, kind: str, says: str) -> Iterator[str]:
    yield f"# HELP {name} {says}"
    yield f"# TYPE {name} {kind}"
