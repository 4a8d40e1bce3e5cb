"""The corpus from its files: annotation files, raw videos, probed videos, moments. No frame is sampled here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from vsr1_core.datasets import folder, sources, toy_files
from vsr1_core.datasets.toy import Scene
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.recipes import ToyRecipe
from vsr1_core.rows.files import digest_file, read_jsonl
from vsr1_core.stages.base import Execution, Row, Stage, View


def failed(error: str) -> dict[str, Any]:
    """Known columns of a row that a plan already knows will fail."""
    return {"status": "failed", "error": error}


class AnnotationFiles(Stage):
    """One row a file of annotations. For toy the files are written here."""

    name: ClassVar[str] = "annotation_files"
    key: ClassVar[str] = "file_id"
    group: ClassVar[str] = "sources"
    watches: ClassVar[str] = "annotations_on_disk"
    columns: ClassVar[Mapping[str, Any]] = {
        "path": pl.String,
        "split": pl.String,
        "digest": pl.String,
        "num_rows": pl.Int64,
    }

    def wanted(self, view: View) -> dict[str, Row]:
        return {i: self._row(f) for i, f in sources.annotation_files(view.entry, view.config).items()}

    @staticmethod
    def _row(file: sources.AnnotationFile) -> Row:
        known = {"path": str(file.path), "split": file.split} if file.error is None else failed(file.error)
        return Row({"content": file.content or "missing", "path": str(file.path)}, known)

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        root = Path(view.entry.annotations).absolute()
        if view.entry.kind == "toy" and not toy_files.is_written(root, view.config.toy):
            toy_files.write_annotations(root, view.config.toy)
        files = sources.annotation_files(view.entry, view.config)
        for file_id in ids:
            file = files[file_id]
            if file.error is not None:
                yield {"file_id": file_id, "error": file.error}
                continue
            yield {
                "file_id": file_id,
                "path": str(file.path),
                "split": file.split,
                "digest": digest_file(file.path),
                "num_rows": sum(1 for _ in read_jsonl(file.path)),
            }


class RawVideos(Stage):
    """One row a video file. For toy the files are rendered here.

    content: what decides the pixels: the file's digest, or the toy scene's fingerprint, which is known before the file
    is there. Downstream reads this one, so a moved or touched file decodes nothing again.
    """

    name: ClassVar[str] = "raw_videos"
    key: ClassVar[str] = "video_id"
    group: ClassVar[str] = "sources"
    watches: ClassVar[str] = "videos_on_disk"
    columns: ClassVar[Mapping[str, Any]] = {
        "path": pl.String,
        "bytes": pl.Int64,
        "mtime_ns": pl.Int64,
        "digest": pl.String,
        "content": pl.String,
    }
    # A touched file is read once more, to find it unchanged; without its new time, by every plan from then on.
    notes: ClassVar[tuple[str, ...]] = ("mtime_ns", "bytes")

    def wanted(self, view: View) -> dict[str, Row]:
        if view.entry.kind == "toy":
            return self._toy_rows(view)
        files = sources.video_files(view.entry)
        clashes = {i: Row({"clash": " ".join(map(str, p))}, failed(folder.clash_error(i, p)))
                   for i, p in files.items() if len(p) > 1}  # fmt: skip
        single = {i: paths[0] for i, paths in files.items() if len(paths) == 1}
        known = self._known_digests(view)
        facts = {video_id: _file_facts(path, known) for video_id, path in single.items()}
        changed = [video_id for video_id, fact in facts.items() if not fact["digest"]]
        with ThreadPoolExecutor(4) as threads:  # hashing releases the interpreter's lock
            digests = threads.map(lambda video_id: digest_file(single[video_id]), changed)
            for video_id, digest in zip(changed, digests, strict=True):
                facts[video_id] |= {"digest": digest, "content": digest}
        rows = {i: Row({"content": fact["content"], "path": fact["path"]}, fact) for i, fact in facts.items()}
        return rows | clashes

    @staticmethod
    def _toy_rows(view: View) -> dict[str, Row]:
        rows = {}
        for video_id, (scene, path) in sources.toy_scenes(view.entry, view.config).items():
            content = toy_files.scene_fingerprint(scene, view.config.toy)
            rows[video_id] = Row({"content": content, "path": str(path)}, {"path": str(path), "content": content})
        return rows

    def _known_digests(self, view: View) -> dict[tuple[str, int, int], str]:
        columns = ["path", "bytes", "mtime_ns", "digest"]
        rows = view.table(self.name).ok_rows(columns).iter_rows()
        return {(path, size, mtime_ns): digest for path, size, mtime_ns, digest in rows}

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        if view.entry.kind == "toy":
            yield from self._render(view, ids, execution)
            return
        wanted = self.wanted(view)
        for video_id in ids:
            known = dict(wanted[video_id].known)
            known.pop("status", None)
            yield {"video_id": video_id, **known}

    @staticmethod
    def _render(view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        scenes = sources.toy_scenes(view.entry, view.config)
        tasks = [(*scenes[video_id], view.config.toy) for video_id in ids]
        for result in execution.map_rows(_render_clip, tasks, view):
            yield {"video_id": result.item[0].video_id, **(result.value or {"error": result.error})}


def _file_facts(path: Path, known: Mapping[tuple[str, int, int], str]) -> dict[str, Any]:
    """The row of one file. Its digest and content are those `known` of its path, size and modification time, else
    empty: then it has to be read."""
    stat = path.stat()
    digest = known.get((str(path), stat.st_size, stat.st_mtime_ns), "")
    facts = {"path": str(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return facts | {"digest": digest, "content": digest}


def _render_clip(task: tuple[Scene, Path, ToyRecipe]) -> dict[str, Any]:
    scene, path, recipe = task
    toy_files.render_clip(scene, recipe, path)
    content = toy_files.scene_fingerprint(scene, recipe)
    return _file_facts(path, {}) | {"digest": digest_file(path), "content": content}


class Videos(Stage):
    """One row a video of the corpus: probed, with the splits it belongs to. One that is not on disk is a failed row,
    unless its frames were imported: then the row says what is known of it, and has no path."""

    name: ClassVar[str] = "videos"
    key: ClassVar[str] = "video_id"
    group: ClassVar[str] = "corpus"
    upstream: ClassVar[tuple[str, ...]] = ("raw_videos", "annotation_files")
    kept_inputs: ClassVar[tuple[str, ...]] = ("splits",)
    columns: ClassVar[Mapping[str, Any]] = {
        "path": pl.String,
        "content": pl.String,
        "splits": pl.List(pl.String),
        "duration_s": pl.Float64,
        "start_s": pl.Float64,
        "fps": pl.Float64,
        "num_frames": pl.Int64,
        "width": pl.Int64,
        "height": pl.Int64,
        "rotation": pl.Int64,
        "codec": pl.String,
        "bytes": pl.Int64,
    }

    def wanted(self, view: View) -> dict[str, Row]:
        files = view.rows("raw_videos", ["video_id", "row_version", "path", "content"])
        on_disk = {video_id: facts for video_id, *facts in files.iter_rows()}
        splits = sources.corpus_splits(view.entry, view.config)
        others = sources.unannotated_splits(view.entry)
        if others:
            splits |= {video_id: others for video_id in on_disk if video_id not in splits}
        rows = {}
        for video_id, names in splits.items():
            version, path, content = on_disk.get(video_id, ("missing", None, None))
            known = {"path": path, "content": content} if path else failed("")
            rows[video_id] = Row({"raw_videos": version, "splits": " ".join(names)}, {"splits": names, **known})
        return rows

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        wanted = self.wanted(view)
        unusable = dict(view.table("raw_videos").rows(["video_id", "error"]).iter_rows())
        tasks = []
        for video_id in ids:
            known = wanted[video_id].known
            if known.get("path"):
                tasks.append((video_id, known["path"], known))
            else:
                reason = unusable.get(video_id) or sources.missing_video_error(view.entry, video_id)
                yield {"video_id": video_id, "splits": known["splits"], "error": reason}
        for result in execution.map_rows(_probe_video, tasks, view, deadline_s=300):
            video_id, path, known = result.item
            facts = result.value or {"error": _readable(result.error, path)}
            yield {"video_id": video_id, **known, **facts}


def _probe_video(task: tuple[str, str, Mapping[str, Any]]) -> dict[str, Any]:
    import dataclasses

    from vsr1_core.media.probe import probe

    path = Path(task[1])
    return {**dataclasses.asdict(probe(path)), "bytes": path.stat().st_size}


def _readable(error: str | None, path: str) -> str:
    """An error that names its file."""
    name = Path(path).name
    return error if error and name in error else f"{name}: {error}"


class Moments(Stage):
    """One row an annotated query, and one failed row (`<file>:<line>`) a line that is none.

    duration_s: as annotated; where the annotation does not say (CSV), the probed video's, or null without a video.
    """

    name: ClassVar[str] = "moments"
    key: ClassVar[str] = "query_id"
    group: ClassVar[str] = "corpus"
    upstream: ClassVar[tuple[str, ...]] = ("annotation_files", "videos")
    columns: ClassVar[Mapping[str, Any]] = {
        "split": pl.String,
        "query": pl.String,
        "plain_query": pl.String,
        "video_id": pl.String,
        "start_s": pl.Float64,
        "end_s": pl.Float64,
        "duration_s": pl.Float64,
        "clamped": pl.Boolean,
    }

    def wanted(self, view: View) -> dict[str, Row]:
        videos = dict(view.rows("videos", ["video_id", "content"]).iter_rows())
        rows = {}
        for query_id, moment in sources.moments(view.entry, view.config).items():
            inputs = {"annotation": moment.version}
            if isinstance(moment, BadLine):
                rows[query_id] = Row(inputs, failed(moment.reason))
                continue
            if moment.duration_s is None:
                inputs["video"] = videos.get(moment.video_id, "missing")
            rows[query_id] = Row(inputs, self._columns(moment))
        return rows

    def _columns(self, moment: Moment) -> dict[str, Any]:
        return {name: getattr(moment, name) for name in self.columns}

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        moments = sources.moments(view.entry, view.config)
        durations = dict(view.rows("videos", ["video_id", "duration_s"]).iter_rows())
        for query_id in ids:
            try:
                moment = moments[query_id]
                if isinstance(moment, Moment) and moment.duration_s is None:
                    moment = moment.within(durations.get(moment.video_id))
            except ValueError as error:
                moment = BadLine(query_id, str(error))
            row = {"error": moment.reason} if isinstance(moment, BadLine) else self._columns(moment)
            yield {"query_id": query_id, **row}


STAGES: tuple[type[Stage], ...] = (AnnotationFiles, RawVideos, Videos, Moments)
