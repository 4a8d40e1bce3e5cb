"""A home that was moved or copied: nothing is due, and nothing in it names the place where it was before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest

from tests.cheap_stages import cheap_main_stages
from tests.small_world import SmallWorld, build, fill, plans
from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry, get_entry, save_entry
from vsr1_core.home import warehouse
from vsr1_core.home.building import build as build_as_users_do
from vsr1_core.rows.files import WriteRefused
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.places import Places
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.frames import FrameTensors


def opened(home: Path) -> View:
    entry = get_entry(home, "small")
    return View(Lake(home / "lake"), entry, NANO, cheap_main_stages(), home=home)


def few_stages() -> dict[str, Stage]:
    """Those whose views are asked here: making a view takes a tenth of a second."""
    names = ("annotation_files", "raw_videos", "frame_tensors", "first_ranking", "report")
    return {name: cheap_main_stages()[name] for name in names}


def is_due(view: View) -> dict[str, object]:
    return {name: plan for name, plan in plans(view).items() if plan is None or plan.due() or plan.orphaned}


def paths(view: View) -> list[str]:
    """Every path that a row names, of all tables."""
    named = [view.table(name) for name, stage in view.stages.items() if "path" in stage.columns]
    return [path for table in named for path in table.ok_rows(["path"])["path"]]


def kept_texts(home: Path) -> Iterator[tuple[Path, str]]:
    """Every text in the home's tables and records as it is on disk."""
    for path in home.rglob("*.parquet"):
        frame = pl.read_parquet(path, hive_partitioning=False, glob=False)
        yield path, frame.write_json()
    for path in home.rglob("*.json*"):
        yield path, path.read_text()


def versions(view: View) -> dict[str, tuple[str, dict[str, str]]]:
    return {name: (view.table(name).manifest()["data_version"], view.versions(name)) for name in view.stages}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("built") / "home"
    world = fill(SmallWorld(home), num_train=2, num_test=2).register()
    build(world.view(cheap_main_stages(), NANO))
    return home


