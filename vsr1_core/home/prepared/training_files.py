"""Read and check the prepared training files: hard negatives, conversations of stage 1, prompts of stage 2.

Each of them may be missing. The authors' own scripts write two of them elsewhere for Charades and DiDeMo.

In the published file of stage 2 each line has the id of the first query with its text, so ids repeat where queries
share a text (147 of 12,408 train rows of Charades). Therefore the query of a line is looked up by text, video and span.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vsr1_core.datasets.verified import video_id_of
from vsr1_core.home.prepared.documents import Line, Problems, json_lines, read_document
from vsr1_core.home.prepared.layout import Annotated, PreparedSplit
from vsr1_core.reasoning.conversation import answer_text, parse_answer

HARD_NEGATIVES = Path("train/hard_negatives.json")
SFT = Path("sft_data/train_oneturn.json")
GRPO = Path("grpo_data/train.minimal_top1.jsonl")
STATS = Path("grpo_data/stats.minimal_top1.json")
LEVELS_UP = 4
"""How far above the folder the authors' repository may be, into which their scripts write files of stage 2."""
LABELS = {"pos": "matched", "neg": "not_matched"}


@dataclass(frozen=True)
class ImportedTrace:
    """One imported conversation of stage 1.

    trace: the reasoning of the assistant's message. answer: the message in this project's form. error: why it cannot be
    trained on; None where it can.
    """

    query_id: str
    label: str
    shown_video_id: str
    system_prompt: str
    trace: str
    answer: str
    error: str | None


@dataclass(frozen=True)
class ImportedPrompt:
    """One imported prompt of stage 2."""

    query_id: str
    retrieved_video_id: str
    label: str
    negative_ids: Sequence[str]
    negative_scores: Sequence[float]


@dataclass(frozen=True)
class TrainingFiles:
    """The content of all training files by query id, and the lines of each file in its order."""

    hard_negatives: Mapping[str, Sequence[str]] = field(default_factory=dict)
    negative_lines: Sequence[Line] = ()
    traces: Mapping[str, ImportedTrace] = field(default_factory=dict)
    trace_lines: Sequence[Line] = ()
    prompts: Mapping[str, ImportedPrompt] = field(default_factory=dict)
    prompt_lines: Sequence[Line] = ()
    stats: Sequence[Line] = ()
    """The statistics beside the prompts, as one line; none where there are none."""


@dataclass(frozen=True)
class TrainingPlaces:
    """Where the training files of a dataset are; None for a file that is not there."""

    hard_negatives: Path | None = None
    sft: Path | None = None
    grpo: Path | None = None


def find_training_files(root: Path, dataset: str, named: TrainingPlaces) -> TrainingPlaces:
    """The training files of the prepared folder `root`: those that are `named`, else the first that is there.

    The authors publish all three in the folder. Their scripts for Charades and DiDeMo write the hard negatives to
    `structured/train/` beside the folder and the prompts to `data/verified_search/` in their repository. The rows of
    stage 1 are published as JSONL, too.
    """
    above = root.parents[:LEVELS_UP]
    prompts = f"{dataset}.train.minimal_top1_system_prompt.jsonl"
    cold_starts = [path for folder in (root, root / SFT.parent) for path in sorted(folder.glob("*_ColdStart.jsonl"))]
    return TrainingPlaces(
        named.hard_negatives
        or _first(root / HARD_NEGATIVES, root.parent / "structured/train" / f"hard_negatives.{dataset}.json"),
        named.sft or _first(root / SFT, *cold_starts),
        named.grpo or _first(root / GRPO, *(folder / "data/verified_search" / prompts for folder in above)),
    )


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def read_training_files(places: TrainingPlaces, train: PreparedSplit, problems: Problems) -> TrainingFiles:
    """Read all three files. What is wrong with them is added to `problems`; a missing file is a note."""
    videos, found = frozenset(train.video_ids), TrainingFiles()
    if places.hard_negatives is None:
        problems.note(problems.root / HARD_NEGATIVES, "is not there; negatives are ranked by the imported vectors")
    else:
        negatives = _hard_negatives(places.hard_negatives, train.annotated, videos, problems)
        found = replace(found, hard_negatives=negatives[0], negative_lines=negatives[1])
    if places.sft is None:
        problems.note(problems.root / SFT, "is not there; a build makes the rows of stage 1")
    else:
        traces = _traces(places.sft, train.annotated, videos, problems)
        found = replace(found, traces=traces[0], trace_lines=traces[1])
    if places.grpo is None:
        problems.note(problems.root / GRPO, "is not there; a build makes the prompts of stage 2")
        return found
    prompts = _prompts(places.grpo, train.annotated, videos, problems)
    return replace(found, prompts=prompts[0], prompt_lines=prompts[1], stats=_stats(places.grpo.parent, problems))


