"""Import a checked prepared folder into the lake, completely or not at all. Imported rows are not computed again.

The import is completed in a folder of its own before it is put in force; then the stages store its rows. Rows that have
to be made (such as the embedding of a changed query) are left to a build.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import Moment
from vsr1_core.home.prepared.documents import Line
from vsr1_core.home.prepared.folder import Prepared, read_prepared
from vsr1_core.home.prepared.layout import SPLITS, VIDEO_VECTORS, PreparedSplit, of_length_1, splits_of
from vsr1_core.home.prepared.rows import INDEX_FILES, ImportedTable, imported_tables
from vsr1_core.home.prepared.training_files import TrainingPlaces, find_training_files
from vsr1_core.rows.files import atomic_folder, atomic_path, digest_file, file_stem, read_json, write_json
from vsr1_core.rows.imported import (
    DOCUMENT_COLUMNS,
    FORM,
    RECORD,
    Imported,
    forget_import,
    import_folder,
    put_in_force,
    remove_older,
    write_rows,
)
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import writing
from vsr1_core.stages.imported_vectors import compare, spread
from vsr1_core.stages.loading import one_row, precision


@dataclass(frozen=True)
class Summary:
    """What an import did.

    num_rows: asset -> rows that the folder has. num_imported: asset -> rows of the lake that are as imported now.
    notes: sentences about the annotation files.
    """

    num_rows: Mapping[str, int]
    num_imported: Mapping[str, int]
    notes: Sequence[str]

    @property
    def left_out(self) -> list[str]:
        """A sentence about each asset of which not all rows were imported."""
        fewer = {asset: n - self.num_imported[asset] for asset, n in self.num_rows.items()}
        return [
            f"{asset}: {n:,} of {self.num_rows[asset]:,} rows were left out, because they do not fit the files of this "
            "dataset; a build makes its own"
            for asset, n in fewer.items()
            if n > 0
        ]


def import_prepared(
    view: View,
    root: Path,
    execution: Execution,
    splits: Sequence[str] = (),
    copy: bool = False,
    named: TrainingPlaces | None = None,
    with_vectors: bool = True,
    wait: bool = False,
) -> Summary:
    """Import the rows of the folder `root` into the dataset of `view`. A second call continues a stopped import.

    Args:
        view: The dataset.
        root: The prepared folder.
        execution: How the work runs.
        splits: Splits to import; by default all that the folder has.
        copy: Whether frames are copied; otherwise they are hard links where the lake is on the same file system.
        named: Training files that are elsewhere; by default they are looked for where the authors' scripts put them.
        with_vectors: Whether embeddings and indexes are imported as well; otherwise a build makes them.
        wait: Whether to wait for a build of the dataset that is going on, instead of raising.

    Returns:
        How many rows were imported of each asset.

    Raises:
        PreparedError: The folder is not sound; the message names everything that is wrong, and nothing was changed.
        ValueError: The ids are those of another dataset, or the vectors are not those of the dataset's embedder;
            nothing was changed.
        OSError: The frames have to be copied, and the disk has no space for them; or something else writes the dataset.
    """
    with writing(view, f"an import of {root}", wait=wait, log=execution.log) as held:
        places = find_training_files(root.absolute(), view.entry.corpus, named or TrainingPlaces())
        prepared = read_prepared(root.absolute(), splits or splits_of(root.absolute()), places, execution.workers)
        return _take_in(held, prepared, execution, copy, with_vectors)


def _take_in(view: View, prepared: Prepared, execution: Execution, copy: bool, with_vectors: bool) -> Summary:
    """Write the import and put it in force, as the only writer of the dataset."""
    _refuse_foreign(prepared, view)
    _check_space(prepared, view, copy)
    notes = [*prepared.notes, *(_compare_vectors(prepared, view, execution) if with_vectors else ())]
    notes += _place_annotations(prepared, view)
    tables = imported_tables(view, prepared, with_vectors)
    import_id = _import_id(prepared, tables)
    imported = Imported(import_folder(view.lake, view.entry.name, import_id))
    if not imported.folder.exists():
        with atomic_folder(imported.folder) as temporary:
            _fill(Imported(temporary), prepared, tables, copy, with_vectors)
    put_in_force(view.lake, view.entry.name, import_id)
    stored = _store(dataclasses.replace(view, planned={}, unsettled=set()), execution)
    remove_older(view.lake, view.entry.name)
    num_rows = {table.asset: len(table.ids) for table in tables}
    return Summary(num_rows, {asset: stored[asset] for asset in num_rows}, notes)


def _refuse_foreign(prepared: Prepared, view: View) -> None:
    """Raise ValueError where the folder is that of another dataset, by the ids of its videos or queries."""
    entry, advice = view.entry, "import it under the name of its own dataset: --dataset NAME"
    benchmark = BENCHMARKS.get(entry.corpus)
    videos = sorted({video_id for split in prepared.splits.values() for video_id in split.video_ids})
    strange = [video_id for video_id in videos if benchmark and not benchmark.is_video_id(video_id)]
    if benchmark and strange:
        raise ValueError(
            f"{len(strange):,} of the {len(videos):,} videos in {prepared.root} have ids that {entry.name} does not "
            f"have (such as {strange[0]!r}; they look like {benchmark.id_example}): {advice}"
        )
    known, queries = _known_queries(view), {i for split in prepared.splits.values() for i in split.annotated}
    if known and queries and not known & queries:
        raise ValueError(
            f"{entry.name} has {len(known):,} annotated queries, and not one of them is among the {len(queries):,} in "
            f"{prepared.root}: {advice}"
        )


def _known_queries(view: View) -> set[str]:
    """The ids of the queries that are annotated already; empty where nothing is."""
    try:
        found = sources.moments(view.entry, view.config)
    except FileNotFoundError:
        return set()
    return {query_id for query_id, row in found.items() if isinstance(row, Moment)}


def _compare_vectors(prepared: Prepared, view: View, execution: Execution) -> Iterator[str]:
    """Compare a few query vectors with the dataset's embedder, if it is there already; a sentence about it."""
    if "base_models" not in view.stages or not view.version("base_models", "embedder"):
        yield "the vectors are compared with the dataset's embedder when it is opened for the first time"
        return
    from vsr1_core.models.checkpoints import load_embedder

    row = one_row(view, "base_models", "embedder")
    split = next(iter(prepared.splits.values()))
    lines = spread(range(len(split.queries)))
    queries = [split.annotated[split.queries[n].row_id].query for n in lines]
    precise, instruction = precision(view, execution), view.config.models.query_instruction
    embedder = load_embedder(row["path"], execution.device, precise, instruction)
    vectors, command = of_length_1(split.query_vectors[lines]), f"import-prepared {prepared.root}"
    compare(embedder, row, queries, vectors, prepared.embedder, command, view.entry.name)
    yield f"the vectors of {len(queries)} queries are those of the embedder {row['source'] or row['digest']}"


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
    needed = sum(f.path.stat().st_size for split in prepared.splits.values() for f in split.frames.found.values())
    free = shutil.disk_usage(view.lake.root).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the frames need {needed / 2**30:.1f} GiB and {view.lake.root} has {free / 2**30:.1f} GiB free; put the "
            "prepared folder on the same file system, so that its frames are linked instead of copied",
        )


