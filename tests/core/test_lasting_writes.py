"""What is on the disk when, who sweeps what was left half written, and a commit that was cut off."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vsr1_core.rows.files import WriteRefused, append_lines, atomic_folder, atomic_path, sweep_leftovers, write_json
from vsr1_core.rows.increments import make_plan, run_plan
from vsr1_core.rows.lake import SHARED_AGE_S, Lake
from vsr1_core.rows.table import Table


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """`disk NAME` and `rename NAME`, in the order in which they happen; temporary names are shown as `tmp`."""
    seen: list[str] = []
    sync, replace = os.fsync, os.replace

    def name(path: str) -> str:
        return "tmp" if Path(path).name.startswith(".") else str(Path(path).relative_to(tmp_path))

    def synced(descriptor: int) -> None:
        seen.append(f"disk {name(os.readlink(f'/proc/self/fd/{descriptor}'))}")  # noqa: PTH115
        sync(descriptor)

    def renamed(source: Any, target: Any) -> None:
        seen.append(f"rename {name(target)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_writer_goes_on(
    tmp_path: Path, calls: list[str]
) -> None:
    write_json(tmp_path / "new/sub/a.json", 1)
    assert calls == ["disk .", "disk new", "disk tmp", "rename new/sub/a.json", "disk new/sub"]
    calls.clear()
    write_json(tmp_path / "new/sub/a.json", 2, lasting=False)
    assert calls == ["rename new/sub/a.json"]


def test_a_folder_is_on_the_disk_with_all_that_is_in_it(tmp_path: Path, calls: list[str]) -> None:
    for old in ([], ["rename tmp"]):  # the second time, a folder is replaced, and renamed again before it is deleted
        calls.clear()
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub/weights").write_text("1")
        inside = {"disk tmp", f"disk {temporary.name}/sub", f"disk {temporary.name}/sub/weights"}
        assert set(calls[:3]) == inside
        assert calls[3:] == [*old, "rename model", "disk .", *old]


def test_a_library_that_says_in_its_own_words_that_the_disk_is_full_is_understood(tmp_path: Path) -> None:
    path, says = tmp_path / "index.faiss", r"index\.faiss cannot be written: its disk is full"
    with pytest.raises(WriteRefused, match=says) as refused, atomic_path(path):
        raise RuntimeError(f"write error in {path}: 0 != 1 ({os.strerror(errno.ENOSPC)})")
    assert refused.value.errno == errno.ENOSPC


def test_a_disk_that_is_full_at_the_end_of_a_parquet_file_is_told_as_one_that_is_full_before(tmp_path: Path) -> None:
    """The error of polars says nothing of the system's there. The files that may be written are limited here."""
    path, rows = tmp_path / "rows.parquet", pl.DataFrame({f"column{n}": [str(n)] for n in range(100)})
    rows.write_parquet(path)
    kept, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    before, says = (
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        r"rows\.parquet cannot be .* files may not be that large",
    )
    try:
        for limit in range(0, len(kept), len(kept) // 8):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(WriteRefused, match=says), atomic_path(path) as temporary:
                rows.write_parquet(temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_file_that_is_read_while_another_is_written_is_no_refusal(tmp_path: Path) -> None:
    with (
        pytest.raises(pl.exceptions.ComputeError, match="transport error"),
        atomic_path(tmp_path / "a.parquet") as path,
    ):
        path.write_bytes(b"1")
        raise pl.exceptions.ComputeError("parquet: File out of specification: Invalid thrift: transport error")
    assert not list(tmp_path.iterdir())


def test_a_lease_that_cannot_be_written_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    says = r"leases/toy/lock cannot be written: its disk is full"
    with pytest.raises(WriteRefused, match=says), Lake(tmp_path / "lake").written("toy", "a build"):
        pass


def test_the_error_of_a_build_is_not_lost_when_its_lease_cannot_be_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise WriteRefused("lease.json cannot be written")

    with pytest.raises(ValueError, match="what went wrong"), Lake(tmp_path / "lake").written("toy", "a build"):
        monkeypatch.setattr("vsr1_core.rows.lease.write_json", refuse)
        raise ValueError("what went wrong")


def leftover(folder: Path, age_s: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".x.{len(list(folder.iterdir())):08x}.tmp.json"
    path.touch()
    os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    return path


def test_leftovers_are_swept_where_only_this_run_writes_and_elsewhere_when_they_are_a_day_old(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    own = [leftover(folder, 0) for folder in (lake.lease_folder("toy"), lake.files("frames", "toy"))]
    shared = (tmp_path, tmp_path / "datasets", lake.root / "schemas/moments", lake.cache("digests"))
    old = [leftover(folder, SHARED_AGE_S + 60) for folder in shared]
    kept = [leftover(folder, 60) for folder in shared]
    kept += [leftover(lake.lease_folder("other"), SHARED_AGE_S + 60), leftover(tmp_path / "data", SHARED_AGE_S + 60)]
    with lake.written("toy", "a build"):
        assert [path for path in [*own, *old] if path.exists()] == []
        assert [path for path in kept if not path.exists()] == []


def test_a_shallow_sweep_leaves_the_folders_below(tmp_path: Path) -> None:
    below = leftover(tmp_path / "below", 0)
    assert sweep_leftovers(tmp_path, deep=False) == 0
    assert sweep_leftovers(tmp_path) == 1
    assert not below.exists()


def test_a_commit_that_was_cut_off_before_its_manifest_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small tables have no shards that would tell of it."""
    table = Lake(tmp_path / "lake").table("things", "toy", "thing_id", {"value": pl.Int64})

    def build(value: int) -> int:
        wanted = {"a": {"value": str(value)}}
        make: Callable[[Any], Any] = lambda ids: [{"thing_id": i, "value": value} for i in ids]  # noqa: E731
        return run_plan(table, wanted, make_plan(wanted, table), make).num_processed

    build(1)
    with monkeypatch.context() as patch:
        patch.setattr("vsr1_core.rows.table.write_json", _killed)
        with pytest.raises(KeyboardInterrupt):
            build(2)
    stale = table.manifest()
    assert build(2) == 0, "its row is there"
    assert table.manifest()["data_version"] != stale["data_version"]
    assert [path.name for path in _row_files(table)] == [f"rows_000000000{n}.parquet" for n in (1, 2, 3)]
    assert build(2) == 0
    assert len(_row_files(table)) == 3, "a whole table is not written again"


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


def _row_files(table: Table) -> list[Path]:
    return sorted(table.folder.glob("rows*.parquet"))


@pytest.mark.parametrize("fails", ["report", ".tmp"])
def test_a_folder_that_cannot_be_replaced_stays_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    place, replace = tmp_path / "report", os.replace
    with atomic_folder(place) as folder:
        (folder / "report.md").write_text("old")

    def failing(source: Path, target: Path) -> None:
        if source.name.endswith(fails):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(WriteRefused, match="report cannot be written: its disk failed"), atomic_folder(place) as folder:
        (folder / "report.md").write_text("new")
    assert (place / "report.md").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_folder_that_was_replaced_and_cannot_be_deleted_is_swept_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for text in ("old", "new"):
        with monkeypatch.context() as patch, atomic_folder(tmp_path / "report") as folder:
            (folder / "report.md").write_text(text)
            patch.setattr(os, "rmdir", fail)
    assert (tmp_path / "report" / "report.md").read_text() == "new"
    with monkeypatch.context() as patch:  # as long as somebody has a file of it open on a network disk
        patch.setattr(os, "rmdir", fail)
        sweep_leftovers(tmp_path)
    shutil.rmtree(tmp_path / "report")
    sweep_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [], "what is left of the old folder does not come back"
    (tmp_path / "report").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_line_that_was_cut_off_costs_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines.jsonl"
    append_lines(path, "1\n2\n")
    path.write_bytes(path.read_bytes()[:-1])  # as a killed process may leave it
    append_lines(path, "3\n")
    append_lines(path, "4\n")
    assert path.read_text() == "1\n2\n3\n4\n"
