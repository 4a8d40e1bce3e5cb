"""The predictions of one method, aligned with the annotated queries as arrays. Metrics read these arrays.

Every annotated query has a place in the arrays. A query without a usable prediction (its video is missing, or its row
failed) has no rank and no answer. This module reads and writes no tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from vsr1_core.evaluation.columns import equals, floats, is_right_video, ok_rows, span_iou
from vsr1_core.evaluation.spans import BoolArray, FloatArray, IntArray, as_ranks
from vsr1_core.segments import is_right

OUTCOMES = {
    "found": "right video accepted, IoU at least 0.5",
    "wrong_span": "right video accepted, IoU below 0.5",
    "right_video_rejected": "never matched, although the right video was shown",
    "wrong_video_accepted": "a wrong video was accepted",
    "never_shown": "never matched, and the right video was never shown",
    "no_prediction": "failed or without a prediction",
}
"""How a query can end -> its meaning. Each query ends in exactly one of these ways."""


@dataclass(frozen=True)
class Verifications:
    """All verdicts of a method, one element per verdict, shape (V,), in the order of query and turn."""

    query: IntArray
    """Position of the query in `Episodes.query_ids`."""
    turn: IntArray
    """Number of the turn, counted from 1."""
    rank: FloatArray
    """Rank of the right video in this turn's ranking; infinite if it is not in the ranking."""
    is_right_video: BoolArray
    is_matched: BoolArray
    is_correct: BoolArray
    iou: FloatArray
    """IoU of the span with the right one; 0 unless the shown video is the right one."""
    probability: FloatArray
    """Probability of a match; NaN if it is not known."""
    num_text_tokens: FloatArray
    num_latent_tokens: FloatArray
    num_query_tokens: FloatArray


@dataclass(frozen=True)
class Episodes:
    """One method's results for all annotated queries. Each array has shape (Q,), in the order of `query_ids`."""

    query_ids: tuple[str, ...]
    has_prediction: BoolArray
    first_rank: FloatArray
    """Rank of the right video for the query's own text; infinite if it is in no ranking."""
    rank: FloatArray
    """Rank of the right video in the last ranking; infinite if it is not in the ranking."""
    is_matched: BoolArray
    is_right_video: BoolArray
    iou: FloatArray
    """IoU of the strict answer; 0 unless the right video was accepted."""
    best_iou: FloatArray
    """IoU of the best answer, which is also given where nothing was accepted; 0 unless it names the right video."""
    num_text_tokens: FloatArray
    num_latent_tokens: FloatArray
    num_query_tokens: FloatArray
    """Tokens of the queries that were written anew; they are among the text tokens."""
    verifications: Verifications
    segment_rank: FloatArray | None = None
    """Rank of the best right segment among the windows and whole videos of the last ranking; infinite where it is not
    among the first that are kept. None where no video is searched in windows."""

    def per_query(self, counted: BoolArray) -> FloatArray:
        """How many of each query's verifications are counted, shape (Q,), by `counted` of shape (V,)."""
        of_query = self.verifications.query[counted]
        return np.bincount(of_query, minlength=len(self.query_ids)).astype(np.float64)


def load_episodes(moments: pl.DataFrame, predictions: pl.DataFrame) -> Episodes:
    """Align a method's predictions with the annotated queries.

    Args:
        moments: The truth, one row per query, with the columns query_id, video_id, start_s and end_s.
        predictions: Rows of `predictions.<method>` (`row_types.PredictionRow`). Rows that are not ok and rows of
            other queries are left out.

    Returns:
        The queries of `moments`, sorted by query_id.

    Raises:
        ValueError: A query has two moments or two predictions.
    """
    columns = {"gt_video_id": "video_id", "gt_start_s": "start_s", "gt_end_s": "end_s"}
    truth = moments.select("query_id", **columns).sort("query_id").with_row_index("query")
    rows = ok_rows(predictions)
    if truth["query_id"].n_unique() != truth.height or rows["query_id"].n_unique() != rows.height:
        raise ValueError(
            "a query_id occurs twice: metrics need one moment and at most one prediction per query; look for it among "
            "the rows of moments and of predictions"
        )
    answer = ("video_id", "start_s", "end_s", "best_video_id", "best_start_s", "best_end_s", "decision")
    tokens = ("num_text_tokens", "num_latent_tokens", "num_query_tokens")
    rows = rows.select("query_id", "first_rank", "rank", *answer, *tokens, "turns", has_prediction=pl.lit(True))
    frame = truth.join(rows, on="query_id", how="left").sort("query")
    best = frame.select(pl.col("^gt_.*$"), pl.col("^best_.*$").name.map(lambda name: name.removeprefix("best_")))
    is_right, is_matched = is_right_video(frame), equals(frame["decision"], "matched")
    return Episodes(
        query_ids=tuple(frame["query_id"].to_list()),
        has_prediction=frame["has_prediction"].fill_null(False).to_numpy(),
        first_rank=as_ranks(floats(frame["first_rank"])),
        rank=as_ranks(floats(frame["rank"])),
        is_matched=is_matched,
        is_right_video=is_right,
        iou=np.where(is_right & is_matched, span_iou(frame), 0.0),
        best_iou=np.where(is_right_video(best), span_iou(best), 0.0),
        num_text_tokens=np.nan_to_num(floats(frame["num_text_tokens"])),
        num_latent_tokens=np.nan_to_num(floats(frame["num_latent_tokens"])),
        num_query_tokens=np.nan_to_num(floats(frame["num_query_tokens"])),
        verifications=_verifications(frame),
        segment_rank=_segment_ranks(truth, predictions),
    )


