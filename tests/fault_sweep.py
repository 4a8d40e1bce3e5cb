"""Builds that are cut off at each point where they write (`tests.faults`), and what the next build makes of it.

`python -m tests.fault_sweep SCENARIO KINDS --part 3/20` prints one JSON object per line. It changes `os` and more, so
it has to be a process of its own.

Nothing of a killed process matters but what it leaves on the disk. So one run says what cuts leave at all points; only
refused writes, after which the process goes on, need a run for each point. All runs see the same clock, random names
and process (`Same`), so that strikes that leave the same home leave the same bytes. The next build is a function of the
home that it has when it holds the lease, by when what was half written is swept: each such home is completed once.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import threading
import time
import traceback
import types
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Literal, get_args

from tests.fault_states import Tree, differences, digest_of, read_tree, state_of, write_tree
from tests.faults import NOT_REFUSED, Cut, Half, Kind, Refusal, Writes, install
from vsr1_core.rows import lease
from vsr1_core.rows.files import file_state
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.process_identity import ProcessIdentity, identity_of

Phase = Literal["before", "struck", "completing"]
CUTS, REFUSALS = get_args(Cut), get_args(Refusal)


class Same:
    """The clock, the random names and the process that `vsr1_core` sees: the same in every run of a phase.

    A process that is struck says that it is one that is dead by now. A file is told from others by its content, and not
    by its inode and time, which a home that was put back does not have.
    """

    def __init__(self) -> None:
        self._stands_for: dict[str, tuple[Any, Any]] = {
            "datetime": (datetime, type("Clock", (datetime,), {"now": self._now})),
            "time": (time, _like(time, monotonic=lambda: 0.0)),
            "secrets": (secrets, _like(secrets, token_hex=self._token)),
            "uuid": (uuid, _like(uuid, uuid4=lambda: self._token(16))),
            "file_state": (file_state, _content_state),
            "identity_of": (identity_of, self._identity),
        }

    def begin(self, phase: Phase) -> None:
        self.phase, self._count = phase, 0
        self._began = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(days=get_args(Phase).index(phase))
        for name, module in list(sys.modules.items()):  # each time, as some are imported late
            for attribute, (real, same) in self._stands_for.items() if name.startswith("vsr1_core.") else ():
                if vars(module).get(attribute) is real:
                    setattr(module, attribute, same)

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _now(self, zone: tzinfo | None = None) -> datetime:
        return (self._began + timedelta(milliseconds=self._next())).astimezone(zone)

    def _token(self, size: int) -> str:
        return hashlib.sha256(f"{self.phase} {self._next()}".encode()).hexdigest()[: 2 * size]

    def _identity(self, pid: int | None = None) -> ProcessIdentity:
        mine = identity_of(pid)
        return mine if self.phase == "completing" else ProcessIdentity(mine.host, mine.boot, mine.namespace, 1, "never")


def _like(module: types.ModuleType, **others: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{**vars(module), **others})


def _content_state(path: Path) -> list[int]:
    if not path.exists():
        return []
    content = path.read_bytes()
    return [len(content), int(hashlib.sha256(content).hexdigest()[:12], 16)]


@dataclass(frozen=True)
class Scenario:
    """prepare: puts a home into the folder. act: what is struck, and repeated to complete it."""

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]


@dataclass(frozen=True)
class Ended:
    """How a run ended: the points that it passed, and its error, if any."""

    points: list[str]
    has_struck: bool
    error: str = ""
    text: str = ""
    trace: str = ""


@dataclass
class Sweep:
    """A scenario in a folder of its own, with what an uninterrupted run makes of it.

    swept: digest of a home that was left -> that of the same home when the next build holds its lease. verdicts: of the
    latter -> what is wrong with what that build makes of it.
    """

    scenario: Scenario
    folder: Path
    swept: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lease.BEAT_S = 3600.0  # type: ignore[misc]
        self.home, self._same = self.folder / "home", Same()
        self._writes = Writes(self.home)
        install(self._writes)
        self._same.begin("before")
        self.scenario.prepare(self.home)
        self._before = read_tree(str(self.home))
        whole = self._run("struck")
        if whole.error:
            raise RuntimeError(whole.trace)
        self.points, self.wanted = whole.points, state_of(self.home)
        gc.collect()
        gc.freeze()
        self._open = _opened_things()

    def _restore(self, tree: Tree) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        write_tree(tree)

    def _run(self, phase: Phase, **strike: Any) -> Ended:
        self._same.begin(phase)
        if phase == "struck":
            self._restore(self._before)
            self._writes.begin(**strike)
        said: dict[str, str] = {}
        try:
            with contextlib.suppress(_KnownHome):
                self.scenario.act(self.home)
        except Exception as error:  # noqa: BLE001
            said = {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
        finally:
            self._writes.end()
        return Ended(self._writes.seen, self._writes.has_struck, **said)

    def chosen(self) -> list[int]:
        """The first and the last of the points that differ in nothing but numbers, such as those of the shards."""
        alike: dict[str, list[int]] = {}
        for at, point in enumerate(self.points):
            alike.setdefault(re.sub(r"[0-9a-f]{8,}|\d+", "#", point), []).append(at)
        return sorted({at for places in alike.values() for at in (places[0], places[-1])})

    def results(self, kinds: list[Kind], chosen: list[int]) -> Iterator[dict[str, Any]]:
        """Strike at the points, and complete what is left: the kind, the point, what the struck run said, the home that
        it left, and what is wrong, if anything."""
        left = self._left_by_cuts([kind for kind in kinds if kind in CUTS], chosen)
        for at in chosen:
            for kind in kinds:
                said, problems = "", list[str]()
                if kind in CUTS:
                    tree = left[kind, at]
                else:
                    ended = self._run("struck", kind=kind, at=at)
                    tree, said = read_tree(str(self.home)), ended.text.replace(str(self.home), "HOME")
                    problems = self._problems_of_end(ended, at)
                left_home = digest_of(tree)
                if left_home not in self.swept:
                    self.swept[left_home] = self._completed(tree)
                problems += self.verdicts[self.swept[left_home]]
                yield {"kind": kind, "at": at, "point": self.points[at], "said": said, "problems": problems}

    def _left_by_cuts(self, kinds: list[Kind], chosen: list[int]) -> dict[tuple[Kind, int], Tree]:
        wanted, left = {*chosen} if kinds else set(), dict[tuple[Kind, int], Tree]()
        kept: dict[str, Tree] = {}

        def look(number: int, half: Half | None) -> None:
            if number in wanted:
                for kind, tree in self._writes.left_by(half).items():
                    left[kind, number] = kept.setdefault(digest_of(tree), tree)

        if wanted:
            ended = self._run("struck", on_point=look)
            assert ended.points == self.points, "each run passes the same points"
        return left

    def _completed(self, tree: Tree) -> str:
        """Let the next build go on with what was left, unless its verdict is known. Returns its key in `verdicts`."""
        home: list[str] = []

        def look() -> None:
            if not home:  # the first lease of the run
                home.append(digest_of(read_tree(str(self.home))))
                if home[0] in self.verdicts:
                    raise _KnownHome

        self._restore(tree)
        with _when_held(look):
            ended = self._run("completing")
        key = home[0] if home else f"no lease, {digest_of(tree)}"
        if key not in self.verdicts and ended.error:
            self.verdicts[key] = [f"the next build: {ended.error}: {ended.text}\n{ended.trace}"]
        elif key not in self.verdicts:
            self.verdicts[key] = differences(state_of(self.home), self.wanted)
        return key

    def _problems_of_end(self, ended: Ended, at: int) -> list[str]:
        if ended.points[: at + 1] != self.points[: at + 1]:
            return [f"it passed other points: {ended.points}"]
        if self._left_open():
            gc.collect()
            if left := self._left_open():
                return [f"it left open: {left}"]
        if not ended.error:  # what failed was not needed, such as deleting what is deleted later
            return [] if ended.has_struck else ["nothing was struck"]
        home, said = str(self.home), ended.text
        is_sentence = "\n" not in said and home in said and "cannot be written" in said
        is_of_deleting = f"'{home}" in said and "\n" not in said and ended.points[at].startswith(NOT_REFUSED)
        return [] if is_sentence or is_of_deleting else [f"it said {ended.error}: {said}\n{ended.trace}"]

    def _left_open(self) -> dict[str, int]:
        now = _opened_things()
        return {what: now[what] - num for what, num in self._open.items() if now[what] > num}


class _KnownHome(BaseException):
    """The rest of this build is known."""


@contextlib.contextmanager
def _when_held(do: Callable[[], object]) -> Iterator[None]:
    """For the block, call `do` when a lease is held and what was half written is swept."""
    real = Lake.written

    @contextlib.contextmanager
    def written(lake: Lake, *args: Any, **kwargs: Any) -> Iterator[Lake]:
        with real(lake, *args, **kwargs) as leased:
            do()
            yield leased

    Lake.written = written  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Lake.written = real  # type: ignore[method-assign]


def _opened_things() -> dict[str, int]:
    """What a run may leave behind in this process."""
    return {"files": len(os.listdir("/proc/self/fd")), "threads": threading.active_count()}


def part_of(chosen: list[int], part: str, every: int) -> list[int]:
    """Part I of N, of neighbours, which often leave the same home; of these, each so many-th from the middle of the
    first so many on."""
    number, num_parts = map(int, part.split("/"))
    ends = [len(chosen) * end // num_parts for end in (number, number + 1)]
    return chosen[slice(*ends)][every // 2 :: every]


def main() -> None:
    from tests.fault_scenarios import SCENARIOS

    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("kinds", help="separated by commas, of: " + ", ".join([*CUTS, *REFUSALS]))
    parser.add_argument("--part", default="0/1", help="I/N: the I-th of N parts of the points, from 0 on")
    parser.add_argument("--every", type=int, default=1, help="N: each N-th point of the part")
    given = parser.parse_args()
    kinds = given.kinds.split(",")
    if unknown := {*kinds} - {*CUTS, *REFUSALS}:
        parser.error(f"no kinds: {', '.join(unknown)}")
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30
    with tempfile.TemporaryDirectory(dir=memory if has_room else None) as folder:
        sweep = Sweep(SCENARIOS[given.scenario], Path(folder))
        chosen = sweep.chosen()
        part = part_of(chosen, given.part, given.every)
        print(json.dumps({"num_points": len(sweep.points), "num_chosen": len(chosen), "here": part}), flush=True)
        for result in sweep.results(kinds, part):
            print(json.dumps(result), flush=True)
        print(json.dumps({"num_left": len(sweep.swept), "num_completed": len(sweep.verdicts)}), flush=True)


if __name__ == "__main__":
    main()
