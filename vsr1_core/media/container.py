"""Opens a video file safely and decodes frames of it. `packets` reads its time stamps and chooses its stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsr1_core.media.joined import demuxed
from vsr1_core.media.video_limits import VideoLimits


class VideoError(ValueError):
    """A video cannot be used. The message says why, and is written for users."""


@contextlib.contextmanager
def open_container(path: Path, limits: VideoLimits) -> Iterator[InputContainer]:
    """Yield the opened file. Raises VideoError, which says why, when the file cannot be opened."""
    if not path.is_file():
        raise VideoError(f"{path} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path.name} is empty (0 bytes): copy or download it again")
    try:
        container = av.open(str(path), options=limits.options())
    except MemoryError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path.name} cannot be opened as a video ({_reason(error)}): it is damaged, cut off before its index was "
            "written, in a container that is not allowed here, or not a video"
        ) from error
    with container:
        yield container


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def video_streams(container: InputContainer, name: str) -> list[VideoStream]:
    """The video streams of a file; cover pictures do not count. Raises VideoError when there is none."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise VideoError(f"{name} has no video stream (it holds: {kinds})")
    return streams


@contextlib.contextmanager
def open_video(path: Path, stream_index: int, limits: VideoLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Yield the opened file and the video stream with this index, ready to be decoded. Raises VideoError, which says
    why, when the stream may not be decoded."""
    with open_container(path, limits) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, VideoStream)
        check_stream(stream, path.name, limits)
        stream.codec_context.thread_count = 1  # rows are processed in parallel, with one thread per row
        stream.codec_context.options = {"max_pixels": str(limits.frame_pixels)}
        yield container, stream


def check_stream(stream: VideoStream, name: str, limits: VideoLimits) -> None:
    """Raise VideoError for a stream whose codec is unknown or not allowed, or whose frames are too large to decode."""
    if stream.codec_context is None:
        raise VideoError(
            f"{name} has a video in a codec that this build of FFmpeg does not know; convert it with another "
            "program, for example to H.264 in an mp4"
        )
    codec, width, height = stream.codec_context.codec, stream.codec_context.width, stream.codec_context.height
    if not {codec.name, codec.canonical_name} & set(limits.codecs):
        raise VideoError(
            f"{name} has a video in the codec {codec.canonical_name}, which is not allowed here: convert it, or add "
            "the codec to the video limits (codecs)"
        )
    if width * height > limits.frame_pixels:
        raise VideoError(
            f"{name} has frames of {width} x {height} pixels, more than the {limits.frame_pixels:,} of the video "
            "limits (frame_pixels): scale it down, or raise the limit"
        )


def undecodable_hint(stream: VideoStream, limits: VideoLimits) -> str:
    """What may keep the frames of a stream from being decoded, for the end of a message. FFmpeg does not tell the size
    of a frame that is larger than it may be."""
    if stream.codec_context.width:
        return ""
    return (
        f"; they are damaged, or have more than the {limits.frame_pixels:,} pixels of the video limits (frame_pixels)"
    )


def seek(container: InputContainer, stream: VideoStream | AudioStream, time_s: float) -> None:
    """Let the next packet be that of the last key frame at or before `time_s`, on the file's own clock."""
    if stream.time_base is None:
        raise VideoError("the stream has no time base")
    container.seek(round(time_s / float(stream.time_base)), stream=stream, backward=True)


def decoded_frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield every frame that can be decoded, from the current position on, in display order. Broken packets are
    skipped. Raises MemoryError when there is not enough of it."""
    try:
        for packet in demuxed(container, [stream]):
            try:
                yield from packet.decode()
            except MemoryError:
                raise
            except av.error.FFmpegError:
                continue  # one damaged packet; the next key frame repairs the picture
    except MemoryError:
        raise
    except av.error.FFmpegError:
        return  # the rest of the container cannot be read
