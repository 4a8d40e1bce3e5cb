"""The corpus as it is read from files: annotation files, raw videos, probed videos and moments, without any frames."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.datasets import sources, toy_files
from vsr1_core.datasets.format import AnnotationFile
from vsr1_core.datasets.line_table import line_of
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.media.video_rows import probe_video
from vsr1_core.rows.columnar import LazyRows
from vsr1_core.rows.files import CHANGED, digest_file, read_jsonl
from vsr1_core.rows.imported import with_imported
from vsr1_core.rows.increments import Plan
from vsr1_core.rows.merged import is_among
from vsr1_core.rows.versions import spelled
from vsr1_core.stages import checks
from vsr1_core.stages import columns as c
from vsr1_core.stages.annotated import annotated_lines, annotated_splits, keep_lines
from vsr1_core.stages.base import Row, RowIds, Stage, View
from vsr1_core.stages.columns import Column, failed
from vsr1_core.stages.corrections import (
    annotated_at,
    annotated_moments,
    corrected_moments,
    corrections_file,
    corrections_of,
    uncorrected_lines,
)
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.kept_ids import has_hashed_ids
from vsr1_core.stages.raw_videos import RawVideos
from vsr1_core.stages.reads import every, found_by, known, same
from vsr1_core.stages.removals import FromDisk, FromVideos


class AnnotationFiles(FromDisk):
    """One row per annotation file. The toy dataset's files are written by this stage."""

    name = "annotation_files"
    key = "file_id"
    key_says = "File name of the annotation file."
    group = "sources"
    version = toy_files.TOY_VERSION
    says = "One row per annotation file of the dataset, with the digest of its content."
    watches = "annotations_on_disk"
    thing, fewest = "annotation files", 1
    imports = "whole"
    checks = (checks.PUBLISHED_ROW_COUNTS,)
    columns = {
        "path": c.PATH,
        "split": c.SPLIT,
        "digest": c.DIGEST,
        "num_rows": c.integer("Number of lines that are not blank."),
    }

    def plan(self, view: View) -> dict[str, Row]:
        files = sources.annotation_files(view.entry, view.config)
        return {i: self._row(file, view.lake.places.stored(str(file.path))) for i, file in files.items()}

    @staticmethod
    def _row(file: AnnotationFile, place: str) -> Row:
        known = {"path": str(file.path), "split": file.split} if file.error is None else failed(file.error)
        return Row({"content": file.content or "missing", "path": place}, known, facts=file)

    def gone(self, view: View, rows: Mapping[str, Row], plan: Plan) -> Sequence[str]:
        """Known files that are not there, whether the format names them (a failed row) or not."""
        known = view.table(self.name).ok_rows([self.key])[self.key]
        missing = [file_id for file_id in known if file_id in rows and rows[file_id].facts.error is not None]
        if not view.entry.annotations or Path(view.entry.annotations).is_file():
            return missing  # the dataset was registered without annotations since, or with another file
        moved = self.moved(view, "digest", {rows[file_id].inputs.get("content") for file_id in plan.new})
        return [*(file_id for file_id in super().gone(view, rows, plan) if file_id not in moved), *missing]

    def after_build(self, view: View) -> None:
        """The lines are kept for the stages that read them. A file that cannot be parsed stops `moments`, which says
        so."""
        with contextlib.suppress(OSError, ValueError):
            keep_lines(view)

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        sources.format_of(view.entry).prepare(view.entry, view.config)
        for file_id, row in rows.items():
            file: AnnotationFile = row.facts
            yield {"file_id": file_id, **({"error": file.error} if file.error is not None else _file_row(file))}


def _file_row(file: AnnotationFile) -> dict[str, Any]:
    """The row of a file that exists. A file that changed since it was planned gives an error instead of values."""
    num_rows, digest = sum(1 for _ in read_jsonl(file.path)), digest_file(file.path)
    if file.digest and file.digest != digest:
        return {"error": f"{file.path} {CHANGED}"}
    return {"path": str(file.path), "split": file.split, "digest": digest, "num_rows": num_rows}


def _of_annotations(view: View, row_id: str, row: Row) -> RowIds:
    place = annotated_at(view, row_id)
    return [("annotation_files", [place.rsplit(":", 1)[0]])] if place else []


