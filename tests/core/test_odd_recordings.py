"""Videos that are fine and easily misread: what is shown, when, and which way up."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.videos import ffmpeg, flat_frames, number_of, write_video
from vsr1_core.media.container import VideoError
from vsr1_core.media.decode import sample_frames
from vsr1_core.media.probe import probe
from vsr1_core.recipes import FrameRecipe

SMALL = FrameRecipe(fps=2.0, max_frames=16, max_pixels=64 * 64)
TENTHS = [k / 10 for k in range(40)]
ONE, MINUS = 0x00010000, 0xFFFF0000
MATRICES = {
    "as stored": (ONE, 0, 0, ONE),
    "quarter": (0, ONE, MINUS, 0),
    "half": (MINUS, 0, 0, MINUS),
    "three quarters": (0, MINUS, ONE, 0),
    "mirrored": (MINUS, 0, 0, ONE),
    "upside down": (ONE, 0, 0, MINUS),
    "transposed": (0, ONE, ONE, 0),
    "transposed across": (0, MINUS, MINUS, 0),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 s of h264 at 10 frames per second; frame k shows level k."""
    return write_video(tmp_path_factory.mktemp("plain") / "plain.mp4", TENTHS)


def assert_shows_the_plain_video(path: Path, start_s: float | None = 0.0) -> None:
    frames = sample_frames(path, SMALL)
    assert [number_of(p) for p in frames.pixels] == [round(t * 10) for t in frames.timestamps_s]
    assert frames.timestamps_s[-1] == pytest.approx(3.9, abs=0.01)
    assert frames.duration_s == pytest.approx(4.0, abs=0.02)
    assert start_s is None or frames.start_s == pytest.approx(start_s, abs=0.1)
    info = probe(path)
    assert (info.num_frames, info.duration_s) == (40, pytest.approx(frames.duration_s))


