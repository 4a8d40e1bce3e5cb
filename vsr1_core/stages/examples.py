"""Training rows of both stages, from the train split only: SFT rows, rows of hard query refinement, GRPO prompts.

SFT and GRPO rows are also written in the published JSON forms. `reasoning.teacher` decides what a trace says, and
`reasoning.conversation` how an answer is spelled.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.reasoning.conversation import ANY_TAG, SYSTEM_PROMPT, answer_text, parse_answer, user_text
from vsr1_core.rows.boundary import parts
from vsr1_core.rows.columnar import Computed, LazyRows, ids_of, reader
from vsr1_core.rows.files import read_json, write_json, write_json_array, write_jsonl
from vsr1_core.rows.frames import joined
from vsr1_core.rows.merged import is_among
from vsr1_core.rows.packed import packed
from vsr1_core.rows.versions import fingerprint
from vsr1_core.segments import clipped, is_right
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Imports, Row, Stage, View
from vsr1_core.stages.columns import Column
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.methods import is_used
from vsr1_core.stages.model_folders import options_of
from vsr1_core.stages.moments import MOMENT_COLUMNS, TRAIN, moment_copy, moment_version
from vsr1_core.stages.plan_reads import packed_rows
from vsr1_core.stages.readings import Names, Reading
from vsr1_core.stages.reads import same
from vsr1_core.stages.work_reads import all_rows, rows_with

SFT_FILE = "train_oneturn.json"
GRPO_FILE = "train.minimal_top1.jsonl"
PUBLISHED_FORM = 2
"""Version of the published rows: 2 since prompts of stage 2 have `path` and `is_augmented`."""
MARKER = "published.json"
"""File next to a published file: the data version of the table that it was written from, its form and its prompt."""
PUBLISHED_LABELS = {"matched": "pos", "not_matched": "neg"}
_PAIR = ("top1_pool", "reasoning_traces", "hard_negatives", "moments")
"""The assets that a row of stage 1 reads: of each, the row with its own id."""
_OF_MOMENT: Mapping[str, Column] = {
    "query": c.QUERY,
    "gt_video_id": c.GT_VIDEO_ID,
    "start_s": c.GT_START_S,
    "end_s": c.GT_END_S,
    "duration_s": c.DURATION_S,
}
_NEGATIVES: Mapping[str, Column] = {"negative_ids": c.NEGATIVE_IDS, "negative_scores": c.NEGATIVE_SCORES}


class SFTExamples(Stage):
    """Rows of stage 1: the pairs of the pool with the answer to learn. The span is the query's, in its right video; in
    a window it is the part of the span that the window shows."""

    name = "sft_examples"
    key = "query_id"
    group = "sft"
    says = "One row of stage 1 per usable trace: the shown video and the answer to learn; also as published JSON."
    reads = {asset: same(asset) for asset in _PAIR}
    uses = ("base_models",)
    imports: Imports = "rows"
    is_planned_from_tables = True
    columns = {
        **_OF_MOMENT,
        "shown_video_id": c.SHOWN_VIDEO_ID,
        "label": c.LABEL,
        "answer": c.text("Whole answer of the assistant, which the policy learns to write."),
        **_NEGATIVES,
    }

    def plan(self, view: View) -> Mapping[str, Row]:
        pool, traces = _versions(view, "top1_pool"), _versions(view, "reasoning_traces")
        pairs = joined(pool, traces, "query_id", "inner")
        return _rows_of(view, ("top1_pool", "reasoning_traces"), pairs)

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        for some in parts(rows):
            yield from self._made_of(view, some)

    @staticmethod
    def _made_of(view: View, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        negatives = _negatives(view, rows)
        read = rows_with(view, "reasoning_traces", ["query_id", "shown_video_id", "label", "trace"], rows)
        traces = {r["query_id"]: r for r in read.to_dicts()}
        for query_id, row in rows.items():
            trace, moment = traces[query_id], row.facts
            span = clipped(trace["shown_video_id"], moment["start_s"], moment["end_s"])
            span_to_learn = span if trace["label"] == "matched" else ()
            yield {
                "query_id": query_id,
                **moment,
                **negatives[query_id],
                "shown_video_id": trace["shown_video_id"],
                "label": trace["label"],
                "answer": answer_text(trace["trace"], trace["label"] == "matched", *span_to_learn),
            }

    def after_build(self, view: View) -> None:
        prompt = published_prompt(view)
        if path := _file_to_publish(view, self.name, SFT_FILE, prompt):
            write_json_array(path, (published_sft_row(row, prompt) for row in all_rows(view, self.name)))
            _mark_published(view, self.name, prompt)


class HardRefineExamples(SFTExamples):
    """Rows of hard query refinement: the pairs and traces of stage 1, where a mismatch ends with a new query in words.

    The new query is the moment's plain caption, in words that the embedder knows: for toy the caption that it was
    trained on, for VERIFIED FIG the coarse description. There are no rows where the configuration does not report the
    method.
    """

    name = "hard_refine_examples"
    says = "The rows of hard query refinement: those of stage 1, but a mismatch ends with a new query in plain words."
    reads = {**SFTExamples.reads, "plain_query": same("moments")}
    imports = "none"

    def concerns(self, view: View) -> bool:
        return is_used(view.config, "hard_refine_checkpoint")

    def plan(self, view: View) -> Mapping[str, Row]:
        if not self.concerns(view):
            return {}
        plain, pairs = _plain_captions(view), super().plan(view)

        def row(query_id: str) -> Row:
            pair, caption = pairs[query_id], plain[query_id]
            inputs = {**pair.inputs, "plain_query": fingerprint(caption)}
            return Row(inputs, pair.known, facts={"moment": pair.facts, "plain": caption})

        return LazyRows(ids_of(pairs).to_frame(), row)

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        of_pairs = Computed(reader(rows), lambda row: Row(row.inputs, facts=row.facts["moment"]))
        for made in super().make(view, of_pairs, run):
            plain = rows[made["query_id"]].facts["plain"]
            yield made if made["label"] == "matched" else _rewritten(made, plain)

    def after_build(self, view: View) -> None:
        """No-op: these rows have no published file format."""


def _plain_captions(view: View) -> Mapping[str, str]:
    return LazyRows(packed_rows(view, "moments", ["query_id", "plain_query"], TRAIN), lambda _, plain: plain)


def _rewritten(row: Mapping[str, Any], plain: str | None) -> dict[str, Any]:
    """The row with the new query `plain` in place of <REFINE>; a failed row where `plain` cannot be a new query."""
    error = ""
    if not plain or plain.strip().lower() == row["query"].strip().lower():
        error = "there is no plain caption that the query could be rewritten into"
    elif re.search(ANY_TAG, plain):
        error = f"the plain caption {plain[:80]!r} contains tags that only an answer may have"
    if error:
        advice = "correct cog_desc in the annotations, or leave hard_refine out of the configuration's methods"
        return {"query_id": row["query_id"], "error": f"{error}; {advice}"}
    trace = parse_answer(row["answer"], 0.0).reasoning
    return {**row, "answer": answer_text(trace, False, new_query=plain)}


def published_prompt(view: View) -> str:
    """The system prompt of the published rows of stage 1: that of the dataset's policy, where it has one."""
    return sft_prompt(options_of(view, "base_models", "policy"))


