"""Which files are listed as unused, and that deleting them loses nothing that a row points to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.small_world import SmallWorld, build, fill
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.home.unused import DAY_S, MIN_AGE_S, delete_rows, unused_files
from vsr1_core.media.frame_store import read_frames
from vsr1_core.rows.files import write_json
from vsr1_core.rows.lake import Lake
from vsr1_core.stages import corpus, frames
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import all_stages, in_order

ASSET = "sft_checkpoint"


def age(path: Path, days: float) -> None:
    for each in (*path.rglob("*"), path):
        os.utime(each, (time.time() - days * DAY_S,) * 2)


def view_of(world: SmallWorld) -> View:
    stages = in_order([stage() for stage in (*corpus.STAGES, *frames.STAGES)])
    return world.view(stages, CONFIGURATIONS["nano"])


def test_frames_of_videos_that_are_gone_are_listed_once_they_are_old(tmp_path: Path) -> None:
    world = fill(SmallWorld(tmp_path))
    build(view_of(world))
    view = view_of(world)
    paths = dict(view.rows("frame_tensors", ["video_id", "path"]).iter_rows())
    assert list(unused_files(view.lake, view.stages, 0)) == []
    world.delete_video("train_2")
    build(view_of(world))
    assert list(unused_files(view.lake, view.stages)) == []
    age(view.files("frame_tensors"), 2)
    (found,) = unused_files(view.lake, view.stages)
    gone = Path(paths.pop("train_2"))
    assert (found.asset, found.dataset, found.path) == ("frame_tensors", "small", gone)
    assert found.num_bytes == gone.stat().st_size
    assert found.age_s == pytest.approx(2 * MIN_AGE_S, abs=60)
    found.delete()
    assert not gone.exists()
    assert [read_frames(Path(path)).ndim for path in paths.values()] == [4] * 8
    assert list(unused_files(view.lake, view.stages, 0)) == []


def put_rows(lake: Lake, dataset: str, asset: str, path: Path) -> None:
    stage = all_stages()[asset]
    table = lake.table(asset, dataset, stage.key, stage.dtypes)
    table.commit(table.frame([{stage.key: asset, "status": "ok", "row_version": "v", "path": str(path)}]), {})


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Files of `sft_checkpoint` of the dataset `toy`: a present checkpoint, one that `mine` still uses, one adopted for
    the next build, an earlier one, and what is no checkpoint. Rows name them by where the home was before."""
    lake = Lake(tmp_path / "lake")
    folder = lake.files(ASSET, "toy")
    for name in ("present", "lent", "earlier"):
        (folder / f"{ASSET}-{name}").mkdir(parents=True)
        (folder / f"{ASSET}-{name}" / "model.safetensors").write_bytes(b"x" * 1000)
    (folder / "adopted-next").mkdir()
    write_json(folder / "adopted.json", {"path": str(folder / "adopted-next"), "digest": "d", "source": "me/it"})
    for name in ("launch", "trainer", f".{ASSET}-next.1234.tmp"):
        (folder / name / "state-1").mkdir(parents=True)
    before = Path("/before/lake/files") / ASSET / "toy"
    put_rows(lake, "toy", ASSET, before / f"{ASSET}-present")
    put_rows(lake, "mine", ASSET, before / f"{ASSET}-lent")
    age(folder, 40)
    return folder


def test_only_earlier_checkpoints_are_unused(tmp_path: Path, checkpoints: Path) -> None:
    (found,) = unused_files(Lake(tmp_path / "lake"), all_stages())
    assert found.path == checkpoints / f"{ASSET}-earlier"
    assert found.num_bytes == 1000


def test_what_was_written_anew_since_it_was_listed_is_not_deleted(tmp_path: Path, checkpoints: Path) -> None:
    (found,) = unused_files(Lake(tmp_path / "lake"), all_stages())
    (found.path / "model.safetensors").write_bytes(b"y" * 1000)
    assert not found.delete()
    assert found.path.exists()


@pytest.mark.parametrize("asset", [ASSET, "grpo_checkpoint"])
def test_a_checkpoint_that_is_adopted_elsewhere_is_used(tmp_path: Path, checkpoints: Path, asset: str) -> None:
    lake, earlier = Lake(tmp_path / "lake"), str(checkpoints / f"{ASSET}-earlier")
    write_json(lake.files(asset, "mine") / "adopted.json", {"path": earlier, "digest": "d", "source": "it"})
    assert list(unused_files(lake, all_stages())) == []
    (lake.files(asset, "mine") / "adopted.json").unlink()
    put_rows(lake, "mine", asset, Path(earlier))
    assert earlier not in [str(found.path) for found in unused_files(lake, all_stages())]


def test_rows_of_a_build_in_progress_count(tmp_path: Path, checkpoints: Path) -> None:
    lake, stage = Lake(tmp_path / "lake"), all_stages()[ASSET]
    table = lake.table(ASSET, "toy", stage.key, stage.dtypes)
    table.add_pending([{stage.key: ASSET, "path": str(checkpoints / f"{ASSET}-earlier")}])
    assert list(unused_files(lake, all_stages())) == []


def test_the_command_lists_and_deletes_only_when_told(
    tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    before = sorted(checkpoints.iterdir())

    def prune(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["prune", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "no unused files that were written at least 60 days ago" in prune("--days", "60", "--delete")
    listed = prune("--days", "30")
    assert f"{ASSET}-earlier" in listed
    assert f"{ASSET}-present" not in listed
    assert "Nothing was deleted" in listed
    assert sorted(checkpoints.iterdir()) == before
    assert "Deleted 1 of 1" in prune("--days", "30", "--delete")
    assert sorted(checkpoints.iterdir()) == [path for path in before if path.name != f"{ASSET}-earlier"]


def test_of_a_linked_folder_only_the_link_is_deleted(tmp_path: Path) -> None:
    lake, elsewhere = Lake(tmp_path / "lake"), tmp_path / "big_disk"
    elsewhere.mkdir()
    (elsewhere / "kept.npy").write_bytes(b"kept")
    link = lake.files("frame_tensors", "small")
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    delete_rows(lake, "small")
    assert not link.is_symlink()
    assert (elsewhere / "kept.npy").exists()
