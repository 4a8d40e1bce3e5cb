"""Searches of a dataset by words: what may be asked, and how searches run. `search_result` has what they return.

A request is checked before torch is imported or a model is opened.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from vsr1_core.home.search_result import Found, Hit, RankedVideo, ShownTurn
from vsr1_core.rows.texts import did_you_mean
from vsr1_core.segments import best_of_each, video_of, window_of
from vsr1_core.stages import loading
from vsr1_core.stages.base import View
from vsr1_core.stages.methods import ALL, BASIC, Method

if TYPE_CHECKING:
    from vsr1_core.search.index import Vectors, VideoIndex
    from vsr1_core.search.turns import Episode, Ranked, Turn
    from vsr1_core.stages.opened import OpenedModels

MAX_TEXT = 2000
"""Most characters of a query. The longest published one has 430."""
MAX_TOP_K = 1000
MAX_TURNS = 10
Told = Callable[[int, ShownTurn], None]
"""Called with the number of a request and its turn, when the turn has ended."""


@dataclass(frozen=True)
class SearchRequest:
    """What a search asks for.

    Attributes:
        text: What the moment shows, in words: at most 2,000 characters.
        split: The split whose videos are searched.
        top_k: How many videos to return: 1 to 1,000.
        method: Name of the method that searches; None is the last one of the report whose checkpoint is built.
        verify: Whether a policy is shown the videos; False ranks them by the embedder alone.
        turns: Most videos that the policy is shown, 1 to 10; None is what the dataset's configuration says.

    Raises:
        ValueError: A value is out of its range, or two of them contradict each other.
    """

    text: str
    split: str = "test"
    top_k: int = 5
    method: str | None = None
    verify: bool = True
    turns: int | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("the search text is blank; say what the moment shows")
        if len(self.text) > MAX_TEXT:
            raise ValueError(f"the search text has {len(self.text):,} characters; {MAX_TEXT:,} are the most")
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k is the number of videos to return: at least 1, not {self.top_k}; at most 1,000")
        if self.turns is not None and not 1 <= self.turns <= MAX_TURNS:
            raise ValueError(f"the number of turns is at least 1 and at most {MAX_TURNS}, not {self.turns}")
        if not self.verify and (self.method is not None or self.turns is not None):
            raise ValueError("a search without verification has no method and no turns; leave them out, or verify")

    @property
    def together(self) -> tuple[object, ...]:
        """Requests with the same value can be searched for in one batch."""
        return (self.split, self.method, self.verify, self.turns)


def best_method(view: View) -> Method | None:
    """The last method of the report whose checkpoint is built. None where only the embedder is built.

    Raises:
        LookupError: No model is built; the message has the command that builds one.
    """
    if not view.entry.search_only:  # checkpoints of an earlier registration may be there still
        for method in reversed(BASIC.values()):
            if method.row_id in view.versions(method.model):
                return method
    if "embedder" in view.versions("base_models"):
        return None
    raise LookupError(
        f"dataset {view.entry.name!r} has no model to search with; run: vsr1 build --dataset {view.entry.name}"
    )


def method_of(view: View, request: SearchRequest) -> Method | None:
    """The method that answers the request; None where the embedder alone does. Opens no model.

    Raises:
        LookupError: There is no such method or split, or it is not built; the message says what there is, or the
            command that builds it.
    """
    best = best_method(view)
    splits = view.versions("video_index")
    if splits and request.split not in splits:
        raise LookupError(
            f"dataset {view.entry.name!r} has no videos in the split {request.split!r}; its splits: {', '.join(splits)}"
        )
    if not request.verify or (best is None and request.method is None):
        return None
    if request.method is None:
        return best
    if view.entry.search_only:
        raise LookupError(
            f"dataset {view.entry.name!r} is registered with --search-only and has no method {request.method!r}: leave "
            "--method out, or add the dataset without --search-only"
        )
    if request.method not in ALL:
        raise LookupError(f"no method {request.method!r}{_instead(view, request.method)}")
    method = ALL[request.method]
    loading.one_row(view, method.model, method.row_id)
    return method


def built_methods(view: View) -> list[Method]:
    """The methods that the dataset can be searched by, in the order of the report."""
    if view.entry.search_only:
        return []
    return [method for method in ALL.values() if method.row_id in view.versions(method.model)]


def _instead(view: View, name: str) -> str:
    built = [method.name for method in built_methods(view)]
    return f"{did_you_mean(name, ALL) or ';'} those that are built: {', '.join(built) or 'none'}"


def search_once(opened: OpenedModels, request: SearchRequest) -> Found:
    """`search_together` for one request, with the file of each hit."""
    [found] = search_together(opened, [request])
    return found.with_paths(paths_of(opened.view, [hit.video for hit in found]))


def search_together(
    opened: OpenedModels, requests: Sequence[SearchRequest], told: Told = lambda number, turn: None
) -> list[Found]:
    """Search for all requests in the same batches of the decoding loop. Returns one result per request, in order.

    The requests have the same `together`. A result is the same as alone, but for rounding; its hits name no files.

    Raises:
        LookupError: A model or the index of the split is not built; the message has the command that builds it.
    """
    method = method_of(opened.view, requests[0])
    begun = time.perf_counter()
    if method is None:
        return _by_similarity(opened, requests, begun)
    from vsr1_core.search.turns import EpisodeQuery

    searcher = opened.searcher(requests[0].split, method)
    turns = requests[0].turns or searcher.settings.num_turns
    searcher.settings = replace(searcher.settings, num_turns=turns)
    loaded = time.perf_counter()
    queries = [EpisodeQuery(str(number), request.text.strip()) for number, request in enumerate(requests)]
    episodes = searcher.run(queries, told=lambda e: told(int(e.query.query_id), _shown(len(e.turns), e.turns[-1])))
    found = []
    for request, episode in zip(requests, episodes, strict=True):
        exclude = episode.rejected if method.exclude_rejected else frozenset[str]()
        ranked = _Rankings(searcher.index, *_vectors(episode), exclude)
        result = _found(opened, request, ranked, episode)
        found.append(replace(result, method=method.name, checkpoint=opened.checkpoint(method)))
    return _timed([_beside_unrelated(opened, result) for result in found], begun, loaded)


def search_by_picture(opened: OpenedModels, picture: Path, split: str = "test", top_k: int = 5) -> Found:
    """Rank the videos of `split` by their likeness to a picture file. No policy is asked, as it is asked about texts.

    Raises:
        ValueError: The file is no picture, `top_k` is out of its range, or the dataset's embedder takes no pictures.
        FileNotFoundError: There is no such file.
        LookupError: The embedder or the index of the split is not built; the message has the command that builds it.
    """
    from vsr1_core.media.picture import read_picture
    from vsr1_core.models.protocols import VideoFrames

    request, begun = SearchRequest(picture.name, split, top_k, verify=False), time.perf_counter()
    pixels = read_picture(picture, opened.view.config.frames)
    method_of(opened.view, request)
    checkpoint = loading.one_row(opened.view, "base_models", "embedder")
    embedder, index = opened.embedder, opened.index(split)
    if not embedder.takes_pictures:
        raise ValueError(
            f"the embedder of {opened.view.entry.name}, {Path(checkpoint['path']).name}, takes no pictures: search "
            "with words, or let an embedder rank the videos that takes them"
        )
    loaded = time.perf_counter()
    vector = embedder.embed_videos([VideoFrames(pixels, [0.0])]).float().cpu().numpy()
    found = _found(opened, request, _Rankings(index, vector, vector), None)
    found = replace(found, text="", image=picture.name, checkpoint=str(checkpoint["digest"]))
    return _timed([found], begun, loaded)[0].with_paths(paths_of(opened.view, [hit.video for hit in found]))


def _by_similarity(opened: OpenedModels, requests: Sequence[SearchRequest], begun: float) -> list[Found]:
    index, plain = opened.index(requests[0].split), opened.plain
    checkpoint = str(loading.one_row(opened.view, "base_models", "embedder")["digest"])
    opened.unrelated_scores(requests[0].split)
    loaded = time.perf_counter()
    vectors = plain.get([request.text.strip() for request in requests]).float().cpu().numpy()
    found = []
    for request, vector in zip(requests, vectors, strict=True):
        result = _found(opened, request, _Rankings(index, vector[None], vector[None]), None)
        found.append(replace(result, checkpoint=checkpoint))
    return _timed([_beside_unrelated(opened, result) for result in found], begun, loaded)


def _beside_unrelated(opened: OpenedModels, found: Found) -> Found:
    """The result with the share of unrelated texts that score as high, where no video was matched."""
    from vsr1_core.search.unrelated import share_at_least

    if found.matched_turn is not None or not found.first:
        return found
    unrelated = opened.unrelated_scores(found.split)
    if unrelated is None:
        return found
    return replace(found, unrelated_share=share_at_least(found.first[0].score, unrelated))


def _timed(found: Iterable[Found], begun: float, loaded: float) -> list[Found]:
    seconds, loading_s = round(time.perf_counter() - loaded, 3), round(loaded - begun, 3)
    return [replace(result, seconds=seconds, loading_s=loading_s) for result in found]


@dataclass(frozen=True)
class _Rankings:
    """The first and the last ranking, by their query vectors [1, D]; the last one leaves out the videos `exclude`."""

    index: VideoIndex
    first: Vectors
    last: Vectors
    exclude: frozenset[str] | set[str] = frozenset()

    def places(self, vector: Vectors, top_k: int) -> tuple[RankedVideo, ...]:
        exclude = [self.exclude] if vector is self.last else None
        ids, scores = self.index.search_distinct(vector, top_k, exclude=exclude)
        return _places(tuple(zip(ids[0], scores[0], strict=True)))

    def ranks(self, vector: Vectors, videos: Sequence[str]) -> dict[str, int | None]:
        exclude = self.exclude if vector is self.last else ()
        return dict(zip(videos, self.index.ranks_of(vector, videos, exclude), strict=True))


def _vectors(episode: Episode) -> tuple[Vectors, Vectors]:
    assert episode.first_vector is not None
    assert episode.final_vector is not None
    first, last = (vector[None].float().cpu().numpy() for vector in (episode.first_vector, episode.final_vector))
    return first, last


def _places(ranked: Ranked) -> tuple[RankedVideo, ...]:
    """Each video once, with its best window."""
    kept = (ranked[place] for place in best_of_each([segment_id for segment_id, _ in ranked]))
    return tuple(RankedVideo(video_of(s), round(score, 4), *(window_of(s) or ())) for s, score in kept)


def _shown(number: int, turn: Turn) -> ShownTurn:
    start_s, end_s = window_of(turn.video_id) or (None, None)
    return ShownTurn(
        turn=number,
        video=video_of(turn.video_id),
        score=round(turn.score, 4),
        decision=turn.answer.decision,
        matched_probability=turn.decoded.matched_probability,
        start_s=turn.answer.start_s,
        end_s=turn.answer.end_s,
        reasoning=turn.answer.reasoning,
        new_query=turn.answer.new_query,
        num_latent_tokens=turn.decoded.num_latent_tokens,
        ranking=_places(turn.ranked),
        window_start_s=start_s,
        window_end_s=end_s,
    )


def _found(opened: OpenedModels, request: SearchRequest, ranked: _Rankings, episode: Episode | None) -> Found:
    turns = [_shown(number, turn) for number, turn in enumerate(episode.turns if episode else (), 1)]
    last_ranks = ranked.ranks(ranked.last, [turn.video for turn in turns]) if turns else {}
    places = ranked.places(ranked.last, request.top_k)
    return Found(
        text=request.text.strip(),
        dataset=opened.view.entry.name,
        split=request.split,
        hits=_hits(places, ranked.ranks(ranked.first, [place.video for place in places]), turns),
        first=ranked.places(ranked.first, request.top_k),
        turns=tuple(replace(turn, last_rank=last_ranks[turn.video]) for turn in turns),
    )


def _hits(
    places: Sequence[RankedVideo], first_ranks: dict[str, int | None], turns: Iterable[ShownTurn]
) -> tuple[Hit, ...]:
    said = {(turn.video, turn.window_start_s): turn for turn in turns}
    names = ("turn", "decision", "matched_probability", "start_s", "end_s", "reasoning")
    hits = []
    for rank, place in enumerate(places, 1):
        hit = Hit(rank, first_rank=first_ranks[place.video], **dataclasses.asdict(place))
        if turn := said.get((place.video, place.window_start_s)):
            hit = replace(hit, **{name: getattr(turn, name) for name in names})
        hits.append(hit)
    return tuple(hits)


def paths_of(view: View, video_ids: Sequence[str]) -> dict[str, str | None]:
    """Video id -> the video's file, of the videos among these that have one."""
    return dict(view.rows("videos", ["video_id", "path"]).filter(pl.col("video_id").is_in(video_ids)).iter_rows())
