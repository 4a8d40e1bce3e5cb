"""The lease of a dataset: one writer at a time, taken over from the dead only, and no commit by who lost it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from vsr1_core.rows import lease as leases
from vsr1_core.rows import process_identity
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.lease import LeaseHeld, LeaseLost, Member, hold, read_holding
from vsr1_core.rows.process_identity import ProcessIdentity, identity_of

HOLDER = """
import sys, time
from pathlib import Path
from vsr1_core.rows.lease import hold
with hold(Path(sys.argv[1]), "a build", sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "leases" / "toy"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    monkeypatch.setattr(leases, "LOOK_S", 0.01)
    monkeypatch.setattr(leases, "SILENT_S", {True: 0.2, False: 0.4})


@contextlib.contextmanager
def other_process(folder: Path, run: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease until it is killed."""
    command = [sys.executable, "-c", HOLDER, str(folder), run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def rewrite(folder: Path, **changes: str | int) -> None:
    """Let the holder's processes look like other ones. No heartbeat comes in between and undoes it."""
    with leases._locked(folder):
        now = read_holding(folder)
        members = {
            name: Member(dataclasses.replace(member.process, **changes), member.beat)  # type: ignore[arg-type]
            for name, member in now.members.items()
        }
        leases._write(folder, dataclasses.replace(now, members=members))


def enter(folder: Path, run: str) -> leases.Lease:
    """Become a member of a run that holds the lease, and name this process as one that keeps it."""
    with leases._locked(folder):
        return leases._enter(folder, read_holding(folder), "a step", run, [os.getpid()])


def test_a_second_run_is_told_who_holds_it(folder: Path) -> None:
    with other_process(folder) as process, pytest.raises(LeaseHeld) as raised, hold(folder, "an import"):
        pass
    assert f"dataset 'toy' has one writer at a time, and now it is: a build (process {process.pid} on" in str(
        raised.value
    )


def test_it_is_free_after_its_holder_left(folder: Path) -> None:
    with hold(folder, "a build") as first:
        pass
    with hold(folder, "a build") as second:
        assert second.is_new
    assert second.fence > first.fence
    assert read_holding(folder).members == {}


def test_it_is_free_after_an_error(folder: Path) -> None:
    with pytest.raises(KeyError), hold(folder, "a build"):
        raise KeyError
    with hold(folder, "a build"):
        pass


def test_a_killed_holder_is_replaced_at_once(folder: Path) -> None:
    with other_process(folder) as process:
        process.kill()
        process.wait()
        with hold(folder, "a build") as lease:
            assert lease.is_new


def test_an_ended_process_that_nobody_waited_for_is_dead(folder: Path) -> None:
    with other_process(folder) as process:
        process.kill()
        deadline = time.monotonic() + 60
        while identity_of(process.pid).started and time.monotonic() < deadline:
            time.sleep(0.01)
        with hold(folder, "a build") as lease:
            assert lease.is_new


def test_another_process_with_the_same_number_is_not_the_holder(folder: Path) -> None:
    """A container's first process is number 1 again after a restart."""
    with other_process(folder) as process:
        rewrite(folder, pid=os.getpid(), started="1")
        assert process.poll() is None
        with hold(folder, "a build") as lease:
            assert lease.is_new


@pytest.mark.parametrize("changes", [{"namespace": "pid:[1]"}, {"host": "far", "boot": "b"}])
def test_a_silent_process_that_cannot_be_looked_up_is_replaced(folder: Path, changes: dict[str, str]) -> None:
    with other_process(folder) as process:
        process.kill()
        process.wait()
        rewrite(folder, **changes)
        started = time.monotonic()
        with hold(folder, "a build"):
            assert time.monotonic() - started >= 0.2


def test_a_process_of_another_container_that_is_heard_keeps_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SILENT_S", dict.fromkeys((True, False), 60.0))  # a heartbeat may come late
    with hold(folder, "a build"):
        rewrite(folder, namespace="pid:[1]")
        with pytest.raises(LeaseHeld), hold(folder, "an import"):
            pass


def test_a_stopped_process_of_this_machine_keeps_it(folder: Path) -> None:
    """It says nothing while a laptop sleeps, or a debugger holds it, and goes on afterwards."""
    with other_process(folder) as process:
        os.kill(process.pid, 19)
        time.sleep(0.5)
        with pytest.raises(LeaseHeld), hold(folder, "a build"):
            pass


def test_processes_of_one_run_share_it(folder: Path) -> None:
    with other_process(folder, "run-1"), hold(folder, "a step", "run-1") as lease:
        assert not lease.is_new
        assert len(read_holding(folder).members) == 2
        with pytest.raises(LeaseHeld), hold(folder, "a build", "run-2"):
            pass


def test_a_process_named_as_well_keeps_it_between_two_steps(folder: Path) -> None:
    parent = subprocess.Popen(["sleep", "600"])
    try:
        with hold(folder, "a step", "run-1", also=[parent.pid]):
            pass
        with pytest.raises(LeaseHeld), hold(folder, "a build"):
            pass
        with hold(folder, "a step", "run-1", also=[parent.pid]) as lease:
            assert not lease.is_new
    finally:
        parent.kill()
        parent.wait()
    with hold(folder, "a build") as lease:
        assert lease.is_new


def test_a_process_that_steps_named_frees_it_when_it_leaves(folder: Path) -> None:
    with hold(folder, "a build", "run-1"):
        enter(folder, "run-1").leave()
        enter(folder, "run-1")
    assert f"process {os.getpid()}" not in read_holding(folder).members


def test_who_waits_gets_it_when_the_holder_leaves_and_says_so_once(folder: Path) -> None:
    said: list[str] = []
    order: list[str] = []
    waits = threading.Event()

    def log(line: str) -> None:
        said.append(line)
        waits.set()

    def second() -> None:
        with hold(folder, "an import", wait=True, log=log):
            order.append("second")

    thread = threading.Thread(target=second)
    with hold(folder, "a build"):
        thread.start()
        assert waits.wait(60)
        time.sleep(0.1)  # it looks again and again
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert len(said) == 1
    assert "waits for: a build (process" in said[0]


def test_who_lost_it_commits_nothing(folder: Path, tmp_path: Path) -> None:
    with hold(folder, "a build") as lost:
        table = Lake(tmp_path, lost).table("things", "toy", "thing_id", {"value": pl.Int64})
        row = {"thing_id": "a", "row_version": "1", "row_inputs": "{}", "status": "ok", "value": 1}
        table.commit(table.frame([row]), {})
        rewrite(folder, started="1")
        with hold(folder, "another build") as taken:
            assert taken.fence == lost.fence + 1
            for write in (lambda: table.commit(table.frame([]), {}), lambda: table.add_pending([row])):
                with pytest.raises(LeaseLost, match="was taken over by another build"):
                    write()
            files = sorted(path.name for path in table.folder.rglob("*") if path.is_file())
            assert files == ["manifest.json", "rows_0000000001.parquet"]
            assert table.rows().height == 1
        assert read_holding(folder).fence == taken.fence, "the one who lost it does not give it back"


def test_a_commit_cannot_be_overtaken(folder: Path) -> None:
    """Between the check and the rename nobody takes the lease."""
    with hold(folder, "a build") as lease:
        rewrite(folder, started="1")
        taken = threading.Thread(target=lambda: contextlib.ExitStack().enter_context(hold(folder, "another build")))
        with lease.fenced():
            taken.start()
            time.sleep(0.1)
            assert read_holding(folder).fence == lease.fence
        taken.join(60)
        with pytest.raises(LeaseLost), lease.fenced():
            pass


def test_of_many_who_want_it_one_has_it(folder: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(5):
            with hold(folder, "a build", wait=True):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert most == [1]
    assert read_holding(folder).fence == 20


def test_a_record_that_was_cut_off_is_nobodys(folder: Path) -> None:
    with hold(folder, "a build") as lost:
        with leases._locked(folder):
            (folder / "lease.json").write_text("")
        with pytest.raises(LeaseLost), lost.fenced():
            pass
        with hold(folder, "a build") as lease:
            assert lease.is_new
            assert lease.fence > lost.fence


def test_a_process_is_known_by_more_than_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    here = identity_of()
    assert here.state() == "alive"
    assert dataclasses.replace(here, started="1").state() == "dead"
    assert dataclasses.replace(here, pid=2**22 + 1).state() == "dead"
    assert dataclasses.replace(here, boot="another").state() == "unknown"
    assert identity_of(2**22 + 1).state() == "dead"


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps")
def test_without_proc_the_start_time_comes_from_ps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_identity, "_PROC", tmp_path)
    here = identity_of()
    assert isinstance(here, ProcessIdentity)
    assert here.started
    assert here.state() == "alive"
    assert dataclasses.replace(here, started="Thu Jan  1 00:00:00 1970").state() == "dead"
