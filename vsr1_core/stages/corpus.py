"""The corpus as it is read from files: annotation files, raw videos, probed videos and moments, without any frames."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.datasets import folder, sources, toy_files
from vsr1_core.datasets.format import AnnotationFile, MadeVideo
from vsr1_core.datasets.formats import get_format
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.media.video_limits import VideoLimits
from vsr1_core.rows.files import CHANGED, FileStamp, digest_file, read_jsonl
from vsr1_core.rows.imported import with_imported
from vsr1_core.rows.increments import Plan
from vsr1_core.rows.known_digests import KnownDigests, digests_of
from vsr1_core.rows.versions import fingerprint, spelled
from vsr1_core.stages import checks
from vsr1_core.stages import columns as c
from vsr1_core.stages.annotated import annotated_lines, annotated_splits, keep_lines
from vsr1_core.stages.base import Row, RowIds, Stage, View
from vsr1_core.stages.columns import Column
from vsr1_core.stages.corrections import (
    annotated_at,
    annotated_moments,
    corrected_moments,
    corrections_file,
    corrections_of,
)
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.kept_ids import has_hashed_ids
from vsr1_core.stages.reads import every, found_by, known, same
from vsr1_core.stages.removals import FromDisk


def failed(error: str) -> dict[str, Any]:
    """The known columns of a row of which the plan already knows that it will fail."""
    return {"status": "failed", "error": error}


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


class FromVideos(FromDisk):
    """A stage with a row per video. A renamed video is there."""

    def gone(self, view: View, rows: Mapping[str, Row], plan: Plan) -> Sequence[str]:
        gone = super().gone(view, rows, plan)
        moved = self.moved(view, "content", {row.known.get("content") for row in rows.values()}) if gone else set()
        return [video_id for video_id in gone if video_id not in moved]


class RawVideos(FromVideos):
    """One row per video file. The toy dataset's videos are rendered by this stage.

    content: what decides the pixels: the digest of the file, or the fingerprint of the toy scene, which is known before
    the file exists. Downstream stages read this column alone, so moving or touching a file decodes nothing again.
    """

    name = "raw_videos"
    key = "video_id"
    group = "sources"
    says = "One row per video file found on disk, with its digest; the videos of the toy dataset are rendered here."
    watches = "videos_on_disk"
    thing, all_count = "video files", True
    imports = "whole"
    columns = {
        "path": c.PATH,
        "bytes": c.BYTES,
        "mtime_ns": c.MTIME_NS,
        "digest": c.DIGEST,
        "content": c.CONTENT,
    }
    # A touched file is read once more and found unchanged. Without its new time, every later plan would read it again.
    unversioned_columns = ("mtime_ns", "bytes")

    def plan(self, view: View) -> dict[str, Row]:
        made, stored = sources.made_videos(view.entry, view.config), view.lake.places.stored
        if made is not None:
            return {video_id: self._made_row(video, stored(str(video.path))) for video_id, video in made.items()}
        files = sources.video_files(view.entry)
        unusable = {i: Row({"unusable": error}, failed(error)) for i, p in files.items() if (error := _unusable(i, p))}
        single = {i: paths[0] for i, paths in files.items() if i not in unusable}
        found = digests_of(single.values(), self._known_digests(view))
        facts = {i: _file_facts(stamp, digest) for i, (stamp, digest) in zip(single, found, strict=True)}
        return {
            i: Row({"content": fact["content"], "path": stored(fact["path"])}, fact) for i, fact in facts.items()
        } | unusable

    def place(self, view: View) -> str:
        return view.entry.videos

    @staticmethod
    def _made_row(video: MadeVideo, place: str) -> Row:
        known = {"path": str(video.path), "content": video.content}
        return Row({"content": video.content, "path": place}, known, facts=video.task)

    def _known_digests(self, view: View) -> dict[FileStamp, str]:
        """File stamp -> digest, from the rows of the table and from what was observed after they were made."""
        rows = view.table(self.name).ok_rows(["path", "bytes", "mtime_ns", "digest"]).iter_rows()
        held = {FileStamp(path, size, mtime_ns): digest for path, size, mtime_ns, digest in rows}
        return KnownDigests.of(view.lake, view.entry.name).read() | held

    def observe(self, view: View) -> str:
        """Also stores the digests, so that the next build need not read the videos again to compute them."""
        rows = self.planned_rows(view)
        read = [row.known for row in rows.values() if row.known.get("digest")]
        if read:
            found = {FileStamp(k["path"], k["bytes"], k["mtime_ns"]): k["digest"] for k in read}
            KnownDigests.of(view.lake, view.entry.name).write(found)
        return fingerprint(dict(self.inputs_of(view, rows)))

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        if sources.made_videos(view.entry, view.config) is not None:
            yield from self._rendered(view, rows, run)
            return
        for video_id, row in rows.items():
            known = dict(row.known)
            known.pop("status", None)
            yield {"video_id": video_id, **known}

    @staticmethod
    def _rendered(view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        tasks = [(view.entry.kind, video_id, row.facts) for video_id, row in rows.items()]
        for result in run.map_rows(_render_video, tasks, view.folders):
            yield {"video_id": result.item[1], **(result.value or {"error": result.error})}


def _unusable(video_id: str, paths: list[Path]) -> str | None:
    """Why the files of a video id are not read at all; None for one file with a name that can be stored."""
    return folder.name_error(paths) or (folder.clash_error(video_id, paths) if len(paths) > 1 else None)


def _render_video(task: tuple[str, str, Any]) -> dict[str, Any]:
    kind, _, made_of = task
    return get_format(kind).render(made_of)


def _file_facts(stamp: FileStamp, digest: str) -> dict[str, Any]:
    facts = {"path": stamp.path, "bytes": stamp.bytes, "mtime_ns": stamp.mtime_ns}
    return facts | {"digest": digest, "content": digest}


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

    def plan(self, view: View) -> dict[str, Row]:
        files = view.rows("raw_videos", ["video_id", "row_version", "path", "content", "bytes", "mtime_ns"])
        on_disk = {video_id: facts for video_id, *facts in files.iter_rows()}
        annotated = sources.corpus_splits(view.entry, view.config, annotated_splits(view))
        splits = with_imported(annotated, view.imported.corpus) if view.imported is not None else annotated
        others = sources.unannotated_splits(view.entry)
        if others:
            splits |= {video_id: others for video_id in on_disk if video_id not in splits}
        return {video_id: self._row(names, on_disk.get(video_id)) for video_id, names in splits.items()}

    def beside_tables(self, view: View, files: Callable[[], str]) -> Any:
        return files()

    @staticmethod
    def _row(splits: list[str], on_disk: list[Any] | None) -> Row:
        if on_disk is None:
            return Row({"raw_videos": "missing", "splits": " ".join(splits)}, {"splits": splits, **failed("")})
        version, path, content, num_bytes, mtime_ns = on_disk
        known = {"splits": splits, "path": path, "content": content, "bytes": num_bytes, "mtime_ns": mtime_ns}
        return Row({"raw_videos": version, "splits": " ".join(splits)}, known)

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        unusable = dict(view.table("raw_videos").rows(["video_id", "error"]).iter_rows())
        for video_id, row in rows.items():
            if not row.known.get("path"):
                reason = unusable.get(video_id) or sources.missing_video_error(view.entry, video_id)
                yield {"video_id": video_id, "splits": row.known["splits"], "error": reason}
        cage = (run.video_limits, run.has_own_processes)
        tasks = [(video_id, dict(row.known), *cage) for video_id, row in rows.items() if row.known.get("path")]
        for result in run.map_rows(_probe_video, tasks, view.folders, deadline_s=300):
            video_id, known = result.item[:2]
            yield {"video_id": video_id, **known, **(result.value or {"error": _readable(result.error, known["path"])})}


def _probe_video(task: tuple[str, Mapping[str, Any], VideoLimits, bool]) -> dict[str, Any]:
    import dataclasses

    from vsr1_core.media.probe import probe_caged

    _, known, limits, is_own_process = task
    found = dataclasses.asdict(probe_caged(Path(known["path"]), limits, is_own_process))
    FileStamp(known["path"], known["bytes"], known["mtime_ns"]).check()
    return found


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

    def plan(self, view: View) -> dict[str, Row]:
        videos = dict(view.rows("videos", ["video_id", "content"]).iter_rows())
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
        lines, table = annotated_lines(view, ["version"]), view.table(self.name)
        if lines is None or has_hashed_ids(lines[self.key]):
            return None
        as_made = self.inputs_of(view, {"": Row({"annotation": "@"})})[""]
        begin, _, end = spelled(as_made).partition("@")
        wanted = lines.select(self.key, wanted=begin + pl.col("version") + end)
        both = wanted.join(table.rows([self.key, "row_inputs"]), on=self.key, how="full", coalesce=True)
        moved = both.filter(pl.col("wanted").ne_missing(pl.col("row_inputs")))[self.key]
        return {*moved, *(one.query_id for one in corrections_of(view))}

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

    def beside_tables(self, view: View, files: Callable[[], str]) -> Any:
        return [files(), self.observe(view)]

    def observe(self, view: View) -> str:
        """The version of the corrections alone: `annotation_files` stands for the annotations. Empty without any."""
        path = corrections_file(view)
        return digest_file(path) if path is not None and path.is_file() else ""

    def _columns(self, moment: Moment) -> dict[str, Any]:
        return {name: getattr(moment, name) for name in self.columns}

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        durations = dict(view.rows("videos", ["video_id", "duration_s"]).iter_rows())
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
