"""The lease of a dataset: one run at a time writes its tables, and who lost the lease commits nothing any more.

`leases/<dataset>/lease.json` names the run that holds it, its processes, and a fencing number that grows each time
another run takes it. A process of the run shows that it is alive by counting up its heartbeat. A lease is taken over
only when each process of the holder is dead: one of this machine and pid namespace is looked up by id and start time;
of any other one only the heartbeat can be watched. A holder that was merely silent may go on, so each commit checks
the lease while it holds the lock that a takeover needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vsr1_core.rows.files import read_json, refusals_explained, sweep_leftovers, write_json
from vsr1_core.rows.process_identity import ProcessIdentity, State, identity_of

BEAT_S = 2.0
SILENT_S = {True: 20.0, False: 60.0}
"""Seconds without a heartbeat after which a process that cannot be looked up counts as dead, by whether it runs on this
boot of this machine. Other machines may see a file of a network file system late."""
LOOK_S = 0.5
SAY_S = 60.0
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class LeaseHeld(OSError):
    """Another run writes the dataset."""


class LeaseLost(OSError):
    """Another run has taken the dataset over, because this one looked dead."""


@dataclass(frozen=True)
class Member:
    """One process of the run that holds a lease. beat: its heartbeat, a number that grows."""

    process: ProcessIdentity
    beat: int = 0


@dataclass(frozen=True)
class Holding:
    """What the file of a lease says. run and members: of the holder; empty where nobody holds it."""

    fence: int = 0
    run: str = ""
    what: str = ""
    since: str = ""
    members: dict[str, Member] = field(default_factory=dict)

    def __str__(self) -> str:
        processes = ", ".join(dict.fromkeys(str(member.process) for member in self.members.values()))
        return f"{self.what} ({processes}, since {self.since})"


def read_holding(folder: Path) -> Holding:
    """Who holds the lease in `folder`. A file that was cut off, by a power loss, says that nobody does; its number is
    then one that no earlier holder had."""
    try:
        raw = read_json(folder / "lease.json")
    except FileNotFoundError:
        return Holding()
    except ValueError:
        return Holding(fence=int(time.time()))
    members = {name: Member(ProcessIdentity(**m["process"]), m["beat"]) for name, m in raw["members"].items()}
    return Holding(**{**raw, "members": members})


def is_held(folder: Path) -> bool:
    """Whether a process that is known to be alive holds the lease in `folder`."""
    return any(member.process.state() == "alive" for member in read_holding(folder).members.values())


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds, alone or with other processes of the same run.

    folder: of its file. fence: the fencing number. name: of this process among the members. is_new: whether it was
    taken here, and not joined.
    """

    folder: Path
    run: str
    fence: int
    name: str
    is_new: bool

    @contextlib.contextmanager
    def fenced(self) -> Iterator[None]:
        """For the block, nobody can take the lease over.

        Raises:
            LeaseLost: Somebody has; what the block would have committed must not be.
        """
        with _locked(self.folder):
            self._held()
            yield

    def _held(self) -> Holding:
        now = read_holding(self.folder)
        if (now.run, now.fence) != (self.run, self.fence):
            taker = f"by {now}" if now.run else "since"
            raise LeaseLost(
                f"dataset {self.folder.name!r} was taken over {taker}, because this run gave no sign of life; nothing "
                "more is written here, and the same command goes on"
            )
        return now

    def _update(self, member: Callable[[Member | None], Member | None]) -> None:
        with _locked(self.folder):
            now = self._held()
            changed, members = member(now.members.get(self.name)), dict(now.members)
            members.pop(self.name, None)
            if changed is None:  # steps of the run may have named this process as one that keeps the lease
                members.pop(f"process {os.getpid()}", None)
            _write(self.folder, dataclasses.replace(now, members=members | ({self.name: changed} if changed else {})))

    def beat(self) -> None:
        """Show that this process is alive. LeaseLost: somebody thought otherwise."""
        self._update(lambda member: dataclasses.replace(member, beat=member.beat + 1) if member else None)

    def leave(self) -> None:
        """End this process's part. The lease is free when no living process has one."""
        with contextlib.suppress(LeaseLost):
            self._update(lambda member: None)


