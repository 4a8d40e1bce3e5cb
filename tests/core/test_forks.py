"""Processes that are forks of one that has imported everything: what they get, how they end, and that none is left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import until
from vsr1_core.rows.forks import Forks, can_fork
from vsr1_core.stages import launch
from vsr1_core.stages.execution import Execution

ROOT = Path(__file__).resolve().parents[2]
US = "tests.core.forked"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only processes of Linux are forked")


@pytest.fixture
def forks() -> Iterator[Forks]:
    made = Forks(f"{US}:prepare", {**os.environ, "ASKED": "for"})
    yield made
    made.close()


def ids_in(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.id")]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def said_by(forks: Forks, text: str) -> str:
    ours, theirs = os.pipe()
    process = forks.start(f"{US}:tell", [text], [theirs])
    os.close(theirs)
    with os.fdopen(ours) as output:
        said = output.read()
    assert process.wait() == 0
    return said


def test_a_fork_has_what_was_imported_its_arguments_the_environment_and_the_files(forks: Forks) -> None:
    assert said_by(forks, "hello") == "hello for True"
    assert said_by(forks, "again") == "again for True", "the second one was not forked from the same process"


def test_how_a_fork_ended_is_known(forks: Forks, tmp_path: Path) -> None:
    assert forks.start(f"{US}:end_with_code", [7]).wait() == 7
    assert forks.start(f"{US}:fail", []).wait() == 1
    sleeping = forks.start(f"{US}:write_id_and_sleep", [str(tmp_path)])
    until(lambda: ids_in(tmp_path))
    sleeping.kill()
    assert sleeping.wait() == -9


def test_nothing_goes_on_after_the_end(forks: Forks, tmp_path: Path) -> None:
    forks.start(f"{US}:start_another", [str(tmp_path)])
    until(lambda: len(ids_in(tmp_path)) == 2)
    forks.close()
    until(lambda: all(map(is_gone, ids_in(tmp_path))))


def test_where_the_build_is_killed_no_process_is_left(tmp_path: Path) -> None:
    code = f"from {US} import build_that_is_killed; build_that_is_killed({str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as build:
        until(lambda: len(ids_in(tmp_path)) == 2)
        build.kill()
    until(lambda: all(map(is_gone, ids_in(tmp_path))))


def test_where_the_process_that_is_forked_is_killed_another_one_is_started(forks: Forks, tmp_path: Path) -> None:
    sleeping = forks.start(f"{US}:write_id_and_sleep", [str(tmp_path)])
    until(lambda: ids_in(tmp_path))
    assert forks._origin is not None
    forks._origin._process.kill()
    until(lambda: is_gone(ids_in(tmp_path)[0]))
    assert sleeping.wait() == -9
    assert said_by(forks, "hello") == "hello for True"


def test_an_import_that_fails_is_an_error_with_its_reason() -> None:
    with pytest.raises(RuntimeError, match="No module named 'a_trainer'"):
        Forks(f"{US}:fail_to_prepare", os.environ).start(f"{US}:fail", [])


def test_a_stopped_request_leaves_no_answer_for_the_next_one(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    said_by(forks, "hello")
    origin = forks._origin
    assert origin is not None
    ask = origin.ask

    def stopped(what: object, files: object) -> int:
        ask(what, ())
        raise KeyboardInterrupt

    monkeypatch.setattr(origin, "ask", stopped)
    with pytest.raises(KeyboardInterrupt):
        forks.start(f"{US}:end_with_code", [3])
    assert not origin.is_alive()
    assert forks.start(f"{US}:end_with_code", [4]).wait() == 4


def test_no_gpu_is_used_in_a_fork() -> None:
    assert [can_fork(device) for device in ("cpu", "cuda", "cuda:0")] == [True, False, False]


@pytest.fixture(scope="module")
def trainers() -> Iterator[Forks]:
    """What starts the trainings of all tests, as a build keeps it; importing torch for each of them took 1 s."""
    made = Forks(f"{US}:prepare_to_train", os.environ)
    yield made
    made.close()


@pytest.fixture
def trained(trainers: Forks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Execution]:
    """How to train in two forks that run `forked.train`."""
    monkeypatch.setattr(launch, "PROGRAM", US)
    yield Execution(processes=2, forks=trainers, log=LINES.append)
    LINES.clear()


LINES: list[str] = []


def request(folder: Path, text: str) -> Path:
    path = folder / "request.json"
    path.write_text(text)
    return path


def test_what_a_fork_logs_is_passed_on_and_the_rest_is_kept_for_an_error(trained: Execution, tmp_path: Path) -> None:
    assert launch._run_forked(request(tmp_path, "end"), trained) == (0, "noise\n")
    assert LINES == ["of 2"]


@pytest.mark.parametrize(("does", "code", "says"), [("fail", 1, "ValueError: a batch of no rows"), ("crash", 139, "")])
def test_a_process_that_fails_ends_the_others(
    trained: Execution, tmp_path: Path, does: str, code: int, says: str
) -> None:
    returncode, output = launch._run_forked(request(tmp_path, does), trained)
    assert returncode == code
    assert says in output
    until(lambda: all(map(is_gone, ids_in(tmp_path))))


def test_a_process_that_fails_leaves_the_first_one_time_to_say_why(trained: Execution, tmp_path: Path) -> None:
    assert launch._run_forked(request(tmp_path, "refuse"), trained)[0] == 1
    assert (tmp_path / "answer.json").exists()


def test_a_build_that_is_stopped_in_a_training_ends_its_processes(trained: Execution, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    run = Execution(processes=2, forks=trained.forks, log=stop)
    with pytest.raises(KeyboardInterrupt):
        launch._run_forked(request(tmp_path, "wait"), run)
    assert len(ids_in(tmp_path)) == 1
    until(lambda: all(map(is_gone, ids_in(tmp_path))))


def test_a_training_without_a_build_ends_what_it_started(trained: Execution, tmp_path: Path) -> None:
    before = threading.active_count()
    run = Execution(processes=2, log=LINES.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "forks", lambda: trained.forks)
        assert launch._run_forked(request(tmp_path, "end"), run)[0] == 0
    assert trained.forks is not None
    assert trained.forks._origin is None
    assert threading.active_count() == before
