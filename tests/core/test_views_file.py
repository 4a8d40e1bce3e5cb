"""When the file of the DuckDB views is made, copied, or found to be another one. What views show: `test_warehouse`."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pytest
from fake_results import commit_results, fake_stages

from vsr1_core.home import warehouse
from vsr1_core.stages.base import Stage
from vsr1_core.stages.columns import Column


@pytest.fixture
def home(tmp_path: Path) -> Path:
    warehouse.refresh(tmp_path / "home", fake_stages())
    return tmp_path / "home"


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever views are made, and not copied."""
    make, made = warehouse._make_views, list[int]()
    monkeypatch.setattr(warehouse, "_make_views", lambda *args: made.append(1) or make(*args))
    warehouse._content.cache_clear()
    return made


def test_the_same_views_are_made_once_in_a_process_and_serve_all_homes(making: list[int], tmp_path: Path) -> None:
    commit_results(tmp_path / "a/lake", "toy", num_queries=3)
    for name in ("a", "b", "a"):
        warehouse.refresh(tmp_path / name, fake_stages())
    commit_results(tmp_path / "b/lake", "toy", num_queries=5)
    counts = [warehouse.query(tmp_path / name, "select count(*) from moments").item() for name in ("a", "b")]
    assert (counts, len(making)) == ([3, 5], 1)


def test_a_later_process_makes_views_only_where_the_file_is_another_one(home: Path, making: list[int]) -> None:
    def refreshed(stages: dict[str, Stage]) -> int:
        warehouse._content.cache_clear()
        making.clear()
        warehouse.refresh(home, stages)
        assert warehouse.query(home, "select * from moments").is_empty()
        return len(making)

    path, few = warehouse.database_path(home), {"moments": fake_stages()["moments"]}
    assert refreshed(fake_stages()) == 0
    before = path.read_bytes()
    assert (refreshed(few), refreshed(few), refreshed(fake_stages())) == (1, 0, 1)
    assert path.read_bytes() == before
    path.write_bytes(before[:-1] + b"\1")
    assert refreshed(fake_stages()) == 1
    path.unlink()
    assert refreshed(fake_stages()) == 1
    (home / "lake/schemas/views.json").write_text("{")
    assert (refreshed(fake_stages()), refreshed(fake_stages())) == (1, 0)


@pytest.mark.parametrize("part", ["says", "type"])
def test_views_are_made_again_where_a_column_is_declared_otherwise(home: Path, making: list[int], part: str) -> None:
    stages = fake_stages()
    moments = stages["moments"]
    said, kind = moments.columns["end_s"].says, pl.Float64
    said, kind = ("Another end.", kind) if part == "says" else (said, pl.Float32)
    moments.columns = {**moments.columns, "end_s": Column(kind, said)}
    warehouse.refresh(home, stages)
    assert len(making) == 1
    asked = "select comment from duckdb_columns() where table_name = 'moments' and column_name = 'end_s'"
    assert warehouse.query(home, asked).item() == said
    assert warehouse.query(home, "select end_s from moments").schema == {"end_s": kind}


def test_a_file_of_an_earlier_form_is_noticed_in_place_of_one_of_this_form(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsr1_core.stages.graph.all_stages", fake_stages)
    for _ in range(2):
        assert "row_id" in warehouse.query(home, "from failures").columns
        with duckdb.connect(tmp_path / "old.duckdb") as old:
            old.execute("create view failures as select 1 as number")
        (tmp_path / "old.duckdb").replace(warehouse.database_path(home))
    assert "row_id" in warehouse.query(home, "from failures").columns
