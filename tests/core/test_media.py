"""Probing, sampling and decoding on small generated files: the rule is the last frame at or before each time."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.videos import ffmpeg, flat_frames, number_of, turn_clockwise, write_video
from vsr1_core.media import decode
from vsr1_core.media.container import VideoError
from vsr1_core.media.decode import sample_frames
from vsr1_core.media.frame_store import SheetRow, contact_sheet, read_frames, write_frames
from vsr1_core.media.probe import probe
from vsr1_core.media.sampling import num_frames, output_size, sample_times
from vsr1_core.recipes import FrameRecipe

SMALL = FrameRecipe(fps=2.0, max_frames=16, max_pixels=64 * 64)


def assert_last_frame_at_or_before(path: Path, times_s: list[float], recipe: FrameRecipe) -> decode.Frames:
    """Each sampled picture is the frame its time stamp says, and no later frame would fit its wanted time."""
    frames = sample_frames(path, recipe)
    wanted = sample_times(times_s[-1] - times_s[0], len(frames.pixels))
    shown = [number_of(p) for p in frames.pixels]
    expected = [max(k for k, t in enumerate(times_s) if t - times_s[0] <= w + 1e-6) for w in wanted]
    assert shown == expected
    np.testing.assert_allclose(frames.timestamps_s, [times_s[k] - times_s[0] for k in expected], atol=2e-3)
    return frames


@pytest.mark.parametrize(
    ("duration_s", "expected"), [(0.2, 2), (1.0, 2), (2.0, 2), (3.9, 4), (8.999, 8), (63.5, 64), (500.0, 64)]
)
def test_frame_count_is_even_and_follows_the_duration(duration_s: float, expected: int) -> None:
    assert num_frames(duration_s, FrameRecipe()) == expected


def test_frame_count_never_exceeds_an_odd_maximum() -> None:
    assert num_frames(100.0, FrameRecipe(max_frames=7)) == 6


def test_output_sizes_are_multiples_within_the_budget_and_keep_the_aspect() -> None:
    for recipe, width, height in itertools.product(
        (FrameRecipe(), FrameRecipe(max_pixels=64 * 64)), (64, 270, 321, 640, 1280, 3840), (64, 241, 480, 720, 2160)
    ):
        out_w, out_h = output_size(width, height, recipe)
        assert out_w % 32 == 0
        assert out_h % 32 == 0
        assert 0 < out_w * out_h <= recipe.max_pixels
        if recipe.max_pixels > 64 * 64 and 0.5 < width / height < 2:
            assert abs(np.log((out_w / out_h) / (width / height))) < 0.35
    assert output_size(64, 64, FrameRecipe(max_pixels=64 * 64)) == (64, 64)
    assert output_size(1280, 720, FrameRecipe(max_pixels=64 * 64)) == (64, 32)
    assert output_size(5000, 20, FrameRecipe(max_pixels=64 * 64))[1] == 32
    assert output_size(8, 8, FrameRecipe(max_pixels=100)) == (32, 32)  # one multiple a side at least


def test_constant_rate_video_is_sampled_exactly(tmp_path: Path) -> None:
    times = [k / 10 for k in range(45)]
    frames = assert_last_frame_at_or_before(write_video(tmp_path / "a.mp4", times), times, SMALL)
    assert frames.pixels.shape == (10, 64, 64, 3)
    assert frames.pixels.dtype == np.uint8
    assert frames.timestamps_s[0] == 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_rate_video_keeps_true_times(tmp_path: Path, suffix: str) -> None:
    steps = [0.04, 0.04, 1.3, 0.04, 0.2, 0.04, 0.7, 0.04, 0.04, 0.9] * 3
    times = [round(sum(steps[:k]), 3) for k in range(len(steps))]
    assert_last_frame_at_or_before(write_video(tmp_path / f"vfr{suffix}", times), times, SMALL)


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    times = [8.3 + k / 10 for k in range(40)]
    path = write_video(tmp_path / "late.mkv", times)
    frames = assert_last_frame_at_or_before(path, times, SMALL)
    assert frames.start_s == pytest.approx(8.3, abs=2e-3)
    info = probe(path)
    assert (info.duration_s, info.num_frames) == (pytest.approx(4.0, abs=0.11), 40)


def test_frames_cut_off_by_an_edit_list_are_not_shown(tmp_path: Path) -> None:
    times = [k / 10 for k in range(50)]
    whole = write_video(tmp_path / "whole.mp4", times, gop=50)
    cut = tmp_path / "cut.mp4"
    ffmpeg("-ss", "1.5", "-i", whole, "-c", "copy", cut)
    frames = sample_frames(cut, SMALL)
    shown = [number_of(p) for p in frames.pixels]
    assert shown[0] == 15
    assert shown == [15 + round(t * 10) for t in frames.timestamps_s]
    assert frames.duration_s == pytest.approx(3.5, abs=0.11)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotated_video_is_upright_like_ffmpeg_shows_it(tmp_path: Path, quarters: int) -> None:
    corners = np.zeros((12, 64, 96, 3), np.uint8)
    corners[:, :32, :48] = 240  # the stored picture has its light corner at the top left
    turned = turn_clockwise(write_video(tmp_path / "a.mp4", [k / 4 for k in range(12)], corners), quarters)
    info, frames = probe(turned), sample_frames(turned, FrameRecipe())
    assert info.rotation == 360 - 90 * quarters
    assert frames.pixels.shape[1:3] == (info.height, info.width) == ((64, 96) if quarters == 2 else (96, 64))
    raw = ffmpeg("-i", turned, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    shown = np.frombuffer(raw, np.uint8).reshape(info.height, info.width, 3)
    assert np.abs(shown.astype(int) - frames.pixels[0]).mean() < 4


def test_seeking_finds_the_same_frames_as_a_full_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [k / 10 for k in range(60)]
    path = write_video(tmp_path / "long.mp4", times, gop=3)
    few = FrameRecipe(fps=1.0, max_frames=6, max_pixels=64 * 64)
    sought: list[float] = []
    seek = decode.seek
    monkeypatch.setattr(decode, "seek", lambda c, s, time_s: (sought.append(time_s), seek(c, s, time_s)))
    by_seeking = assert_last_frame_at_or_before(path, times, few)
    assert len(sought) == 6
    monkeypatch.setattr(decode, "_num_sought", lambda index, wanted: len(index.times_s))
    by_pass = assert_last_frame_at_or_before(path, times, few)
    assert len(sought) == 6
    np.testing.assert_array_equal(by_seeking.pixels, by_pass.pixels)


def test_a_frame_of_every_group_is_sought_where_that_spares_most_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 64 frames of a minute with a key frame each second: 58 % of the frames are decoded."""
    pictures = np.concatenate([flat_frames(30)] * 8)
    path = write_video(tmp_path / "minute.mp4", [k / 30 for k in range(240)], pictures, gop=30)
    recipe = FrameRecipe(fps=1.25, max_frames=10, max_pixels=64 * 64)
    decoded = count_decoded(monkeypatch)
    by_seeking = sample_frames(path, recipe)
    num_sought = decoded[0]
    monkeypatch.setattr(decode, "_num_sought", lambda index, groups: len(index.times_s))
    by_pass = sample_frames(path, recipe)
    assert num_sought < 0.75 * (decoded[0] - num_sought)
    np.testing.assert_array_equal(by_seeking.timestamps_s, by_pass.timestamps_s)
    np.testing.assert_array_equal(by_seeking.pixels, by_pass.pixels)


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of frames that were decoded so far, as its only element."""
    counted, frames = [0], decode.decoded_frames

    def counting(*arguments: Any) -> Iterator[Any]:
        for frame in frames(*arguments):
            counted[0] += 1
            yield frame

    monkeypatch.setattr(decode, "decoded_frames", counting)
    return counted


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    square = write_video(tmp_path / "square.mp4", [k / 4 for k in range(8)], flat_frames(8, (96, 128)))
    wide = tmp_path / "wide.mp4"
    ffmpeg("-i", square, "-c", "copy", "-aspect", "16:9", wide)
    info = probe(wide)
    assert info.width / info.height == pytest.approx(16 / 9, rel=0.02)
    frames = sample_frames(wide, FrameRecipe())
    assert frames.pixels.shape[2] > frames.pixels.shape[1]


def test_a_file_cut_in_half_says_so(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 64, 64, 3), dtype=np.uint8)
    whole = write_video(tmp_path / "whole.mp4", [k / 10 for k in range(50)], noise)
    ffmpeg("-i", whole, "-c", "copy", "-movflags", "+faststart", tmp_path / "fast.mp4")
    data = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match=r"half\.mp4 is cut short: its header promises 5\.0 s"):
        sample_frames(tmp_path / "half.mp4", SMALL)
    (tmp_path / "tail.mp4").write_bytes(whole.read_bytes()[: len(data) // 2])  # its index stood at the end
    with pytest.raises(VideoError, match="cut off before its index was written"):
        probe(tmp_path / "tail.mp4")


def test_damage_in_the_middle_keeps_what_can_be_decoded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 64, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mp4", [k / 10 for k in range(50)], noise)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = b"\xff" * 3000
    path.write_bytes(data)
    assert len(sample_frames(path, SMALL).pixels) == 10


def test_a_video_without_a_good_frame_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [k / 10 for k in range(50)])
    data = bytearray(path.read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[begin:end] = b"\x00" * (end - begin)
    path.write_bytes(data)
    for read in (probe, lambda p: sample_frames(p, SMALL)):
        with pytest.raises(VideoError, match="can be decoded"):
            read(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"this is no video at all\n" * 50, "not a video"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "not a video"),
    ],
)
def test_what_is_no_video_is_refused_with_a_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=reason):
        probe(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.mp4", tmp_path):
        with pytest.raises(VideoError, match="not a file"):
            sample_frames(path, SMALL)


def test_a_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x64", "-frames:v", "1", tmp_path / "cover.png")
    ffmpeg(
        *("-f", "lavfi", "-i", "sine=d=1", "-i", tmp_path / "cover.png", "-map", "0", "-map", "1"),
        *("-c:v", "copy", "-disposition:v:0", "attached_pic", tmp_path / "song.mp4"),
    )
    with pytest.raises(VideoError, match=r"no video stream \(it holds: audio, video\)|no video stream"):
        probe(tmp_path / "song.mp4")


def test_decord_picks_the_same_frames(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    times = [k / 10 for k in range(45)]
    path = write_video(tmp_path / "a.mp4", times)
    ours, theirs = sample_frames(path, SMALL), sample_frames(path, FrameRecipe(2.0, 16, 64 * 64, backend="decord"))
    np.testing.assert_allclose(ours.timestamps_s, theirs.timestamps_s, atol=2e-3)
    assert [number_of(p) for p in ours.pixels] == [number_of(p) for p in theirs.pixels]


def test_torchcodec_picks_the_same_frames(tmp_path: Path) -> None:
    pytest.importorskip("torchcodec")
    times = [k / 10 for k in range(45)]
    path = write_video(tmp_path / "a.mp4", times)
    ours, theirs = sample_frames(path, SMALL), sample_frames(path, FrameRecipe(2.0, 16, 64 * 64, backend="torchcodec"))
    np.testing.assert_allclose(ours.timestamps_s, theirs.timestamps_s, atol=2e-3)
    assert [number_of(p) for p in ours.pixels] == [number_of(p) for p in theirs.pixels]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
def test_ffmpeg_picks_the_same_frames_also_of_a_variable_frame_rate(tmp_path: Path) -> None:
    times = [0.5 + k / 10 + (0.3 if k > 20 else 0.0) for k in range(45)]
    path = write_video(tmp_path / "a.mp4", times)
    ours, theirs = sample_frames(path, SMALL), sample_frames(path, FrameRecipe(2.0, 16, 64 * 64, backend="ffmpeg"))
    np.testing.assert_allclose(ours.timestamps_s, theirs.timestamps_s, atol=2e-3)
    assert [number_of(p) for p in ours.pixels] == [number_of(p) for p in theirs.pixels]
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:600])
    with pytest.raises(VideoError):
        sample_frames(tmp_path / "cut.mp4", FrameRecipe(backend="ffmpeg"))


@pytest.mark.parametrize("backend", ["decord", "ffmpeg", "torchcodec"])
def test_an_absent_decoder_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    for name in (backend, f"{backend}.decoders"):
        monkeypatch.setitem(sys.modules, name, None)
    path = write_video(tmp_path / "a.mp4", [0, 0.1, 0.2])
    with pytest.raises(ModuleNotFoundError, match=f"install {backend}"):
        sample_frames(path, FrameRecipe(backend=backend))


def test_an_unknown_decoder_is_a_mistake_in_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="known: auto, pyav"):
        sample_frames(tmp_path / "a.mp4", FrameRecipe(backend="vlc"))


def test_frames_come_back_as_written(tmp_path: Path) -> None:
    frames = flat_frames(6)
    write_frames(tmp_path / "deep" / "a.npy", frames)
    np.testing.assert_array_equal(read_frames(tmp_path / "deep" / "a.npy"), frames)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.npy"]


def test_frame_files_hold_no_pickles(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_frames(tmp_path / "a.npy", np.array([object()]))
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle|pickled|Array can't be memory-mapped"):
        read_frames(tmp_path / "evil.npy")
    with pytest.raises(FileNotFoundError, match="build frame_tensors again"):
        read_frames(tmp_path / "gone.npy")


def test_a_contact_sheet_has_a_strip_a_video(tmp_path: Path) -> None:
    import io

    from PIL import Image

    write_frames(tmp_path / "a.npy", flat_frames(12))
    rows = [SheetRow(name, tmp_path / "a.npy", [k / 2 for k in range(12)]) for name in ("one", "two")]
    sheet = Image.open(io.BytesIO(contact_sheet(rows, columns=4, height=64)))
    assert sheet.format == "PNG"
    assert sheet.height == 2 * (64 + 18)
    shown = [number_of(np.asarray(sheet)[40:70, 66 * k + 8 : 66 * k + 56]) for k in range(4)]
    assert shown == [0, 4, 7, 11]