def give_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix into the (only) track header of an mp4."""
    a, b, c, d = matrix
    data = bytearray(path.read_bytes())
    begin = data.index(b"tkhd") + 4 + 40
    data[begin : begin + 36] = struct.pack(">9I", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("backend", ["pyav", "ffmpeg"])
def test_each_of_the_eight_orientations_is_shown_as_ffmpeg_shows_it(tmp_path: Path, name: str, backend: str) -> None:
    quarters = np.zeros((4, 64, 96, 3), np.uint8)
    for grey, (rows, columns) in zip((40, 100, 160, 220), np.ndindex(2, 2), strict=True):
        quarters[:, 32 * rows : 32 * rows + 32, 48 * columns : 48 * columns + 48] = grey
    path = give_matrix(write_video(tmp_path / "a.mp4", [0, 0.25, 0.5, 0.75], quarters), MATRICES[name])
    info, frames = probe(path), sample_frames(path, FrameRecipe(backend=backend))
    assert (info.width, info.height) == ((96, 64) if MATRICES[name][0] else (64, 96))
    raw = ffmpeg("-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    shown = np.frombuffer(raw, np.uint8).reshape(info.height, info.width, 3)
    assert np.abs(shown.astype(int) - frames.pixels[0]).mean() < 4


def test_the_eight_orientations_all_differ(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    pictures = {}
    for name, matrix in MATRICES.items():
        path = give_matrix(write_video(tmp_path / f"{name}.mp4", [0, 0.5], noise), matrix)
        pictures[name] = sample_frames(path, SMALL).pixels[0].tobytes()
    assert len(set(pictures.values())) == 8


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts", ".avi"])
def test_sound_may_be_longer_than_the_picture(tmp_path: Path, plain: Path, suffix: str) -> None:
    path = tmp_path / f"long{suffix}"
    sound = ("-f", "lavfi", "-i", "sine=d=20", "-map", "0", "-map", "1", "-c:a", "mp2")
    ffmpeg("-i", plain, *sound, "-c:v", "libx264", "-bf", "0", "-crf", "4", path)
    assert_shows_the_plain_video(path, start_s=None if suffix == ".ts" else 0.0)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_the_picture_may_start_late(tmp_path: Path, plain: Path, suffix: str) -> None:
    path = tmp_path / f"late{suffix}"
    sound = ("-f", "lavfi", "-i", "sine=d=10", "-itsoffset", "5", "-i", plain, "-map", "1", "-map", "0")
    ffmpeg(*sound, "-c:v", "copy", "-c:a", "mp2", path)
    assert_shows_the_plain_video(path, start_s=5.0)


def test_a_matroska_file_that_was_cut_is_still_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 64, 64, 3), dtype=np.uint8)
    whole = write_video(tmp_path / "whole.mkv", [k / 10 for k in range(50)], noise)
    (tmp_path / "half.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"half\.mkv is cut short"):
        probe(tmp_path / "half.mkv")


@pytest.mark.parametrize("disposition", ["default", "0"])
def test_a_still_picture_before_the_video_is_not_the_video(tmp_path: Path, plain: Path, disposition: str) -> None:
    path = tmp_path / "cover.mkv"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=320x320", "-frames:v", "1", tmp_path / "cover.jpg")
    both = ("-i", tmp_path / "cover.jpg", "-i", plain, "-map", "0", "-map", "1", "-c", "copy")
    ffmpeg(*both, "-disposition:v:0", disposition, "-disposition:v:1", "0", path)
    assert_shows_the_plain_video(path)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_the_default_stream_is_the_video(tmp_path: Path, plain: Path, suffix: str) -> None:
    path = tmp_path / f"two{suffix}"
    other = ("-f", "lavfi", "-i", "testsrc2=s=128x128:d=3:r=5", "-i", plain, "-map", "0", "-map", "1")
    ffmpeg(*other, "-c:v:0", "libx264", "-c:v:1", "copy", "-disposition:v:0", "0", "-disposition:v:1", "default", path)
    assert_shows_the_plain_video(path)


@pytest.mark.parametrize("backend", ["pyav", "ffmpeg"])
def test_without_a_default_the_largest_moving_stream_is_the_video(tmp_path: Path, plain: Path, backend: str) -> None:
    path = tmp_path / "two.ts"
    other = ("-f", "lavfi", "-i", "testsrc2=s=32x32:d=3:r=5", "-i", plain, "-map", "0", "-map", "1")
    ffmpeg(*other, "-c:v:0", "libx264", "-c:v:1", "copy", path)
    assert_shows_the_plain_video(path, start_s=None)
    frames = sample_frames(path, FrameRecipe(2.0, 16, 64 * 64, backend=backend))
    assert [number_of(p) for p in frames.pixels] == [round(t * 10) for t in frames.timestamps_s]


@pytest.mark.parametrize(
    ("first_s", "second_s", "bframes"), [(0, 0, "0"), (0, 0, "2"), (0, 1000, "2"), (5000, 0, "2"), (2, 1, "0")]
)
def test_recordings_that_were_joined_are_shown_one_after_the_other(
    tmp_path: Path, plain: Path, first_s: int, second_s: int, bframes: str
) -> None:
    joined = b""
    for number, begin_s in enumerate((first_s, second_s)):
        part, cut = tmp_path / f"{number}.ts", f"trim={2 * number}:{2 * number + 2},setpts=PTS-STARTPTS"
        coded = ("-c:v", "libx264", "-bf", bframes, "-crf", "4", "-output_ts_offset", str(begin_s))
        ffmpeg("-i", plain, "-vf", cut, *coded, part)
        joined += part.read_bytes()
    (tmp_path / "joined.ts").write_bytes(joined)
    assert_shows_the_plain_video(tmp_path / "joined.ts", start_s=None)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_with_b_frames_is_shown_in_order(tmp_path: Path, plain: Path, codec: str) -> None:
    ffmpeg("-i", plain, "-c:v", codec, "-bf", "2", "-q:v", "1", "-crf", "4", tmp_path / "coded.mp4")
    ffmpeg("-i", tmp_path / "coded.mp4", "-c", "copy", tmp_path / "b.avi")
    assert_shows_the_plain_video(tmp_path / "b.avi")


@pytest.mark.parametrize("backend", ["pyav", "ffmpeg"])
def test_pixels_that_are_not_square_are_stretched_by_each_decoder(tmp_path: Path, backend: str) -> None:
    square = write_video(tmp_path / "square.mp4", [k / 4 for k in range(8)], flat_frames(8, (96, 96)))
    ffmpeg("-i", square, "-c", "copy", "-aspect", "2:1", tmp_path / "wide.mp4")
    assert (probe(tmp_path / "wide.mp4").width, probe(tmp_path / "wide.mp4").height) == (192, 96)
    frames = sample_frames(tmp_path / "wide.mp4", FrameRecipe(backend=backend))
    assert frames.pixels.shape[1:3] == (96, 192)


def case(shared_data: Path, name: str) -> Path:
    path = shared_data.parent / "cases" / "video" / name
    if not path.exists():
        pytest.skip("the small inputs are not here")
    return path


@pytest.mark.parametrize(
    ("name", "size", "start_s"),
    [
        ("audio_longer_than_video.mkv", (64, 64), 0.0),
        ("video_starts_late.mkv", (64, 64), 5.0),
        ("second_stream_is_default.mkv", (64, 64), 0.0),
        ("two_recordings_cat.ts", (64, 64), 1.6),
    ],
)
def test_each_small_input_has_four_seconds(shared_data: Path, name: str, size: tuple[int, int], start_s: float) -> None:
    info = probe(case(shared_data, name))
    assert (info.width, info.height, info.num_frames) == (*size, 40)
    assert info.duration_s == pytest.approx(4.0, abs=0.01)
    assert info.start_s == pytest.approx(start_s, abs=0.01)


def test_the_mirrored_input_is_the_plain_one_mirrored(shared_data: Path) -> None:
    plain, mirrored = (sample_frames(case(shared_data, n), SMALL).pixels for n in ("quad.mp4", "quad_hflip.mp4"))
    assert np.abs(plain[:, :, ::-1].astype(int) - mirrored).mean() < 1
    assert np.abs(plain.astype(int) - mirrored).mean() > 20