def _segment_ranks(truth: pl.DataFrame, predictions: pl.DataFrame) -> FloatArray | None:
    if "top_video_ids" not in predictions.columns:
        return None
    tops = predictions.select("query_id", "top_video_ids").drop_nulls()
    if not tops["top_video_ids"].explode().drop_nulls().str.contains("//", literal=True).any():
        return None
    columns = ("gt_video_id", "gt_start_s", "gt_end_s", "top_video_ids")
    rows = truth.join(tops, on="query_id", how="left").sort("query").select(columns).iter_rows()
    return np.array([next((n for n, s in enumerate(top or (), 1) if is_right(s, *gt)), np.inf) for *gt, top in rows])


def _verifications(frame: pl.DataFrame) -> Verifications:
    truth = frame.select("query", "gt_video_id", "gt_start_s", "gt_end_s", "turns")
    turns = truth.explode("turns").drop_nulls("turns").unnest("turns").sort("query", "turn")
    is_right, is_matched = is_right_video(turns), equals(turns["decision"], "matched")
    is_decided = is_matched | equals(turns["decision"], "not_matched")
    return Verifications(
        query=turns["query"].cast(pl.Int64).to_numpy(),
        turn=turns["turn"].cast(pl.Int64).to_numpy(),
        rank=as_ranks(floats(turns["rank"])),
        is_right_video=is_right,
        is_matched=is_matched,
        is_correct=is_decided & (is_matched == is_right),
        iou=np.where(is_right, span_iou(turns), 0.0),
        probability=floats(turns["matched_probability"]),
        num_text_tokens=np.nan_to_num(floats(turns["num_text_tokens"])),
        num_latent_tokens=np.nan_to_num(floats(turns["num_latent_tokens"])),
        num_query_tokens=np.nan_to_num(floats(turns["num_query_tokens"])),
    )


def cut_after(episodes: Episodes, num_turns: int) -> Episodes:
    """The same episodes as if the search had stopped after `num_turns` shown videos.

    An episode ends with its first match, so its answer is the answer of its last turn. `rank` is that of the ranking
    from which the last shown video came: the ranking after the last refinement, by which `Episodes.rank` goes where
    nothing was matched, showed no video. What the best answer would have
    been is not known, so `best_iou` is NaN, and there are no ranks of segments.
    """
    v = episodes.verifications
    allowed = np.flatnonzero(v.turn <= num_turns)
    query = v.query[allowed]

    def last(values: BoolArray | FloatArray, missing: float) -> FloatArray:
        """The value of each query's last allowed turn. Verdicts are in the order of turns, so the last assignment is
        kept."""
        found = np.full(len(episodes.query_ids), missing)
        found[query] = values[allowed]
        return found

    def spent(tokens: FloatArray) -> FloatArray:
        return np.bincount(query, tokens[allowed], minlength=len(episodes.query_ids)).astype(np.float64)

    is_matched, is_right = last(v.is_matched, 0.0) > 0, last(v.is_right_video, 0.0) > 0
    return replace(
        episodes,
        rank=last(v.rank, np.inf),
        is_matched=is_matched,
        is_right_video=is_right,
        iou=np.where(is_matched & is_right, last(v.iou, 0.0), 0.0),
        best_iou=np.full(len(episodes.query_ids), np.nan),
        segment_rank=None,
        num_text_tokens=spent(v.num_text_tokens),
        num_latent_tokens=spent(v.num_latent_tokens),
        num_query_tokens=spent(v.num_query_tokens),
        verifications=Verifications(**{name: values[allowed] for name, values in vars(v).items()}),
    )


def outcomes(episodes: Episodes) -> pl.DataFrame:
    """Say how each query ended.

    Returns:
        A frame (query_id, outcome), one row per query in the order of `episodes`; outcome is a key of `OUTCOMES`.
    """
    shown = episodes.per_query(episodes.verifications.is_right_video) > 0
    accepted = episodes.is_matched & episodes.is_right_video
    labels = np.select(
        [~episodes.has_prediction, accepted & (episodes.iou >= 0.5), accepted, episodes.is_matched, shown],
        ["no_prediction", "found", "wrong_span", "wrong_video_accepted", "right_video_rejected"],
        "never_shown",
    )
    return pl.DataFrame(
        {"query_id": list(episodes.query_ids), "outcome": labels.tolist()},
        schema={"query_id": pl.String, "outcome": pl.String},
    )
