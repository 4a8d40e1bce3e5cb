"""Training data of both stages: the top-1 pool, the reasoning traces, SFT rows, GRPO prompts; train split only.

SFT and GRPO rows are also written in the published JSON forms (METHOD 7). What a trace says is decided in
`reasoning.teacher`, how an answer is spelled in `reasoning.conversation`.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from vsr1_core.increments import Inputs
from vsr1_core.lake import read_json, write_json, write_json_array, write_jsonl
from vsr1_core.prepared.store import GivenRow
from vsr1_core.reasoning.conversation import ANY_TAG, SYSTEM_PROMPT, answer_text, parse_answer, user_text
from vsr1_core.reasoning.teacher import EventNote, StoredFrames, TeacherTask, make_teacher, refusal
from vsr1_core.recipes import Configuration, PoolRecipe, fingerprint
from vsr1_core.stages.base import Execution, Row, Stage, View
from vsr1_core.stages.evaluation import is_used
from vsr1_core.stages.retrieval import IS_TRAIN, asked_versions, same_text_videos

SFT_FILE = "train_oneturn.json"
GRPO_FILE = "train.minimal_top1.jsonl"
MARKER = "published.json"
"""Beside a published file: the data version of the table that it was written from."""
MOMENT_COLUMNS = ("query", "video_id", "start_s", "end_s", "duration_s")
"""What both stages' rows take from a moment."""
_SameText = Mapping[str, frozenset[str]]
"""What `same_text_videos` gives."""
PUBLISHED_LABELS = {"matched": "pos", "not_matched": "neg"}


class Top1Pool(Stage):
    """Train queries with the first video of their ranking: so many whose first is right, so many whose first is wrong.

    Chosen by a hash of (seed, query id), so that a changed row does not reshuffle the others; fewer than asked where
    there are no more. Left out: queries whose right video is not in the index, and those whose first video is wrong
    but has a moment with the same text (no one can say what its label should be). With `fill_matched`, where too few
    are ranked first, spare queries are shown their right video all the same: the toy's embedder ranks one train query
    in forty first, which is too few to learn from what a match looks like. With `random_share`, some are shown any
    wrong video.
    No recipe: it decides which rows there are, never what is in one, so asking for more makes only the new ones.
    An imported pool is taken whole, and nothing is drawn beside it.
    """

    name: ClassVar[str] = "top1_pool"
    key: ClassVar[str] = "query_id"
    group: ClassVar[str] = "sft"
    upstream: ClassVar[tuple[str, ...]] = ("first_ranking", "moments")
    columns: ClassVar[Mapping[str, Any]] = {"label": pl.String, "shown_video_id": pl.String, "video_id": pl.String}
    is_known_before: ClassVar[bool] = True

    def wanted(self, view: View) -> dict[str, Row]:
        given = view.given_rows(self.name)
        return self._as_given(view, given) if given else self._drawn(view)

    def _as_given(self, view: View, given: Mapping[str, GivenRow]) -> dict[str, Row]:
        """The imported queries; those whose moment has changed since are shown what is ranked first now."""
        asked = asked_versions(view)
        changed = {q for q in given if q in asked and given[q].basis != {"query": asked[q]}}
        held = {q: Row({}, basis={"query": asked[q]}) for q in given if q in asked and q not in changed}
        ranked = self._candidates(_train_rankings(view), same_text_videos(view)) if changed else {}
        return held | {q: Row({"first_ranking": fingerprint(k)}, k) for q, k in ranked.items() if q in changed}

    def _drawn(self, view: View) -> dict[str, Row]:
        pool, rankings, never = view.config.pool, _train_rankings(view), same_text_videos(view)
        candidates = self._candidates(rankings, never)
        drawn = sorted(candidates, key=lambda query_id: _draw(pool.seed, query_id))
        matched = [q for q in drawn if candidates[q]["label"] == "matched"][: pool.num_matched]
        wrong = [q for q in drawn if candidates[q]["label"] == "not_matched"]
        not_matched, spare = wrong[: pool.num_not_matched], wrong[pool.num_not_matched :]
        chosen = {query_id: candidates[query_id] for query_id in (*matched, *not_matched)}
        if pool.random_share:
            chosen |= self._shown_any(pool, rankings, never, {q: candidates[q] for q in not_matched})
        if pool.fill_matched:
            for query_id in spare[: max(0, pool.num_matched - len(matched))]:
                right = candidates[query_id]["video_id"]
                chosen[query_id] = {"label": "matched", "shown_video_id": right, "video_id": right}
        return {q: Row({"first_ranking": fingerprint(known)}, known) for q, known in chosen.items()}

    @staticmethod
    def _shown_any(
        pool: PoolRecipe, rankings: pl.DataFrame, never: _SameText, not_matched: Mapping[str, Mapping[str, str]]
    ) -> dict[str, dict[str, str]]:
        """The share of these queries that is shown any wrong video: the one that follows the query on a ring of
        hashes, so that a new video changes the few queries before it and no other."""
        seed, share = pool.seed, pool.random_share
        ranked = rankings["top_video_ids"]
        ring = sorted((_draw(seed, video_id), video_id) for video_id in ranked.explode().drop_nulls().unique())
        shown = {}
        for query_id, known in not_matched.items():
            if int(_draw(seed, f"{query_id}/share")[:8], 16) >= share * 16**8:
                continue
            at = bisect.bisect(ring, (_draw(seed, f"{query_id}/any"),))
            following = (video_id for _, video_id in [*ring[at:], *ring[:at]])
            video_id = next((v for v in following if v not in never[query_id]), known["shown_video_id"])
            shown[query_id] = {**known, "shown_video_id": video_id}
        return shown

    @staticmethod
    def _candidates(rankings: pl.DataFrame, never: _SameText) -> dict[str, dict[str, str]]:
        found = {}
        for query_id, video_id, _, top in rankings.drop_nulls("rank").iter_rows():
            shown = top[0]
            if query_id in never and (shown == video_id or shown not in never[query_id]):
                label = "matched" if shown == video_id else "not_matched"
                found[query_id] = {"label": label, "shown_video_id": shown, "video_id": video_id}
        return found


