"""A video that costs too much is a failed row with the limit in its reason, and the same worker goes on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import read_settings, video_limits_of
from tests.videos import ffmpeg, write_video
from tests.workers import burn, grow_a_file
from vsr1_core.media.container import VideoError
from vsr1_core.media.decode import sample_frames
from vsr1_core.media.probe import probe
from vsr1_core.media.video_limits import VideoLimits
from vsr1_core.media.video_rows import sample_video
from vsr1_core.recipes import FrameRecipe
from vsr1_core.rows.files import read_stamp
from vsr1_core.rows.workers import map_in_processes

RECIPE = FrameRecipe(fps=2.0, max_frames=16, max_pixels=64 * 64)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", [k / 10 for k in range(40)])


@pytest.fixture(scope="module")
def poster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two frames of 4,000 x 4,000 pixels, as PNG in Matroska."""
    path = tmp_path_factory.mktemp("poster") / "poster.mkv"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=4000x4000:r=2:d=1", "-c:v", "png", path)
    return path


def sampled(
    paths: list[Path], limits: VideoLimits, folder: Path, recipe: FrameRecipe = RECIPE, workers: int = 1
) -> list[Any]:
    """The results of workers that sample these videos in turn."""
    tasks = [(p.name, read_stamp(p), {p.name: str(folder / f"{p.stem}.npy")}, recipe, limits, True) for p in paths]
    return list(map_in_processes(sample_video, tasks, workers, 300))


@pytest.mark.slow
def test_a_video_that_needs_too_much_memory_fails_alone(tmp_path: Path, clip: Path, poster: Path) -> None:
    bad, good = sampled([poster, clip], VideoLimits(memory_gb=0.03), tmp_path)
    assert bad.error is not None
    assert "poster.mkv needs more than 0.03 GiB of memory, which the video limits (memory_gb)" in bad.error
    assert good.error is None
    assert good.value["clip.mp4"]["num_frames"] == 8
    (enough,) = sampled([poster], VideoLimits(), tmp_path)
    assert enough.error is None


@pytest.mark.slow
def test_processor_time_is_bounded_for_each_task_and_not_for_the_worker(tmp_path: Path) -> None:
    burning = [0.7, 60.0, 0.7, 0.7]
    errors = [r.error for r in map_in_processes(partial(burn, cpu_s=1.0), burning, 1, 120)]
    assert [error is None for error in errors] == [True, False, True, True]
    assert "needs more than 1 s of processor time, which the video limits (cpu_s)" in str(errors[1])


def test_a_file_may_not_grow_without_bound(tmp_path: Path) -> None:
    sizes = [1 << 20, 80 << 20, 1 << 20]
    errors = [r.error for r in map_in_processes(partial(grow_a_file, folder=str(tmp_path)), sizes, 1, 300)]
    assert [error is None for error in errors] == [True, False, True]
    assert "would give a file of more than" in str(errors[1])


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (VideoLimits(frame_pixels=64 * 63), r"frames of 64 x 64 pixels, more than the 4,032 .*\(frame_pixels\)"),
        (VideoLimits(packets=39), r"more than 39 frames, or .*\(packets\)"),
        (VideoLimits(codecs=("vp9",)), r"in the codec h264, which is not allowed here: .*\(codecs\)"),
        (VideoLimits(containers=("matroska",)), r"in a container that is not allowed here"),
    ],
)
def test_each_limit_is_kept_before_anything_is_decoded(clip: Path, limits: VideoLimits, reason: str) -> None:
    for read in (partial(probe, clip, limits), partial(sample_frames, clip, RECIPE, limits)):
        with pytest.raises(VideoError, match=reason):
            read()
    assert probe(clip, VideoLimits(frame_pixels=64 * 64, packets=40)).num_frames == 40


def test_decoding_is_bounded_by_pixels_times_frames(clip: Path) -> None:
    with pytest.raises(VideoError, match=r"40 frames of 64 x 64 pixels would have to be decoded.*\(decoded_pixels\)"):
        sample_frames(clip, RECIPE, VideoLimits(decoded_pixels=40 * 64 * 64 - 1))
    every = sample_frames(clip, RECIPE, VideoLimits(decoded_pixels=40 * 64 * 64))
    few = FrameRecipe(fps=0.25, max_frames=2, max_pixels=64 * 64)
    assert len(sample_frames(clip, few, VideoLimits(decoded_pixels=20 * 64 * 64)).pixels) == 2  # by seeking
    assert len(every.pixels) == 8


def test_a_frame_that_is_too_large_costs_nothing(tmp_path: Path) -> None:
    """FFmpeg decodes a frame to open a file, so the limit has to reach it: 16,000 x 16,000 pixels took over 2 GiB."""
    path = tmp_path / "a.mkv"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x64:r=2:d=1", "-c:v", "png", path)
    data, at = bytearray(path.read_bytes()), 0
    while (at := data.find(b"IHDR", at) + 4) > 3:  # the container says 64 x 64
        data[at : at + 8] = (16000).to_bytes(4, "big") * 2
    path.write_bytes(data)
    (result,) = sampled([path], VideoLimits(memory_gb=0.2), tmp_path)
    assert result.error is not None
    assert "more than the 67,108,864 pixels of the video limits (frame_pixels)" in result.error


def test_the_limits_are_a_setting() -> None:
    limits = video_limits_of(read_settings({"VSR1_VIDEO_LIMITS": "memory_gb=4 codecs=h264,hevc"}).video_limits)
    assert limits == VideoLimits(memory_gb=4.0, codecs=("h264", "hevc"))
    assert video_limits_of(read_settings({}).video_limits) == VideoLimits()
    for text, reason in (
        ("memory_gb=-1", "VSR1_VIDEO_LIMITS: memory_gb has to be a number above 0"),
        ("memory=1", "VSR1_VIDEO_LIMITS: memory is no setting; did you mean memory_gb"),
        ("much", "NAME=VALUE NAME=VALUE, not 'much'; the names are: frame_pixels"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_settings({"VSR1_VIDEO_LIMITS": text})
