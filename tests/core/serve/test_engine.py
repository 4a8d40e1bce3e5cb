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
        assert self.ended.wait(10), "it did not end"
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
        assert gate.wait(10)
        return models.run(dataset, requests, told)

    engine = Engine(run, max_waiting=40, max_batch=8)
    first = submit(engine, "first")
    while engine.num_waiting:
        time.sleep(0.001)
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
    threading.Timer(0.05, let_go).start()
    engine.close()
    assert isinstance(waiting.end.error, Busy)
    with pytest.raises(Busy):
        submit(engine, "later")


def test_of_32_searches_at_once_none_is_lost_and_each_gets_what_it_gets_alone(home: Path) -> None:
    models = FakeModels(delay_s=0.02)
    with client_of(state_of(home, models)) as client:
        texts = [f"a dog number {number}" for number in range(32)]

        def ask(text: str) -> dict[str, Any]:
            answer = client.post("/api/search", json={"text": text, "dataset": DATASET})
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        alone = {text: ask(text) for text in texts[:4]}
        models.batches.clear()
        with ThreadPoolExecutor(32) as pool:
            together = dict(zip(texts, pool.map(ask, texts), strict=True))
    assert sorted(text for batch in models.batches for text in batch) == sorted(texts)
    assert all(found["text"] == text for text, found in together.items())
    assert {text: together[text] for text in alone} == alone
    assert len(models.batches) < 32, "searches that wait share a batch"


def test_a_full_queue_is_a_503_that_says_when_to_come_again(home: Path) -> None:
    models = FakeModels(delay_s=0.3)
    with client_of(state_of(home, models, Limits(num_waiting=1))) as client, ThreadPoolExecutor(6) as pool:
        ask = {"text": "a dog", "dataset": DATASET}
        answers = list(pool.map(lambda _: client.post("/api/search", json=ask), range(6)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert all(answer.headers["retry-after"] for answer in refused)
    assert {answer.status_code for answer in answers} == {200, 503}
