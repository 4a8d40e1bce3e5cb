"""Video files are read for their digest once, and one that changes under a build is never stored as what it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.small_world import SmallWorld, build, clip, fill
from vsr1_core.configurations import NANO
from vsr1_core.media import decode, probe
from vsr1_core.rows import files
from vsr1_core.rows.files import CHANGED, FileStamp, digest_stable_file, read_stamp
from vsr1_core.stages import corpus
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages

GROUPS = ("sources", "corpus", "media")


@pytest.fixture
def world(tmp_path: Path) -> SmallWorld:
    return fill(SmallWorld(tmp_path), num_train=2, num_test=1)


def view(world: SmallWorld) -> View:
    return world.view({name: stage for name, stage in all_stages().items() if stage.group in GROUPS}, NANO)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each video file's digest was made."""
    counts: Counter[str] = Counter()
    real = files.digest_file

    def counted(path: Path) -> str:
        if path.suffix == ".mp4":
            counts[path.name] += 1
        return real(path)

    monkeypatch.setattr(files, "digest_file", counted)
    monkeypatch.setattr(corpus, "digest_file", counted)
    return counts


def test_a_first_build_hashes_each_video_once(world: SmallWorld, hashed: Counter[str]) -> None:
    build(view(world))
    assert hashed == {"train_0.mp4": 1, "train_1.mp4": 1, "test_0.mp4": 1}
    build(view(world))
    assert set(hashed.values()) == {1}


def test_what_was_observed_is_not_hashed_again_by_the_build(world: SmallWorld, hashed: Counter[str]) -> None:
    tables = view(world)
    before = tables.stages["raw_videos"].observe(tables)
    build(view(world))
    assert set(hashed.values()) == {1}
    world.put_video("test_0", clip(77))
    assert view(world).stages["raw_videos"].observe(view(world)) != before
    assert hashed == {"train_0.mp4": 1, "train_1.mp4": 1, "test_0.mp4": 2}


@pytest.mark.parametrize(("module", "function"), [(probe, "probe"), (decode, "sample_frames")])
def test_a_video_that_is_replaced_while_it_is_read_is_a_failed_row_of_its_old_version(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    real = getattr(module, function)

    def replaced(path: Path, *rest: Any) -> Any:
        found = real(path, *rest)
        if path.stem == "test_0":
            world.put_video("test_0", clip(55))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, function, replaced)
        build(view(world), Execution(workers=1))
    asset = "videos" if function == "probe" else "frame_tensors"
    rows = {row["video_id"]: row for row in view(world).table(asset).rows().to_dicts()}
    assert rows["test_0"]["status"] == "failed"
    assert rows["test_0"]["error"] == f"test_0.mp4 {CHANGED}"
    assert rows["train_0"]["status"] == "ok"
    build(view(world))
    mended = {row["video_id"]: row for row in view(world).table(asset).rows().to_dicts()}["test_0"]
    assert mended["status"] == "ok"
    assert mended["row_version"] != rows["test_0"]["row_version"]


def test_a_video_that_is_only_touched_while_it_is_read_is_made_when_failed_rows_are_asked_for(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version stays, so a plain build leaves the failed row as it is, and the error has to say what helps."""
    real = probe.probe

    def touched(path: Path, *rest: Any) -> Any:
        found = real(path, *rest)
        world.touch(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(probe, "probe", touched)
        build(view(world), Execution(workers=1))
    build(view(world))
    failed = view(world).table("videos").rows()
    assert set(failed["status"]) == {"failed"}
    assert all(error.endswith("build again with --retry-failed") for error in failed["error"])
    build(view(world), Execution(workers=1, retry_failed=True))
    mended = view(world).table("videos").rows()
    assert set(mended["status"]) == {"ok"}
    assert mended["row_version"].to_list() == failed["row_version"].to_list()


def test_the_digest_of_a_file_that_changes_while_it_is_read_is_that_of_its_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "a.mp4", files.digest_file
    path.write_bytes(b"old")
    changes = iter([b"newer", b"newest"])

    def changing(read: Path) -> str:
        digest = real(read)
        if (content := next(changes, None)) is not None:
            read.write_bytes(content)
        return digest

    monkeypatch.setattr(files, "digest_file", changing)
    stamp, digest = digest_stable_file(path)
    assert (stamp, digest) == (read_stamp(path), real(path))
    assert stamp.bytes == len(b"newest")


def test_only_a_stamp_with_size_and_time_finds_that_its_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    path.write_bytes(b"1")
    whole = read_stamp(path)
    path.unlink()
    FileStamp(str(path), None, None).check()
    with pytest.raises((OSError, ValueError), match="gone"):
        whole.check()
