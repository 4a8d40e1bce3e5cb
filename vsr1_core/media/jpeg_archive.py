"""Frames as JPEGs in one file: a zip archive without compression, whose members `0000.jpg`, `0001.jpg`, ... are the
frames in the order of time. Any program that opens zip archives shows them.

The directory at the end of the file says where each JPEG is, so that one frame is read alone, and a file that was cut
off has no directory. Each member has a checksum, which finds other damage. Nothing here knows rows or recipes.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vsr1_core.media.encode import jpeg_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIX = ".zip"
THREADS = max(1, min(8, os.cpu_count() or 1))
"""Threads that decode the frames of one file; Pillow releases the interpreter's lock while it decodes."""
PIXELS_PER_THREAD = 1 << 20
"""A thread is started for so many pixels: to start one takes 0.1 ms, and to decode a megapixel some 8 ms."""
OVERHEAD_BYTES = 1024
"""Bytes of a frame that are no pixels: the tables of its JPEG (623), its two entries in the archive (108), and some
more."""
_OF_DAMAGE = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, SyntaxError),
    *(OSError, ValueError, OverflowError, IndexError),
)
"""What zipfile and Pillow raise for damaged files."""
_NUMBERS_OF_DAMAGE = (None, errno.EINVAL)
"""Of an OSError: Pillow's has no number, and a damaged directory sends zipfile before the file's beginning."""


def write_archive(path: Path, pixels: np.ndarray, quality: int) -> None:
    """Write frames, uint8 [T, H, W, 3], as JPEGs of `quality` (1 to 100) whose colour has half the size (4:2:0). The
    same Pillow writes the same bytes for the same frames."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = str(len(pixels)).encode()
        for number, frame in enumerate(pixels):
            archive.writestr(zipfile.ZipInfo(_name(number)), jpeg_bytes(frame, quality))


def archive_shape(path: Path) -> tuple[int, int, int]:
    """(T, H, W) of the frames in an archive; reads the directory and the first frame. Errors: as `read_archive`."""
    with _opened(path) as members, _image(members.read(0)) as image:
        return len(members), image.height, image.width


def read_archive(path: Path, numbers: Sequence[int] | None = None) -> np.ndarray:
    """Decode the frames `numbers`, at least one and counted from 0, or all: uint8 [T, H, W, 3].

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut off, damaged, or no archive of frames, or it has no frame of one of the numbers.
    """
    with _opened(path) as members:
        encoded = [members.read(number) for number in (range(len(members)) if numbers is None else numbers)]
        with _image(encoded[0]) as first:
            frames = np.empty((len(encoded), first.height, first.width, 3), np.uint8)
        _decode(encoded, frames)
    return frames


class _Members:
    """The frames of an open archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive, self._infos = archive, archive.infolist()
        names = [info.filename for info in self._infos]
        if not names or names != [_name(n) for n in range(len(names))] or archive.comment != b"%d" % len(names):
            raise ValueError("its members are not the frames that it was written with")

    def __len__(self) -> int:
        return len(self._infos)

    def read(self, number: int) -> bytes:
        """The JPEG of one frame, after its checksum was compared."""
        return self._archive.read(self._infos[number])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Members]:
    """The frames of an archive. Inside the block, what says that the file is damaged is raised as a ValueError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield _Members(archive)
    except _OF_DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in _NUMBERS_OF_DAMAGE:
            raise
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ValueError:
    """What a file of frames that cannot be read is to be called, and what to do about it."""
    why = str(error) or "the file ends too early"
    remedy = "to make them again, delete the dataset's folder under lake/tables/frame_tensors and build"
    return ValueError(f"the frames {path} are damaged: {why}; {remedy}")


def _name(number: int) -> str:
    return f"{number:04d}.jpg"


def _image(encoded: bytes) -> Image:
    from PIL import Image

    return Image.open(io.BytesIO(encoded), formats=("JPEG",))


def _decode(encoded: Sequence[bytes], frames: np.ndarray) -> None:
    """Decode into `frames`, in several threads where there is work for them."""
    num_threads = min(THREADS, len(encoded), frames.size // 3 // PIXELS_PER_THREAD)
    if num_threads <= 1:
        for one, frame in zip(encoded, frames, strict=True):
            _decode_one(one, frame)
        return
    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(_decode_one, encoded, frames))


def _decode_one(encoded: bytes, frame: np.ndarray) -> None:
    with _image(encoded) as image:
        if (image.height, image.width) != frame.shape[:2] or image.mode != "RGB":
            raise ValueError("its frames differ in size or colours")
        frame[:] = np.asarray(image)
