"""Tables that are too large to be written whole: bases, deltas over them, and what readers see of both."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import polars as pl
import pytest
from fake_results import fake_stages

from vsr1_core.home import warehouse
from vsr1_core.home.row_sql import HOME_VARIABLE, LISTING
from vsr1_core.rows import boundary, row_files
from vsr1_core.rows.files import WriteRefused
from vsr1_core.rows.increments import Outcome, make_plan, run_plan
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.merged import BLOCK_ROWS, newest
from vsr1_core.rows.table import Table
from vsr1_core.rows.unreadable import UnreadableRows

MAX_AMPLIFICATION = 3.0


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table whose base is never too small for deltas."""
    monkeypatch.setattr(row_files, "ONE_FILE_BYTES", -1)
    return things(tmp_path)


def things(home: Path) -> Table:
    return Lake(home / "lake").table("things", "toy", "thing_id", {"value": pl.Int64, "text": pl.String})


def build(table: Table, values: Mapping[str, int]) -> Outcome:
    """Make the rows whose values changed, and drop those that are not wanted; a text takes 2 kB."""
    wanted = {row_id: {"value": str(value)} for row_id, value in values.items()}

    def make(ids: Sequence[str]) -> list[dict[str, object]]:
        return [{"thing_id": i, "value": values[i], "text": os.urandom(1000).hex()} for i in ids]

    return run_plan(table, wanted, make_plan(wanted, table), make, shard_rows=64)


def numbered(count: int) -> dict[str, int]:
    return {f"t{number:05d}": number for number in range(count)}