def _stats(folder: Path, problems: Problems) -> list[Line]:
    path = folder / STATS.name
    stats = read_document(path, problems, dict) if path.is_file() else None
    return [] if stats is None else [Line("stats", json.dumps(stats, ensure_ascii=False), is_held=False)]


def _hard_negatives(
    path: Path, annotated: Mapping[str, Annotated], videos: frozenset[str], problems: Problems
) -> tuple[dict[str, list[str]], list[Line]]:
    found, lines = {}, []
    for query_id, ids in (read_document(path, problems, dict) or {}).items():
        row = annotated.get(query_id)
        if row is None:
            problems.add(path, f"the query {query_id} is not annotated")
            continue
        problem = _id_list_problem(ids, row, videos)
        if problem:
            problems.add(path, f"the negatives of {query_id} {problem}")
        found[query_id] = ids
        lines.append(Line(query_id, json.dumps(ids, ensure_ascii=False), row.moment is not None))
    return found, lines


def _id_list_problem(ids: Any, row: Annotated, videos: frozenset[str]) -> str:
    """What is wrong with a list of negatives; empty where nothing is wrong."""
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        return "are not a list of video ids"
    if len(set(ids)) < len(ids):
        return "name a video twice"
    if row.video_id in ids:
        return "contain its own video"
    strange = sorted(set(ids) - videos)
    return f"name videos that docid2row.json does not have, e.g. {strange[0]}" if strange else ""


def _traces(
    path: Path, annotated: Mapping[str, Annotated], videos: frozenset[str], problems: Problems
) -> tuple[dict[str, ImportedTrace], list[Line]]:
    found: dict[str, ImportedTrace] = {}
    lines = []
    for number, fields in _conversations(path, problems):
        try:
            trace = _trace(fields, annotated, videos)
        except ValueError as error:
            problems.add(path, f"entry {number}: {error}")
            continue
        if trace.query_id in found:
            problems.add(path, f"entry {number} repeats the query {trace.query_id}")
        found[trace.query_id] = trace
        is_held = trace.error is None and annotated[trace.query_id].moment is not None
        lines.append(Line(trace.query_id, json.dumps(fields, ensure_ascii=False), is_held))
    return found, lines


def _conversations(path: Path, problems: Problems) -> Iterable[tuple[int, Any]]:
    """(number, conversation) of a JSON list, or of a file with one conversation a line."""
    if path.suffix == ".jsonl":
        return json_lines(path, problems)
    return enumerate(read_document(path, problems, list) or [], 1)


def _trace(fields: Any, annotated: Mapping[str, Annotated], videos: frozenset[str]) -> ImportedTrace:
    try:
        query_id, meta, messages = str(fields["qid"]), fields["meta"], fields["messages"]
        shown, label = str(meta["video_id"]), LABELS[meta["gold_label"]]
        right, named = video_id_of(str(meta["query_pos_video_id"])), [str(v) for v in fields["videos"]]
        texts = {message["role"]: str(message["content"]) for message in messages}
        system, answer = texts["system"], texts["assistant"]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"lacks a field of the published form ({error!r})") from error
    row = annotated.get(query_id)
    if row is None or str(fields.get("query")).strip() != row.query or right != row.video_id:
        raise ValueError(f"text or video of the query {query_id} differ from its annotation")
    if shown not in videos or named != [f"{shown}.npy"]:
        raise ValueError(f"shows {shown} as {named}, which docid2row.json does not have under that name")
    if (shown == right) != (label == "matched"):
        raise ValueError(f"is labelled {meta['gold_label']}, but shows {shown} for a query about {right}")
    return ImportedTrace(query_id, label, shown, system, *_read_answer(answer, label, row))