class Videos(FromVideos):
    """One row per video of the corpus, with what its file says and the splits that it belongs to.

    A video that is not on disk is a failed row. If its frames were imported, the row has the imported facts and no
    path.
    """

    name = "videos"
    key = "video_id"
    thing = "videos"
    group = "corpus"
    version = 2
    says = "One row per video: duration, frame rate, size and codec. A missing or unreadable video has status `failed`."
    reads = {"raw_videos": same("raw_videos"), "splits": every("annotation_files")}
    imports = "whole"
    kept_inputs = ("splits",)
    unversioned_columns = ("mtime_ns", "bytes")
    columns = {
        "path": c.PATH,
        "content": c.CONTENT,
        "splits": c.SPLITS,
        "duration_s": c.DURATION_S,
        "start_s": c.CLOCK_START_S,
        "fps": c.number("Average number of frames per second."),
        "num_frames": c.integer("Number of packets in the file that show a frame."),
        "width": c.integer("Width in pixels of the video as it is displayed, upright."),
        "height": c.integer("Height in pixels of the video as it is displayed, upright."),
        "rotation": c.integer(
            "Degrees counter-clockwise by which the stored picture is turned to be upright, after any mirroring."
        ),
        "codec": c.text("Video codec, as FFmpeg names it."),
        "bytes": c.BYTES,
        "mtime_ns": c.MTIME_NS,
    }

    def plan(self, view: View) -> Mapping[str, Row]:
        wanted = self._wanted(view)
        if view.ids is not None:
            wanted = wanted.filter(is_among(self.key, view.ids))
        files = view.rows("raw_videos", ["video_id", "row_version", "path", "content", "bytes", "mtime_ns"])
        return LazyRows(wanted.join(files, on=self.key, how="left", maintain_order="left"), self._row)

    def _wanted(self, view: View) -> pl.DataFrame:
        """The videos of the corpus with their sorted splits."""
        wanted, others = self._annotated(view), sources.unannotated_splits(view.entry)
        if not others:
            return wanted
        found = view.rows("raw_videos", ["video_id"])
        left = found.filter(~is_among(self.key, wanted[self.key]))
        return pl.concat([wanted, left.with_columns(splits=pl.lit(others, dtype=pl.List(pl.String)))])

    @staticmethod
    def _annotated(view: View) -> pl.DataFrame:
        """The videos of the corpus with their sorted splits, but for those that no annotation names."""
        annotated = annotated_splits(view)
        if annotated is not None and view.imported is None and not sources.has_own_splits(view.entry, view.config):
            return annotated
        pairs = None if annotated is None else annotated.explode("splits").iter_rows()
        splits = sources.corpus_splits(view.entry, view.config, pairs)
        if view.imported is not None:
            splits = with_imported(splits, view.imported.corpus)
        columns = {"video_id": list(splits), "splits": list(splits.values())}
        return pl.DataFrame(columns, schema={"video_id": pl.String, "splits": pl.List(pl.String)})

    def beside_tables(self, view: View, files: sources.FileVersions) -> Any:
        return files.all

    def moved_beside(self, view: View) -> Collection[str] | None:
        """The videos that are wanted in other splits than the table has them in, and those that are wanted no more."""
        said = self._wanted(view).select(self.key, pl.col("splits").list.join(" "))
        return self.said_otherwise(view, said, pl.col("row_inputs").str.json_path_match("$.splits"))

    @staticmethod
    def _row(
        _: str, splits: list[str], version: str | None, path: str, content: str, num_bytes: int, mtime_ns: int
    ) -> Row:
        if version is None:
            return Row({"raw_videos": "missing", "splits": " ".join(splits)}, {"splits": splits, **failed("")})
        known = {"splits": splits, "path": path, "content": content, "bytes": num_bytes, "mtime_ns": mtime_ns}
        return Row({"raw_videos": version, "splits": " ".join(splits)}, known)

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        unusable = LazyRows(view.table("raw_videos").rows(["video_id", "error"]), lambda _, error: error)
        for video_id, row in rows.items():
            if not row.known.get("path"):
                reason = unusable.get(video_id) or sources.missing_video_error(view.entry, video_id)
                yield {"video_id": video_id, "splits": row.known["splits"], "error": reason}
        cage = (run.video_limits, run.has_own_processes)
        tasks = ((video_id, dict(row.known), *cage) for video_id, row in rows.items() if row.known.get("path"))
        for result in run.map_rows(probe_video, tasks, view.folders, deadline_s=300):
            video_id, known = result.item[:2]
            yield {"video_id": video_id, **known, **(result.value or {"error": _readable(result.error, known["path"])})}


def _readable(error: str | None, path: str) -> str:
    """The error, with the name of the file in front where it does not contain it."""
    name = Path(path).name
    return error if error and name in error else f"{name}: {error}"


