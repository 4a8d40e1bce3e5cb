"""The notebooks run on a small lake and on an empty one, and hold no results and no definitions."""

from __future__ import annotations

from pathlib import Path

import nbformat
import numpy as np
import pytest
from fake_results import commit_results, commit_rows

from tests.notebooks import outputs_here, outputs_in_kernel
from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home import warehouse
from vsr1_core.rows.lake import Lake
from vsr1_core.stages import corpus, frames, predictions, probes, reporting
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution

ALL = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
OF_THE_FACE = ("search_my_folder", "train_on_my_annotations")
"""Run in `tests.core.test_face`."""
NOTEBOOKS = [path for path in ALL if path.stem not in OF_THE_FACE]


def stages() -> dict[str, Stage]:
    modules = (corpus.STAGES, frames.STAGES, predictions.STAGES, probes.STAGES, reporting.STAGES)
    return {stage.name: stage for module in modules for stage in (make() for make in module)}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def commit_frames(home: Path, video_ids: list[str]) -> None:
    path = home / "frames.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8))
    rows = [
        {"video_id": v, "path": str(path), "timestamps_s": [float(t) for t in range(6)], "duration_s": 6.0}
        for v in video_ids
    ]
    columns = frames.FrameTensors().dtypes
    commit_rows(Lake(home / "lake"), "frame_tensors", "toy", "video_id", columns, rows)


@pytest.fixture(scope="module")
def built_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    moments = commit_results(home / "lake", "toy", num_queries=30)
    commit_frames(home, [moment["video_id"] for moment in moments])
    view = View(Lake(home / "lake"), DatasetEntry("toy", "toy"), NANO, stages())
    view.stages["metrics"].build(view, Execution())
    warehouse.refresh(home, stages())
    return home


def test_all_are_there() -> None:
    reading = ("compare_methods", "explore_dataset", "why_did_it_fail")
    assert [path.stem for path in ALL] == sorted([*reading, *OF_THE_FACE])


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_notebook_carries_no_outputs_and_defines_nothing(path: Path) -> None:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert not any(line.startswith(("def ", "class ")) for cell in cells for line in cell.source.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_results(path: Path, built_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR1_HOME", str(built_home))
    shown = outputs_here(path)
    assert "image/png" in shown
    assert "shape: (0," not in shown or path.stem == "explore_dataset"  # it has no videos table here


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_before_anything_is_built(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse.refresh(tmp_path, stages())
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    run = outputs_in_kernel if path.stem == "explore_dataset" else outputs_here
    assert "Error" not in run(path)