def _read_answer(text: str, label: str, row: Annotated) -> tuple[str, str, str | None]:
    """(reasoning, answer in this project's form, error) of a message: published matches also end with <REFINE>."""
    duration_s = row.moment.duration_s if row.moment is not None else None
    answer = parse_answer(text, duration_s or float("inf"))
    if answer.decision != label:
        error = f"the trace contradicts the label: it says {answer.decision}, the label is {label}"
        return answer.reasoning, "", error
    span = (answer.start_s, answer.end_s) if label == "matched" else ()
    try:
        return answer.reasoning, answer_text(answer.reasoning, label == "matched", *span), None
    except ValueError as error:
        return answer.reasoning, "", str(error)


def _prompts(
    path: Path, annotated: Mapping[str, Annotated], videos: frozenset[str], problems: Problems
) -> tuple[dict[str, ImportedPrompt], list[Line]]:
    queries = _Queries(annotated)
    found, lines = {}, []
    for number, fields in json_lines(path, problems):
        record = json.dumps(fields, ensure_ascii=False)
        if fields.get("is_augmented"):  # a second prompt for a query, which shows its right video
            lines.append(Line(str(fields.get("qid")), record, is_held=False))
            continue
        try:
            query_id = queries.take(fields)
            found[query_id] = _prompt(query_id, fields, annotated[query_id], videos)
        except ValueError as error:
            problems.add(path, f"line {number}: {error}")
            continue
        lines.append(Line(query_id, record, annotated[query_id].moment is not None))
    return found, lines


class _Queries:
    """Looks up the annotated query of each line; each query is used once. Spans may be as annotated, or cut at the end
    of the video."""

    def __init__(self, annotated: Mapping[str, Annotated]) -> None:
        self.ids: dict[str, list[str]] = defaultdict(list)
        self.taken: set[str] = set()
        for row in annotated.values():
            inside = [(row.moment.start_s, row.moment.end_s)] if row.moment is not None else []
            for key in {_asked(row.query, row.video_id, span) for span in (row.time, *inside)}:
                self.ids[key].append(row.query_id)

    def take(self, fields: Mapping[str, Any]) -> str:
        """The id of the query that a line means. ValueError where no annotation fits, or its query is used already."""
        named, video_id = fields.get("qid"), video_id_of(str(fields.get("gt_video")))
        ids = self.ids.get(_asked(str(fields.get("query")).strip(), video_id, fields.get("gt_time")))
        if ids is None:
            raise ValueError(f"text, video and span of the query {named} fit no annotation")
        left = [query_id for query_id in ids if query_id not in self.taken]
        if not left:
            raise ValueError(f"repeats the query {named}")
        query_id = named if named in left else left[0]
        self.taken.add(query_id)
        return query_id


def _asked(query: str, video_id: str, time: Any) -> str:
    """A key of query, video and span. A span that is not valid counts as null, as in the published file."""
    try:
        start_s, end_s = (float(t) for t in time)
        span = [start_s, end_s] if end_s > start_s else None
    except (TypeError, ValueError):
        span = None
    return json.dumps([query, video_id, span])


def _prompt(query_id: str, fields: Mapping[str, Any], row: Annotated, videos: frozenset[str]) -> ImportedPrompt:
    shown, label = str(fields.get("retrieved_video")), fields.get("label")
    if shown not in videos:
        raise ValueError(f"shows {shown}, which docid2row.json does not have")
    if label not in LABELS.values() or (label == "matched") != (shown == row.video_id):
        raise ValueError(f"is labelled {label!r}, but shows {shown} for a query about {row.video_id}")
    ids, scores = fields.get("hard_negative_ids"), fields.get("hard_negative_scores")
    problem = _id_list_problem(ids, row, videos)
    if problem:
        raise ValueError(f"its hard negatives {problem}")
    if not isinstance(scores, list) or len(scores) != len(ids or ()) or not all(_is_number(s) for s in scores):
        raise ValueError(f"has {len(ids or ())} hard negatives, but not one score for each")
    return ImportedPrompt(query_id, shown, str(label), ids or [], scores)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
