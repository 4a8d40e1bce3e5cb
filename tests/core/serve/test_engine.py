"""The queue of searches: nothing is lost, what waits goes together, and answers are those of a search alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.core.serve.served import DATASET, FakeModels, client_of, state_of
from tests.waiting import until
from vsr1_core.home.search import SearchRequest
from vsr1_core.home.search_result import Found, ShownTurn
from vsr1_core.serve.engine import Busy, Engine, Failed, Job, Limits


class Told:
    """What one job was told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.ended = threading.Event()

    def __call__(self, event: ShownTurn | Found | Failed) -> None:
        self.events.append(event)
        if isinstance(event, Found | Failed):
            self.ended.set()

    @property
    def end(self) -> Any:
        assert self.ended.wait(60), "it did not end"
        return self.events[-1]


def submit(engine: Engine, text: str, **values: Any) -> Told:
    told = Told()
    engine.submit(Job(DATASET, SearchRequest(text), told, **values))
    return told


@pytest.fixture
def held() -> tuple[Engine, FakeModels, Callable[[], None]]:
    """An engine whose first batch waits until it is let go, so that what comes meanwhile queues up."""
    models, gate = FakeModels(), threading.Event()

    def run(dataset: str, requests: Any, told: Any) -> list[Found]:
        assert gate.wait(60)
        return models.run(dataset, requests, told)

    engine = Engine(run, max_waiting=40, max_batch=8)
    first = submit(engine, "first")
    until(lambda: engine.num_waiting == 0, every_s=0.001)
    assert not first.events
    return engine, models, gate.set


def test_what_waits_for_the_same_models_goes_together(held: Any) -> None:
    engine, models, let_go = held
    told = [submit(engine, f"dog {number}") for number in range(10)]
    other = Told()
    engine.submit(Job(DATASET, SearchRequest("plain", verify=False), other))
    let_go()
    for number, one in enumerate(told):
        assert one.end.text == f"dog {number}"
        assert [turn.turn for turn in one.events[:-1]] == [1, 2]
        assert one.events[1].reasoning == f"seen: dog {number}", "turns reach the search that they belong to"
    assert other.end.text == "plain"
    assert [len(batch) for batch in models.batches] == [1, 8, 2, 1]
    engine.close()


def test_one_search_that_cannot_run_fails_alone(held: Any) -> None:
    engine, _, let_go = held
    told = [submit(engine, text) for text in ("a", "poison", "b")]
    let_go()
    assert [type(one.end) for one in told] == [Found, Failed, Found]
    assert engine.counts.num_failed == 1
    engine.close()


def test_too_many_are_refused_and_late_or_unwanted_ones_dropped(held: Any) -> None:
    engine, models, let_go = held
    late = submit(engine, "late", deadline=time.monotonic() - 1)
    left = Job(DATASET, SearchRequest("left"), Told(), is_cancelled=True)
    engine.submit(left)
    for number in range(38):
        submit(engine, f"dog {number}")
    with pytest.raises(Busy, match="40 searches wait already"):
        submit(engine, "one too many")
    let_go()
    assert isinstance(late.end.error, TimeoutError)
    assert not any("left" in batch for batch in models.batches)
    engine.close()


def test_closing_fails_what_waits(held: Any) -> None:
    engine, _, let_go = held
    waiting = submit(engine, "waiting")
    threading.Thread(target=lambda: (waiting.ended.wait(60), let_go())).start()
    engine.close()
    assert isinstance(waiting.end.error, Busy)
    with pytest.raises(Busy):
        submit(engine, "later")


def test_of_32_searches_at_once_none_is_lost_and_each_gets_what_it_gets_alone(home: Path) -> None:
    models = FakeModels()
    state = state_of(home, models)
    with client_of(state) as client:
        texts = [f"a dog number {number}" for number in range(32)]

        def ask(text: str) -> dict[str, Any]:
            answer = client.post("/api/search", json={"text": text, "dataset": DATASET})
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        alone = {text: ask(text) for text in texts[:4]}
        models.batches.clear()
        models.wait = lambda: (
            len(models.batches) > 1 or until(lambda: len(models.batches[0]) + state.engine.num_waiting == 32)
        )
        with ThreadPoolExecutor(32) as pool:
            together = dict(zip(texts, pool.map(ask, texts), strict=True))
    assert sorted(text for batch in models.batches for text in batch) == sorted(texts)
    assert all(found["text"] == text for text, found in together.items())
    assert {text: together[text] for text in alone} == alone
    first, *others = map(len, models.batches)
    assert others == [min(8, left) for left in range(32 - first, 0, -8)], "searches that wait share a batch"


def test_a_full_queue_is_a_503_that_says_when_to_come_again(home: Path) -> None:
    gate = threading.Event()
    models = FakeModels(lambda: gate.wait(60))
    state = state_of(home, models, Limits(num_waiting=1))
    with client_of(state) as client, ThreadPoolExecutor(2) as pool:

        def ask() -> Any:
            return client.post("/api/search", json={"text": "a dog", "dataset": DATASET})

        running = pool.submit(ask)
        until(lambda: models.batches)
        waiting = pool.submit(ask)
        until(lambda: state.engine.num_waiting == 1)
        refused = ask()
        gate.set()
        assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True)
        assert [answer.result().status_code for answer in (running, waiting)] == [200, 200]
