"""Files of stored frames: JPEGs come back near to what they were, one at a time too, and damage is never taken for
frames."""

from __future__ import annotations

import errno
import io
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.videos import flat_frames, number_of
from vsr1_core.media import jpeg_archive
from vsr1_core.media.decode import sample_frames
from vsr1_core.media.frame_store import (
    SheetRow,
    contact_sheet,
    frames_shape,
    is_decoded,
    most_bytes,
    read_frames,
    spread_numbers,
    suffix_of,
    write_frames,
)
from vsr1_core.models.ahead import made_ahead
from vsr1_core.recipes import FrameRecipe
from vsr1_core.rows.files import WriteRefused

JPEG = FrameRecipe(store="jpeg")
LEAST_DB = 32.0
"""Of a clip of noise and grain; most of the 18 clips keep 38 to 50 dB."""


def psnr(pixels: np.ndarray, others: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all values of two arrays, uint8."""
    error = np.mean((pixels.astype(np.float64) - others) ** 2)
    return float(10 * np.log10(255**2 / error))


def drawn(count: int = 5, height: int = 96, width: int = 128) -> np.ndarray:
    """Smooth frames [T, H, W, 3], each of them different."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (8 + n)) + np.cos(y / (5 + c)) for n in range(count) for c in range(3)]
    return (127 + 60 * np.array(waves)).reshape(count, 3, height, width).transpose(0, 2, 3, 1).astype(np.uint8)


def test_jpegs_come_back_in_order_and_near_to_what_they_were(tmp_path: Path) -> None:
    frames, path = drawn(), tmp_path / "deep" / "a.zip"
    write_frames(path, frames)
    assert [p.name for p in path.parent.iterdir()] == ["a.zip"]
    again = read_frames(path)
    assert (again.shape, again.dtype) == (frames.shape, np.uint8)
    assert psnr(frames, again) > 40
    assert frames_shape(path) == frames.shape[:3]
    np.testing.assert_array_equal(read_frames(path, [4, 0, 4]), again[[4, 0, 4]])
    assert 10 * path.stat().st_size < frames.nbytes
    assert [number_of(frame) for frame in (write_frames(path, flat_frames(12)), read_frames(path))[1]] == list(
        range(12)
    )


def test_a_higher_quality_is_nearer_and_takes_more_room(tmp_path: Path) -> None:
    frames, found = drawn(), []
    for quality in (30, 90, 100):
        write_frames(tmp_path / "a.zip", frames, quality)
        found.append((psnr(frames, read_frames(tmp_path / "a.zip")), (tmp_path / "a.zip").stat().st_size))
    assert found == sorted(found)


def test_the_same_frames_are_the_same_bytes_at_any_time(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_frames(tmp_path / name, drawn())
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"{n:04d}.jpg" for n in range(5)]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_frames_decoded_in_threads_are_those_decoded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_frames(tmp_path / "a.zip", drawn())
    alone = read_frames(tmp_path / "a.zip")
    seen = set()
    decode_one = jpeg_archive._decode_one
    monkeypatch.setattr(jpeg_archive, "THREADS", 3)
    monkeypatch.setattr(jpeg_archive, "PIXELS_PER_THREAD", 1)
    monkeypatch.setattr(jpeg_archive, "_decode_one", lambda *of: (seen.add(threading.get_ident()), decode_one(*of)))
    np.testing.assert_array_equal(read_frames(tmp_path / "a.zip"), alone)
    assert threading.get_ident() not in seen


def test_both_kinds_of_files_are_read_alike(tmp_path: Path) -> None:
    frames = flat_frames(12)
    for name, is_packed in (("a.npy", False), ("a.zip", True)):
        path = tmp_path / name
        write_frames(path, frames)
        assert (is_decoded(path), frames_shape(path)) == (is_packed, (12, 64, 64))
        assert [number_of(frame) for frame in read_frames(path, [11, 3])] == [11, 3]
        row = SheetRow("one", path, [k / 2 for k in range(12)])
        from PIL import Image

        sheet = np.asarray(Image.open(io.BytesIO(contact_sheet([row], columns=4, height=64))))
        assert [number_of(sheet[40:70, 66 * k + 8 : 66 * k + 56]) for k in range(4)] == [0, 4, 7, 11]
    assert spread_numbers(12, 4) == [0, 4, 7, 11]
    assert (suffix_of(FrameRecipe()), suffix_of(FrameRecipe(store="npy")), suffix_of(JPEG)) == (".npy", ".npy", ".zip")


@pytest.mark.parametrize("size", [16, 64, 160])
def test_no_file_is_larger_than_its_recipe_allows(tmp_path: Path, size: int) -> None:
    """Of noise at the highest quality: the process that decodes a video may write no more."""
    noise = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
    recipe = FrameRecipe(store="jpeg", jpeg_quality=100, max_frames=4)
    write_frames(tmp_path / "a.zip", noise, 100)
    assert (tmp_path / "a.zip").stat().st_size < most_bytes(recipe, size * size)


# ---- damage --------------------------------------------------------------------------------------------------------


def outcome(path: Path, content: bytes, frames: np.ndarray) -> str:
    """What reading says of a file that was an archive of `frames`."""
    path.write_bytes(content)
    try:
        return "equal" if np.array_equal(read_frames(path), frames) else "other frames"
    except ValueError as error:
        return "damaged" if str(error).startswith(f"the frames {path} are damaged: ") else str(error)


@pytest.mark.parametrize("step", [61, pytest.param(5, marks=pytest.mark.sweep)])
def test_a_damaged_file_is_refused_or_gives_the_frames_it_had(tmp_path: Path, step: int) -> None:
    path = tmp_path / "a.zip"
    write_frames(path, np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    content, frames = path.read_bytes(), read_frames(path)
    flipped = {
        outcome(path, content[:n] + bytes([content[n] ^ bit]) + content[n + 1 :], frames)
        for n in range(0, len(content), step)
        for bit in (1, 0x80, 0xFF)
    }
    assert flipped == {"equal", "damaged"}
    cut = {outcome(path, content[:n], frames) for n in range(0, len(content), step)}
    assert cut == {"damaged"}


def archive_of(path: Path, members: dict[str, bytes], comment: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = comment
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def jpeg(size: int = 16, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new(mode, (size, size)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("members", "comment"),
    [
        ({}, b"0"),
        ({"0000.jpg": jpeg(), "0001.jpg": jpeg(32)}, b"2"),
        ({"0000.jpg": jpeg(), "0001.jpg": jpeg(mode="L")}, b"2"),
        ({"0000.jpg": jpeg(kind="PNG")}, b"1"),
        ({"0000.jpg": jpeg()[:-200]}, b"1"),
        ({"0000.jpg": jpeg()}, b"2"),
        ({"../0000.jpg": jpeg()}, b"1"),
    ],
    ids=["no frame", "two sizes", "grey", "a PNG", "a cut JPEG", "fewer than written", "other names"],
)
def test_an_archive_of_something_else_is_refused(tmp_path: Path, members: dict[str, bytes], comment: bytes) -> None:
    with pytest.raises(ValueError, match=r"the frames .*a\.zip are damaged"):
        read_frames(archive_of(tmp_path / "a.zip", members, comment))


@pytest.mark.parametrize("name", ["a.npy", "a.zip"])
def test_a_file_that_was_cut_off_says_what_to_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_frames(path, drawn())
    for content in (path.read_bytes()[:-1], b"", b"something else"):
        path.write_bytes(content)
        for read in (read_frames, frames_shape):
            with pytest.raises(ValueError, match=rf"the frames .*{name} are damaged: .+; to make them again, delete"):
                read(path)


def test_a_full_disk_leaves_no_archive_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = jpeg_archive.jpeg_bytes

    def full(frame: np.ndarray, quality: int) -> bytes:
        if np.array_equal(frame, frames[3]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return encoded(frame, quality)

    frames = drawn()
    monkeypatch.setattr(jpeg_archive, "jpeg_bytes", full)
    with pytest.raises(WriteRefused, match=r"a\.zip cannot be written: its disk is full"):
        write_frames(tmp_path / "a.zip", frames)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_says_how_it_is_made_again(tmp_path: Path) -> None:
    for read in (read_frames, frames_shape):
        with pytest.raises(FileNotFoundError, match="build frame_tensors again"):
            read(tmp_path / "gone.zip")


# ---- ahead of the model --------------------------------------------------------------------------------------------


def test_what_is_made_ahead_comes_in_order_and_is_bounded(tmp_path: Path) -> None:
    made: list[int] = []
    for most, most_made in ((0.0, 2), (30.0, 3), (1000.0, 8)):
        made.clear()
        inputs = made_ahead(range(8), _noted(made), lambda item: 10.0, most)
        assert next(inputs) == 0
        assert len(made) <= most_made
        assert list(inputs) == list(range(1, 8))
        assert made == list(range(8))


def _noted(made: list[int]) -> Callable[[int], int]:
    def make(item: int) -> int:
        made.append(item)
        return item

    return make


def test_an_input_that_cannot_be_made_is_missed_in_its_turn_and_no_thread_is_left() -> None:
    def make(item: int) -> int:
        if item == 2:
            raise ValueError("no frames")
        return item

    inputs = made_ahead(range(5), make, lambda item: 1.0, 100.0)
    assert [next(inputs), next(inputs)] == [0, 1]
    with pytest.raises(ValueError, match="no frames"):
        next(inputs)
    left = made_ahead(range(5), make, lambda item: 1.0, 100.0)
    assert next(left) == 0
    left.close()
    assert not any(thread.name.startswith("vsr1-ahead") for thread in threading.enumerate())


# ---- real clips ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_clips_keep_their_quality_in_a_tenth_of_the_room(shared_data: Path, tmp_path: Path) -> None:
    sizes, recipe = [], FrameRecipe(max_frames=2)
    for number, path in enumerate(sorted((shared_data / "clips/videos").iterdir())):
        frames = sample_frames(path, recipe).pixels
        target = tmp_path / f"{number}.zip"
        write_frames(target, frames)
        assert psnr(frames, read_frames(target)) > LEAST_DB, path.name
        sizes.append((frames.nbytes, target.stat().st_size))
    assert len(sizes) == 18
    arrays, archives = map(sum, zip(*sizes, strict=True))
    assert 10 * archives < arrays
