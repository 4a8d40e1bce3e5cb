"""Saved clips: exactly the span, to the frame and to the sample; names that are never paths; nothing written over."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.videos import turn_clockwise, write_video
from vsr1_core.home.clips import clip_name, save_clips
from vsr1_core.home.search_result import Found, Hit
from vsr1_core.media.container import VideoError
from vsr1_core.media.cut import cut_span
from vsr1_core.media.probe import probe

RATE = 16_000
SCENE = np.stack([np.full((64, 64, 3), 10 * number, np.uint8) for number in range(24)])
"""Frames that encoding with a loss does not take for each other."""


def shown(path: Path) -> list[tuple[float, int]]:
    """(second, number of the frame) of all frames of a clip of `SCENE`."""
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return [(round(float(f.pts * f.time_base), 3), round(f.to_ndarray(format="rgb24").mean() / 10)) for f in frames]


def add_sound(video: Path, target: Path, onset_s: float, seconds: float) -> Path:
    """The video's packets, and a tone that begins at `onset_s`."""
    with av.open(str(video)) as source, av.open(str(target), "w") as out:
        picture = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("aac", rate=RATE, layout="mono")
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = picture
                out.mux(packet)
        times = np.arange(round(seconds * RATE)) / RATE
        wave = (np.sin(times * 2 * np.pi * 440) * 0.8 * (times >= onset_s)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
    return target


def loudness(path: Path) -> np.ndarray:
    """The sound of a clip, as the largest amplitude of each hundredth of a second."""
    with av.open(str(path)) as container:
        samples = np.concatenate([f.to_ndarray().mean(axis=0) for f in container.decode(audio=0)])
        per = container.streams.audio[0].rate // 100
    return np.abs(samples[: len(samples) // per * per]).reshape(-1, per).max(axis=1)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_clip_shows_the_frames_of_its_span_and_no_other(tmp_path: Path, suffix: str) -> None:
    source = write_video(tmp_path / f"source{suffix}", [n / 2 for n in range(24)], SCENE, gop=8)
    assert cut_span(source, tmp_path / "clip.mp4", (2.7, 5.0)) == (2.7, 5.0)
    seen = shown(tmp_path / "clip.mp4")
    assert [number for _, number in seen] == [5, 6, 7, 8, 9], "the frame that is shown at 2.7 s began at 2.5 s"
    assert [time_s for time_s, _ in seen] == pytest.approx([0.0, 0.3, 0.8, 1.3, 1.8], abs=0.002)
    assert probe(tmp_path / "clip.mp4").duration_s == pytest.approx(2.3, abs=0.01)


def test_the_end_is_cut_to_that_of_the_video_and_a_span_beyond_it_is_refused(tmp_path: Path) -> None:
    source = write_video(tmp_path / "source.mp4", range(6))
    end_s = probe(source).duration_s
    assert cut_span(source, tmp_path / "clip.mp4", (4.0, 99.0)) == (4.0, end_s)
    with pytest.raises(VideoError, match=r"has no span that begins at 50 s: it ends at \d"):
        cut_span(source, tmp_path / "other.mp4", (50.0, 60.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "source.mp4"], "nothing half written stays"


def test_the_sound_of_a_clip_begins_with_its_picture(tmp_path: Path) -> None:
    video = write_video(tmp_path / "video.mp4", [n / 5 for n in range(50)], gop=25)
    source = add_sound(video, tmp_path / "source.mp4", onset_s=6.0, seconds=10.0)
    cut_span(source, tmp_path / "clip.mp4", (4.5, 8.0))
    loud = loudness(tmp_path / "clip.mp4")
    assert np.flatnonzero(loud > 0.4)[0] / 100 == pytest.approx(1.5, abs=0.03)
    assert len(loud) / 100 == pytest.approx(3.5, abs=0.1)


def test_a_turned_video_is_cut_upright(tmp_path: Path) -> None:
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    source = turn_clockwise(write_video(tmp_path / "source.mp4", range(4), frames), 1)
    cut_span(source, tmp_path / "clip.mp4", (1.0, 3.0))
    info = probe(tmp_path / "clip.mp4")
    assert (info.width, info.height, info.rotation) == (32, 64, 0)


def found(*hits: Hit) -> Found:
    return Found("a dog", "mine", "test", hits=hits)


def test_a_hit_with_a_span_is_cut_and_one_without_is_copied_as_it_is(tmp_path: Path) -> None:
    source = str(write_video(tmp_path / "a.mkv", range(6)))
    hits = (Hit(1, "a", 0.9, source, start_s=1.0, end_s=3.0), Hit(2, "b", 0.8, source), Hit(3, "c", 0.7, source))
    saved = list(save_clips(found(*hits), tmp_path / "out", 2))
    assert [clip.path and clip.path.name for clip in saved] == ["01_a_1.0-3.0s.mp4", "02_b.mkv"]
    assert saved[1].path is not None
    assert saved[1].path.read_bytes() == Path(source).read_bytes()
    assert (saved[0].span, saved[1].span) == ((1.0, 3.0), None)


def test_no_file_is_written_over(tmp_path: Path) -> None:
    source = str(write_video(tmp_path / "a.mp4", range(3)))
    for _ in range(3):
        list(save_clips(found(Hit(1, "a", 0.9, source)), tmp_path / "out", 1))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["01_a.mp4", "01_a_2.mp4", "01_a_3.mp4"]


def test_a_hit_without_a_usable_file_says_why_and_stops_no_other(tmp_path: Path) -> None:
    source = str(write_video(tmp_path / "a.mp4", range(3)))
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 100)
    hits = (
        Hit(1, "imported", 0.9),
        Hit(2, "gone", 0.8, str(tmp_path / "gone.mp4")),
        Hit(3, "broken", 0.7, str(tmp_path / "broken.mp4"), start_s=0.0, end_s=1.0),
        Hit(4, "a", 0.6, source, start_s=0.0, end_s=1.0),
    )
    saved = list(save_clips(found(*hits), tmp_path / "out", 4))
    assert [clip.path is None for clip in saved] == [True, True, True, False]
    assert "it has no file" in saved[0].reason
    assert "is not there" in saved[1].reason
    assert "cannot be opened as a video" in saved[2].reason


@pytest.mark.parametrize("video", ["../../etc/passwd", "/abs/olute", "a\n<b>", "ü" * 300, "..", "", "CON: *?"])
def test_the_name_of_a_clip_is_never_a_path(video: str) -> None:
    name = clip_name(Hit(7, video, 0.5, start_s=0.0, end_s=2.0))
    assert name.startswith("07_")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
    assert len(name) < 100
