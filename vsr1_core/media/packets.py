"""Reads when a video shows its frames from the packets of the file, without decoding, and which stream is the video."""

from __future__ import annotations

import contextlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsr1_core.media.container import VideoError, check_stream, open_container, video_streams
from vsr1_core.media.joined import demuxed, may_join
from vsr1_core.media.video_limits import VideoLimits

_EXACT_SEEKS = ("mov", "matroska")
"""Containers with exact seek tables. In MPEG-TS and AVI, a seek may land at any frame."""

_ALL_STREAMS = 4
"""How many times the packets of a video stream all streams together may have: sound has 40 to 90 packets a second."""


@dataclass(frozen=True)
class PacketIndex:
    """When the video stream shows its frames, as read from the packets without decoding. All values are in seconds.

    start_s: the time of the first frame on the file's own clock. All other times count from the first frame. end_s: the
    end of the last frame. times_s: the start of each frame, ascending from 0. keyframes_s: the times at which decoding
    can begin, ascending. stream_index: which stream of the file this is. are_stamped: whether the packets say when
    their frames are shown. AVI with B-frames does not: its frames are then shown in the order in which they are
    decoded. is_seekable: whether a seek lands where it should.
    """

    start_s: float
    end_s: float
    times_s: tuple[float, ...]
    keyframes_s: tuple[float, ...]
    stream_index: int
    are_stamped: bool
    is_seekable: bool

    def frame_at(self, time_s: float) -> int:
        """The number, from 0, of the last frame that begins at or before `time_s`; 0 for a time before the first
        frame."""
        return max(0, bisect_right(self.times_s, time_s + 1e-6) - 1)

    def keyframe_before(self, time_s: float) -> float:
        """The time at which decoding has to begin to reach the frame at `time_s`."""
        return self.keyframes_s[max(0, bisect_right(self.keyframes_s, time_s + 1e-6) - 1)]


class _Packets:
    """What the packets of one video stream say, in ticks of its time base; in packets where they have no stamps."""

    def __init__(self, stream: VideoStream) -> None:
        self.stream = stream
        self.count = 0
        self.stamps, self.ends, self.keys = array("q"), array("q"), array("q")
        self.decoding = array("q")

    def add(self, packet: Packet) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        self.count += packet.size > 0 or stamp is not None  # an empty packet without a stamp is the end of the file
        if stamp is None:
            return
        self.stamps.append(stamp)
        self.decoding.append(stamp if packet.dts is None else packet.dts)
        self.ends.append(stamp + (packet.duration or 0))
        if packet.is_keyframe:
            self.keys.append(stamp)

    def number(self) -> None:
        """Use the numbers of the packets as stamps."""
        self.stamps = self.ends = self.keys = array("q", range(self.count))

    def use_decoding_times(self) -> None:
        """Use the times of decoding as stamps. The durations that come with them may be those of half frames."""
        keys = set(self.keys)
        self.keys = array("q", (d for d, shown in zip(self.decoding, self.stamps, strict=True) if shown in keys))
        self.stamps = self.ends = self.decoding


def read_index(path: Path, limits: VideoLimits) -> PacketIndex:
    """Read all packets of a file to its end, and choose its video stream.

    Raises VideoError, which says why, when there is no video, when the file is cut short, or when it breaks a limit.
    The headers are not trusted: some containers (live WebM) have no duration in them, in others it includes the audio,
    and the header of a cut file promises data that the file no longer contains.
    """
    with open_container(path, limits) as container:
        streams = {stream.index: _Packets(stream) for stream in video_streams(container, path.name)}
        file_end_s = _read_packets(container, streams, path.name, limits)
        chosen = _choose(list(streams.values()))
        check_stream(chosen.stream, path.name, limits)
        return _index_of(container, chosen, file_end_s, path.name)


