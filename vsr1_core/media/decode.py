"""Samples the frames of a video: one function, which can use several decoders. `frame_store` writes the frames.

With every decoder, a sample time gives the last frame that begins at or before it, upright, with the frame's true time.
Times count from the video's first frame.
"""

from __future__ import annotations

import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from vsr1_core.media.container import VideoError, decoded_frames, open_video, seek, undecodable_hint
from vsr1_core.media.orientation import orientation_of
from vsr1_core.media.packets import PacketIndex, read_index, timed_frames
from vsr1_core.media.probe import VideoInfo, probe, upright_size
from vsr1_core.media.sampling import frame_times, output_size
from vsr1_core.media.video_limits import DEFAULT_LIMITS, VideoLimits
from vsr1_core.recipes import FrameRecipe

SEEK_FRAMES = 5
"""A seek counts as so many decoded frames: it takes 0.3 ms, as long as decoding five of 64 x 64 pixels."""
MOST_SOUGHT = 0.9
"""Of the frames of a video: where seeking leaves out less than a tenth of them, a pass over all takes no longer."""


@dataclass(frozen=True)
class Frames:
    """The T sampled frames of one video.

    pixels: uint8 [T, H, W, 3], RGB, upright. timestamps_s: float64 [T], the true times of the sampled frames, which
    count from the video's first frame. duration_s: the duration of the video stream. start_s: the time of the first
    frame on the file's own clock, which was subtracted.
    """

    pixels: np.ndarray
    timestamps_s: np.ndarray
    duration_s: float
    start_s: float


@dataclass(frozen=True)
class _Picked:
    """One decoded frame: its start time, counted from the first frame, and its upright, scaled pixels [H, W, 3]."""

    time_s: float
    pixels: np.ndarray


def sample_frames(path: Path, recipe: FrameRecipe, limits: VideoLimits = DEFAULT_LIMITS) -> Frames:
    """Sample a video at the times and in the size that `sampling` computes from `recipe`.

    Raises VideoError, with the reason, when the video cannot be used or breaks a limit, ModuleNotFoundError when the
    decoder that the recipe asks for is not installed, and ValueError when there is no such decoder.

    Decoders: `pyav` (also used for `auto`) is correct on every video that we know of. `torchcodec` returns wrong frames
    if an edit list cuts between key frames, and `decord` if the start or the edit list is not trivial; both are
    optional packages. `ffmpeg` needs the ffmpeg program.
    """
    backend = _BACKENDS.get(recipe.backend)
    if backend is None:
        raise ValueError(f"no decoder {recipe.backend!r}; known: {', '.join(_BACKENDS)}")
    return backend(_Source(Path(path), recipe, limits))


def sample_windows(
    path: Path, recipe: FrameRecipe, windows: Sequence[tuple[float, float]], limits: VideoLimits = DEFAULT_LIMITS
) -> Iterator[Frames | VideoError]:
    """Sample the windows (start, end) of a video, each as if it were a video, in one pass over the file.

    Windows are in seconds from the first frame, ascending, and so are the times of the sampled frames. Yields one
    result per window, in order: its frames, with the duration of the window, or why it has none. Only the frames of
    windows that overlap are held at a time, so memory does not grow with the length of the video.

    Raises VideoError and ModuleNotFoundError as `sample_frames`, and ValueError for a decoder other than PyAV.
    """
    if _BACKENDS.get(recipe.backend) is not _with_pyav:
        raise ValueError(f"windows are sampled by PyAV alone: set frames.backend to auto or pyav, not {recipe.backend}")
    source = _Source(Path(path), recipe, limits)
    index = source.read_index()
    wanted = [_times_in(index, window, recipe) for window in windows]
    order = sorted((time_s, number) for number, times in enumerate(wanted) for time_s in times)
    held: dict[int, list[_Picked]] = {}
    with source.opened(index) as (container, stream):
        _refuse_work(source, stream, index.frame_at(windows[-1][1]) + 1)
        frames = decoded_frames(container, stream)
        times = np.array([time_s for time_s, _ in order])
        picked = _pick(frames, index, times, _painter(source, stream))
        for _, number in order:
            frame = next(picked, None)
            if frame is None:
                raise _undecodable(source, stream, index)
            held.setdefault(number, []).append(frame)
            if len(held[number]) == len(wanted[number]):
                yield _window(source, index, windows[number], wanted[number], held.pop(number))


