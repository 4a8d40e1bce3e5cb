"""What a video file may cost, and which containers and codecs are opened at all. `cage` bounds the process itself.

The defaults refuse nothing that a worker could have finished before its deadline, except what only a hostile file
needs: frames of more than 8,192 x 8,192 pixels, and more than 2 GiB of memory for one video.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated

from vsr1_core.limits import Count, NotEmpty, Positive

_CONTAINERS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpeg", "mpegvideo", "mpegts", "asf", "flv"),
    *("ogg", "h264", "hevc", "m4v"),
)
_CODECS = (
    *("h264", "hevc", "vvc", "av1", "vp8", "vp9", "vp7", "vp6", "vp6f", "vp6a", "vp5", "theora", "dirac", "evc"),
    *("mpeg1video", "mpeg2video", "mpeg4", "h261", "h263", "h263p", "h263i", "flv1", "vc1", "wmv1", "wmv2", "wmv3"),
    *("msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "rv10", "rv20", "rv30", "rv40", "svq1", "svq3", "cinepak", "indeo3"),
    *("indeo4", "indeo5", "msvideo1", "rpza", "qtrle", "mjpeg", "mjpegb", "jpeg2000", "png", "gif", "webp", "bmp"),
    *("prores", "dnxhd", "cfhd", "dvvideo", "ffv1", "huffyuv", "ffvhuff", "utvideo", "magicyuv", "lagarith", "flashsv"),
    *("rawvideo", "v210", "zmbv", "tscc", "tscc2", "camtasia", "hap", "snow", "fraps", "msrle", "screenpresso"),
)


@dataclass(frozen=True)
class VideoLimits:
    """What one video may cost. A video that needs more is a failed row, whose reason names the limit.

    frame_pixels: pixels of a frame. packets: packets of a video stream, each of which is a frame; a quarter of those of
    all streams. decoded_pixels: pixels times frames that
    have to be decoded to sample it. memory_gb: GiB of address space that its worker may add. cpu_s: seconds of
    processor time. containers, codecs: names, as FFmpeg gives them, of what is opened.
    """

    frame_pixels: Count = 1 << 26
    packets: Count = 6_000_000
    """24 hours at 60 frames per second have 5.2 million."""
    decoded_pixels: Count = 2_000_000_000_000
    """No decoder here finishes more in the 900 s that one video may take: 4k at 30 frames per second for two hours."""
    memory_gb: Positive = 2.0
    cpu_s: Positive = 600.0
    containers: Annotated[tuple[str, ...], NotEmpty()] = _CONTAINERS
    codecs: Annotated[tuple[str, ...], NotEmpty()] = _CODECS

    def options(self) -> dict[str, str]:
        """The limits that FFmpeg itself keeps, from the first byte that it reads.

        It guesses the format from the bytes and ignores the suffix: without a list, a playlist named clip.mp4 would
        open other files and addresses, and a text file would be drawn as ANSI art.
        """
        return {
            "protocol_whitelist": "file",
            "format_whitelist": ",".join(self.containers),
            "codec_whitelist": ",".join(_decoders(self.codecs)),
            "max_pixels": str(self.frame_pixels),
        }


@functools.cache
def _decoders(codecs: tuple[str, ...]) -> tuple[str, ...]:
    """FFmpeg's decoders of these codecs: `libdav1d` and `av1` both read av1."""
    import av  # here, because a plan needs no decoder

    found = []
    for name in sorted(av.codecs_available):
        try:
            codec = av.Codec(name, "r")
        except ValueError:
            continue  # an encoder
        if codec.type == "video" and {name, codec.canonical_name} & set(codecs):
            found.append(name)
    return tuple(found)


DEFAULT_LIMITS = VideoLimits()
