"""Import a checked prepared folder into the lake, completely or not at all. Imported rows are not computed again.

The import is completed in a folder of its own before it is put in force; then the stages store its rows. Rows that have
to be made (such as the embedding of a changed query) are left to a build.
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
    """What an import did.

    num_rows: asset -> rows that the folder has. num_imported: asset -> rows of the lake that are as imported now.
    notes: sentences about the annotation files.
    """

    num_rows: Mapping[str, int]
    num_imported: Mapping[str, int]
    notes: Sequence[str]


def import_prepared(
    view: View, root: Path, execution: Execution, splits: Sequence[str] = (), copy: bool = False
) -> Summary:
    """Import the rows of the folder `root` into the dataset of `view`. A second call continues a stopped import.

    Args:
        view: The dataset.
        root: The prepared folder.
        execution: How the work runs.
        splits: Splits to import; by default all that the folder has.
        copy: Whether frames are copied; otherwise they are hard links where the lake is on the same file system.

    Returns:
        How many rows were imported of each asset.

    Raises:
        PreparedError: The folder is not sound; the message names everything that is wrong, and nothing was changed.
        OSError: The frames have to be copied, and the disk has no space for them.
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
    num_imported = _store(dataclasses.replace(view, planned={}, unsettled=set()), execution)
    remove_older(view.lake, view.entry.name)
    return Summary({t.asset: len(t.ids) for t in tables}, num_imported, notes)


def _import_id(prepared: Prepared, tables: Sequence[ImportedTable]) -> str:
    """Fingerprint of all rows and of the documents that they came in."""
    lines = hashlib.sha256()
    for name, document in _documents(prepared):
        for line in document:
            lines.update(f"{name}\x1f{line.row_id}\x1f{line.record}\x1e".encode())
    rows = [[t.asset, list(zip(t.ids, t.digests, strict=True)), t.bases] for t in tables]
    return fingerprint([FORM, rows, lines.hexdigest()])


def _check_space(prepared: Prepared, view: View, copy: bool) -> None:
    """Raise OSError where frames have to be copied and the disk has no space for them."""
    view.lake.root.mkdir(parents=True, exist_ok=True)
    if not copy and prepared.root.stat().st_dev == view.lake.root.stat().st_dev:
        return
    needed = sum(f.path.stat().st_size for split in prepared.splits.values() for f in split.frames.values())
    free = shutil.disk_usage(view.lake.root).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the frames need {needed / 2**30:.1f} GiB and {view.lake.root} has {free / 2**30:.1f} GiB free; put the "
            "prepared folder on the same file system, so that its frames are linked instead of copied",
        )


def _place_annotations(prepared: Prepared, entry: DatasetEntry) -> list[str]:
    """Copy the annotation files that the dataset lacks. Files that it has stay, and rows that do not fit them are not
    imported. Returns a sentence per file that was written or differs."""
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
            notes.append(f"{target} differs from {source}: the former is used, and only rows that fit it are imported")
    return notes


def _fill(imported: Imported, prepared: Prepared, tables: Sequence[ImportedTable], copy: bool) -> None:
    """Write the rows, documents, arrays and frames of the import into its folder."""
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
    """Put the file `source` at `target`: as a hard link where that is possible and `copy` is false, else as a copy."""
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
    """(name, lines) of each document, with the lines in the order of its file."""
    for split in prepared.splits.values():
        yield f"{split.split}.queries", split.queries
        yield f"{split.split}.videos", [Line(video_id, "") for video_id in split.video_ids]
        yield f"{split.split}.frames", split.frame_lines
    yield "hard_negatives", prepared.training.negative_lines
    yield "sft", prepared.training.trace_lines
    yield "grpo", prepared.training.prompt_lines


def _record(prepared: Prepared, tables: Sequence[ImportedTable]) -> dict[str, object]:
    """The record of the import: source, time and numbers of rows. system_prompts: those of the stage 1 file, which
    checkpoints trained on it need."""
    return {
        "source": str(prepared.root),
        "form": FORM,
        "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "splits": sorted(prepared.splits),
        "num_rows": {table.asset: len(table.ids) for table in tables},
        "digests": {table.asset: fingerprint(sorted(table.digests)) for table in tables},
        "system_prompts": sorted({trace.system_prompt for trace in prepared.training.traces.values()}),
    }


def _store(view: View, execution: Execution) -> dict[str, int]:
    """Let the stages store the imported rows in their tables. Returns asset -> rows that are as imported."""
    num_imported = {}
    for name, stage in view.stages.items():
        if stage.imports == "none":
            continue
        stage.build(view, execution, only_imported=stage.imports == "rows")
        if stage.imports == "rows" or name == "videos":
            inputs = view.table(name).rows(["row_inputs"])["row_inputs"].to_list()
            num_imported[name] = sum("imported" in json.loads(text) for text in inputs)
    return num_imported
