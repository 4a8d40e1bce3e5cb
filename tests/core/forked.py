"""Programs that `tests.core.test_forks` runs in forks. What they are told to write goes to a descriptor."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vsr1_core.rows.forks import Forks
from vsr1_core.stages import launched
from vsr1_core.stages.base import Row
from vsr1_core.stages.opened import OpenedModels

PREPARED: list[int] = []


def prepare() -> None:
    PREPARED.append(os.getpid())


def prepare_to_train() -> None:
    import torch  # noqa: F401


def prepare_to_crash() -> None:
    """Of the rows of probes, only those of right videos can be made."""
    from vsr1_core.stages.probes import VerificationProbe

    make = VerificationProbe.make_with

    def crash(stage: VerificationProbe, opened: OpenedModels, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        if any(row_id.endswith("/wrong") for row_id in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        return make(stage, opened, rows)

    setattr(VerificationProbe, "make_with", crash)  # noqa: B010  # as a method of a class


def fail_to_prepare() -> None:
    raise ModuleNotFoundError("No module named 'a_trainer'")


def tell(text: str, output: int) -> None:
    told = [text, os.environ.get("ASKED", ""), str([os.getppid()] == PREPARED)]
    os.write(output, " ".join(told).encode())


def end_with_code(code: int) -> None:
    sys.exit(code)


def fail() -> None:
    raise ValueError("of no use")


def write_id_and_sleep(folder: str) -> None:
    (Path(folder) / f"{os.getpid()}.id").touch()
    time.sleep(600)


def together(request: Path, meeting: Path, processes: int, threads: int, output: int) -> None:
    """`launched.together`, with `train` in place of a training."""
    launched.GRACE_S = 60.0 if request.read_text() == "refuse" else 0.1
    setattr(launched, "main", train)  # noqa: B010  # it has another signature
    launched.together(request, meeting, processes, threads, output)


def train(request: Path, init_method: str) -> None:
    """The first process logs and waits for ever, where the request says so; the second one does as the request says."""
    asked = request.read_text()
    if asked == "refuse" and os.environ["RANK"] == "0":
        time.sleep(1)
        request.with_name("answer.json").touch()
    if asked == "refuse":
        raise ValueError("a batch of no rows")
    if os.environ["RANK"] == "0" and asked != "end":
        (request.parent / f"{os.getpid()}.id").touch()
        print("vsr1> begins", flush=True)
        time.sleep(600)
    if asked == "fail":
        raise ValueError("a batch of no rows")
    if asked == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    print(f"vsr1> of {os.environ['WORLD_SIZE']}" if os.environ["RANK"] == "0" else "noise", flush=True)


def build_that_is_killed(folder: str) -> None:
    """The program of a process that starts a fork, which starts another one, and waits."""
    forks = Forks("tests.core.forked:prepare", os.environ)
    forks.start("tests.core.forked:start_another", [folder])
    time.sleep(600)


def start_another(folder: str) -> None:
    from vsr1_core.rows.forks import fork

    fork(write_id_and_sleep, [folder])
    write_id_and_sleep(folder)
