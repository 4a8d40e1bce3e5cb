"""The lake: names that cannot leave their folder, writes that are whole or not there, typed tables."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr1_core.rows.files import (
    WriteRefused,
    atomic_folder,
    atomic_path,
    check_name,
    digest_file,
    file_stem,
    read_json,
    read_jsonl,
    sweep_leftovers,
    write_json,
    write_jsonl,
)
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import Table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Lake(tmp_path).table("things", "toy", "thing_id", {"value": pl.Int64, "names": pl.List(pl.String)})


@pytest.mark.slow
@settings(deadline=None)
@given(st.text())
def test_a_file_stem_never_leaves_its_folder(row_id: str) -> None:
    stem = file_stem(row_id)
    assert Path(stem).name == stem
    assert stem.strip(".") == stem
    assert len(stem) < 80


def test_file_stems_of_similar_ids_differ() -> None:
    assert len({file_stem(i) for i in ("a/b", "a_b", "a b", "A_b", "x" * 60, "x" * 61)}) == 6


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-flag", "x" * 65, "a b"])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        check_name(name)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


REFUSED = """
import resource, secrets, signal, sys
from pathlib import Path
import polars as pl
from vsr1_core.rows.files import WriteRefused, write_json
from vsr1_core.rows.lake import Lake
table = Lake(Path(sys.argv[1])).table("things", "toy", "thing_id", {"value": pl.String})
rows = [{"thing_id": str(n), "status": "ok", "value": secrets.token_hex(50)} for n in range(9000)]
table.commit(table.frame(rows[:3]), {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for write in (lambda: table.commit(table.frame(rows), {}), lambda: table.add_pending(rows),
              lambda: table.commit_changes(table.frame(rows[:3000]), [], {}),
              lambda: write_json(Path(sys.argv[1], "x.json"), ["long"] * 10_000)):
    try:
        write()
    except WriteRefused as error:
        print(error, error.errno)
"""


def test_a_refused_write_is_one_sentence_with_the_place_and_the_room(tmp_path: Path) -> None:
    command = [sys.executable, "-c", REFUSED, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 4
    names = ("rows_0000000002.parquet", "pending", "rows_0000000002.parquet", "x.json")
    for line, name in zip(said, names, strict=True):
        assert line.startswith(str(tmp_path))
        assert name in line
        assert "cannot be written: files may not be that large here (ulimit -f) (0.0 MiB of it were written," in line
        assert "MiB are free)" in line
        assert line.endswith(f"the same command goes on {errno.EFBIG}")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "manifest.json",
        "rows_0000000001.parquet",
    ]


def test_a_disk_that_is_full_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(WriteRefused, match=r"a\.json cannot be written: its disk is full"), atomic_path(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ValueError, match="of another kind"), atomic_path(tmp_path / "a.json"):
        raise ValueError("of another kind")


def test_what_is_copied_and_cannot_be_read_is_named_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="source"), atomic_path(tmp_path / "a.json"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "source"))


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = ["a.json", ".hidden", ".a.tmp", "b.0123abcd.tmp.json", "model/weights", "lost/weights"]
    left = [".a.0123abcd.tmp.json", "sub/.v.1.ffffffff.tmp.npy", ".model.00000000.tmp/x", ".model.11111111.old/x"]
    for name in (*kept[:-1], *left, ".lost.22222222.old/weights", ".lost.33333333.tmp/weights"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert sweep_leftovers(tmp_path) == 6
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == sorted(kept), "the old folder is put back where its successor had not taken its place"
    assert (tmp_path / "lost/weights").read_text() == ".lost.22222222.old/weights"
    assert sweep_leftovers(tmp_path) == 0


KILLED = """
import os, sys
from pathlib import Path
from vsr1_core.rows.files import atomic_folder, atomic_path
with atomic_path(Path(sys.argv[1], "tables/things/dataset=toy/rows.parquet")) as file:
    file.write_text("half")
    with atomic_folder(Path(sys.argv[1], "files/things/toy/model")) as folder:
        Path(folder, "weights").write_text("half")
        os._exit(9)
"""


def test_taking_the_lease_sweeps_what_a_killed_run_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 9
    other = tmp_path / "files/things/other/.x.0123abcd.tmp.npy"
    other.parent.mkdir(parents=True)
    other.write_text("another dataset may be written now")
    with Lake(tmp_path).written("toy", "a build", "run-1"):
        files = [path for path in tmp_path.rglob("*") if path.is_file() and "leases" not in path.parts]
        assert files == [other]
        with atomic_path(tmp_path / "files/things/toy/y.npy") as path:
            path.write_text("being written")
            with Lake(tmp_path).written("toy", "a step", "run-1"):
                assert path.exists(), "who joins a run sweeps nothing"


def test_a_folder_write_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with atomic_folder(folder) as temporary:
        (temporary / "weights").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(folder) as temporary:
        (temporary / "weights").write_text("2")
        raise RuntimeError
    assert (folder / "weights").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_json_lines_come_back_with_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"q": "été"}, {"q": "b"}])
    path.write_text(path.read_text(encoding="utf-8") + "\n  \nbroken\n", encoding="utf-8")
    assert [number for number, _ in read_jsonl(path)] == [1, 2, 5]


def test_invalid_json_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_digest_depends_on_content_and_not_on_the_name(tmp_path: Path) -> None:
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    assert digest_file(tmp_path / "a") == digest_file(tmp_path / "b") != digest_file(tmp_path / "c")


def test_an_unbuilt_table_is_empty_and_typed(table: Table) -> None:
    frame = table.rows()
    assert frame.is_empty()
    assert frame.schema["names"] == pl.List(pl.String)
    with pytest.raises(FileNotFoundError, match="vsr1 build --dataset toy --assets things"):
        table.manifest()


def test_what_an_older_version_did_not_write_or_wrote_otherwise_is_null(table: Table) -> None:
    old = Table(table.folder, "things", "toy", "thing_id", {"value": pl.String, "gone": pl.Int64}, table.places)
    old.commit(old.frame([{"thing_id": "a", "row_version": "1", "status": "ok", "value": "x", "gone": 1}]), {})
    assert table.rows().schema == pl.DataFrame(schema=table.schema).schema
    assert table.rows(["value", "thing_id"]).rows() == [(None, "a")]
    table.add_pending([{"thing_id": "b", "row_version": "2", "status": "ok", "value": 1}])
    assert pl.concat([table.rows(), table.pending()]).height == 2


def test_an_unknown_column_is_an_error(table: Table) -> None:
    with pytest.raises(ValueError, match="no column colour"):
        table.frame([{"thing_id": "a", "colour": "red"}])


def test_the_manifest_is_written_after_the_rows(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    import vsr1_core.rows.table as lake

    monkeypatch.setattr(lake, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        table.commit(table.frame([{"thing_id": "a", "row_version": "1", "status": "ok"}]), {})
    assert table.exists()
    assert not table.manifest_path.exists()


def test_a_table_is_sorted_so_the_same_rows_make_the_same_bytes(table: Table) -> None:
    rows = [{"thing_id": i, "row_version": "1", "status": "ok", "value": 1} for i in "cab"]
    table.commit(table.frame(rows), {})
    first = table.rows_path.read_bytes()
    table.commit(table.frame(rows[::-1]), {})
    assert table.rows_path.read_bytes() == first
    assert table.rows()["thing_id"].to_list() == ["a", "b", "c"]


def test_pending_shards_with_other_columns_are_ignored(table: Table) -> None:
    table.add_pending([{"thing_id": "a", "row_version": "1", "status": "ok"}])
    pl.DataFrame({"thing_id": ["b"], "old": [1]}).write_parquet(table.folder / "pending" / "old.parquet")
    assert table.pending()["thing_id"].to_list() == ["a"]


def row(value: int) -> dict[str, object]:
    return {"thing_id": "a", "row_version": "1", "status": "ok", "value": value}


def test_a_commit_leaves_the_rows_that_a_query_may_be_reading(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what no query can be reading is removed, but not at every commit."""
    import vsr1_core.rows.row_files as lake

    for value in range(1, lake.MAX_ROW_FILES + 3):
        before = table.rows_path
        table.commit(table.frame([row(value)]), {})
        assert value == 1 or pl.read_parquet(before)["value"].to_list() == [value - 1]
    assert len(list(table.folder.glob("rows*.parquet"))) == lake.MAX_ROW_FILES + 2
    monkeypatch.setattr(lake, "SUPERSEDED_S", -1.0)
    table.commit(table.frame([row(99)]), {})
    assert list(table.folder.glob("rows*.parquet")) == [table.rows_path]
    assert table.rows()["value"].to_list() == [99]


def test_large_files_that_were_replaced_go_before_there_are_many(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    import vsr1_core.rows.row_files as lake

    monkeypatch.setattr(lake, "MAX_OLD_BYTES", 1)
    for value in range(3):
        table.commit(table.frame([row(value)]), {})
    assert len(list(table.folder.glob("rows*.parquet"))) == 3, "a query may still read them"
    monkeypatch.setattr(lake, "SUPERSEDED_S", -1.0)
    table.commit(table.frame([row(9)]), {})
    assert [path.name for path in table.folder.glob("rows*.parquet")] == [table.rows_path.name]


def test_a_table_of_an_earlier_version_is_read_and_gone_on_with(table: Table) -> None:
    table.commit(table.frame([row(1)]), {})
    table.rows_path.rename(table.folder / "rows.parquet")
    assert table.rows()["value"].to_list() == [1]
    table.commit(table.frame([row(2)]), {})
    assert table.rows()["value"].to_list() == [2]


def test_a_home_may_have_any_name(tmp_path: Path) -> None:
    odd = Lake(tmp_path / "it's [a] *").table("things", "toy", "thing_id", {"value": pl.Int64})
    odd.add_pending([row(1)])
    assert odd.pending()["value"].to_list() == [1]
    odd.commit(odd.pending(), {})
    assert odd.rows()["value"].to_list() == [1]
