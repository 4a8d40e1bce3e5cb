"""Parquet files beside the tables: a damaged one is made again where it is a cache, and is named where it is not."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from vsr1_core.home.warehouse import _write_empty
from vsr1_core.rows.build_history import keep_changed_rows
from vsr1_core.rows.files import FileStamp, write_json
from vsr1_core.rows.imported import FORM, Imported, write_rows
from vsr1_core.rows.known_digests import KnownDigests
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.places import Places
from vsr1_core.rows.table import Table
from vsr1_core.rows.unreadable import UnreadableRows

DAMAGE = ["cut off", "of zeros", "of another kind"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    assert content
    if how == "of another kind":
        path.write_text("not parquet")
    else:
        path.write_bytes(content[:-9] if how == "cut off" else bytes(len(content)))


@pytest.mark.parametrize("how", [*DAMAGE, "with other columns"])
def test_damaged_digests_are_taken_again(tmp_path: Path, how: str) -> None:
    known = KnownDigests.of(Lake(tmp_path), "small")
    digests = {FileStamp(str(tmp_path / "a.mp4"), 3, 4): "1234"}
    known.write(digests)
    assert known.read() == digests
    if how == "with other columns":
        pl.DataFrame({"path": ["a"]}).write_parquet(known.path)
    else:
        damage(known.path, how)
    assert known.read() == {}
    known.write(digests)
    assert known.read() == digests


def named(path: Path) -> str:
    return rf"^{re.escape(str(path))} cannot be read .*: copy it back, or delete it"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = Table(
        tmp_path / "tables" / "things" / "dataset=toy", "things", "toy", "id", {"n": pl.Int64}, Places(tmp_path)
    )
    table.commit(table.frame([{"id": "a", "row_version": "1", "status": "ok", "n": 1}]), {})
    return table


def changed(table: Table) -> None:
    table.commit(table.frame([{"id": "a", "row_version": "2", "status": "ok", "n": 2}]), {})


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_kept_state_is_named_with_the_way_out(table: Table, tmp_path: Path, how: str) -> None:
    history = tmp_path / "history"
    keep_changed_rows(table, lambda rows: rows.select("id", "n"), history, "run-0")
    [kept] = history.glob("*.parquet")
    damage(kept, how)
    changed(table)
    with pytest.raises(UnreadableRows, match=named(kept)):
        keep_changed_rows(table, lambda rows: rows.select("id", "n"), history, "run-1")
    kept.unlink()
    keep_changed_rows(table, lambda rows: rows.select("id", "n"), history, "run-1")
    assert [pl.read_parquet(path)["n"].to_list() for path in history.glob("*.parquet")] == [[2]]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_state_of_a_whole_table_is_named_with_the_way_out(table: Table, tmp_path: Path, how: str) -> None:
    states = tmp_path / "states"
    table.keep_state(states)
    changed(table)
    table.keep_state(states)
    first, second = sorted(states.glob("*.parquet"))
    damage(first, how)
    with pytest.raises(
        UnreadableRows, match=rf"^{re.escape(str(first))} cannot be read .*: copy it back, or delete it"
    ):
        table.kept_states(states)
    first.unlink()
    assert [state["n"].to_list() for state in table.kept_states(states)] == [[2]]
    assert second.exists()


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_of_the_columns_that_views_show_is_written_again(tmp_path: Path, how: str) -> None:
    _write_empty(tmp_path, {"id": pl.String})
    [path] = tmp_path.rglob("*.parquet")
    damage(path, how)
    _write_empty(tmp_path, {"id": pl.String})
    assert pl.read_parquet(path).schema == {"id": pl.String}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_imported_rows_are_named_with_the_command_that_imports_them_again(tmp_path: Path, how: str) -> None:
    imported = Imported(tmp_path / "imported" / "charades" / "one")
    write_json(imported.folder / "record.json", {"form": FORM, "source": "/data/prepared"})
    rows = pl.DataFrame({"video_id": ["a"], "n": [1], "many": [[1, 2]]})
    write_rows(imported, "videos", rows, ["1234"], [{}])
    rows.with_columns(document=pl.lit("x")).write_parquet(imported.folder / "documents.parquet")
    assert imported.rows("videos", "video_id")["a"].known == {"n": 1}
    assert list(imported.values("videos", "video_id", ["a"])) == rows.to_dicts()
    paths = [imported.folder / "rows" / "videos.parquet", imported.folder / "documents.parquet"]
    for path in paths:
        damage(path, how)
    works = [
        (paths[0], lambda: imported.rows("videos", "video_id")),
        (paths[0], lambda: list(imported.values("videos", "video_id", ["a"]))),
        (paths[1], lambda: imported.document("x")),
    ]
    for path, work in works:
        with pytest.raises(UnreadableRows) as raised:
            work()
        assert str(raised.value).startswith(f"{path} cannot be read (")
        assert str(raised.value).endswith("import it again: vsr1 import-prepared /data/prepared --dataset charades")
