"""Long videos are sampled, embedded, ranked and found in windows; all times are those of the source."""

from __future__ import annotations

import csv
import dataclasses
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.cheap_stages import cheap_stages
from tests.films import COLOURS, Events, colours_of, vector_of_frames, vector_of_text, write_film
from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.evaluation.spans import temporal_iou
from vsr1_core.home.search import SearchRequest, search_together
from vsr1_core.home.search_result import Found
from vsr1_core.media import decode
from vsr1_core.media.decode import Frames, sample_frames, sample_windows
from vsr1_core.recipes import FrameRecipe
from vsr1_core.rows.increments import Outcome
from vsr1_core.rows.lake import Lake
from vsr1_core.search.index import build_index, read_index
from vsr1_core.segments import SegmentRecipe, is_right, window_id, window_of, windows_of
from vsr1_core.stages.base import Row, View
from vsr1_core.stages.embeddings import QueryEmbeddings, VideoEmbeddings
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.frames import FrameTensors
from vsr1_core.stages.graph import in_order
from vsr1_core.stages.loading import frames_of, frames_to_embed
from vsr1_core.stages.opened import OpenedModels

RECIPE = FrameRecipe(max_frames=120, max_pixels=32 * 32)
CONFIG = dataclasses.replace(NANO, frames=RECIPE, segments=SegmentRecipe(window_s=120.0))
EVENTS: Events = {
    "red": (0, 3),
    "green": (100, 104),
    "blue": (200, 214),
    "yellow": (300, 307),
    "magenta": (420, 560),
    "cyan": (597, 600),
}
"""At the begin; in two windows; across the end of one; in one; longer than a window; at the end of ten minutes."""
SEARCHED = ("annotation_files", "raw_videos", "videos", "moments", "frame_tensors", "base_models", "query_embeddings")
SEARCHED += ("video_embeddings", "video_index", "first_ranking")


class ColourQueries(QueryEmbeddings):
    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        for query_id, row in rows.items():
            yield {"query_id": query_id, **row.known, "vector": vector_of_text(row.facts).tolist()}


class ColourVideos(VideoEmbeddings):
    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        frames = {row["video_id"]: row for row in view.rows("frame_tensors").to_dicts()}
        for segment_id, row in rows.items():
            pixels = frames_to_embed(frames[segment_id]).pixels
            yield {"video_id": segment_id, **row.known, "vector": vector_of_frames(pixels).tolist()}