def silent_since(folder: Path, run: str) -> float:
    """Seconds since the last heartbeat of `run`; infinite where it does not hold the lease (any more)."""
    with _locked(folder):
        if read_holding(folder).run != run:
            return math.inf
        return time.time() - (folder / "lease.json").stat().st_mtime


@contextlib.contextmanager
def hold(
    folder: Path,
    what: str,
    run: str = "",
    *,
    also: Sequence[int] = (),
    wait: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[Lease]:
    """Hold the lease in `folder`, which has the name of the dataset, for the block.

    Args:
        folder: Where its file is.
        what: What the holder does, for others who want the lease.
        run: Id of the run; processes with the same id share the lease. By default this process alone.
        also: Ids of other processes of this machine that keep the lease for the run until they end.
        wait: Wait for a holder that is alive, instead of raising.
        log: Called with a line about who is waited for.

    Raises:
        LeaseHeld: Another run holds it and is alive; the message says which.
    """
    lease = _taken(folder, what, run or secrets.token_hex(8), also, wait, log)
    ended = threading.Event()
    beats = threading.Thread(target=_keep_beating, args=(lease, ended), daemon=True)
    beats.start()
    try:
        yield lease
    finally:
        ended.set()
        beats.join()
        with contextlib.suppress(OSError):  # a full disk, of which the block speaks; the lease ends with this process
            lease.leave()


def _keep_beating(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        try:
            lease.beat()
        except LeaseLost:  # the next commit says so
            return
        except OSError:  # a full or absent disk: the next beat may succeed
            continue


def _taken(folder: Path, what: str, run: str, also: Sequence[int], wait: bool, log: Callable[[str], None]) -> Lease:
    watch, said = _Watch(), -SAY_S
    while True:
        with _locked(folder):
            now = read_holding(folder)
            state: State = "dead" if now.run == run else watch.state(now)
            if state == "dead":
                return _enter(folder, now, what, run, also)
        if state == "alive" and not wait:
            raise LeaseHeld(
                f"dataset {folder.name!r} has one writer at a time, and now it is: {now}. Wait until it has ended, or "
                "stop it; with --wait, vsr1 waits by itself"
            )
        if time.monotonic() - said >= SAY_S:
            said = time.monotonic()
            log(f"dataset {folder.name!r} waits for: {now}")
        time.sleep(LOOK_S)


def _enter(folder: Path, now: Holding, what: str, run: str, also: Sequence[int]) -> Lease:
    """Become a member of the run `run`, which takes the lease unless it has it."""
    is_new = now.run != run
    if is_new:
        sweep_leftovers(folder)  # nobody else writes there, as the lease is locked
        now = Holding(now.fence + 1, run, what, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    name = secrets.token_hex(4)
    others = {f"process {pid}": Member(identity_of(pid)) for pid in also}
    _write(folder, dataclasses.replace(now, members={**now.members, **others, name: Member(identity_of())}))
    return Lease(folder, run, now.fence, name, is_new)


class _Watch:
    """Remembers the heartbeats of a holder whose processes cannot be looked up."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, float, bool]] = {}

    def state(self, now: Holding) -> State:
        """`alive` if one process is, `dead` if all are, and `unknown` while that is being watched."""
        states = {self._of(name, member) for name, member in now.members.items()}
        return "alive" if "alive" in states else "unknown" if "unknown" in states else "dead"

    def _of(self, name: str, member: Member) -> State:
        state = member.process.state()
        if state != "unknown":
            return state
        at = time.monotonic()
        beat, since, was_heard = self._last.get(name, (member.beat, at, False))
        if beat != member.beat:
            since, was_heard = at, True
        self._last[name] = (member.beat, since, was_heard)
        is_near = member.process.boot == identity_of().boot
        if at - since >= SILENT_S[is_near]:
            return "dead"
        return "alive" if was_heard else "unknown"


def _write(folder: Path, holding: Holding) -> None:
    raw: dict[str, Any] = dataclasses.asdict(holding)
    write_json(folder / "lease.json", raw, lasting=False)  # after a power loss, all holders are dead


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """For the block, no other process or thread reads or writes the lease. Held for milliseconds. Where the file system
    has no locks, a takeover within these milliseconds is not noticed."""
    path = folder / "lock"
    with refusals_explained(path, path):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
