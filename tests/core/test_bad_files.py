"""Files that stopped a dataset: one bad file is one failed row that says why, and the others are read."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.videos import flat_frames, write_video
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets import sources
from vsr1_core.datasets.file_check import check_files
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.media.container import VideoError
from vsr1_core.media.decode import sample_frames
from vsr1_core.media.probe import probe
from vsr1_core.recipes import FrameRecipe
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.corpus import AnnotationFiles, RawVideos, Videos
from vsr1_core.stages.execution import Execution

NANO = CONFIGURATIONS["nano"]


def test_a_codec_that_ffmpeg_does_not_know_is_named(tmp_path: Path) -> None:
    known = write_video(tmp_path / "a.avi", range(4), codec="mpeg4")
    strange = tmp_path / "b.avi"
    strange.write_bytes(known.read_bytes().replace(b"FMP4", b"ZZZZ"))
    assert probe(known).codec == "mpeg4"
    with pytest.raises(VideoError, match=r"b\.avi has a video in a codec that this build of FFmpeg does not know"):
        probe(strange)


def write_with_aspect(path: Path, aspect: Fraction) -> Path:
    """An mp4 whose header gives its pixels this aspect. FFmpeg writes no absurd one, so the header is edited."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for pixels in flat_frames(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    at = data.index(b"pasp") + 4
    path.write_bytes(data[:at] + struct.pack(">II", aspect.numerator, aspect.denominator) + data[at + 8 :])
    return path


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(1, 60000), 64), (Fraction(255, 1), 64), (Fraction(2, 1), 128)])
def test_an_aspect_that_no_pixel_has_is_not_believed(tmp_path: Path, aspect: Fraction, width: int) -> None:
    path = write_with_aspect(tmp_path / "a.mp4", aspect)
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == aspect
    assert (probe(path).width, probe(path).height) == (width, 64)
    assert len(sample_frames(path, FrameRecipe(max_pixels=64 * 128)).pixels) == 2


@pytest.fixture
def bad_name(tmp_path: Path) -> DatasetEntry:
    folder = tmp_path / "videos"
    folder.mkdir()
    good = write_video(folder / "good.mp4", range(2))
    for name in (b"caf\xe9.mp4", b"caf\xea.mp4", b"caf\xea.mkv"):
        try:
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(good.read_bytes())
        except OSError:
            pytest.skip("this file system takes only names in UTF-8")
    return DatasetEntry("own", "folder", str(folder), "")


def test_a_name_that_is_not_utf_8_is_one_failed_row_and_the_build_goes_on(
    tmp_path: Path, bad_name: DatasetEntry
) -> None:
    stages = {stage.name: stage for stage in (AnnotationFiles(), RawVideos(), Videos())}
    view = View(Lake(tmp_path / "lake"), bad_name, NANO, stages)
    outcomes = {name: stage.build(view, Execution()) for name, stage in stages.items()}
    assert (outcomes["raw_videos"].num_processed, outcomes["raw_videos"].num_failed) == (3, 2)
    rows = {row["video_id"]: row for row in view.table("raw_videos").rows().to_dicts()}
    assert list(rows) == ["caf\\udce9", "caf\\udcea", "good"]
    assert "caf\\udce9.mp4 cannot be stored: character" in rows["caf\\udce9"]["error"]
    assert "byte 0xE9, which is not UTF-8; rename the file" in rows["caf\\udce9"]["error"]
    assert view.table("videos").rows()["video_id"].to_list() == ["good"]
    again = RawVideos().build(view, Execution())
    assert again.num_processed == 0
    assert RawVideos().observe(view)
    assert sources.videos_version(bad_name)
    assert sources.files_version(bad_name)


def test_the_check_names_files_whose_name_is_not_utf_8(bad_name: DatasetEntry) -> None:
    findings = list(check_files(bad_name, NANO))
    assert [(f.kind, f.row_id) for f in findings] == [("bad name", "caf\\udce9"), ("bad name", "caf\\udcea")]
    assert all(f.file.encode() for f in findings)
