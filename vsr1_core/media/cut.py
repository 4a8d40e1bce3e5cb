"""Cuts a span out of a video, exactly: h264 and AAC in mp4, upright, in full size, from the first frame of the span on.

A copy of the stored streams can begin only at a key frame, which may be seconds away; so the span is encoded again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsr1_core.media.container import VideoError, decoded_frames, open_container, open_video, seek
from vsr1_core.media.convert import CLOCK, h264_stream, upright_pixels
from vsr1_core.media.encode import CLOCK_HZ
from vsr1_core.media.joined import may_join
from vsr1_core.media.packets import PacketIndex, read_index, timed_frames
from vsr1_core.media.video_limits import DEFAULT_LIMITS, VideoLimits
from vsr1_core.rows.files import atomic_path

CRF = 18
SOUND_CODECS = {"aac", "mp3", "opus", "vorbis", "ac3", "eac3", "flac", "alac", "pcm_s16le", "pcm_s16be", "amr_nb"}
"""What sound is decoded at all, by FFmpeg's names."""
SOUND_AHEAD_S = 1.0
"""Decoding of sound begins so much before the span: the first packets after a seek may not decode."""
EPSILON_S = 1e-6
Span = tuple[float, float]


def cut_span(source: Path, target: Path, span: Span, limits: VideoLimits = DEFAULT_LIMITS) -> Span:
    """Write what `source` shows in `span`, with its sound, to `target`, an mp4.

    The span is in seconds from the video's first frame, as in all tables; its end is cut to that of the video. The clip
    begins with the frame that is shown where the span begins. Sound that cannot be decoded, or that is of a file that
    may consist of several recordings (MPEG-TS), is left out. Returns the span that was written.

    Raises:
        VideoError: The video cannot be decoded there, or the span lies outside of it; the message says why.
    """
    index = read_index(source, limits)
    span = (span[0], min(span[1], index.end_s))
    if not 0 <= span[0] < span[1]:
        raise VideoError(f"{source.name} has no span that begins at {span[0]:g} s: it ends at {index.end_s:.2f} s")
    with (
        atomic_path(target) as temporary,
        open_video(source, index.stream_index, limits) as (container, stream),
        open_container(source, limits) as with_sound,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as out,
    ):
        frames = _shown(_frames_from(container, stream, index, span[0]), span)
        _write(out, frames, _Sound.of(with_sound, index, span), source.name)
    return span


def _write(
    out: OutputContainer, frames: Iterator[tuple[float, float, VideoFrame]], sound: _Sound | None, name: str
) -> None:
    first = next(frames, None)
    if first is None:
        raise VideoError(f"{name}: not one frame of the span can be decoded")
    height, width = upright_pixels(first[2]).shape[:2]
    encoder = h264_stream(out, height, width, CRF)
    heard: Any = None if sound is None else out.add_stream("aac", rate=sound.stream.rate)  # before any packet
    for begins_s, ends_s, frame in itertools.chain([first], frames):
        tick = round(begins_s * CLOCK_HZ)
        picture = VideoFrame.from_ndarray(upright_pixels(frame), format="rgb24")
        picture.pts, picture.time_base = tick, CLOCK
        picture.duration = max(1, round(ends_s * CLOCK_HZ) - tick)
        out.mux(encoder.encode(picture))
    out.mux(encoder.encode())
    if sound is not None:
        for samples in sound.samples():
            out.mux(heard.encode(samples))
        out.mux(heard.encode())


def _frames_from(
    container: InputContainer, stream: VideoStream, index: PacketIndex, start_s: float
) -> Iterator[tuple[float, VideoFrame]]:
    """The frames with their times, from the one that is shown at `start_s`, or an earlier one, on."""
    key_s = index.keyframe_before(start_s)
    if index.is_seekable and key_s > 0:
        seek(container, stream, index.start_s + key_s)
        frames = timed_frames(decoded_frames(container, stream), index)
        first = next(frames, None)
        if first is not None and first[0] <= start_s + EPSILON_S:
            yield first
            yield from frames
            return
        seek(container, stream, index.start_s)  # the file's table is wrong
    yield from timed_frames(decoded_frames(container, stream), index)


def _shown(frames: Iterator[tuple[float, VideoFrame]], span: Span) -> Iterator[tuple[float, float, VideoFrame]]:
    """(from when, until when, frame) of each frame that is shown in the span, in seconds from the span's start."""
    start_s, end_s = span
    last: tuple[float, VideoFrame] | None = None
    for time_s, frame in frames:
        if last is not None and time_s <= last[0]:
            continue  # the times of a damaged stream may go backwards
        if time_s >= end_s - EPSILON_S:
            break
        if last is not None and time_s > start_s + EPSILON_S:
            yield max(0.0, last[0] - start_s), time_s - start_s, last[1]
        last = (time_s, frame)
    if last is not None:
        yield max(0.0, last[0] - start_s), end_s - start_s, last[1]


class _Sound:
    """The sound of a span, decoded and cut to the sample."""

    def __init__(self, container: InputContainer, stream: AudioStream, index: PacketIndex, span: Span) -> None:
        self.container, self.stream, self.index = container, stream, index
        self.start_s, self.end_s = (time_s + index.start_s for time_s in span)  # on the file's own clock

    @classmethod
    def of(cls, container: InputContainer, index: PacketIndex, span: Span) -> _Sound | None:
        """None where there is no sound that is decoded."""
        streams = [s for s in container.streams.audio if s.codec_context is not None and s.rate]
        usable = [s for s in streams if s.codec_context.codec.canonical_name in SOUND_CODECS]
        return None if not usable or may_join(container) else cls(container, usable[0], index, span)

    def samples(self) -> Iterator[Any]:
        """Frames of sound whose clock begins with the span. What cannot be decoded is silent."""
        frames = self._decoded()
        first = next(frames, None)
        if first is None:
            return
        graph = self._cutter(first)
        for frame in itertools.chain([first], frames):
            graph.push(frame)
            yield from _pulled(graph)
            if frame.time is not None and frame.time >= self.end_s:
                break
        graph.push(None)
        yield from _pulled(graph)

    def _decoded(self) -> Iterator[AudioFrame]:
        if self.index.is_seekable and self.start_s > SOUND_AHEAD_S:
            seek(self.container, self.stream, self.start_s - SOUND_AHEAD_S)
        try:
            for packet in self.container.demux(self.stream):
                try:
                    yield from packet.decode()
                except av.error.FFmpegError:
                    continue
        except av.error.FFmpegError:
            return

    def _cutter(self, first: AudioFrame) -> Graph:
        like = first.sample_rate, first.format.name, first.layout.name
        graph = Graph()
        graph.link_nodes(
            graph.add_abuffer(None, *like, name=None, time_base=self.stream.time_base),
            graph.add("atrim", f"start={self.start_s:.6f}:end={self.end_s:.6f}"),
            graph.add("asetpts", f"PTS-{self.start_s:.6f}/TB"),
            graph.add("aformat", "sample_fmts=fltp"),
            graph.add("abuffersink"),
        ).configure()
        return graph


def _pulled(graph: Graph) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