@pytest.fixture(scope="module")
def written_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home as it was written when all paths were absolute."""
    home = tmp_path_factory.mktemp("before") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Places, "stored", lambda places, path: path)
        patch.setattr(Places, "stored_rows", lambda places, rows: rows)
        world = fill(SmallWorld(home), num_train=2, num_test=2).register()
        build(world.view(cheap_main_stages(), NANO))
    return home


def moved(home: Path, to: Path) -> Path:
    """A copy of a home that was moved: times are kept, and another home stands where it was before."""
    source = to.parent / "source"
    shutil.copytree(home, source)
    os.rename(source, to)  # noqa: PTH104
    return to


@pytest.mark.slow
def test_nothing_is_due_in_a_moved_home_and_all_its_paths_are_its_own(built: Path, tmp_path: Path) -> None:
    home = moved(built, tmp_path / "moved")
    view = opened(home)
    assert is_due(view) == {}
    assert len(paths(view)) > 10
    assert [path for path in paths(view) if not path.startswith(f"{home}/") or not Path(path).exists()] == []


def test_nothing_that_is_kept_names_the_place_of_the_home(built: Path) -> None:
    assert [path for path, text in kept_texts(built) if str(built) in text] == []


def test_a_copied_home_does_what_it_did_when_the_old_one_is_gone(built: Path, tmp_path: Path) -> None:
    home = moved(built, tmp_path / "moved")
    hidden = built.with_name("hidden")
    built.rename(hidden)
    try:
        view = opened(home)
        assert is_due(view) == {}
        before = versions(view)
        outcomes = build(view)
        assert {name: o.num_processed for name, o in outcomes.items() if o.num_processed} == {}
        assert versions(opened(home)) == before
        warehouse.refresh(home, few_stages())
        assert warehouse.query(home, "select count(*) from first_ranking").item() == 8
        report = warehouse.query(home, "select path from report")["path"].to_list()
        assert report
        assert all(Path(path).is_file() and path.startswith(str(home)) for path in report)
        assert warehouse.query(home, "select path from lake").item() == str(home / "lake")
    finally:
        hidden.rename(built)


@pytest.mark.slow
def test_a_home_of_absolute_paths_is_migrated_by_the_next_build(written_before: Path, tmp_path: Path) -> None:
    home, saved = written_before, tmp_path / "saved"
    shutil.copytree(home, saved)
    try:
        assert any(str(home) in text for _, text in kept_texts(home / "lake")), "it is of the old form"
        view = opened(home)
        assert is_due(view) == {}
        before = versions(view)
        done = list(build_as_users_do(view, Execution(workers=1), list(view.stages)))
        assert {asset.name: asset.num_processed for asset in done if asset.num_processed} == {}
        assert versions(opened(home)) == before
        committed = [text for path, text in kept_texts(home) if path.name != "rows_0000000001.parquet"]
        assert [text for text in committed if str(home) in text] == []
        after = moved(home, tmp_path / "moved")
        assert is_due(opened(after)) == {}
        assert versions(opened(after)) == before
    finally:
        shutil.rmtree(home)
        saved.rename(home)


def test_a_home_of_absolute_paths_that_was_copied_reads_its_own_frames(written_before: Path, tmp_path: Path) -> None:
    home = moved(written_before, tmp_path / "moved")
    frames = opened(home).table(FrameTensors.name).ok_rows(["path"])["path"].to_list()
    assert len(frames) == 4
    assert all(path.startswith(str(home)) for path in frames)


def test_plain_duckdb_opens_a_copied_home_from_any_folder(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.refresh(built, few_stages())
    home = moved(built, tmp_path / "it's [a] copy*, 100%")
    for row_file in (home / "lake/tables/raw_videos").rglob("rows*.parquet"):
        row_file.unlink()
    for folder, name in ((tmp_path, home / "vsr1.duckdb"), (home, Path("vsr1.duckdb"))):
        monkeypatch.chdir(folder)
        with duckdb.connect(str(name), read_only=True) as connection:
            assert connection.execute("select count(*) from first_ranking").fetchone() == (8,)
            assert connection.execute("select count(*) from raw_videos").fetchone() == (0,), "not those of the old home"
            shown = connection.execute("select path from frame_tensors limit 1").fetchone()
            assert shown is not None
            assert Path(shown[0]).is_file()


@pytest.mark.parametrize(("what", "refusal"), [("of before", duckdb.IOException), ("missing", WriteRefused)])
def test_sql_runs_on_a_medium_that_cannot_be_written(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, refusal: type[Exception]
) -> None:
    monkeypatch.setattr("vsr1_core.stages.graph.all_stages", few_stages)
    warehouse.refresh(built)
    home = moved(built, tmp_path / "moved")
    warehouse.database_path(home).unlink()
    if what == "of before":
        with duckdb.connect(str(warehouse.database_path(home))) as connection:
            connection.execute("create view lake as select '/somewhere/lake' as path")

    def refuse(path: Path) -> None:
        raise refusal(f"{path} cannot be written: its disk is read-only")

    monkeypatch.setattr("vsr1_core.home.warehouse.atomic_path", refuse)
    assert warehouse.query(home, "select count(*) from first_ranking").item() == 8
    assert warehouse.query(home, "select path from lake").item() == str(home / "lake")


def test_a_registration_keeps_what_is_inside_the_home_relative_to_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    entry = DatasetEntry("mine", "folder", f"{home}/clips", "/data/clips.csv", embedder="org/name", policy=f"{home}/p")
    save_entry(home, entry)
    kept = json.loads((home / "datasets/mine.json").read_text())
    wanted = ("./clips", "/data/clips.csv", "org/name", "./p")
    assert (kept["videos"], kept["annotations"], kept["embedder"], kept["policy"]) == wanted
    assert get_entry(home, "mine") == entry
    home.rename(tmp_path / "moved")
    assert get_entry(tmp_path / "moved", "mine").videos == str(tmp_path / "moved/clips")


def test_a_path_through_a_link_to_the_home_is_inside_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    places = Places(tmp_path / "link")
    for home in ("real", "link"):
        assert places.stored(str(tmp_path / home / "videos/a.mp4")) == "./videos/a.mp4"
    assert places.placed("./videos/a.mp4") == str(tmp_path / "link/videos/a.mp4")
    assert places.stored(str(tmp_path / "linked/a.mp4")) == str(tmp_path / "linked/a.mp4")


def test_rows_are_kept_and_placed_as_single_paths_are(tmp_path: Path) -> None:
    (tmp_path / "home/lake/files/frame_tensors/toy").mkdir(parents=True)
    (tmp_path / "home/lake/files/frame_tensors/toy/a.npy").touch()
    places = Places(tmp_path / "home")
    texts = [f"{tmp_path}/home/a b.mp4", f"{tmp_path}/homes/a.mp4", "org/name", "", None, f"{tmp_path}/home/é'\"].mp4"]
    before = ["/old/home/lake/files/frame_tensors/toy/a.npy", "/old/home/lake/files/frame_tensors/toy/other.npy"]
    rows = pl.DataFrame({"path": [*texts, *before], "source": [*reversed(before), *reversed(texts)]})
    kept = places.stored_rows(rows)
    placed = places.placed_rows(kept)
    for name in ("path", "source"):
        assert kept[name].to_list() == [text and places.stored(text) for text in rows[name]]
        assert placed[name].to_list() == [text and places.placed(text) for text in kept[name]]
    assert placed["path"].to_list() == [*texts, f"{tmp_path}/home/lake/files/frame_tensors/toy/a.npy", before[1]]
