"""Rows of several files that are merged by their ids and read a block at a time, and the commits that write them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as parquet
import pytest

from vsr1_core.rows import frames, merged, row_files
from vsr1_core.rows import table as tables
from vsr1_core.rows.files import WriteRefused
from vsr1_core.rows.frames import in_id_order, last_of_each, regrouped
from vsr1_core.rows.increments import make_plan, run_plan
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.merged import BLOCK_ROWS, MAX_READS, FrameRows, Merged
from vsr1_core.rows.table import Table
from vsr1_core.stages.readings import content_digest

COLUMNS = {"value": pl.Int64, "names": pl.List(pl.String), "path": pl.String}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table none of whose files is too small for what is done with large ones."""
    monkeypatch.setattr(row_files, "ONE_FILE_BYTES", -1)
    monkeypatch.setattr(row_files, "SMALL_FILE", -1)
    monkeypatch.setattr(tables, "READ_WHOLE_BYTES", -1)
    return things(tmp_path)


def things(home: Path) -> Table:
    return Lake(home / "lake").table("things", "toy", "thing_id", COLUMNS)


def row_of(table: Table, row_id: str, value: int) -> dict[str, Any]:
    path = str(table.places.home / row_id) if value % 2 else f"/elsewhere/{row_id}"
    return {"thing_id": row_id, "value": value, "names": [row_id] * (value % 4), "path": path}