class Moments(FromDisk):
    """One row per annotated query, and one failed row (`<file>:<line>`) for each line that is not a valid moment.

    duration_s: the annotated duration. Where the annotation has none (CSV) it is that of the probed video, and null
    where there is no video.
    """

    name = "moments"
    key = "query_id"
    thing = "annotation rows"
    group = "corpus"
    says = "One row per annotated query: its text, its video, and its span in seconds."
    reads = {
        "annotation": found_by(_of_annotations, "annotation_files"),
        "video": known("videos", "video_id"),
    }
    watches = "corrections_on_disk"
    imports = "whole"
    checks = (checks.SOME_USABLE, checks.VIDEOS_KNOWN, checks.CORRECTIONS_APPLY)
    columns = {
        "split": c.SPLIT,
        "query": c.QUERY,
        "plain_query": c.text("Coarse description of the same moment; it is never searched for."),
        "video_id": c.text("Id of the video that contains the moment: the right video for its query."),
        "start_s": c.START_S,
        "end_s": c.END_S,
        "duration_s": c.DURATION_S,
        "clamped": Column(pl.Boolean, "Whether the annotated span went past the end of the video and was cut there."),
    }

    def plan(self, view: View) -> Mapping[str, Row]:
        videos = LazyRows(view.rows("videos", ["video_id", "content"]), lambda _, content: content)
        if view.ids is None and (lines := uncorrected_lines(view)) is not None:
            return LazyRows(lines, lambda *line: self._row(line_of(*line), {"annotation": line[-1]}, videos))
        published = annotated_moments(view, view.ids)
        found = corrected_moments(view, published)
        rows = {}
        for query_id, moment in found.moments.items():
            if view.ids is not None and query_id not in view.ids:
                continue
            inputs = {"annotation": published[query_id].version} if query_id in published else {}
            if query_id in found.versions:
                inputs["correction"] = found.versions[query_id]
            rows[query_id] = self._row(moment, inputs, videos)
        return rows

    def moved_beside(self, view: View) -> Collection[str] | None:
        """The queries that are said otherwise than the table has them, and all that were ever corrected. None where an
        id may be that of an earlier text."""
        lines = annotated_lines(view, ["version"])
        if lines is None or has_hashed_ids(lines[self.key]):
            return None
        as_made = self.inputs_of(view, {"": Row({"annotation": "@"})})[""]
        begin, _, end = spelled(as_made).partition("@")
        # Of inputs that are made otherwise, more is left than a version.
        version = pl.col("row_inputs").str.strip_prefix(begin).str.strip_suffix(end)
        return self.said_otherwise(view, lines, version).union(one.query_id for one in corrections_of(view))

    def after_build(self, view: View) -> None:
        keep_lines(view)

    def _row(self, moment: Moment | BadLine, inputs: dict[str, str], videos: Mapping[str, str]) -> Row:
        if isinstance(moment, BadLine):
            return Row(inputs, failed(moment.reason), facts=moment)
        if moment.duration_s is None:
            inputs["video"] = videos.get(moment.video_id, "missing")
        return Row(inputs, self._columns(moment), facts=moment)

    def gone(self, view: View, rows: Mapping[str, Row], plan: Plan) -> Sequence[str]:
        """A query that a person rejected is gone on purpose."""
        rejected = corrected_moments(view).rejected if plan.orphaned else ()
        return [query_id for query_id in super().gone(view, rows, plan) if query_id not in rejected]

    def records(self, view: View) -> list[Path]:
        return [path] if (path := corrections_file(view)) else []

    def beside_tables(self, view: View, files: sources.FileVersions) -> Any:
        return [files.all, self.observe(view)]

    def observe(self, view: View) -> str:
        """The version of the corrections alone: `annotation_files` stands for the annotations. Empty without any."""
        path = corrections_file(view)
        return digest_file(path) if path is not None and path.is_file() else ""

    def _columns(self, moment: Moment) -> dict[str, Any]:
        return {name: getattr(moment, name) for name in self.columns}

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        durations = LazyRows(view.rows("videos", ["video_id", "duration_s"]), lambda _, duration_s: duration_s)
        for query_id, row in rows.items():
            moment: Moment | BadLine = row.facts
            try:
                if isinstance(moment, Moment) and moment.duration_s is None:
                    moment = moment.within(durations.get(moment.video_id))
            except ValueError as error:
                moment = BadLine(query_id, str(error))
            columns = {"error": moment.reason} if isinstance(moment, BadLine) else self._columns(moment)
            yield {"query_id": query_id, **columns}


STAGES: tuple[type[Stage], ...] = (AnnotationFiles, RawVideos, Videos, Moments)
