"""What a video file is: duration, rate, size, rotation. One frame is decoded, to know that it can be."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsr1_core.media.container import VideoError, decoded_frames, open_video, read_index


@dataclass(frozen=True)
class VideoInfo:
    """duration_s: from the first frame's beginning to the last one's end. width, height: as displayed, upright.

    fps: average. num_frames: packets that show a frame. rotation: 0, 90, 180 or 270 degrees, counter-clockwise, to be
    applied to the stored picture. start_s: the first frame's time in the file's own clock.
    """

    duration_s: float
    fps: float
    num_frames: int | None
    width: int
    height: int
    rotation: int
    codec: str
    start_s: float


def probe(path: Path) -> VideoInfo:
    """Read a video's facts. Raises VideoError (audio only, cut off, undecodable, not a video) with the reason."""
    with open_video(path) as (container, stream):
        index = read_index(container, stream, path.name)
    with open_video(path) as (container, stream):
        frame = next(decoded_frames(container, stream), None)
        if frame is None:
            raise VideoError(f"{path.name}: not one frame of its {stream.codec_context.name} video can be decoded")
        width, height = upright_size(frame, stream)
        rate = stream.average_rate
        return VideoInfo(
            duration_s=index.end_s,
            fps=float(rate) if rate else len(index.times_s) / index.end_s,
            num_frames=len(index.times_s),
            width=width,
            height=height,
            rotation=quarter_turns(frame) * 90,
            codec=stream.codec_context.name,
            start_s=index.start_s,
        )


def quarter_turns(frame: VideoFrame) -> int:
    """How many counter-clockwise quarter turns make the stored picture upright."""
    return round(frame.rotation / 90) % 4


def upright_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """(width, height) on a screen: non-square pixels stretched in width, then turned."""
    width, height = display_size(frame, stream)
    return (height, width) if quarter_turns(frame) % 2 else (width, height)


def display_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """(width, height) of the stored picture with square pixels. Within 5 % they count as square: encoders round."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    if aspect <= 0 or abs(aspect - 1) < 0.05:
        return frame.width, frame.height
    return round(frame.width * aspect), frame.height