def _times_in(index: PacketIndex, window: tuple[float, float], recipe: FrameRecipe) -> np.ndarray:
    """The sample times of a window: those of a video that begins and ends with it."""
    start_s, end_s = window
    last_s = index.times_s[index.frame_at(end_s - 0.001)]
    return start_s + frame_times(end_s - start_s, last_s - start_s, recipe)


def _window(
    source: _Source, index: PacketIndex, window: tuple[float, float], wanted: np.ndarray, picked: Sequence[_Picked]
) -> Frames | VideoError:
    try:
        _refuse_gaps(source.path.name, index, wanted, picked)
    except VideoError as error:
        return error
    return _as_frames(picked, window[1] - window[0], index.start_s)


def _undecodable(source: _Source, stream: VideoStream, index: PacketIndex) -> VideoError:
    hint = undecodable_hint(stream, source.limits)
    return VideoError(f"{source.path.name}: none of its {len(index.times_s)} frames can be decoded{hint}")


@dataclass(frozen=True)
class _Source:
    """The file, and how it is to be sampled."""

    path: Path
    recipe: FrameRecipe
    limits: VideoLimits

    def read_index(self) -> PacketIndex:
        return read_index(self.path, self.limits)

    def opened(self, index: PacketIndex) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        return open_video(self.path, index.stream_index, self.limits)

    def probe(self) -> VideoInfo:
        return probe(self.path, self.limits)


def _with_pyav(source: _Source) -> Frames:
    path, index = source.path, source.read_index()
    wanted = frame_times(index.end_s, index.times_s[-1], source.recipe)
    groups = _groups(index, wanted)
    num_sought = _num_sought(index, groups)
    picked = None
    if num_sought + SEEK_FRAMES * len(groups) < MOST_SOUGHT * len(index.times_s):
        picked = _by_seeking(source, index, groups, num_sought)
    if picked is None:
        with source.opened(index) as (container, stream):
            _refuse_work(source, stream, len(index.times_s))
            picked = list(_pick(decoded_frames(container, stream), index, wanted, _painter(source, stream)))
            if not picked:
                raise _undecodable(source, stream, index)
    _refuse_gaps(path.name, index, wanted, picked)
    return _as_frames(picked, index.end_s, index.start_s)


def _as_frames(picked: Sequence[_Picked], duration_s: float, start_s: float) -> Frames:
    times = np.array([p.time_s for p in picked])
    return Frames(np.stack([p.pixels for p in picked]), times, duration_s, start_s)


