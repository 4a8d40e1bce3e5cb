"""Builds that are cut off at each point where they write (`tests.faults`), and what the next build makes of it.

Each build runs in a forked process of its own, so this module has to be run as a process:
`python -m tests.fault_sweep SCENARIO KINDS --part 3/20` prints one JSON object per line. A process that has used polars
must not fork, because the threads of polars are not in its children.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tests.faults import NOT_REFUSED, Kind, Writes, install
from vsr1_core.rows import lease
from vsr1_core.rows.row_files import row_files


def in_child(work: Callable[[], object]) -> tuple[int | None, Any]:
    """Run `work` in a forked process: (signal that ended it or None, what it returned, or {"error": ...})."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            try:
                said = work()
            except BaseException as error:  # noqa: BLE001
                said = {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
            with os.fdopen(writing, "w") as out:
                json.dump(said, out)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else None), json.loads(text) if text else None


def struck(home: Path, act: Callable[[Path], object], kind: Kind, at: int | None) -> dict[str, Any]:
    """Run `act` on a home and strike at point `at`. Returns how it ended and the points that it passed."""

    def work() -> dict[str, Any]:
        lease.BEAT_S = 3600.0  # type: ignore[misc]
        writes = Writes(home, kind, at)
        install(writes)
        ended: dict[str, Any] = {"error": None}
        try:
            act(home)
        except Exception as error:  # noqa: BLE001
            ended = {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
        return {**ended, "has_struck": writes.has_struck, "points": writes.seen}

    ended_by, said = in_child(work)
    return {"signal": ended_by, **(said or {})}


def state_of(home: Path) -> dict[str, Any]:
    """What has to be equal after every build that was completed: rows, data versions, and the names of files."""
    return in_child(lambda: _state_of(home))[1]  # type: ignore[no-any-return]


def _state_of(home: Path) -> dict[str, Any]:
    tables = {}
    for manifest in sorted((home / "lake/tables").rglob("manifest.json")):
        kept = json.loads(manifest.read_text())
        files = row_files(manifest.parent)
        assert files is not None
        frame = files.read(list(files.schema))
        facts = {name: kept[name] for name in ("num_rows", "num_ok", "num_failed", "data_version")}
        tables[f"{manifest.parent.parent.name}"] = {"facts": facts, "rows": json.loads(frame.write_json())}
    files = sorted(str(path.relative_to(home)) for path in (home / "lake").rglob("*"))
    kept_files = [name for name in files if name.startswith(("lake/files", "lake/imported"))]
    hidden = [name for name in files if Path(name).name.startswith(".") or "/pending" in name]
    return {"tables": tables, "files": kept_files, "leftovers": hidden}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Sentences about how two states differ."""
    said = [f"left over: {name}" for name in found["leftovers"]]
    for what, some, others in (("more", found, wanted), ("fewer", wanted, found)):
        said += [f"{what} files: {name}" for name in sorted({*some["files"]} - {*others["files"]})]
    for asset in sorted({*found["tables"], *wanted["tables"]}):
        one, other = found["tables"].get(asset), wanted["tables"].get(asset)
        if one is None or other is None:
            said.append(f"{asset}: only one has the table")
        elif differs := _first_difference(one, other):
            said.append(f"{asset}: {differs}")
    return said


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    if one["facts"] != other["facts"]:
        return f"manifest {one['facts']} and not {other['facts']}"
    pairs = zip(one["rows"], other["rows"], strict=True)
    rows = ({n: (a[n], b[n]) for n in a if not is_same(a[n], b[n])} for a, b in pairs)
    return str(next(filter(None, rows), ""))


TOLERANCE = 1e-6
"""Of scores: a BLAS sums in another order for another number of queries, and a build that goes on searches fewer."""


def is_same(one: Any, other: Any) -> bool:
    """Whether two values of a table are equal, numbers with a fraction up to TOLERANCE."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= TOLERANCE
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[name], other[name]) for name in one)
    return bool(one == other)


@dataclass(frozen=True)
class Scenario:
    """prepare: puts a home into the folder. act: what is struck, and repeated to complete it."""

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]


@dataclass
class Sweep:
    """A scenario in a folder of its own, with what an uninterrupted run makes of it."""

    scenario: Scenario
    folder: Path

    def __post_init__(self) -> None:
        self.home, self._before = self.folder / "home", self.folder / "before"
        _, failed = in_child(lambda: [self.scenario.prepare(self._before), None][1])
        if failed:
            raise RuntimeError(failed["trace"])
        self._restore()
        whole = struck(self.home, self.scenario.act, "kill", None)
        if whole["error"]:
            raise RuntimeError(whole["trace"])
        self.points: list[str] = whole["points"]
        self.wanted = state_of(self.home)

    def _restore(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self._before, self.home)

    def chosen(self) -> list[int]:
        """The first and the last of the points that differ in nothing but numbers, such as those of the shards."""
        alike: dict[str, list[int]] = {}
        for at, point in enumerate(self.points):
            alike.setdefault(re.sub(r"[0-9a-f]{8,}|\d+", "#", point), []).append(at)
        return sorted({at for places in alike.values() for at in (places[0], places[-1])})

    def result(self, kind: Kind, at: int) -> dict[str, Any]:
        """Strike at one point, and complete it: the point, what the struck run said, and what is wrong, if anything."""
        self._restore()
        ended = struck(self.home, self.scenario.act, kind, at)
        problems = _problems_of_end(kind, ended, str(self.home), at)
        completed = struck(self.home, self.scenario.act, "kill", None)
        if completed["error"]:
            problems.append(f"the next build: {completed['error']}: {completed['text']}\n{completed['trace']}")
        else:
            problems += differences(state_of(self.home), self.wanted)
        said = (ended.get("text") or "").replace(str(self.home), "HOME")
        return {"kind": kind, "at": at, "point": self.points[at], "said": said, "problems": problems}


def _problems_of_end(kind: Kind, ended: dict[str, Any], home: str, at: int) -> list[str]:
    if kind not in ("full", "broken"):
        return [] if ended["signal"] == signal.SIGKILL else [f"it was not killed: {ended}"]
    if ended["error"] is None:  # what failed was not needed, such as deleting what is deleted later
        return [] if ended["has_struck"] else ["nothing was struck"]
    said = ended["text"]
    is_sentence = "\n" not in said and home in said and "cannot be written" in said
    is_of_deleting = f"'{home}" in said and "\n" not in said and ended["points"][at].startswith(NOT_REFUSED)
    return [] if is_sentence or is_of_deleting else [f"it said {ended['error']}: {said}\n{ended['trace']}"]


def main() -> None:
    from tests.fault_scenarios import SCENARIOS

    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("kinds", help="separated by commas")
    parser.add_argument("--part", default="0/1", help="I/N: each N-th point from the I-th on")
    given = parser.parse_args()
    first, step = map(int, given.part.split("/"))
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30
    with tempfile.TemporaryDirectory(dir=memory if has_room else None) as folder:
        sweep = Sweep(SCENARIOS[given.scenario], Path(folder))
        print(json.dumps({"num_points": len(sweep.points), "num_chosen": len(sweep.chosen())}), flush=True)
        for kind in given.kinds.split(","):
            assert kind in get_args(Kind)
            for at in sweep.chosen()[first::step]:
                print(json.dumps(sweep.result(kind, at)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
