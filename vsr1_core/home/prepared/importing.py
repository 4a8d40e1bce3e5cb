"""From a checked prepared folder to rows in the lake: all or nothing, and what was imported is not computed.

The import is complete in a folder of its own before it is put in force; then the stages take its rows in. What they
would have to make (embedding a changed query, say) is left for a build.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home.prepared.folder import Prepared, read_prepared
from vsr1_core.home.prepared.layout import Line, splits_of
from vsr1_core.home.prepared.rows import INDEX_FILES, ImportedTable, imported_tables
from vsr1_core.rows.files import atomic_folder, atomic_path, digest_file, file_stem, write_json
from vsr1_core.rows.imported import (
    DOCUMENT_COLUMNS,
    FORM,
    Imported,
    import_folder,
    put_in_force,
    remove_older,
    write_rows,
)
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import Execution, View


@dataclass(frozen=True)
class Summary:
    """given: asset -> rows the folder brought; taken: asset -> rows of the lake that are as imported now."""

    given: Mapping[str, int]
    taken: Mapping[str, int]
    notes: Sequence[str]


def import_prepared(
    view: View, root: Path, execution: Execution, splits: Sequence[str] = (), copy: bool = False
) -> Summary:
    """Take the folder's rows into the dataset of `view`. Run again, it goes on where it was stopped.

    splits: of the folder, all of them by default. copy: frames are copied; otherwise they are hard links where the lake
    is on the same file system. PreparedError names everything that is wrong, and then nothing was changed.
    """
    root = root.absolute()
    prepared = read_prepared(root, splits or splits_of(root), execution.workers)
    _check_space(prepared, view, copy)
    notes = _place_annotations(prepared, view.entry)
    tables = imported_tables(view, prepared)
    import_id = _import_id(prepared, tables)
    imported = Imported(import_folder(view.lake, view.entry.name, import_id))
    if not imported.folder.exists():
        with atomic_folder(imported.folder) as temporary:
            _fill(Imported(temporary), prepared, tables, copy)
    put_in_force(view.lake, view.entry.name, import_id)
    taken = _take_in(dataclasses.replace(view, planned={}, unsettled=set()), execution)
    remove_older(view.lake, view.entry.name)
    return Summary({t.asset: len(t.ids) for t in tables}, taken, notes)


def _import_id(prepared: Prepared, tables: Sequence[ImportedTable]) -> str:
    """Of all rows and of the documents they came in."""
    lines = hashlib.sha256()
    for name, document in _documents(prepared):
        for line in document:
            lines.update(f"{name}\x1f{line.row_id}\x1f{line.record}\x1e".encode())
    rows = [[t.asset, list(zip(t.ids, t.digests, strict=True)), t.bases] for t in tables]
    return fingerprint([FORM, rows, lines.hexdigest()])


def _check_space(prepared: Prepared, view: View, copy: bool) -> None:
    """OSError where frames have to be copied and the disk has no room for them."""
    view.lake.root.mkdir(parents=True, exist_ok=True)
    if not copy and prepared.root.stat().st_dev == view.lake.root.stat().st_dev:
        return
    needed = sum(f.path.stat().st_size for split in prepared.splits.values() for f in split.frames.values())
    free = shutil.disk_usage(view.lake.root).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the frames take {needed / 2**30:.1f} GiB and {view.lake.root} has {free / 2**30:.1f} GiB free; put the "
            "prepared folder on the same file system, and its frames are linked instead of copied",
        )


def _place_annotations(prepared: Prepared, entry: DatasetEntry) -> list[str]:
    """Give the dataset the annotation files that it lacks. What it has stays; rows that differ there are not taken."""
    notes = []
    for file in BENCHMARKS[entry.name].files:
        target = Path(entry.annotations).absolute() / file.name
        if file.split not in prepared.splits:
            continue
        source = prepared.splits[file.split].annotations
        if not target.exists():
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
            notes.append(f"wrote {file.name} to {target.parent}")
        elif digest_file(target) != digest_file(source):
            notes.append(f"{target} differs from {source}: its rows decide, and only what fits them is taken in")
    return notes


def _fill(imported: Imported, prepared: Prepared, tables: Sequence[ImportedTable], copy: bool) -> None:
    """Everything of the import, into its folder."""
    for table in tables:
        write_rows(imported, table.asset, table.rows, table.digests, table.bases)
    _write_documents(imported, prepared)
    for split in prepared.splits.values():
        folder = prepared.root / split.split
        queries = folder / "query_embedding" / f"query_embeddings.{split.split}.npy"
        bring(queries, imported.array(f"{split.split}.queries"), copy=True)
        bring(folder / "video_embedding_1fps/segment_embeds.npy", imported.array(f"{split.split}.videos"), copy=True)
        for name in INDEX_FILES:
            bring(split.index / name, imported.folder / "index" / split.split / name, copy=True)
        for frames in split.frames.values():
            target = imported.folder / "frames" / f"{file_stem(frames.video_id)}.npy"
            if not target.exists():  # a video of two splits has the same frames in both
                bring(frames.path, target, copy)
    write_json(imported.folder / "record.json", _record(prepared, tables))


def bring(source: Path, target: Path, copy: bool) -> None:
    """A file under another name: linked where that can be, else copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(source.resolve(), target)
            return
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
    shutil.copyfile(source, target)


def _write_documents(imported: Imported, prepared: Prepared) -> None:
    parts = [
        pl.DataFrame(
            {
                "document": [name] * len(lines),
                "row_id": [line.row_id for line in lines],
                "is_held": [line.is_held for line in lines],
                "record": [line.record for line in lines],
            },
            schema=DOCUMENT_COLUMNS,
        )
        for name, lines in _documents(prepared)
    ]
    with atomic_path(imported.folder / "documents.parquet") as temporary:
        pl.concat(parts).write_parquet(temporary)


def _documents(prepared: Prepared) -> Iterator[tuple[str, Sequence[Line]]]:
    """(name, lines) of each document, in the order of its file."""
    for split in prepared.splits.values():
        yield f"{split.split}.queries", split.queries
        yield f"{split.split}.videos", [Line(video_id, "") for video_id in split.video_ids]
        yield f"{split.split}.frames", split.frame_lines
    yield "hard_negatives", prepared.training.negative_lines
    yield "sft", prepared.training.trace_lines
    yield "grpo", prepared.training.prompt_lines


def _record(prepared: Prepared, tables: Sequence[ImportedTable]) -> dict[str, object]:
    """Where the rows are from; the system prompts are those of the stage 1 file, for checkpoints trained on it."""
    return {
        "source": str(prepared.root),
        "form": FORM,
        "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "splits": sorted(prepared.splits),
        "num_rows": {table.asset: len(table.ids) for table in tables},
        "digests": {table.asset: fingerprint(sorted(table.digests)) for table in tables},
        "system_prompts": sorted({trace.system_prompt for trace in prepared.training.traces.values()}),
    }


def _take_in(view: View, execution: Execution) -> dict[str, int]:
    """Let the stages take what was imported; asset -> rows that are as imported."""
    taken = {}
    for name, stage in view.stages.items():
        if stage.imports == "none":
            continue
        stage.build(view, execution, only_imported=stage.imports == "rows")
        if stage.imports == "rows" or name == "videos":
            inputs = view.table(name).rows(["row_inputs"])["row_inputs"].to_list()
            taken[name] = sum("imported" in json.loads(text) for text in inputs)
    return taken