def _place_annotations(prepared: Prepared, view: View) -> list[str]:
    """Copy the annotation files that the dataset lacks. Files that it has stay, and rows that do not fit them are not
    imported. Returns a sentence per file that was written or differs."""
    notes, record = [], _written_path(view)
    for split, target in _annotation_files(view.entry).items():
        if split not in prepared.splits:
            continue
        source = prepared.splits[split].annotations
        if not target.exists():
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
            before = read_json(record) if record.exists() else {}
            write_json(record, {**before, target.name: digest_file(target)})
            notes.append(f"wrote {target.name} to {target.parent}")
        elif digest_file(target) != digest_file(source):
            notes.append(f"{target} differs from {source}: the former is used, and only rows that fit it are imported")
    return notes


def _written_path(view: View) -> Path:
    """The record of the annotation files that imports wrote: name -> digest."""
    return view.lake.imported(view.entry.name) / "written.json"


def forget(view: View) -> list[Path]:
    """Undo all imports of the dataset: their rows, their files, and the annotation files that they wrote. The caller
    holds the lease.

    Returns:
        The annotation files that were deleted; those that were changed since stay.

    Raises:
        ValueError: Nothing was imported.
    """
    record = _written_path(view)
    written = read_json(record) if record.exists() else {}
    if not forget_import(view.lake, view.entry.name) and not written:
        raise ValueError(f"nothing was imported for {view.entry.name}")
    paths = [(Path(view.entry.annotations).absolute() / name, digest) for name, digest in sorted(written.items())]
    deleted = [path for path, digest in paths if path.is_file() and digest_file(path) == digest]
    for path in deleted:
        path.unlink()
    return deleted