def names(table: Table) -> list[str]:
    return sorted(path.name for path in table.folder.glob(row_files.PATTERN))


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    at = {"cut": len(content) // 2, "without_end": len(content) - 4, "empty": 0, "inside": 40}[how]
    path.write_bytes(content[:at] + (b"\xff" * 200 + content[at + 200 :] if how == "inside" else b""))


@pytest.mark.parametrize("how", ["cut", "without_end", "empty", "inside"])
@pytest.mark.parametrize("file", ["base", "delta"])
@pytest.mark.parametrize("number", [10, 100], ids=["small", "large"])
def test_a_file_that_cannot_be_read_is_named_with_what_to_do(table: Table, how: str, file: str, number: int) -> None:
    build(table, numbered(number))
    build(table, numbered(number) | {"t00000": -1})
    files = table.files()
    assert files is not None
    assert len(files.deltas) == 1
    broken = files.base if file == "base" else files.deltas[0]
    spoil(broken, how)
    with pytest.raises(UnreadableRows) as raised:
        table.rows()
    said = str(raised.value)
    assert said.startswith(f"{broken}, a file of the table things of toy, cannot be read (parquet: "), said
    assert "delete its folder and run: vsr1 build --dataset toy --assets things, " in said
    assert boundary.is_of_the_run(raised.value), "no row is to blame"
    shutil.rmtree(table.folder)
    build(table, numbered(number))
    assert table.rows(["thing_id", "value"]).rows() == [(f"t{n:05d}", n) for n in range(number)]


def test_each_way_to_read_a_table_names_the_file(table: Table) -> None:
    build(table, numbered(100))
    files = table.files()
    assert files is not None
    spoil(files.base, "cut")
    for read in (table.rows, table.ok_rows, table.new_columns, table.has_other_columns, files.num_rows, table.known):
        with pytest.raises(UnreadableRows, match=re.escape(f"{files.base}, a file of the table things of toy")):
            read()


def test_a_pending_shard_that_cannot_be_read_is_named(table: Table) -> None:
    build(table, numbered(10))
    table.add_pending([{"thing_id": "t00000", "value": 7}])
    [shard] = (table.folder / "pending").iterdir()
    spoil(shard, "cut")
    said = f"{shard}, a file of the table things of toy, cannot be read (parquet: "
    with pytest.raises(UnreadableRows, match=re.escape(said)) as raised:
        table.pending()
    assert str(raised.value).endswith("delete it, and its rows are made again")
    shard.unlink()
    assert table.known(["value"])["value"].to_list() == list(range(10))


def test_random_builds_leave_the_rows_and_the_version_of_one_file(table: Table, tmp_path: Path) -> None:
    draw, whole = random.Random(0), things(tmp_path / "whole")
    values = numbered(40)
    for number in range(25):
        for row_id in draw.sample(sorted(values), draw.randrange(4)):
            values[row_id] += 1000
        values |= {f"new{number}_{n}": n for n in range(draw.randrange(3))}
        values.pop(draw.choice(sorted(values)))
        outcome = build(table, values)
        read = table.rows(["thing_id", "value", "status"])
        assert dict(read[["thing_id", "value"]].rows()) == values
        assert read["thing_id"].is_sorted()
        assert outcome.manifest["num_rows"] == len(values)
        assert table.is_whole()
        whole.commit(table.rows(), {})
        assert whole.manifest()["data_version"] == outcome.manifest["data_version"]
        some = sorted(values)[::7]
        assert table.rows(["value"], some)["value"].to_list() == [values[i] for i in some]
        assert table.rows(["value"], []).is_empty()
        files = table.files()
        assert files is not None
        assert files.num_rows() == len(values)
    assert len({name[:17] for name in names(table) if name.startswith("rows")}) > 1, "deltas became a base"
    assert any(name.startswith("changes") for name in names(table))
    before = names(table)
    assert build(table, values).num_processed == 0
    assert names(table) == before, "nothing to do writes nothing"


def test_small_tables_are_one_file(tmp_path: Path) -> None:
    table = things(tmp_path)
    build(table, numbered(40))
    build(table, numbered(41))
    assert names(table) == ["rows_0000000001.parquet", "rows_0000000002.parquet"]


def test_a_commit_writes_what_changed_and_growth_writes_three_times_what_it_keeps(table: Table) -> None:
    written, seen = 0, set[str]()
    for count in range(20, 601, 20):
        build(table, numbered(count))
        new = set(names(table)) - seen
        written += sum((table.folder / name).stat().st_size for name in new)
        seen |= new
    one = things(table.folder.parents[3] / "one")
    one.commit(table.rows(), {})
    assert written <= MAX_AMPLIFICATION * one.num_bytes
    assert table.num_bytes <= 2.2 * one.num_bytes
    build(table, numbered(600))
    build(table, numbered(600) | {"t00001": 7})
    assert (table.rows_path.stat().st_size < 12_000) == table.rows_path.name.startswith("changes")


def test_a_table_with_many_deltas_gets_a_base(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MAX_DELTAS", 2)
    for value in range(4):
        build(table, numbered(40) | {"t00001": value})
    base, changes = "rows_{:010d}.parquet".format, "changes_0000000001_{:010d}.parquet".format
    assert names(table) == [changes(1), changes(2), base(1), base(2)]


def test_files_of_earlier_states_are_removed_and_those_of_this_one_kept(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "MAX_DELTAS", 2)
    monkeypatch.setattr(row_files, "MAX_OLD_BYTES", 1)
    for value in range(4):
        build(table, numbered(40) | {"t00001": value})
    assert len(names(table)) == 4, "a query may still read them"
    monkeypatch.setattr(row_files, "SUPERSEDED_S", -1.0)
    build(table, numbered(40) | {"t00001": 99})
    assert names(table) == ["changes_0000000002_0000000001.parquet", "rows_0000000002.parquet"]
    assert table.rows()["value"][1] == 99


@pytest.mark.parametrize("gone", ["rows_0000000001.parquet", "changes_0000000001_0000000001.parquet"])
def test_a_missing_file_is_named_and_never_read_past(table: Table, gone: str) -> None:
    for value in range(3):
        build(table, numbered(40) | {"t00001": value})
    (table.folder / gone).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"{gone}, over which .* is missing: copy it back, or delete its folder"
    ):
        table.rows()


def test_a_commit_that_fails_or_is_cut_off_leaves_one_of_the_two_states(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(table, numbered(40))
    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", _full)
        with pytest.raises(WriteRefused, match=r"changes_0000000001_0000000001\.parquet cannot be written"):
            build(table, numbered(41))
    assert table.is_whole()
    assert table.rows().height == 40
    with monkeypatch.context() as patch:
        patch.setattr("vsr1_core.rows.table.write_json", _killed)
        with pytest.raises(KeyboardInterrupt):
            build(table, numbered(41))
    assert table.rows().height == 41
    assert not table.is_whole()
    assert build(table, numbered(41)).num_processed == 0
    assert table.is_whole()


def _full(*_: object, **__: object) -> None:
    raise OSError(28, os.strerror(28))


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_reads_bases_alone_sees_an_earlier_state_and_its_commit_is_the_newest(table: Table) -> None:
    """A version of before takes the last of `rows*.parquet`, and writes the next number."""
    build(table, numbered(40))
    build(table, numbered(41))
    base = max(table.folder.glob("rows*.parquet"))
    assert pl.read_parquet(base).height == 40
    pl.read_parquet(base).head(39).write_parquet(table.folder / "rows_0000000002.parquet")
    assert table.rows().height == 39


def test_another_form_of_the_columns_is_written_whole(table: Table) -> None:
    build(table, numbered(40))
    build(table, numbered(41))
    wider = Table(table.folder, "things", "toy", "thing_id", {**table.columns, "more": pl.Int64}, table.places)
    build(wider, numbered(41))
    assert wider.rows_path.name == "rows_0000000002.parquet"
    assert not wider.has_other_columns()


def test_a_table_of_the_first_versions_is_gone_on_with(table: Table) -> None:
    build(table, numbered(40))
    table.rows_path.rename(table.folder / "rows.parquet")
    build(table, numbered(41))
    assert table.rows().height == 41
    assert names(table) == ["rows.parquet", "rows_0000000001.parquet"]
    build(table, numbered(42))
    assert table.rows_path.name == "changes_0000000001_0000000001.parquet"


def test_views_read_bases_with_their_deltas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "ONE_FILE_BYTES", -1)
    warehouse.refresh(tmp_path, fake_stages())
    stage = fake_stages()["moments"]
    for dataset, drop in (("toy", "q3"), ("other", "q4")):
        table = Lake(tmp_path / "lake").table("moments", dataset, stage.key, stage.dtypes)
        rows = [{"query_id": f"q{n}", "status": "ok", "row_version": "1", "query": "old"} for n in range(9)]
        table.commit(table.frame(rows), {})
        table.commit_changes(table.frame([{**rows[n], "query": "new"} for n in (1, 2)]), [drop], {})
        table.commit_changes(table.frame([{**rows[n], "query": "newest"} for n in (2, 3)]), ["q5"], {})
        assert len(names(table)) == 3
        shown = warehouse.query(tmp_path, f"select query_id, query from moments where dataset = '{dataset}' order by 1")
        assert shown.equals(table.rows(["query_id", "query"]))


@pytest.mark.parametrize(("pattern", "listing"), [("rows*.parquet", LISTING), (row_files.PATTERN, "glob")])
def test_views_that_know_no_deltas_or_list_them_late_are_made_again(pattern: str, listing: str, tmp_path: Path) -> None:
    warehouse.refresh(tmp_path, fake_stages())
    with duckdb.connect(str(warehouse.database_path(tmp_path))) as connection:
        made = f"SELECT getvariable('{HOME_VARIABLE}') || '{pattern}' AS of_before, '{listing}' AS how"
        connection.execute(f"CREATE OR REPLACE VIEW failures AS {made}")
    assert warehouse.query(tmp_path, "select * from failures").columns == ["dataset", "asset", "row_id", "error"]


NUM_ASKED = 30
READER = f"""
import sys
from pathlib import Path
from vsr1_core.home import warehouse
from vsr1_core.rows.lake import Lake
home, asset, view, states = Path(sys.argv[1]), *sys.argv[2:], set()
table = Lake(home / "lake").table(asset, "toy", "query_id", {{"start_s": __import__("polars").Float64}})
def check(seen, num_rows):
    assert len(set(seen)) == 1 and len(seen) == 20 + seen[0] % 3 and num_rows == 100 + len(seen), (seen, num_rows)
    states.add(seen[0])
for _ in range({NUM_ASKED}):
    shown = warehouse.query(home, "select start_s from " + view)["start_s"].to_list()
    check([value for value in shown if value >= 0], len(shown))
    read = table.rows(["start_s"])["start_s"].to_list()
    check([value for value in read if value >= 0], len(read))
print(len(states))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("asset", "view"), [("moments", "moments"), ("predictions.sqr_sft", "predictions")])
def test_another_process_sees_one_state_while_deltas_and_bases_are_committed(
    asset: str, view: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 rows stand, 20 to 22 others all have the number of the state."""
    monkeypatch.setattr(row_files, "ONE_FILE_BYTES", -1)
    monkeypatch.setattr(row_files, "MAX_DELTAS", 4)
    warehouse.refresh(tmp_path, fake_stages())
    stage = fake_stages()[asset]
    table = Lake(tmp_path / "lake").table(asset, "toy", stage.key, stage.dtypes)

    def rows(first: int, count: int, value: float) -> pl.DataFrame:
        ids = [f"q{number:03d}" for number in range(first, first + count)]
        return table.frame([{"query_id": i, "row_version": "1", "status": "ok", "start_s": value} for i in ids])

    table.commit(pl.concat([rows(0, 100, -1.0), rows(100, 20, 0.0)]), {})
    command = [sys.executable, "-c", READER, str(tmp_path), asset, view]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        for state in range(1, 300):
            gone = [f"q{number}" for number in range(120 + state % 3, 122)]
            table.commit_changes(rows(100, 20 + state % 3, float(state)), gone, {})
            time.sleep(0.05)
            if reader.poll() is not None:
                break
        assert reader.stdout is not None
        said = reader.stdout.read()
    assert reader.returncode == 0, "it told what it read on stderr"
    assert int(said) > 1, "it read while there was nothing new"


def test_rows_are_written_in_groups_so_that_few_are_encoded_at_a_time(tmp_path: Path) -> None:
    table = things(tmp_path)
    table.commit(table.frame([{"thing_id": i, "value": n, "status": "ok"} for i, n in numbered(9000).items()]), {})
    groups = duckdb.sql(f"select distinct row_group_num_rows from parquet_metadata('{table.rows_path}')").fetchall()
    assert sorted(groups) == [(9000 - 2 * BLOCK_ROWS,), (BLOCK_ROWS,)]


def test_of_rows_with_the_same_id_the_last_one_counts() -> None:
    draw = random.Random(0)
    for _ in range(20):
        rows = [(f"t{draw.randrange(12)}", number) for number in range(draw.randrange(10))]
        found = newest(pl.DataFrame(rows, schema=["thing_id", "value"], orient="row"), "thing_id")
        assert dict(found.rows()) == dict(rows)
        assert found["value"].is_sorted()
