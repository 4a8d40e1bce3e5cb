"""The top-1 pool: the train queries of stage 1, each with the video that the policy is shown for it."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping

import polars as pl

from vsr1_core.rows.blocks import blocks
from vsr1_core.rows.columnar import LazyRows, texts
from vsr1_core.rows.imported import ImportedRow
from vsr1_core.rows.merged import is_among
from vsr1_core.rows.versions import fingerprint
from vsr1_core.segments import is_right, touches, window_of
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.moments import TRAIN, asked_versions, right_segments, same_text_videos, windows_by_video
from vsr1_core.stages.readings import Reading
from vsr1_core.stages.reads import same

_SameText = Mapping[str, frozenset[str]]
"""What `same_text_videos` returns."""


class Top1Pool(Stage):
    """Train queries with the first video of their ranking: `num_matched` with the right video first, and
    `num_not_matched` with a wrong one.

    Queries are drawn by a hash of (seed, query id), so a changed row does not reshuffle the others. There are fewer
    rows than asked for where there are too few queries. Left out are queries whose right video is not in the index,
    queries whose first video is wrong but has a moment with the same text, or whose first window shows a smaller part
    of the moment than a right one does, because its label is undecidable, and
    queries whose first video the teacher cannot describe: the template teacher reads its annotated moments, a model
    its stored frames.
    With `fill_matched`, where too few right videos rank first, spare queries are shown their right video although it
    does not: the toy's embedder ranks it first for one train query in forty, too few to learn what a match looks like.
    With `random_share`, that share of the mismatches shows a random wrong video instead of the first one.
    The stage has no recipe: the recipe decides which rows exist and never what is in one, so asking for more rows makes
    only the new ones. An imported pool is used as a whole, and no further queries are drawn.
    """

    name = "top1_pool"
    key = "query_id"
    group = "sft"
    says = "One row per train query of stage 1: the video that is shown, and whether it is the right one."
    reads = {"first_ranking": same("first_ranking")}
    uses = ("moments", "frame_tensors")
    imports = "rows"
    columns = {
        "label": c.LABEL,
        "shown_video_id": c.SHOWN_VIDEO_ID,
        "gt_video_id": c.GT_VIDEO_ID,
    }
    is_known_before = True
    is_planned_from_tables = True

    def plan(self, view: View) -> Mapping[str, Row]:
        imported = view.imported_rows(self.name)
        return self._as_imported(view, imported) if imported else self._drawn(view)

    def _as_imported(self, view: View, imported: Mapping[str, ImportedRow]) -> dict[str, Row]:
        """The imported queries. Those whose moment has changed since the import show the video that ranks first now."""
        asked = asked_versions(view)
        changed = {q for q in imported if q in asked and imported[q].basis != {"query": asked[q]}}
        held = {q: Row({}, basis={"query": asked[q]}) for q in imported if q in asked and q not in changed}
        if not changed:
            return held
        ranked = self._candidates(view, _train_rankings(view), same_text_videos(view))
        return held | dict(LazyRows(ranked.filter(is_among("query_id", changed)), _row))

    def _drawn(self, view: View) -> Mapping[str, Row]:
        pool, rankings, never = view.config.pool, _train_rankings(view), same_text_videos(view)
        candidates = self._candidates(view, rankings, never)
        drawn, is_matched = _drawn_order(pool.seed, candidates["query_id"]), candidates["label"] == "matched"
        right, wrong = (drawn.filter(is_so[drawn]) for is_so in (is_matched, ~is_matched))
        matched, not_matched = candidates[right.head(pool.num_matched)], candidates[wrong.head(pool.num_not_matched)]
        if pool.random_share:
            not_matched = self._shown_any(view, never, not_matched)
        filled: list[pl.DataFrame] = []
        if pool.fill_matched:
            spare = candidates[wrong.slice(pool.num_not_matched)]
            filled = self._filled(view, spare, max(0, pool.num_matched - matched.height))
        return LazyRows(pl.concat([matched, not_matched, *filled]), _row)

    @staticmethod
    def _filled(view: View, spare: pl.DataFrame, number: int) -> list[pl.DataFrame]:
        """So many of the spare queries as they are shown their right video."""
        right = right_segments(view)
        pairs = ((query_id, right[query_id], video_id) for query_id, _, _, video_id in spare.iter_rows())
        rows = ((query_id, "matched", shown, video_id) for query_id, shown, video_id in pairs if shown is not None)
        return [_frame(itertools.islice(rows, number))]

    @staticmethod
    def _shown_any(view: View, never: _SameText, not_matched: pl.DataFrame) -> pl.DataFrame:
        """The mismatches, a share of which shows a random wrong video: the first one after the query on a ring of
        hashes, so that a new video changes only the few queries before it."""
        seed, share = view.config.pool.seed, view.config.pool.random_share
        tops = (rows["top_video_ids"].explode().drop_nulls().unique() for rows in _train_rankings(view))
        ranked = set(itertools.chain.from_iterable(tops))
        ring = sorted((_draw(seed, video_id), video_id) for video_id in ranked & _describable(view))

        def shown(query_id: str, label: str, first: str, gt_video_id: str) -> tuple[str, str, str, str]:
            if int(_draw(seed, f"{query_id}/share")[:8], 16) >= share * 16**8:
                return query_id, label, first, gt_video_id
            at = bisect.bisect(ring, (_draw(seed, f"{query_id}/any"),))
            following = (ring[(at + step) % len(ring)][1] for step in range(len(ring)))
            return query_id, label, next((v for v in following if v not in never[query_id]), first), gt_video_id

        return _frame(itertools.starmap(shown, not_matched.iter_rows()))

    @staticmethod
    def _candidates(view: View, rankings: Iterator[pl.DataFrame], never: _SameText) -> pl.DataFrame:
        """Id and columns of every query that may be drawn."""
        described = _describable(view)
        span_of = functools.cache(lambda: _spans(view))  # where windows are ranked
        first = pl.col("top_video_ids").list.first()
        ranked = (rows.drop_nulls("rank").with_columns(first).iter_rows() for rows in rankings)

        def found() -> Iterator[tuple[str, str, str, str]]:
            for query_id, video_id, _, shown in itertools.chain.from_iterable(ranked):
                if shown not in described or query_id not in never:
                    continue
                is_window = window_of(shown) is not None
                is_matched = is_right(shown, video_id, *span_of()[query_id]) if is_window else shown == video_id
                if is_matched or shown not in never[query_id]:
                    yield query_id, "matched" if is_matched else "not_matched", shown, video_id

        return _frame(found())


def _row(_: str, label: str, shown_video_id: str, gt_video_id: str) -> Row:
    """A row of the pool, whose version covers its own columns only. In the version the right video is still called
    `video_id`, as before that column was renamed, so that traces which a paid model wrote keep their version."""
    version = fingerprint({"label": label, "shown_video_id": shown_video_id, "video_id": gt_video_id})
    known = {"label": label, "shown_video_id": shown_video_id, "gt_video_id": gt_video_id}
    return Row({"first_ranking": version}, known)


def _frame(rows: Iterable[tuple[str, str, str, str]]) -> pl.DataFrame:
    """Id and columns of rows of the pool."""
    schema = dict.fromkeys(("query_id", "label", "shown_video_id", "gt_video_id"), pl.String)
    some = (pl.DataFrame(block, schema=schema, orient="row") for block in blocks(rows))
    return pl.concat([pl.DataFrame(schema=schema), *some])


def _drawn_order(seed: int, ids: pl.Series) -> pl.Series:
    """The places of the ids in the order of their draws (`_draw`), by the first 128 bits of them: as texts, those of a
    million ids took 80 MB, and their order as much again."""
    import numpy as np

    begins = b"".join(hashlib.sha256(f"{seed}/{row_id}".encode()).digest()[:16] for row_id in texts(ids))
    halves = np.frombuffer(begins, ">u8").reshape(-1, 2).astype(np.uint64)
    return pl.Series(np.lexsort((halves[:, 1], halves[:, 0])).astype(np.uint32))


def _spans(view: View) -> Mapping[str, tuple[float, float]]:
    return LazyRows(view.rows("moments", ["query_id", "start_s", "end_s"], TRAIN), lambda _, *span: span)


def _describable(view: View) -> frozenset[str]:
    """The segments that the teacher can describe: it needs their stored frames, or annotated moments in them."""
    if view.config.teacher.asks_a_model:
        return frozenset(view.rows("frame_tensors", ["video_id"])["video_id"])
    videos, windows = frozenset(view.rows("moments", ["video_id"], TRAIN)["video_id"].unique()), windows_by_video(view)
    if not windows:
        return videos
    moments = view.rows("moments", ["video_id", "start_s", "end_s"], TRAIN).iter_rows()
    return videos | {s for moment in moments for s in windows.get(moment[0], ()) if touches(s, *moment)}


def _train_rankings(view: View) -> Iterator[pl.DataFrame]:
    """Some thousands at a time: those of a million queries take 2 GB."""
    columns = ["query_id", "gt_video_id", "rank", "top_video_ids"]
    return view.read_batches(Reading.of("first_ranking", "results", columns, TRAIN))


def _draw(seed: int, name: str) -> str:
    """Deterministic uniform draw for a name, as a hexadecimal number of 64 digits."""
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


STAGES: tuple[type[Stage], ...] = (Top1Pool,)