def _read_packets(container: InputContainer, streams: Mapping[int, _Packets], name: str, limits: VideoLimits) -> float:
    """Hand each packet to its stream. Returns the end of the last packet of any stream, in seconds."""
    file_end_s = 0.0
    if any(found.stream.frames > limits.packets for found in streams.values()):
        raise _too_many_packets(name, limits)
    with contextlib.suppress(av.error.FFmpegError):
        for number, packet in enumerate(demuxed(container, ())):
            if number > _ALL_STREAMS * limits.packets:
                raise _too_many_packets(name, limits)
            if packet.is_discard:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                file_end_s = max(file_end_s, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index in streams:
                streams[packet.stream_index].add(packet)
                if streams[packet.stream_index].count > limits.packets:
                    raise _too_many_packets(name, limits)
    return file_end_s


def _too_many_packets(name: str, limits: VideoLimits) -> VideoError:
    return VideoError(
        f"{name} has more than {limits.packets:,} frames, or as much sound, which the video limits (packets) do not "
        "allow: cut it into pieces, or raise the limit"
    )


def _choose(streams: list[_Packets]) -> _Packets:
    """The stream that a player would show: of those that move, the default one, else the one with the largest frames,
    else the first. A stream of one packet is a still picture, such as a cover, and counts only where nothing moves."""
    held = [found for found in streams if found.count] or streams
    moving = [found for found in held if found.count > 1] or held
    default = [found for found in moving if found.stream.disposition & Disposition.default]
    return max(default or moving, key=lambda found: _pixels(found.stream))


def _pixels(stream: VideoStream) -> int:
    context = stream.codec_context
    return context.width * context.height if context is not None else 0


def _index_of(container: InputContainer, chosen: _Packets, file_end_s: float, name: str) -> PacketIndex:
    stream = chosen.stream
    if not chosen.count:
        raise VideoError(f"{name} holds no video data{_promise(stream)}: it was cut off; copy or download it again")
    tick_s, are_stamped = float(stream.time_base or 0), True
    if not chosen.stamps:
        tick_s, are_stamped = 1.0 / float(stream.guessed_rate or 25), False
        chosen.number()
    elif _has_decoding_times_only(container, chosen):
        are_stamped = False
        chosen.use_decoding_times()
    times = sorted(stamp * tick_s for stamp in chosen.stamps)
    start_s, last_s, end_s = times[0], times[-1], max(chosen.ends) * tick_s
    if end_s <= last_s:
        end_s = last_s + _frame_s(stream, times)
    _refuse_cut_file(container, stream, file_end_s, start_s, end_s, name)
    return PacketIndex(
        start_s,
        end_s - start_s,
        tuple(time_s - start_s for time_s in times),
        tuple(sorted(stamp * tick_s - start_s for stamp in chosen.keys)),
        stream.index,
        are_stamped,
        any(known in container.format.name for known in _EXACT_SEEKS),
    )


def _has_decoding_times_only(container: InputContainer, chosen: _Packets) -> bool:
    """Whether nothing in the file says when a frame is shown. AVI has a place for decoding times only; the times that
    FFmpeg finds in B-frames are wrong for some codecs, and for the last frame of all."""
    return container.format.name == "avi" and bool(chosen.stream.codec_context.has_b_frames)


def _promise(stream: VideoStream) -> str:
    if not stream.duration or stream.time_base is None:
        return ""
    return f", though its header promises {float(stream.duration * stream.time_base):.1f} s"


def _frame_s(stream: VideoStream, times: list[float]) -> float:
    """The duration of a frame in seconds, for packets without a duration: the mean distance between frames, or else one
    over the frame rate."""
    if len(times) > 1 and times[-1] > times[0]:
        return (times[-1] - times[0]) / (len(times) - 1)
    return 1.0 / float(stream.average_rate) if stream.average_rate else 0.04


def _refuse_cut_file(
    container: InputContainer, stream: VideoStream, file_end_s: float, start_s: float, end_s: float, name: str
) -> None:
    """Raise VideoError when more than a tenth of the duration that the header promises, and more than one second, is
    missing from the file."""
    promised_s, held_s = _promised(container, stream, file_end_s, start_s, end_s)
    if promised_s - held_s > max(1.0, 0.1 * promised_s):
        raise VideoError(
            f"{name} is cut short: its header promises {promised_s:.1f} s, but it has only {max(0.0, held_s):.1f} s; "
            "copy or download it again"
        )


def _promised(
    container: InputContainer, stream: VideoStream, file_end_s: float, start_s: float, end_s: float
) -> tuple[float, float]:
    """The duration that the header promises, and the one that the file holds.

    Matroska has one duration for the whole file, sound included, that counts from 0; FFmpeg may give it to the video
    stream, too. Other containers count from their first packet. The more lenient value is used.
    """
    if may_join(container):
        return 0.0, 0.0
    is_matroska = "matroska" in container.format.name
    if stream.duration and stream.time_base is not None and not is_matroska:
        return float(stream.duration * stream.time_base), end_s - start_s
    promised_s = (container.duration or 0) / 1_000_000
    return promised_s, max(file_end_s, file_end_s - (container.start_time or 0) / 1_000_000, end_s)


def timed_frames(frames: Iterator[VideoFrame], index: PacketIndex) -> Iterator[tuple[float, VideoFrame]]:
    """Each frame with its start time, counted from the first frame."""
    if not index.are_stamped:
        yield from zip(index.times_s, frames, strict=False)
        return
    for frame in frames:
        if frame.pts is not None and frame.time_base is not None:
            yield float(frame.pts * frame.time_base) - index.start_s, frame
