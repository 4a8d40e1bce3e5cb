"""Verification probes: every evaluated query shown one right and one wrong video. A stage for each trained method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from vsr1_core.recipes import Configuration
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import Execution, Row, Stage, View
from vsr1_core.stages.methods import BASIC_METHODS, METHODS, methods_of
from vsr1_core.stages.moments import same_text_videos

if TYPE_CHECKING:
    from vsr1_core.search.episodes import Verification


class VerificationProbe(Stage):
    """Every evaluated query shown its right video and the wrong one that ranks first, a greedy verification each.

    Nothing is searched, so both labels are equally frequent; the search's own verdicts are mostly about wrong videos.
    A query whose right video has no frames is left out, and one without a wrong video has a right probe only.
    Subclasses name the method.
    """

    method: ClassVar[str]
    key: ClassVar[str] = "probe_id"
    group: ClassVar[str] = "evaluation"
    columns: ClassVar[Mapping[str, Any]] = {
        "query_id": pl.String,
        "split": pl.String,
        "label": pl.String,
        "shown_video_id": pl.String,
        "decision": pl.String,
        "matched_probability": pl.Float64,
        "start_s": pl.Float64,
        "end_s": pl.Float64,
        "iou": pl.Float64,
        "num_text_tokens": pl.Int64,
    }

    def recipe(self, config: Configuration) -> Any:
        return [config.evaluation.max_new_tokens]

    def wanted(self, view: View) -> dict[str, Row]:
        """A new index makes no row stale whose wrong video still ranks first."""
        if self.method not in methods_of(view.config):
            return {}
        how = METHODS[self.method]
        checkpoint = view.versions(how.asset).get(how.row_id, "")
        frames = dict(view.rows("frame_tensors", ["video_id", "content"]).iter_rows())
        rows = {}
        for probe_id, probe in probes_of(view).items():
            inputs = {
                "query": fingerprint(probe["query"]),
                "shown": fingerprint([probe["shown_video_id"], probe["split"]]),
                "frames": frames[probe["shown_video_id"]],
                "checkpoint": checkpoint,
            }
            if probe["label"] == "matched":
                inputs["moment"] = fingerprint([probe["gt_start_s"], probe["gt_end_s"]])
            rows[probe_id] = Row(inputs, {name: probe[name] for name in PROBE_KNOWN})
        return rows

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        from vsr1_core.models.decoding import DecodeSettings
        from vsr1_core.search.episodes import verify
        from vsr1_core.stages.loading import durations_of, frame_store, policy_of

        how, probes = METHODS[self.method], probes_of(view)
        policy = policy_of(view, execution, how.asset, how.row_id)
        features, durations_s = frame_store(view, policy.model.model, execution), durations_of(view)
        settings = DecodeSettings(view.config.evaluation.max_new_tokens, 0.0, num_soft_tokens=0)
        size = execution.batch_size * 8
        for start in range(0, len(ids), size):
            some = [probes[i] for i in ids[start : start + size]]
            pairs = [(probe["query"], probe["shown_video_id"]) for probe in some]
            asked = verify(policy, features, durations_s, pairs, settings, execution.batch_size * 2)
            for probe, verification in zip(some, asked, strict=True):
                yield probe_row(probe, verification)


PROBE_KNOWN = ("query_id", "split", "label", "shown_video_id")


def probes_of(view: View) -> dict[str, dict[str, Any]]:
    """probe_id -> what is shown: label, shown_video_id, query_id, query, split, gt_start_s, gt_end_s.

    The wrong video is the first of the first ranking that is not right and shares no query text with it.
    Raises NotYetKnown while that ranking is still to be made.
    """
    probes = {}
    with_frames = set(view.rows("frame_tensors", ["video_id"])["video_id"])
    for split in view.config.evaluation.splits:
        of_split = pl.col("split") == split
        ranked = dict(view.results("first_ranking", ["query_id", "top_video_ids"], of_split).iter_rows())
        never = same_text_videos(view, split)
        for row in view.rows("moments").filter(of_split & pl.col("video_id").is_in(list(with_frames))).to_dicts():
            query_id = row["query_id"]
            shared = {"query_id": query_id, "query": row["query"], "split": split}
            shared |= {"gt_start_s": row["start_s"], "gt_end_s": row["end_s"]}
            shown = {"right": ("matched", row["video_id"])}
            candidates = (v for v in ranked.get(query_id, ()) if v not in never[query_id] and v in with_frames)
            if (wrong := next(candidates, None)) is not None:
                shown["wrong"] = ("not_matched", wrong)
            for side, (label, video_id) in shown.items():
                probes[f"{query_id}/{side}"] = {
                    **shared, "probe_id": f"{query_id}/{side}", "label": label, "shown_video_id": video_id
                }  # fmt: skip
    return probes


def probe_row(probe: Mapping[str, Any], asked: Verification) -> dict[str, Any]:
    """A verification as a row. `iou` is 0 unless the right video was matched."""
    from vsr1_core.evaluation.metrics import temporal_iou

    start_s, end_s = asked.answer.start_s, asked.answer.end_s
    iou = 0.0
    if probe["label"] == "matched" and start_s is not None and end_s is not None:
        iou = float(temporal_iou(start_s, end_s, probe["gt_start_s"], probe["gt_end_s"]))
    return {
        "probe_id": probe["probe_id"],
        **{name: probe[name] for name in PROBE_KNOWN},
        "decision": asked.answer.decision,
        "matched_probability": asked.decoded.matched_probability,
        "start_s": start_s,
        "end_s": end_s,
        "iou": iou,
        "num_text_tokens": asked.decoded.num_text_tokens,
    }


def _probe_of(method: str) -> type[VerificationProbe]:
    attributes = {
        "name": f"verification_probe.{method}",
        "method": method,
        "upstream": ("moments", "base_models", "frame_tensors", "first_ranking", METHODS[method].asset),
        "__doc__": f"Every evaluated query shown one right and one wrong video by {method}.",
    }
    return type(f"VerificationProbe_{method}", (VerificationProbe,), attributes)


PROBES = tuple(_probe_of(method) for method, how in BASIC_METHODS.items() if how.asset != "base_models")
STAGES: tuple[type[Stage], ...] = PROBES
