"""Where rows go on a cluster, without one: a pretended Ray whose workers do what the test says, at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.ray_cluster import outcomes
from vsr1_core.rows import ray_actors, ray_shares
from vsr1_core.rows.boundary import MAX_UNEXPECTED, results_in_halves
from vsr1_core.rows.ray_actors import ModelWorkers, with_signs_of_life
from vsr1_core.rows.ray_shares import ALIVE, READY, Shares, WorkerIsBroken

Answers = Callable[[list[str]], Iterator[Any]]


class Died(Exception):
    """The error of a pretended Ray whose worker was lost."""


class Silence:
    """Stands where a worker says nothing, so that its stream has no answer."""


class PretendedRay:
    """Ray with `total` GPUs, whose actors answer as `answers` says. started: the rows of each share, in order."""

    exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=OSError, **dict.fromkeys(ray_shares.LOSSES, Died))

    def __init__(self, answers: Answers, total: int = 2) -> None:
        self.answers, self.total, self.started, self.num_killed = answers, total, list[list[str]](), 0

    def remote(self, **_: Any) -> Any:
        return lambda kind: SimpleNamespace(remote=object)

    def call(self, actor: Any, items: list[str]) -> Any:
        self.started.append(items)
        return Stream(self.answers(items))

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": float(self.total)}

    def wait(self, streams: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        heard = [stream for stream in streams if stream.peek() is not Silence]
        return heard[:1], streams

    def get(self, answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.num_killed += 1


class Stream:
    """A stream of answers whose next one can be looked at."""

    def __init__(self, answers: Iterator[Any]) -> None:
        self._answers, self._next = answers, list[Any]()

    def peek(self) -> Any:
        if not self._next:
            self._next = [next(self._answers, StopIteration)]
        return self._next[0]

    def __next__(self) -> Any:
        answer = self.peek()
        if answer is StopIteration:
            raise StopIteration
        self._next.clear()
        return answer


def shared(ray: PretendedRay, names: str, count: int = 2, size: int = 4, log: list[str] | None = None) -> Any:
    actors = ray_actors._Actors(ray, ray.call, ModelWorkers(count, on_gpu=True, shard_size=size))  # type: ignore[arg-type]
    lines = [] if log is None else log
    return outcomes(Shares(ray, actors, iter(names), 0.2, lines.append).results())  # type: ignore[arg-type]


def well(items: list[str]) -> Iterator[Any]:
    """A worker that makes its rows two at a time, the last ones first."""
    yield ALIVE
    yield READY
    made = [(n, item.upper(), None) for n, item in enumerate(items)][::-1]
    yield from (made[i : i + 2] for i in range(0, len(made), 2))


def dying_with(bad: str, before: str = READY) -> Answers:
    """Workers that die where one of their rows is `bad`, after they have said `before`."""

    def answers(items: list[str]) -> Iterator[Any]:
        if bad not in items:
            yield from well(items)
            return
        yield ALIVE
        if before == READY:
            yield READY
        yield Died()

    return answers


def test_each_row_has_one_result_at_its_own_place() -> None:
    ray = PretendedRay(well)
    found = shared(ray, "abcdefghi")
    assert {name: r.value for name, r in found.items()} == {name: name.upper() for name in "abcdefghi"}
    assert sorted(map(len, ray.started)) == [1, 4, 4]
    assert ray.num_killed == 0


def test_a_row_that_ends_its_worker_is_found_by_halves_and_given_up() -> None:
    ray, log = PretendedRay(dying_with("c")), list[str]()
    found = shared(ray, "abcdefgh", count=1, size=8, log=log)
    assert [name for name, r in found.items() if r.error] == ["c"]
    assert found["c"].error == "a worker was lost (Died), 3 times with this row"
    with_it = [share for share in ray.started if "c" in share]
    assert [len(share) for share in with_it] == [8, 4, 2, 1, 1]
    assert len(log) == 4


def test_a_worker_lost_before_it_is_ready_blames_no_row() -> None:
    ray = PretendedRay(dying_with("c", before=ALIVE))
    with pytest.raises(ValueError, match=r"the Ray cluster does no work: a worker was lost .* 20 times in a row"):
        shared(ray, "abc")
    assert [len(share) for share in ray.started] == [3] * 20


def test_a_worker_lost_after_its_last_row_and_before_its_end_is_told_and_costs_nothing() -> None:
    def answers(items: list[str]) -> Iterator[Any]:
        yield from well(items)
        if "a" in items:
            yield Died()

    ray, log = PretendedRay(answers), list[str]()
    found = shared(ray, "abcdef", count=1, log=log)
    assert {name: r.value for name, r in found.items()} == {name: name.upper() for name in "abcdef"}
    assert log == ["Ray: a worker was lost (Died); its 0 unfinished rows are started again"]
    assert ray.started == [list("abcd"), list("ef")]


def test_a_silent_worker_is_stopped_and_its_rows_go_on() -> None:
    silent = iter([True])

    def answers(items: list[str]) -> Iterator[Any]:
        yield ALIVE
        yield READY
        if next(silent, False):
            while True:
                yield Silence
        yield from list(well(items))[2:]

    ray, log = PretendedRay(answers), list[str]()
    found = shared(ray, "abcd", count=1, log=log)
    assert all(r.error is None for r in found.values())
    assert log == ["Ray: a node said nothing for 0.2 s; its 4 unfinished rows are started again"]
    assert ray.num_killed == 1


def test_rows_that_wait_for_a_worker_without_room_go_to_one_that_is_idle() -> None:
    """The cluster says that it has two GPUs, and another user has one of them."""
    workers = iter(["runs", "waits"])

    def answers(items: list[str]) -> Iterator[Any]:
        while next(workers, "runs") == "waits" or items == ["never"]:
            items = ["never"]
            yield Silence
        yield from well(items)

    ray, log = PretendedRay(answers), list[str]()
    found = shared(ray, "abcdefgh", log=log)
    assert len(found) == 8
    assert all(r.error is None for r in found.values())
    assert log == []
    assert ray.num_killed == 1


def test_no_more_workers_than_asked_for_or_than_there_is_room_for() -> None:
    for total, count, expected in ((8, 3, 3), (2, 3, 2), (0, 3, 1)):
        actors = ray_actors._Actors(PretendedRay(well), None, ModelWorkers(count, True, 1))  # type: ignore[arg-type]
        assert actors.room(total) == expected


def test_results_that_wait_together_are_one_answer_and_silence_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_actors, "ALIVE_EVERY_S", 0.05)
    gate = threading.Event()

    def answers() -> Iterator[Any]:
        yield READY
        gate.wait()
        yield from ([(n, n, None)] for n in range(50))

    said = with_signs_of_life(answers(), 60.0)
    assert next(answer for answer in said if answer != ALIVE) == READY  # its thread may start late
    assert next(said) == ALIVE
    gate.set()
    rest = [answer for answer in said if answer != ALIVE]
    assert [result[0] for answer in rest for result in answer] == list(range(50))


def test_a_worker_that_finishes_no_row_in_time_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_actors, "ALIVE_EVERY_S", 0.02)
    gate = threading.Event()

    def answers() -> Iterator[Any]:
        gate.wait()
        yield READY

    said = with_signs_of_life(answers(), 0.1)
    with pytest.raises(WorkerIsBroken, match=r"finished no row within 0\.1 s"):
        assert set(said) == {ALIVE}
    gate.set()


def test_what_the_work_raises_comes_after_its_results() -> None:
    def answers() -> Iterator[Any]:
        yield [(0, "a", None)]
        raise LookupError("no model")

    said = with_signs_of_life(answers(), 60.0)
    found = list[Any]()
    with pytest.raises(LookupError, match="no model"):
        found += said
    assert found in ([], [[(0, "a", None)]])


class TestHalves:
    """The row boundary of rows that are made together."""

    @staticmethod
    def made(bad: dict[str, Exception], names: str) -> dict[str, Any]:
        def make(rows: dict[str, int]) -> Iterator[tuple[str, int]]:
            for start in range(0, len(rows), 4):  # batches of four, of which a bad row takes all
                batch = list(rows)[start : start + 4]
                for error in (bad[name] for name in batch if name in bad):
                    raise error
                yield from ((name, rows[name] * 2) for name in batch)

        return outcomes(results_in_halves(make, {name: n for n, name in enumerate(names)}))

    def test_a_row_that_raises_fails_alone(self) -> None:
        found = self.made({"c": ValueError("not readable"), "g": KeyError("width")}, "abcdefghij")
        assert {name: r.value for name, r in found.items() if r.error is None} == {
            name: 2 * n for n, name in enumerate("abcdefghij") if name not in "cg"
        }
        assert found["c"].error == "not readable"
        assert "unexpected KeyError at test_ray_shares.py" in str(found["g"].error)

    def test_what_concerns_every_row_is_raised(self) -> None:
        with pytest.raises(ConnectionError, match="nobody there"):
            self.made({"c": ConnectionError("nobody there")}, "abcdef")

    def test_work_that_is_broken_as_a_whole_is_stopped(self) -> None:
        names = "".join(map(chr, range(97, 97 + MAX_UNEXPECTED + 5)))
        broken = dict.fromkeys(names[2:], RuntimeError("the GPU failed"))
        with pytest.raises(RuntimeError, match="the GPU failed"):
            self.made(broken, names)
        unreadable = dict.fromkeys(names, OSError("gone"))
        assert {r.error for r in self.made(unreadable, names).values()} == {"gone"}
