"""Verification probes: each evaluated query with one right and one wrong video, one stage per trained method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import polars as pl

from vsr1_core.evaluation.row_types import MomentRow, ProbeRow, typed_rows
from vsr1_core.recipes import Configuration
from vsr1_core.rows.versions import fingerprint
from vsr1_core.segments import best_right, clipped
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, RowIds, Stage, View
from vsr1_core.stages.methods import PROBED, Method, asked_as, methods_of
from vsr1_core.stages.model_folders import is_absent
from vsr1_core.stages.model_rows import ModelRows
from vsr1_core.stages.moments import moment_rows, same_text_videos, windows_by_video
from vsr1_core.stages.opened import OpenedModels
from vsr1_core.stages.reads import found_by, known, one

if TYPE_CHECKING:
    from vsr1_core.search.episodes import Verification


def _shown_in_probe(view: View, row_id: str, row: Row) -> RowIds:
    """The row that decides which video is shown: the moment for the right video, the ranking for the wrong one."""
    asset = "moments" if row.known["label"] == "matched" else "first_ranking"
    return [(asset, [row.known["query_id"]])]


class VerificationProbe(ModelRows):
    """Two greedy verifications per evaluated query: of its right video and of the wrong video that ranks first.

    Nothing is searched for, so both labels are equally frequent, whereas the verdicts of a search are mostly about
    wrong videos. A query whose right video has no frames is left out. A query without a wrong video has only the probe
    of its right video. Of a video that is searched in windows, the window with most of the moment is shown, and the
    span is compared with the part of the moment that it shows.
    """

    key = "probe_id"
    key_says = "Id of the probe: `<query_id>/right` or `<query_id>/wrong`."
    group = "evaluation"
    version = 3
    is_planned_from_tables = True
    columns = {
        "query_id": c.QUERY_ID,
        "split": c.SPLIT,
        "label": c.LABEL,
        "shown_video_id": c.SHOWN_VIDEO_ID,
        "decision": c.DECISION,
        "matched_probability": c.MATCHED_PROBABILITY,
        "start_s": c.START_S,
        "end_s": c.END_S,
        "iou": c.IOU,
        "num_text_tokens": c.NUM_TEXT_TOKENS,
    }

    def __init__(self, method: Method) -> None:
        self.method = method
        self.name = f"verification_probe.{method.name}"
        self.says = f"Decisions about one right and one wrong video per evaluated query, without search. {method.says}"
        self.uses = ("base_models",)
        self.models = ((method.model, method.row_id),)
        self.reads = {
            "query": known("moments", "query_id"),
            "moment": known("moments", "query_id"),
            "shown": found_by(_shown_in_probe, "moments", "first_ranking"),
            "frames": known("frame_tensors", "shown_video_id"),
            "checkpoint": one(method.model, method.row_id),
        }

    def recipe(self, config: Configuration) -> Any:
        return [config.evaluation.max_new_tokens]

    def concerns(self, view: View) -> bool:
        return self.method.name in methods_of(view.config)

    def plan(self, view: View) -> dict[str, Row]:
        """The rows; a new index leaves a row unchanged as long as the same wrong video ranks first."""
        model = (self.method.model, self.method.row_id)
        if not self.concerns(view) or is_absent(view, *model):
            return {}
        checkpoint = view.version(*model)
        probes, rows = probes_of(view), {}
        is_shown = pl.col("video_id").is_in({probe["shown_video_id"] for probe in probes.values()})
        frames = dict(view.rows("frame_tensors", ["video_id", "content"]).filter(is_shown).iter_rows())
        for probe_id, probe in probes.items():
            inputs = {
                "query": fingerprint(probe["query"]),
                "shown": fingerprint([probe["shown_video_id"], probe["split"]]),
                "frames": frames[probe["shown_video_id"]],
                "checkpoint": checkpoint,
            }
            if probe["label"] == "matched":
                inputs["moment"] = fingerprint([probe["gt_start_s"], probe["gt_end_s"]])
            rows[probe_id] = Row(inputs, {name: probe[name] for name in PROBE_KNOWN}, facts=probe)
        return rows

    def open(self, opened: OpenedModels, rows: Mapping[str, Row]) -> None:
        opened.features(opened.policy(self.method))

    def make_with(self, opened: OpenedModels, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        from vsr1_core.models.protocols import DecodeSettings
        from vsr1_core.search.episodes import verify

        policy, batch_size = opened.policy(self.method), opened.execution.batch_size
        features, durations_s = opened.features(policy), opened.durations_s
        limits = asked_as(policy.model.soft_query.form, opened.view.config.evaluation)
        settings = DecodeSettings(limits.max_new_tokens, 0.0, num_soft_tokens=0)
        probes: list[ShownPair] = [row.facts for row in rows.values()]
        size = batch_size * 8
        for start in range(0, len(probes), size):
            some = probes[start : start + size]
            pairs = [(probe["query"], probe["shown_video_id"]) for probe in some]
            asked = verify(policy, features, durations_s, pairs, settings, batch_size * 2)
            for probe, verification in zip(some, asked, strict=True):
                yield dict(probe_row(probe, verification))


ProbeKnown = Literal["query_id", "split", "label", "shown_video_id"]
PROBE_KNOWN: tuple[ProbeKnown, ...] = ("query_id", "split", "label", "shown_video_id")
"""Columns of a probe that are known before the policy is asked."""


class ShownPair(TypedDict):
    """What one probe shows, and the right answer."""

    probe_id: str
    query_id: str
    query: str
    split: str
    label: str
    shown_video_id: str
    gt_start_s: float
    gt_end_s: float


def probes_of(view: View) -> dict[str, ShownPair]:
    """Probe id -> what is shown and what is right.

    The wrong video is the first one of the first ranking that is not right, shows nothing of a moment with the same
    query text, and has frames. Raises NotYetKnown while that ranking is still to be made.
    """
    probes: dict[str, ShownPair] = {}
    splits = view.config.evaluation.splits
    rankings = [view.results("first_ranking", ["query_id", "top_video_ids"], [split]) for split in splits]
    with_frames = set(view.rows("frame_tensors", ["video_id"])["video_id"])
    windows = windows_by_video(view)
    for split, ranking in zip(splits, rankings, strict=True):
        ranked = dict(ranking.iter_rows())
        never = same_text_videos(view, split)
        moments = moment_rows(view, [split]).filter(pl.col("video_id").is_in([*with_frames, *windows]))
        for moment in typed_rows(moments, MomentRow):
            query_id, span = moment["query_id"], (moment["start_s"], moment["end_s"])
            right = best_right(windows.get(moment["video_id"], [moment["video_id"]]), moment["video_id"], *span)
            if right is None:
                continue
            start_s, end_s = clipped(right, *span)
            shown = {"right": ("matched", right)}
            candidates = (v for v in ranked.get(query_id, ()) if v not in never[query_id] and v in with_frames)
            if (wrong := next(candidates, None)) is not None:
                shown["wrong"] = ("not_matched", wrong)
            for side, (label, video_id) in shown.items():
                probes[f"{query_id}/{side}"] = {
                    "probe_id": f"{query_id}/{side}",
                    "query_id": query_id,
                    "query": moment["query"],
                    "split": split,
                    "label": label,
                    "shown_video_id": video_id,
                    "gt_start_s": start_s,
                    "gt_end_s": end_s,
                }
    return probes


def probe_row(probe: ShownPair, asked: Verification) -> ProbeRow:
    """A verification as a row of the table. `iou` is 0 unless the right video was matched."""
    from vsr1_core.evaluation.spans import temporal_iou

    start_s, end_s = asked.answer.start_s, asked.answer.end_s
    iou = 0.0
    if probe["label"] == "matched" and start_s is not None and end_s is not None:
        iou = float(temporal_iou(start_s, end_s, probe["gt_start_s"], probe["gt_end_s"]))
    return {
        "probe_id": probe["probe_id"],
        "query_id": probe["query_id"],
        "split": probe["split"],
        "label": probe["label"],
        "shown_video_id": probe["shown_video_id"],
        "decision": asked.answer.decision,
        "matched_probability": asked.decoded.matched_probability,
        "start_s": start_s,
        "end_s": end_s,
        "iou": iou,
        "num_text_tokens": asked.decoded.num_text_tokens,
    }


STAGES: tuple[Callable[[], Stage], ...] = tuple(partial(VerificationProbe, method) for method in PROBED.values())