@dataclasses.dataclass
class Films:
    """A folder of films, its annotations, and the stages that a search needs, with the embedder of colours."""

    root: Path
    events: dict[str, Events] = dataclasses.field(default_factory=dict)

    def put(self, name: str, duration_s: int, events: Events) -> None:
        write_film(self.root / f"videos/{name}.mp4", duration_s, events)
        self.events[name] = events

    def drop(self, name: str) -> None:
        (self.root / f"videos/{name}.mp4").unlink()
        del self.events[name]

    def view(self, segments: SegmentRecipe = CONFIG.segments) -> View:
        with (self.root / "annotations.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["video", "start", "end", "query"])
            for name, events in self.events.items():
                rows.writerows([name, *span, f"{colour} in {name}"] for colour, span in events.items())
        entry = DatasetEntry("films", "folder", str(self.root / "videos"), str(self.root / "annotations.csv"))
        stages = {name: stage for name, stage in cheap_stages().items() if name in SEARCHED}
        stages |= {"query_embeddings": ColourQueries(), "video_embeddings": ColourVideos()}
        stages["base_models"].plan = lambda view: {}  # type: ignore[method-assign]
        config = dataclasses.replace(CONFIG, segments=segments)
        return View(Lake(self.root / "lake"), entry, config, in_order(list(stages.values())), home=self.root)

    def build(self, segments: SegmentRecipe = CONFIG.segments, execution: Execution | None = None) -> View:
        self.outcomes: dict[str, Outcome] = {}
        view = self.view(segments)
        execution = execution or Execution(workers=1, max_removed=None)
        for name, stage in view.stages.items():
            self.outcomes[name] = stage.build(view, execution)
            failed = view.table(name).rows().filter(pl.col("status") == "failed")
            assert failed.is_empty(), failed["error"].to_list()
        return view


class _ColourSearch(OpenedModels):
    """Nothing is opened but the index; texts get the vectors of their colours."""

    @property
    def plain(self) -> Any:
        return self

    def unrelated_scores(self, split: str) -> None:
        """Vectors of colours say nothing about other texts."""

    def get(self, texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(np.stack([vector_of_text(text) for text in texts]))


def search(view: View, text: str, monkeypatch: pytest.MonkeyPatch, top_k: int = 5) -> Found:
    monkeypatch.setattr("vsr1_core.stages.loading.one_row", _embedder_row)
    monkeypatch.setattr("vsr1_core.home.search.best_method", lambda view: None)
    [found] = search_together(_ColourSearch(view, Execution()), [SearchRequest(text, top_k=top_k, verify=False)])
    return found


def _embedder_row(view: View, asset: str, row_id: str) -> dict[str, Any]:
    if asset == "base_models":
        return {"digest": "colours", "row_version": "1"}
    key = view.stages[asset].key
    return view.rows(asset).filter(pl.col(key) == row_id).row(0, named=True)


def shown_seconds(view: View, segment_id: str, colour: str) -> tuple[float, float]:
    """Source times of the first and the last frame of a segment that show the colour."""
    row = view.rows("frame_tensors").filter(pl.col("video_id") == segment_id).row(0, named=True)
    frames = frames_of(row)
    times = [t for t, shown in zip(frames.timestamps_s, colours_of(frames.pixels), strict=True) if shown == colour]
    return times[0], times[-1]


def assert_events_are_found(view: View, events: Events, name: str) -> None:
    """Each event is found in a right window, whose frames show it at its seconds of the source."""
    index = read_index(Path(view.rows("video_index")["path"][0]))
    for colour, (start_s, end_s) in events.items():
        vector = vector_of_text(colour)[None]
        [[first, *_]], _ = index.search(vector, 3)
        assert is_right(first, name, start_s, end_s), (colour, first)
        window = window_of(first)
        assert window is not None
        seen_s = shown_seconds(view, first, colour)
        expected = max(start_s, window[0]), min(end_s, window[1])
        assert abs(seen_s[0] - expected[0]) <= 1.0, colour
        assert abs(seen_s[1] + 1.0 - expected[1]) <= 1.0, colour  # a frame lasts a second
    ranks = view.rows("first_ranking").filter(pl.col("gt_video_id") == name)["rank"]
    assert ranks.to_list() == [1] * len(events)


@pytest.fixture
def films(tmp_path: Path) -> Films:
    return Films(tmp_path)


def test_events_of_a_long_film_are_found_in_windows_with_times_of_the_source(
    films: Films, monkeypatch: pytest.MonkeyPatch
) -> None:
    films.put("film", 600, EVENTS)
    films.put("shorts/clip", 60, {"white": (10, 20)})
    view = films.build()
    assert view.rows("frame_tensors").height == 1 + len(windows_of(600.0, 120.0, 0.25))
    assert view.rows("video_index")["num_videos"].to_list() == [2]
    assert_events_are_found(view, EVENTS, "film")
    found = search(view, "yellow", monkeypatch)
    assert [(hit.video, hit.window_start_s, hit.window_end_s) for hit in found] == [
        ("film", 270.0, 390.0),
        ("shorts/clip", None, None),
    ]
    assert [(place.video, place.window_start_s) for place in found.first] == [("film", 270.0), ("shorts/clip", None)]
    assert [hit.first_rank for hit in found] == [1, 2]
    assert Found.from_dict(found.to_dict()) == found


def test_windows_that_show_a_minute_of_a_longer_event_are_right_for_it(films: Films) -> None:
    """It lasts 140 s, which is more than a window."""
    films.put("film", 600, EVENTS)
    view = films.build()
    right = [s for s in view.rows("frame_tensors")["video_id"] if is_right(s, "film", *EVENTS["magenta"])]
    assert right == ["film//360-480", "film//450-570"]
    for segment_id in right:
        first_s, last_s = shown_seconds(view, segment_id, "magenta")
        assert temporal_iou(first_s, last_s + 1, *EVENTS["magenta"]) > 0.4


def test_a_window_has_the_frames_of_the_clip_that_is_cut_there(films: Films, tmp_path: Path) -> None:
    """And the embedder is told the same times: the same scene has the same vector wherever it is."""
    films.put("film", 600, {"red": (105, 110)})
    clip = write_film(tmp_path / "clip.mp4", 120, {"red": (15, 20)})
    [window] = sample_windows(tmp_path / "videos/film.mp4", RECIPE, [(90.0, 210.0)])
    assert isinstance(window, Frames)
    alone = sample_frames(clip, RECIPE)
    assert colours_of(window.pixels) == colours_of(alone.pixels)
    assert window.timestamps_s.tolist() == [time_s + 90 for time_s in alone.timestamps_s]
    assert window.duration_s == alone.duration_s == 120.0
    row = films.build().rows("frame_tensors").filter(pl.col("video_id") == "film//90-210").row(0, named=True)
    assert frames_to_embed(row).timestamps_s == alone.timestamps_s.tolist()
    assert frames_of(row).timestamps_s == window.timestamps_s.tolist()


def test_all_windows_are_sampled_in_one_pass_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_film(tmp_path / "film.mp4", 600, EVENTS)
    opened, decoded = [], []
    monkeypatch.setattr(decode, "open_video", _noting(decode.open_video, opened))
    passes = decode.decoded_frames
    monkeypatch.setattr(decode, "decoded_frames", lambda *of: (decoded.append(f.pts) or f for f in passes(*of)))
    sampled = list(sample_windows(path, RECIPE, windows_of(600.0, 120.0, 0.25)))
    assert len(opened) == 1
    assert decoded == sorted(set(decoded))
    assert len(decoded) == 600
    times = [part.timestamps_s.tolist() for part in sampled if isinstance(part, Frames)]
    assert times == [[float(t) for t in range(start, min(start + 120, 600))] for start in range(0, 600, 90)]


def _noting(function: Any, calls: list[Any]) -> Any:
    return lambda *of: (calls.append(of), function(*of))[1]


def test_only_the_segments_of_a_video_follow_its_file(films: Films) -> None:
    films.put("film", 300, {"green": (100, 104)})
    films.put("other", 300, {"white": (250, 260)})
    films.build()
    versions = films.view().versions("frame_tensors")
    made = lambda: {name: films.outcomes[name].num_processed for name in ("frame_tensors", "video_embeddings")}  # noqa: E731
    assert made() == {"frame_tensors": 6, "video_embeddings": 6}
    films.put("other", 200, {"white": (150, 160)})
    films.build()
    assert made() == {"frame_tensors": 2, "video_embeddings": 2}
    kept = {i: version for i, version in versions.items() if i.startswith("film//")}
    assert kept.items() <= films.view().versions("frame_tensors").items()
    films.put("third", 130, {"cyan": (1, 4)})
    films.build()
    assert made() == {"frame_tensors": 2, "video_embeddings": 2}
    films.drop("other")
    films.build()
    assert made() == {"frame_tensors": 0, "video_embeddings": 0}
    assert films.outcomes["frame_tensors"].num_dropped == 2
    assert kept.items() <= films.view().versions("frame_tensors").items()


def test_windows_leave_shorter_videos_and_another_length_leaves_them_too(films: Films) -> None:
    """A version does not name the recipe of segments: a row follows the pixels that it stands for."""
    films.put("film", 300, {"green": (100, 104)})
    films.put("clip", 60, {"white": (10, 20)})
    whole = films.build(SegmentRecipe()).versions("frame_tensors")
    assert set(whole) == {"film", "clip"}
    windows = films.build().versions("frame_tensors")
    assert films.outcomes["frame_tensors"].num_processed == 3
    assert windows["clip"] == whole["clip"]
    films.build(SegmentRecipe(window_s=240.0))
    assert films.build(SegmentRecipe(window_s=1000.0)).versions("frame_tensors") == whole


def test_windows_are_refused_where_their_times_would_be_wrong(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", 4, {})
    with pytest.raises(ValueError, match=r"set frames\.backend to auto or pyav, not ffmpeg"):
        list(sample_windows(path, dataclasses.replace(RECIPE, backend="ffmpeg"), [(0.0, 2.0)]))


def test_a_video_with_too_many_windows_is_a_failed_row(films: Films, monkeypatch: pytest.MonkeyPatch) -> None:
    films.put("film", 60, {})
    films.put("clip", 3, {})
    monkeypatch.setattr("vsr1_core.segments.MAX_WINDOWS", 10)
    view = films.view(SegmentRecipe(window_s=4.0))
    for name in ("annotation_files", "raw_videos", "videos", "moments", "frame_tensors"):
        view.stages[name].build(view, Execution(workers=1))
    rows = view.table("frame_tensors").rows(["video_id", "error"]).to_dicts()
    assert [row["video_id"] for row in rows if row["error"] is None] == ["clip"]
    assert [row["error"].startswith("film.mp4: it lasts 0.0 hours") for row in rows if row["error"]] == [True]


def test_ranks_count_videos_and_not_windows() -> None:
    ids = [window_id("a", 0, 10), window_id("a", 5, 15), window_id("b", 0, 10), "c"]
    vectors = np.eye(4, dtype=np.float32)
    index = build_index(ids, vectors)
    query = np.array([[0.7, 0.6, 0.3, 0.2]], np.float32)
    query /= np.linalg.norm(query)
    assert [index.ranks(query, [video])[0] for video in ("a", "b", "c", "d", None)] == [1, 2, 3, None, None]
    assert index.ranks(query, ["b"], [{ids[0], ids[1]}]) == [1]
    assert index.ranks(query, ["a"], [{ids[0]}]) == [1]
    assert index.ranks(query, ["a"], [{ids[0], ids[1]}]) == [None]
    assert index.search_distinct(query, 2)[0] == [[ids[0], ids[2]]]
    assert index.search_distinct(query, 4)[0] == [[ids[0], ids[2], "c"]]
    assert index.search_distinct(query, 4, [{ids[0]}])[0] == [[ids[1], ids[2], "c"]]
    assert index.search_distinct(query, 4, per_video=False)[0] == [[ids[0], ids[2], "c"]]
    assert len(index.rows_of) == 3


# ---- two hours ---------------------------------------------------------------------------------------------------


def long_events(duration_s: int) -> Events:
    """One event of each colour: at the begin, across borders of windows, and at the end."""
    names = list(COLOURS)
    starts = [0, 877, 2340, 3601, 5039, 6295, duration_s - 6]
    return {name: (float(start), float(start + 6)) for name, start in zip(names, starts, strict=True)}


@pytest.mark.slow
def test_every_event_of_a_film_of_two_hours_is_found(films: Films) -> None:
    events = long_events(7200)
    films.put("film", 7200, events)
    view = films.build()
    assert view.rows("frame_tensors").height == 80
    assert_events_are_found(view, events, "film")


CHILD = """
import resource, sys
from pathlib import Path
from vsr1_core.recipes import FrameRecipe
from vsr1_core.rows.files import read_stamp
from vsr1_core.media.video_limits import DEFAULT_LIMITS
from vsr1_core.segments import window_id, windows_of
from vsr1_core.media.video_rows import _sampled

def sampled(film, duration_s):
    ids = [window_id("film", *window) for window in windows_of(duration_s, 120.0, 0.25)]
    targets = {segment_id: str(Path(sys.argv[3]) / f"{n}.npy") for n, segment_id in enumerate(ids)}
    made = _sampled(read_stamp(Path(film)), targets, FrameRecipe(max_pixels=128 * 128), DEFAULT_LIMITS)
    assert all("error" not in row for row in made.values())

sampled(sys.argv[1], 240.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sampled(sys.argv[1], float(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.sweep
def test_a_film_of_two_hours_needs_no_more_memory_than_one_of_ten_minutes(tmp_path: Path) -> None:
    """The frames of all its windows would take 240 MB; those of the overlapping ones take 6."""
    grown = {}
    for duration_s in (600, 7200):
        film = write_film(tmp_path / f"{duration_s}.mp4", duration_s, {}, size=128)
        arguments = [str(film), str(duration_s), str(tmp_path)]
        done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
        grown[duration_s] = int(done.stdout) / 1024
    assert grown[7200] < grown[600] + 30.0


@pytest.mark.slow
def test_the_frames_of_a_film_are_made_by_its_worker_within_limits(films: Films) -> None:
    """In worker processes as well; the time that they may take grows with the film."""
    films.put("film", 300, {"red": (130, 140)})
    view = films.build(execution=Execution(workers=1, is_caged=True))
    assert view.rows("frame_tensors").height == 3
    assert isinstance(view.stages["frame_tensors"], FrameTensors)
