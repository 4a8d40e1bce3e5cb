"""The program of each process that trains a model together with others. `stages.launch` starts them and waits."""

from __future__ import annotations

import sys
from pathlib import Path

from vsr1_core.rows.files import read_json, write_json
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view
from vsr1_core.stages.launch import LOGGED
from vsr1_core.stages.model_folders import ModelStage


def _say(line: str) -> None:
    sys.stdout.write(f"{LOGGED}{line}\n")
    sys.stdout.flush()


def main(request: Path) -> None:
    """Train the asset that the file `request` names. The first process writes the answer next to that file."""
    from accelerate import PartialState

    asked = read_json(request)
    settings = asked["execution"]
    on_gpu = settings["device"] != "cpu"
    state = PartialState(cpu=not on_gpu)
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