def sft_prompt(options: Mapping[str, Any] | None) -> str:
    """The system prompt with which stage 1 trains a policy with these options (the column `options` of its row)."""
    known = options or {}
    return (known.get("form") or {}).get("sft_prompt") or known.get("system_prompt") or SYSTEM_PROMPT


def published_sft_row(row: Mapping[str, Any], system_prompt: str) -> dict[str, Any]:
    """A row of `train_oneturn.json` from a row of `sft_examples`. As in the authors' files, `videos` names frame files,
    `video_id` is the shown video, and `num_negs` is 1 for a mismatch (the shown video) and 0 for a match."""
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
            "query_pos_video_id": row["gt_video_id"],
            "pair_id": f"{row['query_id']}::{shown}",
            "num_negs": int(label == "neg"),
        },
    }


class GRPOPrompts(Stage):
    """Prompts of stage 2: every train query whose right video is indexed, with its first ranking and hard negatives.
    Where prompts were imported, only the imported queries have rows."""

    name = "grpo_prompts"
    key = "query_id"
    group = "grpo"
    says = "One prompt of stage 2 per train query, with its hard negatives; also in the published JSONL form."
    reads = {a: same(a) for a in ("first_ranking", "hard_negatives", "moments")}
    imports = "rows"
    is_planned_from_tables = True
    columns = {
        **_OF_MOMENT,
        "retrieved_video_id": c.text("Id of the video, or window, that ranks first by the query's own text."),
        "label": c.LABEL,
        **_NEGATIVES,
    }

    def plan(self, view: View) -> Mapping[str, Row]:
        imported, rankings = view.imported_rows(self.name), _versions(view, "first_ranking", TRAIN)
        if imported:
            rankings = (rows.filter(is_among("query_id", imported)) for rows in rankings)
        return _rows_of(view, ("first_ranking",), rankings)

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        for some in parts(rows):
            yield from self._made_of(view, some)

    @staticmethod
    def _made_of(view: View, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
        negatives = _negatives(view, rows)
        rankings = rows_with(view, "first_ranking", ["query_id", "rank", "top_video_ids"], rows)
        for query_id, rank, top in rankings.iter_rows():
            moment = rows[query_id].facts
            span = (moment["gt_video_id"], moment["start_s"], moment["end_s"])
            if rank is None:
                reason = f"its video {span[0]} is not in the index, so no search can find it"
                yield {"query_id": query_id, "error": reason}
                continue
            yield {
                "query_id": query_id,
                **moment,
                **negatives[query_id],
                "retrieved_video_id": top[0],
                "label": "matched" if is_right(top[0], *span) else "not_matched",
            }

    def after_build(self, view: View) -> None:
        if path := _file_to_publish(view, self.name, GRPO_FILE):
            write_jsonl(path, map(published_grpo_row, all_rows(view, self.name)))
            _mark_published(view, self.name)


def published_grpo_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `train.minimal_top1.jsonl` from a row of `grpo_prompts`; times are in seconds. The authors' stage 2
    makes a file whose first line lacks `is_augmented` anew."""
    return {
        "qid": row["query_id"],
        "query": row["query"],
        "gt_video": row["gt_video_id"],
        "gt_time": [row["start_s"], row["end_s"]],
        "gt_duration": row["duration_s"],
        "retrieved_video": row["retrieved_video_id"],
        "path": f"{row['retrieved_video_id']}.npy",
        "label": row["label"],
        "hard_negative_ids": row["negative_ids"],
        "hard_negative_scores": row["negative_scores"],
        "is_augmented": False,
    }


def _versions(view: View, asset: str, splits: Names = None) -> Iterator[pl.DataFrame]:
    """Query ids, and the row versions in a column with the name of the asset."""
    read = view.read_batches(Reading.of(asset, "ok", ["query_id", "row_version"], splits))
    return (rows.rename({"row_version": asset}) for rows in read)


def _rows_of(view: View, assets: Sequence[str], versions: Iterator[pl.DataFrame]) -> LazyRows[Row]:
    """A row for each query with a moment that has versions of these assets. It reads its hard negatives as well."""
    moments = view.read_batches(Reading.of("moments", "ok", ["query_id", *MOMENT_COLUMNS], TRAIN))
    with_moments = joined(versions, moments, "query_id", "inner")
    columns = joined(with_moments, _versions(view, "hard_negatives"), "query_id", "left")

    def row(_: str, *values: Any) -> Row:
        inputs, moment = dict(zip(assets, values, strict=False)), moment_copy(values[len(assets) : -1])
        inputs |= {"hard_negatives": values[-1] or "none", "moments": moment_version(moment)}
        return Row(inputs, {"gt_video_id": moment["gt_video_id"]}, facts=moment)

    return LazyRows(packed(columns), row)


def _negatives(view: View, ids: Iterable[str]) -> Mapping[str, dict[str, Any]]:
    rows = rows_with(view, "hard_negatives", ["query_id", "video_ids", "scores"], ids)
    found = {i: {"negative_ids": videos, "negative_scores": scores} for i, videos, scores in rows.iter_rows()}
    return defaultdict(lambda: {"negative_ids": [], "negative_scores": []}, found)


def _file_to_publish(view: View, asset: str, name: str, prompt: str = "") -> Path | None:
    """The path where the asset's JSON form has to be written; None where the file exists already, made of the present
    table and with this prompt."""
    path, marker = view.files(asset) / name, view.files(asset) / MARKER
    if path.exists() and marker.exists() and read_json(marker) == _published_state(view, asset, prompt):
        return None
    return path


def _mark_published(view: View, asset: str, prompt: str = "") -> None:
    write_json(view.files(asset) / MARKER, _published_state(view, asset, prompt))


def _published_state(view: View, asset: str, prompt: str) -> dict[str, str]:
    state = {"data_version": view.table(asset).manifest()["data_version"], "form": str(PUBLISHED_FORM)}
    return state | ({"system_prompt": prompt} if prompt else {})


STAGES: tuple[type[Stage], ...] = (SFTExamples, HardRefineExamples, GRPOPrompts)