def _annotation_files(entry: DatasetEntry) -> dict[str, Path]:
    """Split -> annotation file, of a dataset in the VERIFIED FIG format; other datasets have annotations of their
    own."""
    folder = Path(entry.annotations).absolute()
    if entry.kind != "verified":
        return {}
    if entry.corpus in BENCHMARKS:
        return {file.split: folder / file.name for file in BENCHMARKS[entry.corpus].files}
    return {split: folder / f"{entry.corpus}_fig_{split}.jsonl" for split in SPLITS}


def _fill(
    imported: Imported, prepared: Prepared, tables: Sequence[ImportedTable], copy: bool, with_vectors: bool
) -> None:
    """Write the rows, documents, arrays and frames of the import into its folder."""
    for table in tables:
        write_rows(imported, table.asset, table.rows, table.digests, table.bases)
    _write_documents(imported, prepared, with_vectors)
    for split in prepared.splits.values():
        if with_vectors:
            _bring_vectors(imported, prepared.root, split)
        for frames in split.frames.found.values():
            target = imported.folder / "frames" / f"{file_stem(frames.video_id)}.npy"
            if not target.exists():  # a video of two splits has the same frames in both
                bring(frames.path, target, copy)
    write_json(imported.folder / RECORD, _record(prepared, tables))


def _bring_vectors(imported: Imported, root: Path, split: PreparedSplit) -> None:
    folder, name = root / split.split, split.split
    bring(folder / "query_embedding" / f"query_embeddings.{name}.npy", imported.array(f"{name}.queries"), copy=True)
    bring(folder / VIDEO_VECTORS / "segment_embeds.npy", imported.array(f"{name}.videos"), copy=True)
    for file in INDEX_FILES if split.index else ():
        bring(folder / "index" / file, imported.folder / "index" / name / file, copy=True)


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


def _write_documents(imported: Imported, prepared: Prepared, with_vectors: bool) -> None:
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
        if with_vectors or not name.endswith((".queries", ".videos"))
    ]
    with atomic_path(imported.folder / "documents.parquet") as temporary:
        pl.concat(parts).write_parquet(temporary)


def _documents(prepared: Prepared) -> Iterator[tuple[str, Sequence[Line]]]:
    """(name, lines) of each document, with the lines in the order of its file."""
    for split in prepared.splits.values():
        yield f"{split.split}.queries", split.queries
        yield f"{split.split}.videos", [Line(video_id, "") for video_id in split.video_ids]
        yield f"{split.split}.frames", split.frames.lines
    yield "hard_negatives", prepared.training.negative_lines
    yield "sft", prepared.training.trace_lines
    yield "grpo", prepared.training.prompt_lines
    yield "grpo_stats", prepared.training.stats


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
        "embedder": prepared.embedder,
        "corpus": prepared.corpus,
        "system_prompts": sorted({trace.system_prompt for trace in prepared.training.traces.values()}),
    }


def _store(view: View, execution: Execution) -> dict[str, int]:
    """Let the stages store the imported rows in their tables. Returns asset -> rows that are as imported."""
    num_imported = {}
    for name, stage in view.stages.items():
        if stage.imports == "none":
            continue
        stage.build(view, execution, only_imported=stage.imports == "rows")
        planned = stage.planned_rows(view)  # a row that does not hold any more stays until a build replaces it
        stored = view.table(name).rows([stage.key])[stage.key]
        num_imported[name] = sum(row_id in planned and planned[row_id].is_imported for row_id in stored)
    return num_imported
