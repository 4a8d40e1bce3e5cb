"""Reads the packets of a file whose clock may begin anew: recordings that were joined byte by byte (`cat a.ts b.ts`).

Only containers for broadcast allow that (MPEG-TS, MPEG-PS). The later recordings are moved to where the earlier ones
end, as a player shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.video.stream import VideoStream

BACK_S = 0.5
"""Packets of one recording are in the order of their decoding times; damage may set one back by less than this."""
AHEAD_S = 600.0
"""No recording shows one picture for ten minutes. A clock that began anew may also seem to be 26.5 hours ahead, because
33 bits of 90 kHz wrap around."""


def may_join(container: InputContainer) -> bool:
    """Whether the clock of this container may begin anew. Such a container has no header that promises a duration."""
    return bool(container.format.flags & cast(int, Flags.ts_discont.value))


def demuxed(container: InputContainer, streams: Sequence[VideoStream]) -> Iterator[Packet]:
    """Yield the packets of these streams, or of the whole file where none is given; those of each video stream are on
    one clock."""
    videos = container.streams.video if may_join(container) else ()
    clocks = {stream.index: _Clock(float(stream.time_base or 1)) for stream in videos}
    for packet in container.demux(list(streams)):
        clock = clocks.get(packet.stream_index)
        if clock is not None:
            clock.correct(packet)
        yield packet


class _Clock:
    """The clock of one stream, in ticks of its time base."""

    def __init__(self, tick_s: float) -> None:
        self._back, self._ahead = BACK_S / tick_s, AHEAD_S / tick_s
        self._shift, self._step = 0, 1
        self._last: int | None = None

    def correct(self, packet: Packet) -> None:
        """Move the stamps of a packet, so that decoding times never jump."""
        if packet.dts is not None:
            self._follow(packet.dts, packet.duration or 0)
            packet.dts += self._shift
        if packet.pts is not None:
            packet.pts += self._shift

    def _follow(self, dts: int, duration: int) -> None:
        """Set the shift for the packet with this decoding time, which lasts `duration` ticks (0: unknown)."""
        step = 0 if self._last is None else dts + self._shift - self._last
        if self._last is not None and not -self._back <= step <= self._ahead:
            self._shift += self._step - step  # as if the recording went on with its next frame
            step = self._step
        self._step = duration or max(1, step) or self._step
        self._last = dts + self._shift