def _refuse_work(source: _Source, stream: VideoStream, num_frames: int) -> None:
    """Raise VideoError when more pixels would have to be decoded than the limits allow."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height * num_frames > source.limits.decoded_pixels:
        raise VideoError(
            f"{source.path.name}: {num_frames:,} frames of {width} x {height} pixels would have to be decoded, more "
            f"than the {source.limits.decoded_pixels:,} pixels of the video limits (decoded_pixels): encode it smaller "
            "or with more key frames, or raise the limit"
        )


def _pick(frames: Iterator[VideoFrame], index: PacketIndex, wanted: np.ndarray, paint: _Painter) -> Iterator[_Picked]:
    """Yield, for each of the ascending times `wanted`, the last frame that begins at or before it; the first frame for
    a time before it."""
    targets, last = list(wanted), None
    for time_s, frame in timed_frames(frames, index):
        if last is not None and time_s <= last[0]:
            continue  # the times of a damaged stream may go backwards
        while targets and time_s > targets[0] + 1e-6:
            yield paint(*(last or (time_s, frame)))
            targets.pop(0)
        if not targets:
            return
        last = (time_s, frame)
    if last is not None:
        yield from (paint(*last) for _ in targets)


class _Painter:
    """Converts decoded frames to scaled, upright RGB arrays; no other code resizes frames while decoding. The first
    frame decides the output size."""

    def __init__(self, recipe: FrameRecipe, shown_size: Callable[[VideoFrame], tuple[int, int]]) -> None:
        """shown_size: gives (width, height) in pixels of a frame as it is displayed, upright."""
        self._recipe, self._shown_size = recipe, shown_size
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._cached: tuple[VideoFrame, _Picked] | None = None

    def __call__(self, time_s: float, frame: VideoFrame) -> _Picked:
        if self._cached is None or self._cached[0] is not frame:
            self._cached = (frame, _Picked(time_s, self._pixels(frame)))
        return self._cached[1]

    def _pixels(self, frame: VideoFrame) -> np.ndarray:
        orientation = orientation_of(frame)
        if self._size is None:
            self._size = output_size(*self._shown_size(frame), self._recipe)
        width, height = orientation.swapped(*self._size)
        scaled = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1
        )
        return orientation.upright(scaled.to_ndarray())


def _painter(source: _Source, stream: VideoStream) -> _Painter:
    return _Painter(source.recipe, lambda frame: upright_size(frame, stream))


def _groups(index: PacketIndex, wanted: np.ndarray) -> dict[float, np.ndarray]:
    """The wanted times by the key frame (its time) at which decoding has to begin for them; nothing where there is one
    key frame only, or where a seek may land anywhere."""
    if len(index.keyframes_s) < 2 or not (index.is_seekable and index.are_stamped):
        return {}
    return {gop: np.array(list(times)) for gop, times in groupby(wanted, index.keyframe_before)}


def _num_sought(index: PacketIndex, groups: Mapping[float, np.ndarray]) -> int:
    """How many frames are decoded when only the groups of pictures with wanted frames are decoded; all frames where
    there are no groups."""
    if not groups:
        return len(index.times_s)
    return sum(index.frame_at(times[-1]) + 2 - bisect_left(index.times_s, gop - 1e-6) for gop, times in groups.items())


def _by_seeking(
    source: _Source, index: PacketIndex, groups: Mapping[float, np.ndarray], num_sought: int
) -> list[_Picked] | None:
    """Pick the same frames as a pass over the whole file would, but decode only the groups of pictures that contain
    them. Returns None when a seek did not land where it should."""
    picked: list[_Picked] = []
    with source.opened(index) as (container, stream):
        _refuse_work(source, stream, num_sought)
        painter = _painter(source, stream)
        for gop, group in groups.items():
            try:
                seek(container, stream, gop + index.start_s)
            except FFmpegError:
                return None
            found = list(_pick(decoded_frames(container, stream), index, group, painter))
            exact = [index.times_s[index.frame_at(t)] for t in group]
            if [round(p.time_s, 4) for p in found] != [round(t, 4) for t in exact]:
                return None
            picked.extend(found)
    return picked


def _refuse_gaps(name: str, index: PacketIndex, wanted: np.ndarray, picked: Sequence[_Picked]) -> None:
    """Raise VideoError when most of the sample times got a frame from a distant time, because the right one cannot be
    decoded."""
    spacing_s = float(wanted[-1] - wanted[0]) / max(1, len(wanted) - 1)
    allowed_s = max(0.5, spacing_s)
    off = [abs(index.times_s[index.frame_at(t)] - p.time_s) > allowed_s for t, p in zip(wanted, picked, strict=True)]
    if sum(off) * 2 > len(off):
        raise VideoError(
            f"{name} is damaged: at {sum(off)} of {len(off)} sampled times no frame can be decoded; "
            "copy or download it again"
        )


def _with_decord(source: _Source) -> Frames:
    path, info = source.path, source.probe()
    try:
        import decord
    except ImportError as error:
        raise _absent("decord", "decord") from error
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        begins_s = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
        return _by_number(source.recipe, info, begins_s - begins_s[0], lambda i: reader[i].asnumpy())
    except decord.DECORDError as error:
        raise VideoError(f"{path.name} cannot be decoded by decord: {str(error).splitlines()[0]}") from error


def _with_torchcodec(source: _Source) -> Frames:
    path, info = source.path, source.probe()
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: FFmpeg's libraries are not installed
        raise _absent("torchcodec", "torchcodec and FFmpeg") from error
    index = source.read_index()
    begins_s = np.array(index.times_s)
    try:
        decoder = VideoDecoder(str(path), stream_index=index.stream_index, dimension_order="NHWC", num_ffmpeg_threads=1)
        return _by_number(source.recipe, info, begins_s, lambda i: decoder[i].numpy())
    except RuntimeError as error:
        raise VideoError(f"{path.name} cannot be decoded by torchcodec: {str(error).splitlines()[0]}") from error


def _with_ffmpeg(source: _Source) -> Frames:
    """Decode with the ffmpeg program. It turns rotated videos upright, and it reports no error for missing frames."""
    path, info = source.path, source.probe()
    try:
        import ffmpeg
    except ImportError as error:
        raise _absent("ffmpeg", "ffmpeg-python and FFmpeg") from error
    if shutil.which("ffmpeg") is None:
        raise _absent("ffmpeg", "ffmpeg-python and FFmpeg")
    index = source.read_index()
    begins_s = np.array(index.times_s)
    numbers = sorted(set(_wanted_numbers(source.recipe, info, begins_s)))
    chosen = ffmpeg.input(f"file:{path.absolute()}", **source.limits.options())[str(index.stream_index)]
    chosen = chosen.filter("select", "+".join(f"eq(n,{number})" for number in numbers))
    chosen = chosen.filter("scale", info.width, info.height)  # pixels that are not square are stretched
    try:
        raw, _ = chosen.output("pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough").run(
            capture_stdout=True, capture_stderr=True
        )
    except ffmpeg.Error as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise VideoError(f"{path.name} cannot be decoded by ffmpeg: {' '.join(last)}") from error
    if len(raw) != len(numbers) * info.height * info.width * 3:
        raise VideoError(
            f"{path.name}: ffmpeg did not return exactly the {len(numbers)} frames asked for; the file may be cut short"
        )
    frames = np.frombuffer(raw, np.uint8).reshape(len(numbers), info.height, info.width, 3)
    return _by_number(source.recipe, info, begins_s, lambda i: frames[numbers.index(i)])


def _absent(backend: str, packages: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"the frame recipe asks for the {backend} decoder, which is not installed here: install {packages}, or set "
        "backend='auto'"
    )


def _by_number(recipe: FrameRecipe, info: VideoInfo, begins_s: np.ndarray, read: Callable[[int], np.ndarray]) -> Frames:
    """Sample with a decoder that returns frames by their number, as RGB arrays [H, W, 3]. decord and torchcodec (from
    0.11 on) turn rotated videos upright themselves."""
    painter = _Painter(recipe, lambda frame: (info.width, info.height))
    picked = []
    for number in _wanted_numbers(recipe, info, begins_s):
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(read(number)), format="rgb24")
        picked.append(painter(float(begins_s[number]), frame))
    return _as_frames(picked, info.duration_s, info.start_s)


def _wanted_numbers(recipe: FrameRecipe, info: VideoInfo, begins_s: np.ndarray) -> list[int]:
    """The number, from 0, of the frame that is shown at each sample time."""
    times_s = frame_times(info.duration_s, float(begins_s[-1]), recipe)
    return [max(0, int(np.searchsorted(begins_s, time_s + 1e-6, side="right")) - 1) for time_s in times_s]


_BACKENDS: dict[str, Callable[[_Source], Frames]] = {
    "auto": _with_pyav,
    "pyav": _with_pyav,
    "torchcodec": _with_torchcodec,
    "decord": _with_decord,
    "ffmpeg": _with_ffmpeg,
}
