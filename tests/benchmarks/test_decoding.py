"""Sampling the frames of a video, against plain use of PyAV, decord and torchcodec, in turns in one run.

Each is asked for the frames of the same times in the same size, on one thread, from opening the file to arrays, and
scales as it offers to. What others return has to be the same frames by their time stamps and, roughly, by content.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

from tests.benchmarks.grainy_film import write_grainy_film
from tests.benchmarks.measuring import PROCESSOR, interleaved, line, milliseconds, not_measured, scaled
from vsr1_core.media.decode import sample_frames
from vsr1_core.media.sampling import frame_times, output_size
from vsr1_core.recipes import FrameRecipe

REPEATS, NUM_CLIPS = 3, 4
OFTEN = FrameRecipe()
SIXTY_FOUR = FrameRecipe(fps=2.0, max_frames=64)
NEAR_LEVELS = 12.0
"""Mean difference of two scalings of one frame, of 255 levels; of other frames it is larger."""

FLOAT32_S = 1e-4
"""decord tells times as float32: after 20 s one of them was 1e-6 s late."""

Sampled = tuple[np.ndarray, np.ndarray]
"""Pixels [T, H, W, 3] and, in seconds from the first frame, the times [T] of the frames."""


@dataclass(frozen=True)
class Asked:
    """A video, the sample times, and the size (width, height). begins_s: when each of its frames begins."""

    path: Path
    wanted_s: np.ndarray
    size: tuple[int, int]
    begins_s: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """For each sample time the number of the last frame that begins at or before it."""
        return np.searchsorted(self.begins_s, self.wanted_s + 1e-6, side="right") - 1


def asked_of(path: Path, recipe: FrameRecipe) -> Asked:
    """The times of all frames are those of a whole pass."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        begins = np.array(sorted(float(frame.pts * stream.time_base) for frame in container.decode(stream)))
        size = output_size(stream.width, stream.height, recipe)
    begins -= begins[0]
    duration_s = float(begins[-1] + (begins[-1] - begins[-2]))
    return Asked(path, frame_times(duration_s, float(begins[-1]), recipe), size, begins)


def by_pyav(asked: Asked) -> Sampled:
    """All frames up to the last one that is wanted are decoded; those that are wanted are scaled."""
    left, pixels, times = sorted(set(asked.numbers.tolist())), {}, {}
    with av.open(str(asked.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        first = None
        for number, frame in enumerate(container.decode(stream)):
            first = frame.pts if first is None else first
            if number == left[0]:
                scaled_frame = frame.reformat(*asked.size, "rgb24", interpolation="BICUBIC")
                pixels[number] = scaled_frame.to_ndarray()
                times[number] = float((frame.pts - first) * stream.time_base)
                left.pop(0)
                if not left:
                    break
    return np.stack([pixels[n] for n in asked.numbers]), np.array([times[n] for n in asked.numbers])


def by_decord(asked: Asked) -> Sampled:
    import decord

    reader = decord.VideoReader(str(asked.path), width=asked.size[0], height=asked.size[1], num_threads=1)
    begins = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    begins -= begins[0]
    numbers = np.searchsorted(begins, asked.wanted_s + FLOAT32_S, side="right") - 1
    return reader.get_batch(numbers.tolist()).asnumpy(), begins[numbers]


def by_torchcodec(asked: Asked) -> Sampled:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    resize = [Resize(asked.size[::-1])]
    decoder = VideoDecoder(str(asked.path), dimension_order="NHWC", num_ffmpeg_threads=1, transforms=resize)
    first = decoder.metadata.begin_stream_seconds or 0.0
    found = decoder.get_frames_played_at(seconds=[first + time_s + 1e-6 for time_s in asked.wanted_s.tolist()])
    return found.data.numpy(), found.pts_seconds.numpy() - first


OTHERS: dict[str, Callable[[Asked], Sampled]] = {"av": by_pyav, "decord": by_decord, "torchcodec": by_torchcodec}
NAMES = {"av": "PyAV, all frames decoded", "decord": "decord", "torchcodec": "torchcodec"}


def compare(what: str, videos: Sequence[Asked], recipe: FrameRecipe, most: str) -> None:
    """A row for each other decoder that is there; one that is not, or that breaks, is a row with its reason."""

    def ours() -> list[Sampled]:
        found = [sample_frames(asked.path, recipe) for asked in videos]
        return [(frames.pixels, frames.timestamps_s) for frames in found]

    exact = [by_pyav(asked) for asked in videos]
    assert wrong(ours(), videos, exact) == 0, "our frames are the right ones"
    for package, sample in OTHERS.items():
        if importlib.util.find_spec(package) is None:
            print(not_measured(what, NAMES[package], f"skipped: {package} is not installed"))
            continue
        try:
            plain, mine = interleaved(REPEATS, PROCESSOR, lambda sample=sample: [sample(a) for a in videos], ours)
            num_wrong = wrong(plain.result, videos, exact)
        except (RuntimeError, ImportError, ValueError) as error:
            print(not_measured(what, NAMES[package], f"failed: {error}"))
            continue
        per_video = milliseconds(plain.median / len(videos), mine.median / len(videos))
        against = NAMES[package] + (f" (wrong in {num_wrong} of {len(videos)})" if num_wrong else "")
        print(line(what, *per_video, mine.median / plain.median, most, against=against))


def wrong(sampled: Sequence[Sampled], videos: Sequence[Asked], exact: Sequence[Sampled]) -> int:
    """In how many videos a frame is not the right one, by its time or by what it shows."""
    return sum(not _is_right(*each) for each in zip(sampled, videos, exact, strict=True))


def _is_right(sampled: Sampled, asked: Asked, exact: Sampled) -> bool:
    pixels, times = sampled
    if pixels.shape != exact[0].shape or not np.allclose(times, asked.begins_s[asked.numbers], atol=1e-3):
        return False
    apart = np.abs(pixels.astype(np.float32) - exact[0]).mean(axis=(1, 2, 3))
    return bool(apart.max() < NEAR_LEVELS)


def test_frames_of_short_clips(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    try:
        folder: Path = request.getfixturevalue("shared_data") / "clips/videos"
        paths, kind = sorted(folder.glob("*.mp4"))[:NUM_CLIPS], "real"
    except pytest.skip.Exception:
        films = ((tmp_path / f"{n}.mp4", 4 + n) for n in range(NUM_CLIPS))
        paths, kind = [write_grainy_film(path, seconds, (480, 270), 25, 50) for path, seconds in films], "made-up"
    videos = [asked_of(path, OFTEN) for path in paths]
    compare(f"frames of a short clip, mean of {len(videos)} {kind} ones", videos, OFTEN, "at most 1.15")


def test_64_frames_of_a_minute(tmp_path: Path) -> None:
    seconds = scaled(60)
    path = write_grainy_film(tmp_path / "minute.mp4", seconds, (640, 360), 30, 30)
    what = f"{SIXTY_FOUR.max_frames} frames of {seconds} s, a key frame each second"
    compare(what, [asked_of(path, SIXTY_FOUR)], SIXTY_FOUR, "at most 1.05")
