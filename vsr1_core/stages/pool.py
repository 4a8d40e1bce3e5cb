"""The top-1 pool: the train queries of stage 1, each with the video that the policy is shown for it."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Mapping

import polars as pl

from vsr1_core.rows.imported import ImportedRow
from vsr1_core.rows.versions import fingerprint
from vsr1_core.segments import is_right, touches
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

    def plan(self, view: View) -> dict[str, Row]:
        imported = view.imported_rows(self.name)
        return self._as_imported(view, imported) if imported else self._drawn(view)

    def _as_imported(self, view: View, imported: Mapping[str, ImportedRow]) -> dict[str, Row]:
        """The imported queries. Those whose moment has changed since the import show the video that ranks first now."""
        asked = asked_versions(view)
        changed = {q for q in imported if q in asked and imported[q].basis != {"query": asked[q]}}
        held = {q: Row({}, basis={"query": asked[q]}) for q in imported if q in asked and q not in changed}
        ranked = self._candidates(view, _train_rankings(view), same_text_videos(view)) if changed else {}
        return held | {q: _row(known) for q, known in ranked.items() if q in changed}

    def _drawn(self, view: View) -> dict[str, Row]:
        pool, rankings, never = view.config.pool, _train_rankings(view), same_text_videos(view)
        candidates = self._candidates(view, rankings, never)
        drawn = sorted(candidates, key=lambda query_id: _draw(pool.seed, query_id))
        matched = [q for q in drawn if candidates[q]["label"] == "matched"][: pool.num_matched]
        wrong = [q for q in drawn if candidates[q]["label"] == "not_matched"]
        not_matched, spare = wrong[: pool.num_not_matched], wrong[pool.num_not_matched :]
        chosen = {query_id: candidates[query_id] for query_id in (*matched, *not_matched)}
        if pool.random_share:
            chosen |= self._shown_any(view, never, {q: candidates[q] for q in not_matched})
        if pool.fill_matched:
            right = right_segments(view)
            spare = [query_id for query_id in spare if right[query_id] is not None]
            for query_id in spare[: max(0, pool.num_matched - len(matched))]:
                chosen[query_id] = {**candidates[query_id], "label": "matched", "shown_video_id": right[query_id] or ""}
        return {query_id: _row(known) for query_id, known in chosen.items()}

    @staticmethod
    def _shown_any(
        view: View, never: _SameText, not_matched: Mapping[str, Mapping[str, str]]
    ) -> dict[str, dict[str, str]]:
        """The share of the mismatches that shows a random wrong video: the first one after the query on a ring of
        hashes, so that a new video changes only the few queries before it."""
        seed, share = view.config.pool.seed, view.config.pool.random_share
        tops = (rows["top_video_ids"].explode().drop_nulls().unique() for rows in _train_rankings(view))
        ranked = set(itertools.chain.from_iterable(tops))
        ring = sorted((_draw(seed, video_id), video_id) for video_id in ranked & _describable(view))
        shown = {}
        for query_id, known in not_matched.items():
            if int(_draw(seed, f"{query_id}/share")[:8], 16) >= share * 16**8:
                continue
            at = bisect.bisect(ring, (_draw(seed, f"{query_id}/any"),))
            following = (ring[(at + step) % len(ring)][1] for step in range(len(ring)))
            video_id = next((v for v in following if v not in never[query_id]), known["shown_video_id"])
            shown[query_id] = {**known, "shown_video_id": video_id}
        return shown

    @staticmethod
    def _candidates(view: View, rankings: Iterator[pl.DataFrame], never: _SameText) -> dict[str, dict[str, str]]:
        """Query id -> columns of its row, of every query that may be drawn."""
        found, described, spans = {}, _describable(view), view.rows("moments", ["query_id", "start_s", "end_s"], TRAIN)
        span_of = {query_id: span for query_id, *span in spans.iter_rows()}
        first = pl.col("top_video_ids").list.first()
        ranked = (rows.drop_nulls("rank").with_columns(first).iter_rows() for rows in rankings)
        for query_id, video_id, _, shown in itertools.chain.from_iterable(ranked):
            if shown not in described or query_id not in never:
                continue
            is_matched = is_right(shown, video_id, *span_of[query_id])
            if is_matched or shown not in never[query_id]:
                label = "matched" if is_matched else "not_matched"
                found[query_id] = {"label": label, "shown_video_id": shown, "gt_video_id": video_id}
        return found


def _row(known: Mapping[str, str]) -> Row:
    """A row of the pool, whose version covers its own columns only. In the version the right video is still called
    `video_id`, as before that column was renamed, so that traces which a paid model wrote keep their version."""
    spelled = {"video_id" if name == "gt_video_id" else name: value for name, value in known.items()}
    return Row({"first_ranking": fingerprint(spelled)}, known)


def _describable(view: View) -> frozenset[str]:
    """The segments that the teacher can describe: it needs their stored frames, or annotated moments in them."""
    if view.config.teacher.asks_a_model:
        return frozenset(view.rows("frame_tensors", ["video_id"])["video_id"])
    moments = view.rows("moments", ["video_id", "start_s", "end_s"], TRAIN).rows()
    windows = windows_by_video(view)
    shown = {s for moment in moments for s in windows.get(moment[0], ()) if touches(s, *moment)}
    return frozenset(video_id for video_id, *_ in moments) | shown


def _train_rankings(view: View) -> Iterator[pl.DataFrame]:
    """Some thousands at a time: those of a million queries take 2 GB."""
    columns = ["query_id", "gt_video_id", "rank", "top_video_ids"]
    return view.read_batches(Reading.of("first_ranking", "results", columns, TRAIN))


def _draw(seed: int, name: str) -> str:
    """Deterministic uniform draw for a name, as a hexadecimal number of 64 digits."""
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


STAGES: tuple[type[Stage], ...] = (Top1Pool,)
