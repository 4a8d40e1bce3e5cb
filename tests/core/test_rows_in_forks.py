"""Rows that forks make with models: those that this process makes, also where a fork dies; and where none is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from polars.testing import assert_frame_equal

from tests.nano_home import copy_nano_home
from vsr1_core.rows.forks import Forks
from vsr1_core.stages import model_rows
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view
from vsr1_core.stages.launch import forks as ready_to_search
from vsr1_core.stages.model_rows import ModelRows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only processes of Linux are forked"),
]
PROBE, SEARCH = "verification_probe.sqr_sft", "predictions.sqr_sft"


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    return open_view(copy_nano_home(tmp_path_factory, tmp_path_factory.mktemp("copy") / "home").home, "toy")


@pytest.fixture(scope="module")
def searching() -> Iterator[Forks]:
    made = ready_to_search()
    yield made
    made.close()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks make rows, however few there are."""
    monkeypatch.setattr(model_rows, "FEWEST_ROWS", 1)


def made(view: View, name: str, run: Execution) -> list[dict[str, Any]]:
    stage = view.stages[name]
    return list(stage.make(view, stage.planned_rows(view), run))


def assert_as_built(view: View, name: str, rows: list[dict[str, Any]]) -> None:
    table, columns = view.table(name), [view.stages[name].key, *view.stages[name].columns]
    expected, found = table.rows()[columns].sort(table.key), table.frame(rows)[columns].sort(table.key)
    assert expected.height > 1
    assert_frame_equal(found, expected, abs_tol=1e-5)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", [PROBE, SEARCH])
def test_forks_make_the_rows_that_this_process_makes(
    view: View, searching: Forks, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_rows, "OpenedModels", None)  # of this process
    lines: list[str] = []
    assert_as_built(view, name, made(view, name, Execution(processes=2, forks=searching, log=lines.append)))
    assert lines == []


@pytest.mark.long
@pytest.mark.usefixtures("few")
def test_the_rows_of_a_fork_that_dies_are_made_all_the_same(view: View) -> None:
    crashing, lines = Forks("tests.core.forked:prepare_to_crash", {**os.environ, "OMP_NUM_THREADS": "1"}), list[str]()
    try:
        assert_as_built(view, PROBE, made(view, PROBE, Execution(processes=2, forks=crashing, log=lines.append)))
    finally:
        crashing.close()
    assert lines
    for line in lines:
        assert line.startswith(f"{PROBE}: the worker process died (signal 9), probably in a native library; its ")
        assert line.endswith(" rows are made without a fork")


@pytest.mark.usefixtures("few")
def test_what_no_row_is_to_blame_for_stops_the_build_with_its_reason(view: View, searching: Forks) -> None:
    weights = Path(view.table("sft_checkpoint").rows()["path"][0]) / "model.safetensors"
    hidden = weights.rename(weights.with_suffix(".gone"))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors"):
            made(view, PROBE, Execution(processes=2, forks=searching))
    finally:
        hidden.rename(weights)


@pytest.mark.usefixtures("few")
def test_forks_are_used_where_small_models_run_on_the_cpu_and_nothing_is_trained_on_the_rows(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, run = cast(ModelRows, view.stages[PROBE]), Execution(processes=4)
    assert probe._num_forks(view, 100, run) == 4
    assert probe._num_forks(view, 3, run) == 3
    assert probe._num_forks(view, 100, replace(run, device="cuda")) == 0
    assert probe._num_forks(view, 100, replace(run, text_writer="vllm")) == 0
    assert probe._num_forks(view, 100, replace(run, processes=1)) == 0
    for name in ("query_embeddings", "video_embeddings", "reasoning_traces"):
        assert cast(ModelRows, view.stages[name])._num_forks(view, 100, run) == 0
    size = model_rows.weight_bytes(view, "sft_checkpoint", "sft_checkpoint")
    assert size > 10_000
    monkeypatch.setattr(model_rows, "SMALL_BYTES", size - 1)
    assert probe._num_forks(view, 100, run) == 0


def test_few_rows_are_made_in_this_process(view: View) -> None:
    run = Execution(processes=4)
    rows = [cast(ModelRows, view.stages[PROBE])._num_forks(view, number, run) for number in (127, 128, 255, 256, 600)]
    assert rows == [0, 2, 3, 4, 4]