def _train_rankings(view: View) -> pl.DataFrame:
    return view.results("first_ranking", ["query_id", "video_id", "rank", "top_video_ids"], where=IS_TRAIN)


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


class ReasoningTraces(Stage):
    """What the teacher wrote about each pair of the pool. An unusable trace is a failed row that says why.

    A template's row reads the moments of the shown video; one from an endpoint reads its frames and what it is told.
    """

    name: ClassVar[str] = "reasoning_traces"
    key: ClassVar[str] = "query_id"
    group: ClassVar[str] = "sft"
    upstream: ClassVar[tuple[str, ...]] = ("top1_pool", "moments", "frame_tensors")
    columns: ClassVar[Mapping[str, Any]] = {
        "label": pl.String,
        "shown_video_id": pl.String,
        "trace": pl.String,
        "verdict": pl.String,
        "finish_reason": pl.String,
        "num_tokens": pl.Int64,
        "num_prompt_tokens": pl.Int64,
        "num_requests": pl.Int64,
        "request_s": pl.Float64,
    }

    def recipe(self, config: Configuration) -> Any:
        return config.teacher

    def shard_rows(self, view: View, execution: Execution) -> int:
        """A model's reply costs seconds of a GPU or money, so each is kept as it arrives."""
        return 1 if _asks_a_model(view) else execution.shard_rows

    def wanted(self, view: View) -> dict[str, Row]:
        versions, moments = view.versions("top1_pool"), _train_moments(view)
        reads = _read_by_a_model if _asks_a_model(view) else _read_by_the_template
        return {
            task.query_id: Row(
                {"top1_pool": versions[task.query_id], **reads(task)},
                {"label": task.label, "shown_video_id": task.shown_video_id},
                {"moment": fingerprint(moments[task.query_id])},
            )
            for task in _teacher_tasks(view)
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        teacher = make_teacher(view.config.teacher, execution.endpoint)
        due = set(ids)
        tasks = {task.query_id: task for task in _teacher_tasks(view) if task.query_id in due}
        for reply in teacher.write(list(tasks.values())):
            task = tasks[reply.query_id]
            yield {
                "query_id": task.query_id,
                "label": task.label,
                "shown_video_id": task.shown_video_id,
                "trace": reply.text,
                "verdict": reply.verdict,
                "finish_reason": reply.finish_reason,
                "num_tokens": reply.num_tokens,
                "num_prompt_tokens": reply.num_prompt_tokens,
                "num_requests": reply.num_requests,
                "request_s": reply.request_s,
                "error": refusal(reply, task.label),
            }


def _asks_a_model(view: View) -> bool:
    return view.config.teacher.kind == "endpoint"


def _read_by_the_template(task: TeacherTask) -> Inputs:
    return {"moments": fingerprint([task.query, task.moment, task.events])}


def _read_by_a_model(task: TeacherTask) -> Inputs:
    span = [task.moment.start_s, task.moment.end_s] if task.label == "matched" else None
    return {"moments": fingerprint([task.query, span]), "frames": task.frames.content if task.frames else "none"}


def _teacher_tasks(view: View) -> list[TeacherTask]:
    columns = ["query_id", "split", "query", "plain_query", "video_id", "start_s", "end_s"]
    pool = view.rows("top1_pool", ["query_id", "label", "shown_video_id"])
    asked, shown_ones = pl.col("query_id").is_in(pool["query_id"]), pl.col("video_id").is_in(pool["shown_video_id"])
    moments = view.rows("moments", columns).filter(IS_TRAIN & (asked | shown_ones)).to_dicts()
    notes = {m["query_id"]: _event_note(m) for m in moments}
    queries = {m["query_id"]: m["query"] for m in moments}
    events = defaultdict(set)
    for moment in moments:
        events[moment["video_id"]].add(notes[moment["query_id"]])
    frames = _stored_frames(view) if _asks_a_model(view) else {}
    return [
        TeacherTask(
            query_id, queries[query_id], label, shown, notes[query_id], tuple(sorted(events[shown])), frames.get(shown)
        )
        for query_id, label, shown in pool.iter_rows()
        if query_id in notes
    ]


def _stored_frames(view: View) -> dict[str, StoredFrames]:
    """video id -> its frames; while planning, those still to be made have no times yet."""
    rows = view.rows("frame_tensors", ["video_id", "path", "timestamps_s", "content"]).iter_rows()
    return {video_id: StoredFrames(path, tuple(times or ()), content) for video_id, path, times, content in rows}


def _event_note(moment: Mapping[str, Any]) -> EventNote:
    """A dataset without plain captions is described by its queries."""
    caption = " ".join((moment["plain_query"] or moment["query"]).split()).rstrip(".")
    return EventNote(moment["start_s"], moment["end_s"], caption)


class SFTExamples(Stage):
    """Rows of stage 1: the pool's pairs with the assistant's text. The span is the query's, in its right video."""

    name: ClassVar[str] = "sft_examples"
    key: ClassVar[str] = "query_id"
    group: ClassVar[str] = "sft"
    upstream: ClassVar[tuple[str, ...]] = ("top1_pool", "reasoning_traces", "hard_negatives", "moments")
    columns: ClassVar[Mapping[str, Any]] = {
        "query": pl.String,
        "video_id": pl.String,
        "shown_video_id": pl.String,
        "label": pl.String,
        "start_s": pl.Float64,
        "end_s": pl.Float64,
        "duration_s": pl.Float64,
        "answer": pl.String,
        "negative_ids": pl.List(pl.String),
        "negative_scores": pl.List(pl.Float32),
    }

    def wanted(self, view: View) -> dict[str, Row]:
        pool, traces, negatives = (view.versions(a) for a in ("top1_pool", "reasoning_traces", "hard_negatives"))
        moments = _train_moments(view)
        return {
            query_id: Row(
                {
                    "top1_pool": pool[query_id],
                    "reasoning_traces": version,
                    "hard_negatives": negatives.get(query_id, "none"),
                    "moments": fingerprint(moments[query_id]),
                }
            )
            for query_id, version in traces.items()
            if query_id in pool and query_id in moments
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        moments, negatives = _train_moments(view), _negatives(view, ids)
        due = pl.col("query_id").is_in(list(ids))
        traces = {r["query_id"]: r for r in view.rows("reasoning_traces").filter(due).to_dicts()}
        for query_id in ids:
            trace, moment = traces[query_id], moments[query_id]
            span = (moment["start_s"], moment["end_s"]) if trace["label"] == "matched" else ()
            yield {
                "query_id": query_id,
                **moment,
                **negatives[query_id],
                "shown_video_id": trace["shown_video_id"],
                "label": trace["label"],
                "answer": answer_text(trace["trace"], trace["label"] == "matched", *span),
            }

    def after_build(self, view: View) -> None:
        if path := _file_to_publish(view, self.name, SFT_FILE):
            prompt = view.config.models.system_prompt or SYSTEM_PROMPT
            rows = view.rows(self.name, [self.key, *self.columns]).iter_rows(named=True)
            write_json_array(path, (published_sft_row(row, prompt) for row in rows))
            _mark_published(view, self.name)


class HardRefineExamples(SFTExamples):
    """Rows of hard query refinement (METHOD 9): the same pairs and traces, but a mismatch ends with a new query.

    The new query is the moment's plain caption, the words that the embedder knows: on toy the caption it was trained
    on, for VERIFIED FIG the coarse description. No rows where the configuration does not report the method.
    """

    name: ClassVar[str] = "hard_refine_examples"

    def wanted(self, view: View) -> dict[str, Row]:
        if not is_used(view.config, "hard_refine_checkpoint"):
            return {}
        plain = _plain_captions(view)
        return {
            query_id: Row({**row.inputs, "plain_query": fingerprint(plain[query_id])})
            for query_id, row in super().wanted(view).items()
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        plain = _plain_captions(view)
        for row in super().process(view, ids, execution):
            yield row if row["label"] == "matched" else _rewritten(row, plain[row["query_id"]])

    def after_build(self, view: View) -> None:
        """The authors publish no such file."""


def _plain_captions(view: View) -> dict[str, str]:
    return dict(view.rows("moments", ["query_id", "plain_query", "split"]).filter(IS_TRAIN).drop("split").iter_rows())


def _rewritten(row: Mapping[str, Any], plain: str | None) -> dict[str, Any]:
    """The row with the new query `plain` in place of <REFINE>; one that says nothing new is a failed row."""
    error = ""
    if not plain or plain.strip().lower() == row["query"].strip().lower():
        error = "there is no plain caption beside the query that it could be rewritten into"
    elif re.search(ANY_TAG, plain):
        error = f"the plain caption {plain[:80]!r} holds tags that only an answer may have"
    if error:
        advice = "correct cog_desc in the annotations, or leave hard_refine out of the configuration's methods"
        return {"query_id": row["query_id"], "error": f"{error}; {advice}"}
    trace = parse_answer(row["answer"], 0.0).reasoning
    return {**row, "answer": answer_text(trace, False, new_query=plain)}


def published_sft_row(row: Mapping[str, Any], system_prompt: str = SYSTEM_PROMPT) -> dict[str, Any]:
    """A row of `train_oneturn.json`. As in the authors' files, `videos` names frame files, `video_id` is the shown
    video, and `num_negs` is 1 for a mismatch (the shown video) and 0 for a match."""
    shown, label = row["shown_video_id"], PUBLISHED_LABELS[row["label"]]
    return {
        "qid": row["query_id"],
        "query": row["query"],
        "messages": [
            {"role": "system", "content": system_prompt},
            {"role": "user", "content": f"{user_text(row['query'])}<video>"},
            {"role": "assistant", "content": row["answer"]},
        ],
        "videos": [f"{shown}.npy"],
        "meta": {
            "gold_label": label,
            "video_id": shown,
            "top1_video_id": shown,
            "query_pos_video_id": row["video_id"],
            "pair_id": f"{row['query_id']}::{shown}",
            "num_negs": int(label == "neg"),
        },
    }


class GRPOPrompts(Stage):
    """Prompts of stage 2: every train query that can be found, with its first ranking and its hard negatives. Where
    prompts were imported, those queries and no others."""

    name: ClassVar[str] = "grpo_prompts"
    key: ClassVar[str] = "query_id"
    group: ClassVar[str] = "grpo"
    upstream: ClassVar[tuple[str, ...]] = ("first_ranking", "hard_negatives", "moments")
    columns: ClassVar[Mapping[str, Any]] = {
        "query": pl.String,
        "video_id": pl.String,
        "start_s": pl.Float64,
        "end_s": pl.Float64,
        "duration_s": pl.Float64,
        "retrieved_video_id": pl.String,
        "label": pl.String,
        "negative_ids": pl.List(pl.String),
        "negative_scores": pl.List(pl.Float32),
    }

    def wanted(self, view: View) -> dict[str, Row]:
        negatives, given = view.versions("hard_negatives"), view.given_rows(self.name)
        moments = _train_moments(view)
        rankings = view.rows("first_ranking", ["query_id", "row_version", "split"]).filter(IS_TRAIN)
        return {
            query_id: Row(
                {
                    "first_ranking": version,
                    "hard_negatives": negatives.get(query_id, "none"),
                    "moments": fingerprint(moments[query_id]),
                }
            )
            for query_id, version, _ in rankings.iter_rows()
            if query_id in moments and (not given or query_id in given)
        }

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        moments, negatives = _train_moments(view), _negatives(view, ids)
        rankings = view.rows("first_ranking", ["query_id", "rank", "top_video_ids"])
        for query_id, rank, top in rankings.filter(pl.col("query_id").is_in(list(ids))).iter_rows():
            video_id = moments[query_id]["video_id"]
            if rank is None:
                yield {
                    "query_id": query_id,
                    "error": f"its video {video_id} is not in the index, so no search finds it",
                }
                continue
            yield {
                "query_id": query_id,
                **moments[query_id],
                **negatives[query_id],
                "retrieved_video_id": top[0],
                "label": "matched" if top[0] == video_id else "not_matched",
            }

    def after_build(self, view: View) -> None:
        if path := _file_to_publish(view, self.name, GRPO_FILE):
            rows = view.rows(self.name, [self.key, *self.columns]).iter_rows(named=True)
            write_jsonl(path, map(published_grpo_row, rows))
            _mark_published(view, self.name)


def published_grpo_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `train.minimal_top1.jsonl`; times in seconds."""
    return {
        "qid": row["query_id"],
        "query": row["query"],
        "gt_video": row["video_id"],
        "gt_time": [row["start_s"], row["end_s"]],
        "gt_duration": row["duration_s"],
        "retrieved_video": row["retrieved_video_id"],
        "label": row["label"],
        "hard_negative_ids": row["negative_ids"],
        "hard_negative_scores": row["negative_scores"],
    }


def _train_moments(view: View) -> dict[str, dict[str, Any]]:
    """query id -> what both stages' rows take from its moment."""
    rows = view.rows("moments", ["query_id", "split", *MOMENT_COLUMNS]).filter(IS_TRAIN).to_dicts()
    return {row["query_id"]: {name: row[name] for name in MOMENT_COLUMNS} for row in rows}


def _negatives(view: View, ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    rows = view.rows("hard_negatives", ["query_id", "video_ids", "scores"]).filter(pl.col("query_id").is_in(list(ids)))
    found = {i: {"negative_ids": videos, "negative_scores": scores} for i, videos, scores in rows.iter_rows()}
    return defaultdict(lambda: {"negative_ids": [], "negative_scores": []}, found)


def _file_to_publish(view: View, asset: str, name: str) -> Path | None:
    """Where the asset's JSON form has to be written; None where it is there and as new as the table."""
    path, marker = view.files(asset) / name, view.files(asset) / MARKER
    version = view.table(asset).manifest()["data_version"]
    if path.exists() and marker.exists() and read_json(marker) == {"data_version": version}:
        return None
    return path


def _mark_published(view: View, asset: str) -> None:
    write_json(view.files(asset) / MARKER, {"data_version": view.table(asset).manifest()["data_version"]})


STAGES = (Top1Pool, ReasoningTraces, SFTExamples, HardRefineExamples, GRPOPrompts)
