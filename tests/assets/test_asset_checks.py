"""What a stage's checks may read when they run in the step that makes its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from assets._checks import check_specs
from pipelines.partitions import dataset_partitions
from tests.fakes import Squares, Total, fake_stages
from vsr1_core.stages.base import Check
from vsr1_core.stages.graph import all_stages


def test_every_check_of_the_graph_reads_what_is_there_when_it_runs(tmp_path: Path) -> None:
    stages, partitions = all_stages(), dataset_partitions(tmp_path)
    specs = {name: check_specs(stage, stages, partitions) for name, stage in stages.items()}
    needed = {check.name for stage in stages.values() for check in stage.checks if check.needs}
    assert {"videos_are_known", "queries_are_known"} <= needed
    assert needed <= {spec.name for found in specs.values() for spec in found}


def test_a_check_that_reads_a_table_made_later_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partitions = dataset_partitions(tmp_path)
    monkeypatch.setattr(Total, "checks", (Check("adds_up", "It adds up.", lambda *_: "", needs=("numbers",)),))
    assert "adds_up" in {spec.name for spec in check_specs(Total(), fake_stages(), partitions)}
    monkeypatch.setattr(Squares, "checks", (Check("is_small", "It is small.", lambda *_: "", needs=("total",)),))
    with pytest.raises(
        ValueError, match=r"^the check is_small of squares reads total, which squares does not wait for"
    ):
        check_specs(Squares(), fake_stages(), partitions)
