"""Opens a video file safely and reads the time stamps of its packets. `decode` turns packets into pixels."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

# FFmpeg guesses the format from the bytes and ignores the suffix: without this list, a playlist named clip.mp4 would
# open other files and addresses, and a text file would be drawn as ANSI art.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg,h264,hevc,m4v"
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}


class VideoError(ValueError):
    """A video cannot be used. The message says why, and is written for users."""


@dataclass(frozen=True)
class PacketIndex:
    """When the video stream shows its frames, as read from the packets without decoding. All values are in seconds.

    start_s: the time of the first frame on the file's own clock. All other times count from the first frame. end_s: the
    end of the last frame. times_s: the start of each frame, ascending from 0. keyframes_s: the times at which decoding
    can begin, ascending.
    """

    start_s: float
    end_s: float
    times_s: tuple[float, ...]
    keyframes_s: tuple[float, ...]

    def frame_at(self, time_s: float) -> int:
        """The number, from 0, of the last frame that begins at or before `time_s`; 0 for a time before the first
        frame."""
        return max(0, bisect_right(self.times_s, time_s + 1e-6) - 1)


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Yield the opened file and its first video stream; cover pictures do not count as video. Raises VideoError, which
    says why, when the file cannot be opened or has no video stream."""
    if not path.is_file():
        raise VideoError(f"{path} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path.name} is empty (0 bytes): copy or download it again")
    try:
        container = av.open(str(path), container_options=_OPTIONS)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path.name} cannot be opened as a video ({_reason(error)}): it is damaged, cut off before its index was "
            "written, or not a video"
        ) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise VideoError(f"{path.name} has no video stream (it holds: {kinds})")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(
                f"{path.name} has a video in a codec that this build of FFmpeg does not know; convert it with another "
                "program, for example to H.264 in an mp4"
            )
        stream.codec_context.thread_count = 1  # rows are processed in parallel, with one thread per row
        yield container, stream


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def read_index(container: InputContainer, stream: VideoStream, name: str) -> PacketIndex:
    """Read all packets to the end of the file. Raises VideoError when there are none, or when the file is cut short.

    The headers are not trusted: some containers (live WebM) have no duration in them, in others it includes the audio,
    and the header of a cut file promises data that the file no longer contains.
    """
    base = float(stream.time_base or 0)
    times, keyframes, ends, file_end_s = [], [], [], 0.0
    with contextlib.suppress(av.error.FFmpegError):
        for packet in container.demux():
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None or packet.is_discard:
                continue
            file_end_s = max(file_end_s, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index == stream.index:
                times.append(stamp * base)
                ends.append((stamp + (packet.duration or 0)) * base)
                if packet.is_keyframe:
                    keyframes.append(stamp * base)
    if not times:
        raise VideoError(f"{name} holds no video data{_promise(stream)}: it was cut off; copy or download it again")
    start_s, last_s = min(times), max(times)
    end_s = max(ends) if max(ends) > last_s else last_s + _frame_s(stream, times)
    _refuse_cut_file(container, stream, file_end_s, start_s, end_s, name)
    return PacketIndex(
        start_s,
        end_s - start_s,
        tuple(sorted(t - start_s for t in times)),
        tuple(sorted(t - start_s for t in keyframes)),
    )


def _promise(stream: VideoStream) -> str:
    if not stream.duration or stream.time_base is None:
        return ""
    return f", though its header promises {float(stream.duration * stream.time_base):.1f} s"


def _frame_s(stream: VideoStream, times: list[float]) -> float:
    """The duration of a frame in seconds, for packets without a duration: the mean distance between frames, or else one
    over the frame rate."""
    if len(times) > 1 and max(times) > min(times):
        return (max(times) - min(times)) / (len(times) - 1)
    return 1.0 / float(stream.average_rate) if stream.average_rate else 0.04


def _refuse_cut_file(
    container: InputContainer, stream: VideoStream, file_end_s: float, start_s: float, end_s: float, name: str
) -> None:
    """Raise VideoError when more than a tenth of the duration that the header promises, and more than one second, is
    missing from the file."""
    if stream.duration and stream.time_base is not None:
        promised_s, held_s = float(stream.duration * stream.time_base), end_s - start_s
    elif container.duration:
        # Matroska counts its duration from 0, other containers from their first packet: use the more lenient value.
        promised_s = container.duration / 1_000_000
        held_s = max(file_end_s, file_end_s - (container.start_time or 0) / 1_000_000)
    else:
        return
    if promised_s - held_s > max(1.0, 0.1 * promised_s):
        raise VideoError(
            f"{name} is cut short: its header promises {promised_s:.1f} s, but it has only {max(0.0, held_s):.1f} s; "
            "copy or download it again"
        )


def decoded_frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield every frame that can be decoded, from the current position on, in display order. Broken packets are
    skipped."""
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                continue  # one damaged packet; the next key frame repairs the picture
    except av.error.FFmpegError:
        return  # the rest of the container cannot be read
