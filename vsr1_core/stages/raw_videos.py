"""The stage `raw_videos`: the video files of a dataset as they lie on disk."""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.datasets import folder, sources
from vsr1_core.datasets.format import MadeVideo
from vsr1_core.datasets.formats import get_format
from vsr1_core.rows.blocks import blocks
from vsr1_core.rows.columnar import LazyRows
from vsr1_core.rows.files import FileStamp
from vsr1_core.rows.known_digests import KnownDigests, digests_of
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages import columns as c
from vsr1_core.stages.base import Row, View
from vsr1_core.stages.columns import failed
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.removals import FromVideos

_FILE: dict[str, Any] = {
    "video_id": pl.String,
    "unusable": pl.String,
    "path": pl.String,
    "bytes": pl.Int64,
    "mtime_ns": pl.Int64,
    "digest": pl.String,
}
"""The columns of `RawVideos._files`."""


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

    def plan(self, view: View) -> Mapping[str, Row]:
        made, stored = sources.made_videos(view.entry, view.config), view.lake.places.stored
        if made is not None:
            return {video_id: self._made_row(video, stored(str(video.path))) for video_id, video in made.items()}

        def row(_: str, unusable: str | None, path: str, size: int, mtime_ns: int, digest: str) -> Row:
            if unusable is not None:
                return Row({"unusable": unusable}, failed(unusable))
            facts = {"path": path, "bytes": size, "mtime_ns": mtime_ns, "digest": digest, "content": digest}
            return Row({"content": digest, "path": stored(path)}, facts)

        return LazyRows(self._files(view), row)

    def _files(self, view: View) -> pl.DataFrame:
        """Video id, why its files are not read at all, and path, size, time and digest of the file. Files that are not
        read come last."""
        known, tables = self._known_digests(view), [pl.DataFrame(schema=_FILE)]
        for some in blocks(sources.video_files(view.entry).items()):
            unusable = {video_id: error for video_id, paths in some if (error := _unusable(video_id, paths))}
            single = {video_id: paths[0] for video_id, paths in some if video_id not in unusable}
            found = zip(single, digests_of(single.values(), known(single.values())), strict=True)
            rows = [(i, None, stamp.path, stamp.bytes, stamp.mtime_ns, digest) for i, (stamp, digest) in found]
            refused = [(video_id, error, None, None, None, None) for video_id, error in unusable.items()]
            tables.append(pl.DataFrame([*rows, *refused], schema=_FILE, orient="row"))
        files = pl.concat(tables)
        return pl.concat([files.filter(pl.col("unusable").is_null()), files.filter(pl.col("unusable").is_not_null())])

    def beside_tables(self, view: View, files: sources.FileVersions) -> Any:
        """The files, whose digests the table has under their paths, sizes and times, and where the home is: a path in
        it is kept relative to it, by whatever links it is named."""
        return [files.videos, os.path.realpath(view.lake.places.home)] if files.videos else None

    def place(self, view: View) -> str:
        return view.entry.videos

    @staticmethod
    def _made_row(video: MadeVideo, place: str) -> Row:
        known = {"path": str(video.path), "content": video.content}
        return Row({"content": video.content, "path": place}, known, facts=video.task)

    def _known_digests(self, view: View) -> Callable[[Iterable[Path]], Mapping[FileStamp, str]]:
        """A function: paths -> their digests by file stamp, from the rows of the table and from what was observed after
        they were made. Whether they are known changes no plan, so that it is not noted that the table was read."""
        table = view.lake.table(self.name, view.entry.name, self.key, self.dtypes)
        rows = LazyRows(table.ok_rows(["path", "bytes", "mtime_ns", "digest"]), lambda *row: row)
        observed = KnownDigests.of(view.lake, view.entry.name).read()

        def known(paths: Iterable[Path]) -> Mapping[FileStamp, str]:
            held = [row for path in paths if (row := rows.get(str(path)))]
            return ChainMap({FileStamp(*stamp): digest for *stamp, digest in held}, observed)

        return known

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
