"""Reads the facts of a video file: duration, frame rate, size, rotation. One frame is decoded as a check."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsr1_core.media.cage import caged
from vsr1_core.media.container import VideoError, decoded_frames, open_video, undecodable_hint
from vsr1_core.media.orientation import orientation_of
from vsr1_core.media.packets import read_index
from vsr1_core.media.video_limits import DEFAULT_LIMITS, VideoLimits

MAX_ASPECT = 10
"""The greatest aspect of a pixel that is believed, and one over it the least. Wide-screen recordings have 0.5 to 3."""


@dataclass(frozen=True)
class VideoInfo:
    """The facts of one video.

    duration_s: from the start of the first frame to the end of the last one. fps: average number of frames per second.
    num_frames: number of packets that show a frame. width, height: in pixels, as displayed, upright. rotation: 0, 90,
    180 or 270 degrees counter-clockwise, by which the stored picture has to be turned, after it was mirrored left to
    right where its file says so. codec: FFmpeg's name of the
    codec. start_s: the time of the first frame on the file's own clock.
    """

    duration_s: float
    fps: float
    num_frames: int | None
    width: int
    height: int
    rotation: int
    codec: str
    start_s: float


def probe(path: Path, limits: VideoLimits = DEFAULT_LIMITS) -> VideoInfo:
    """Read the facts of a video. Raises VideoError, with the reason, when the file is not a video, has only audio, is
    cut short, breaks a limit or cannot be decoded."""
    index = read_index(path, limits)
    with open_video(path, index.stream_index, limits) as (container, stream):
        frame = next(decoded_frames(container, stream), None)
        if frame is None:
            hint = undecodable_hint(stream, limits)
            raise VideoError(
                f"{path.name}: not one frame of its {stream.codec_context.name} video can be decoded{hint}"
            )
        width, height = upright_size(frame, stream)
        rate = stream.average_rate
        return VideoInfo(
            duration_s=index.end_s,
            fps=float(rate) if rate else len(index.times_s) / index.end_s,
            num_frames=len(index.times_s),
            width=width,
            height=height,
            rotation=orientation_of(frame).quarters * 90,
            codec=stream.codec_context.name,
            start_s=index.start_s,
        )


def probe_caged(path: Path, limits: VideoLimits, is_own_process: bool) -> VideoInfo:
    """Like `probe`; in a process that was started for such work, under its `limits`, too."""
    if not is_own_process:
        return probe(path, limits)
    with caged(path.name, limits):
        return probe(path, limits)


def upright_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """(width, height) in pixels as shown on a screen: non-square pixels are stretched in width, then the picture is
    turned."""
    return orientation_of(frame).swapped(*display_size(frame, stream))


def display_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """(width, height) of the stored picture after its pixels are made square. Pixels whose aspect is within 5 % of 1
    count as square, because encoders round, and so do those of an aspect that no picture has: a damaged header said
    1:60000."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT or abs(aspect - 1) < 0.05:
        return frame.width, frame.height
    return round(frame.width * aspect), frame.height
