"""The program of each process that trains a model together with others. `stages.launch` starts them and waits."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path

from vsr1_core.rows.files import read_json, write_json
from vsr1_core.rows.forks import fork
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view
from vsr1_core.stages.launch import LOGGED
from vsr1_core.stages.model_folders import ModelStage


def _say(line: str) -> None:
    sys.stdout.write(f"{LOGGED}{line}\n")
    sys.stdout.flush()


def prepare() -> None:
    """Import what trainings and searches use. Nothing else may happen here: this process is forked."""
    from vsr1_core.models.registry import tiny_family

    for name in ("models.checkpoints", "search.episodes", "training.contrastive", "training.sft", "training.grpo"):
        importlib.import_module(f"vsr1_core.{name}")
    tiny_family()


GRACE_S = 5.0
"""Where a process has failed, the others may go on for so many seconds: the first one may be about to say why."""


def together(request: Path, meeting: Path, processes: int, threads: int, output: int) -> None:
    """In a fork: train in `processes` forks of it, whose output goes to the descriptor `output`. Ends with the exit
    code of the first one that fails; the others are then killed, because they would wait for it for ever."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    running = {fork(_rank, (request, meeting, rank, processes, threads)) for rank in range(processes)}
    while running:
        if code := _ended(running, os.wait()):
            end = time.monotonic() + GRACE_S
            while running and time.monotonic() < end:
                _ended(running, os.waitpid(-1, os.WNOHANG))
                time.sleep(0.05)
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            raise SystemExit(code)


def _ended(running: set[int], waited: tuple[int, int]) -> int:
    """Take the process that was waited for out of `running`, and return its exit code as a shell would; 0 for none."""
    pid, status = waited
    running.discard(pid)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _rank(request: Path, meeting: Path, rank: int, processes: int, threads: int) -> None:
    """One of the processes. They find each other through the file `meeting`, so that no port has to be free."""
    import torch

    torch.set_num_threads(threads)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in places.items()})  # as accelerate reads them
    main(request, init_method=f"file://{meeting}")


def main(request: Path, **meeting: str) -> None:
    """Train the asset that the file `request` names. The first process writes the answer next to that file. `meeting`:
    how the processes find each other, where no launcher says so."""
    from accelerate import PartialState

    asked = read_json(request)
    settings = asked["execution"]
    on_gpu = settings["device"] != "cpu"
    state = PartialState(cpu=not on_gpu, **meeting)
    device = f"cuda:{state.local_process_index}" if on_gpu else "cpu"
    log = _say if state.is_main_process else lambda line: None
    execution = Execution(**{**settings, "device": device, "trackers": tuple(settings["trackers"])}, log=log)
    view = open_view(Path(asked["home"]), asked["dataset"])
    stage = view.stages[asked["asset"]]
    assert isinstance(stage, ModelStage)
    try:
        rows = stage.train_here(view, execution, writes=state.is_main_process)
    except (ValueError, LookupError, OSError) as error:
        if state.is_main_process:
            write_json(request.with_name("answer.json"), {"error": str(error)})
        raise
    if state.is_main_process:
        write_json(request.with_name("answer.json"), {"rows": rows})
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
