"""A training in several processes of this machine, each of which runs `stages.launched`.

There is one process per GPU, started by `accelerate launch`. On a CPU each process gets an equal share of the cores,
because small models gain little from more threads; where that is possible, the processes are forks of one that has
imported everything (`rows.forks`). The parent waits, passes on what the first process logs, and returns the rows that
it made; weights stay in their folder on disk. All processes read the same tables, and only the first one writes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vsr1_core.rows.files import read_json, write_json
from vsr1_core.rows.forks import Forks, can_fork
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution

PASSED_ON = (
    "device",
    "workers",
    "batch_size",
    "precision",
    "cache_bytes",
    "micro_batch_size",
    "save_steps",
    "trackers",
)
PROGRAM = "vsr1_core.stages.launched"
LOGGED = "vsr1> "
"""Prefix of lines for the log; all other output is shown only when the training fails."""
_TAIL_LINES = 30
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
"""For glibc, which else gives the largest tensors of a step back to the system, and takes them from it page by page in
the next one: a step of `tiny` was 8 % slower. Allocators without these settings ignore them."""


def launch(view: View, asset: str, execution: Execution) -> list[dict[str, Any]]:
    """Train `asset` in `execution.processes` processes and return its rows.

    Raises:
        ValueError: The training refused to run, or there are fewer GPUs than processes; the message says why.
        RuntimeError: A process crashed; the message has the end of the output.
    """
    _check_gpus(execution)
    if view.home is None:
        raise ValueError("several processes find the tables through the home folder, which this view lacks")
    folder = view.files(asset) / "launch"
    request, answer = folder / "request.json", folder / "answer.json"
    answer.unlink(missing_ok=True)
    settings = {name: getattr(execution, name) for name in PASSED_ON}
    write_json(request, {"home": str(view.home), "dataset": view.entry.name, "asset": asset, "execution": settings})
    run = _run_forked if can_fork(execution.device) else _run_launched
    returncode, output = run(request, execution)
    said = read_json(answer) if answer.exists() else {}
    if "error" in said:
        raise ValueError(said["error"])
    if returncode or "rows" not in said:
        how = f"its training in {execution.processes} processes failed with exit code {returncode}"
        raise RuntimeError(f"{asset}: {how}\n{output}")
    return list(said["rows"])


def _check_gpus(execution: Execution) -> None:
    if execution.device == "cpu":
        return
    import torch

    if torch.cuda.device_count() < execution.processes:
        raise ValueError(
            f"VSR1_PROCESSES asks for {execution.processes} processes, but there are {torch.cuda.device_count()} GPUs"
        )


def forks() -> Forks:
    """Starts processes on the CPU that have imported what trainings and searches use. Each has one thread until it asks
    for more."""
    return Forks(f"{PROGRAM}:prepare", _environment(1))


def _environment(threads: int) -> dict[str, str]:
    """The environment of processes on the CPU."""
    return {**KEPT_MEMORY, **os.environ, "OMP_NUM_THREADS": str(threads)}


def threads_of(processes: int) -> int:
    """How many threads each of so many processes has."""
    return max(1, (os.cpu_count() or 1) // processes)


def _run_forked(request: Path, execution: Execution) -> tuple[int, str]:
    """As `_run_launched`, in forks of a process of this build, or else of one that is ended with the training."""
    processes = execution.processes
    with contextlib.ExitStack() as stack:
        origin = execution.forks or stack.enter_context(contextlib.closing(forks()))
        meeting = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vsr1-"))) / "meeting"
        ours, theirs = os.pipe()
        output = stack.enter_context(os.fdopen(ours, errors="replace"))
        try:
            how = (request, meeting, processes, threads_of(processes))
            process = origin.start(f"{PROGRAM}:together", how, [theirs])
        finally:
            os.close(theirs)
        try:
            tail = _followed(output, execution)
        except BaseException:
            process.kill()
            deque(output, maxlen=0)  # its processes end with it, and their output with them
            process.wait()
            raise
        return process.wait(), tail


def _run_launched(request: Path, execution: Execution) -> tuple[int, str]:
    """(return code, the last lines of output that were not for the log) of `accelerate launch`."""
    environment = _environment(threads_of(execution.processes)) if execution.device == "cpu" else dict(os.environ)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = _command(execution.processes, request)
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        try:
            tail = _followed(process.stdout or (), execution)
        except BaseException:
            process.terminate()  # the launcher ends its processes when it is asked to end
            raise
    return process.returncode, tail


def _followed(output: Iterable[str], execution: Execution) -> str:
    """Pass on the lines that are for the log until the output ends, and return the last of the others."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    for line in output:
        if line.startswith(LOGGED):
            execution.log(line.removeprefix(LOGGED).rstrip())
        else:
            tail.append(line)
    return "".join(tail)


def _command(processes: int, request: Path) -> list[str]:
    """The command line. `--multi_gpu` means several processes on this machine; without GPUs they talk through gloo."""
    flags = {"num_processes": processes, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    options = [part for name, value in {**flags, "main_process_port": 0}.items() for part in (f"--{name}", str(value))]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *options]
    return [*launcher, "-m", PROGRAM, str(request)]