def build(table: Table, values: dict[str, int], die_after: int = 10**9, **options: Any) -> None:
    """Make what changed, in no order; `die_after` so many rows the build is killed."""
    wanted = {row_id: {"value": str(value)} for row_id, value in values.items()}

    def make(ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        for number, row_id in enumerate(random.Random(0).sample(list(ids), len(ids))):
            if number == die_after:
                raise KeyboardInterrupt
            yield row_of(table, row_id, values[row_id])

    run_plan(table, wanted, make_plan(wanted, table), make, **options)


def check(table: Table, values: dict[str, int]) -> None:
    expected = [row_of(table, row_id, value) for row_id, value in sorted(values.items())]
    names = ["thing_id", *COLUMNS]
    assert table.rows(names).to_dicts() == expected
    assert pl.concat(table.batches(names)).to_dicts() == expected
    assert table.is_whole()
    assert table.manifest()["num_rows"] == table.manifest()["num_ok"] == len(values)
    version = tables.DataVersion("thing_id")
    version.add(table.rows())
    assert table.manifest()["data_version"] == version.text()


@pytest.mark.parametrize("block_rows", [3, BLOCK_ROWS])
def test_random_builds_with_kills_leave_the_rows_that_were_made_last(
    table: Table, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    for module in (merged, row_files):
        monkeypatch.setattr(module, "BLOCK_ROWS", block_rows)
    draw, values = random.Random(0), {f"t{n:02d}": 0 for n in range(30)}
    for number in range(30):
        for row_id in draw.sample(sorted(values), draw.randrange(8)):
            values[row_id] += 1
        values |= {f"new{number}_{n}": n for n in range(draw.randrange(4))}
        values.pop(draw.choice(sorted(values)))
        with contextlib.suppress(KeyboardInterrupt):
            build(table, values, die_after=draw.randrange(6), shard_rows=2)
        values[draw.choice(sorted(values))] += 1  # a pending row may be out of date, or of an id that nobody wants
        values.pop(draw.choice(sorted(values)))
        build(table, values, shard_rows=2)
        check(table, values)
    assert list(table.folder.glob("changes*.parquet")), "deltas were committed"


@pytest.mark.parametrize("one_file_bytes", [-1, 1 << 30])
def test_a_dropped_id_is_gone_whether_its_rows_are_committed_pending_or_not_there(
    table: Table, monkeypatch: pytest.MonkeyPatch, one_file_bytes: int
) -> None:
    monkeypatch.setattr(row_files, "ONE_FILE_BYTES", one_file_bytes)
    build(table, {f"t{n}": n for n in range(8)})
    table.add_pending([{**row_of(table, row_id, 10), "status": "ok"} for row_id in ("t1", "t2", "t3", "t9")])
    table.commit_changes(table.frame([]), ["t3", "t9", "none"], {})
    check(table, {"t0": 0, "t1": 10, "t2": 10} | {f"t{n}": n for n in range(4, 8)})


def test_columns_that_move_are_written_in_rows_that_otherwise_stay(table: Table) -> None:
    """A few of them as a delta, and then all of them as a base."""
    values = {f"t{n:02d}": 2 * n for n in range(20)}
    build(table, values)
    expected = {row_id: row_of(table, row_id, value)["path"] for row_id, value in values.items()}
    for num_moved, kind in ((1, "changes"), (20, "rows")):
        paths = {f"t{n:02d}": {"path": str(table.places.home / kind / str(n))} for n in range(num_moved)}
        build(table, values, unversioned=paths)
        expected |= {row_id: columns["path"] for row_id, columns in paths.items()}
        assert dict(table.rows(["thing_id", "path"]).iter_rows()) == expected
        assert table.rows(["names"])["names"].to_list() == [[i] * (v % 4) for i, v in sorted(values.items())]
        assert table.rows_path.name.startswith(kind)
        assert pl.read_parquet(table.rows_path)["path"][0] == f"./{kind}/0", "paths are kept relative to the home"


def test_a_commit_of_blocks_is_one_file_with_a_group_of_rows_for_each(table: Table) -> None:
    values = {f"t{n:05d}": n for n in range(2 * BLOCK_ROWS + 100)}
    build(table, values, shard_rows=500)
    check(table, values)
    metadata = parquet.read_metadata(table.rows_path)
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert groups == [BLOCK_ROWS, BLOCK_ROWS, 100]
    one = things(table.folder / "one")
    one.commit(table.rows().sample(fraction=1, shuffle=True, seed=0), {})
    assert pl.read_parquet(one.rows_path).drop("path").equals(pl.read_parquet(table.rows_path).drop("path"))


SCHEMA = {"id": pl.String, "number": pl.Int64}
NO_ROWS = pl.DataFrame(schema=SCHEMA)


@dataclass
class Counted:
    """A piece that counts the rows which are read of it. at_once: the most of them at a time."""

    rows: pl.DataFrame
    num_read: int = 0
    at_once: list[int] = field(default_factory=lambda: [0])

    def read(self, columns: Sequence[str], begin: int = 0, count: int | None = None) -> pl.DataFrame:
        found = FrameRows(self.rows).read(columns, begin, count)
        if "value" in columns:
            self.num_read += found.height
            self.at_once.append(found.height)
        return found


def pieces_of(order: Sequence[int], size: int) -> list[Counted]:
    rows = pl.DataFrame({"id": [f"t{n:05d}" for n in order], "value": order})
    rows = rows.with_columns(row_version=pl.lit("1"), status=pl.lit("ok"))
    return [Counted(part) for part in rows.iter_slices(size)]


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_rows_are_read_a_few_at_a_time_and_a_few_times(monkeypatch: pytest.MonkeyPatch, is_shuffled: bool) -> None:
    monkeypatch.setattr(merged, "BLOCK_ROWS", 10)
    order = random.Random(0).sample(range(5000), 5000) if is_shuffled else list(range(5000))
    pieces = pieces_of(order, 25)
    blocks = list(Merged.of(pieces, "id").blocks(["id", "value"]))
    assert pl.concat(blocks)["value"].to_list() == list(range(5000))
    assert {block.height for block in blocks} == {10}
    assert max(max(piece.at_once) for piece in pieces) <= 10
    assert sum(piece.num_read for piece in pieces) <= 5000 * (2 * MAX_READS if is_shuffled else 1)


@pytest.mark.parametrize("num_ids", [1, 3, 40, 10_000])
def test_rows_are_put_in_order_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch, num_ids: int) -> None:
    """Also where most rows are of one id, or parts begin and end within the rows of one."""
    monkeypatch.setattr(frames, "PART_ROWS", 7)
    draw = random.Random(num_ids)
    for count in (0, 1, 6, 7, 8, 13, 14, 15, 20, 30, 150, 700):
        pairs = [("é" * draw.randrange(2) + str(draw.randrange(num_ids)), number) for number in range(count)]
        for given in (pairs, sorted(pairs), sorted(pairs, reverse=True)):
            rows = pl.concat(pl.DataFrame(given, schema=SCHEMA, orient="row").iter_slices(4)) if given else NO_ROWS
            ordered = in_id_order(rows, "id")
            assert ordered.rows() == sorted(given, key=lambda pair: pair[0].encode())
            assert last_of_each(ordered, "id").rows() == sorted(dict(given).items(), key=lambda pair: pair[0].encode())


def test_frames_are_regrouped_without_loss() -> None:
    for sizes in ([0], [0, 0], [3], [4], [1, 2, 3], [9, 0, 1], [4, 4], [0, 8, 1]):
        rows = pl.DataFrame({"n": list(range(sum(sizes)))})
        begins = [sum(sizes[:number]) for number in range(len(sizes))]
        found = list(regrouped((rows[b : b + size] for b, size in zip(begins, sizes, strict=True)), 4))
        assert pl.concat(found).equals(rows)
        assert all(frame.height == 4 for frame in found[:-1])
        assert found[-1].height <= 4


def test_a_file_of_other_columns_is_read_in_batches_as_it_is_read_whole(table: Table) -> None:
    build(table, {f"t{n}": n for n in range(5)})
    wider = Table(table.folder, "things", "toy", "thing_id", {"value": pl.String, "more": pl.Int64}, table.places)
    names = ["more", "thing_id", "value"]
    assert pl.concat(wider.batches(names)).equals(wider.rows(names))
    assert wider.rows(names).row(0) == (None, "t0", None)
    assert wider.rows(["more"]).shape == pl.concat(wider.batches(["more"])).shape == (5, 1)
    assert [rows.shape for rows in things(table.folder / "none").batches(names[1:])] == [(0, 2)]


def test_a_disk_that_is_full_while_blocks_are_written_loses_no_row(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {f"t{n:05d}": n for n in range(BLOCK_ROWS + 1)}

    sink = pl.LazyFrame.sink_parquet

    def full(rows: pl.LazyFrame, path: str | Path, **options: Any) -> None:
        if "pending" not in str(path):
            raise pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)")
        sink(rows, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pl.LazyFrame, "sink_parquet", full)
        with pytest.raises(WriteRefused, match=r"rows_0000000001\.parquet cannot be written: its disk is full"):
            build(table, values)
    assert not table.exists()
    num_saved = table.pending().height
    assert num_saved > BLOCK_ROWS - 256
    build(table, values, die_after=len(values) - num_saved)
    check(table, values)


def test_rows_are_found_by_ids_that_have_long_beginnings_in_common(table: Table) -> None:
    """Groups of rows are passed over by the least and the greatest id in them, which a file may keep in part."""
    begin = "a folder with a very long name/" * 10
    ids = sorted([f"{begin}{n:05d}" for n in range(2 * BLOCK_ROWS)] + [f"{begin}é{n}" for n in range(BLOCK_ROWS)])
    frame = table.frame([{"thing_id": row_id, "status": "ok", "value": n} for n, row_id in enumerate(ids)])
    table.commit(frame, {})
    for some in (range(10), range(BLOCK_ROWS - 3, BLOCK_ROWS + 3), range(len(ids) - 2, len(ids)), [5, 9000]):
        assert table.rows(["value"], [ids[n] for n in some])["value"].to_list() == list(some)
    assert table.rows(["value"], ["", begin, "z"]).is_empty()


def test_equal_rows_with_lists_give_the_same_bytes_and_digest_however_they_lie_in_memory(tmp_path: Path) -> None:
    """A list of a part of a column once brought the values of the whole column along."""
    names, count = [f"v{n:05d}" for n in range(500)], 2 * BLOCK_ROWS + 100
    lists = [random.Random(n).sample(names, 20) for n in range(count)]
    whole = pl.DataFrame({"thing_id": [f"t{n:05d}" for n in range(count)], "names": lists})
    parts = [whole[pl.Series(range(begin, min(begin + 500, count)))] for begin in range(0, count, 500)]
    forms = [whole, pl.concat(parts), whole.reverse().reverse()]
    assert len({content_digest([rows]) for rows in forms}) == 1
    assert content_digest(parts) == content_digest([whole])
    one, other = things(tmp_path / "one"), things(tmp_path / "other")
    one.commit(one.frame(whole.to_dicts()), {})
    for part in parts:
        other.add_pending(part.to_dicts())
    other.commit_changes(other.frame([]), [], {})
    assert other.rows_path.read_bytes() == one.rows_path.read_bytes()
