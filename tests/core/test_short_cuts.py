"""Whatever moves, a plan that may skip stages says what one says that looks at every row.

`test_random_edits` edits the corpus; here tables are changed where they lie, each column of each, so that every column
that any plan reads moves alone. And no plan of a stage that may be skipped reads anything that is not compared.

The graph is the real one with cheap models (`tests.few_stages`, `tests.cheap_stages`).
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cheap_stages import cheap_stages
from tests.few_stages import START, stages
from tests.short_cuts import assert_short_cuts_are_exact, fresh
from tests.small_world import NOT_A_VIDEO, SmallWorld, fill
from vsr1_core.datasets.sources import FileVersions
from vsr1_core.rows.table import Table
from vsr1_core.segments import SegmentRecipe
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import with_all_before
from vsr1_core.stages.readings import NotYetKnown, Reading, content_digest
from vsr1_core.stages.reporting import Report
from vsr1_core.stages.unmoved import build_stage

FEW = ("moments", "frame_tensors", "first_ranking")
"""Tables that many plans read. The others are left to the sweep, and so are most changes of these."""
ASSETS = [a if a in FEW else pytest.param(a, marks=pytest.mark.sweep) for a in stages()]
CHANGES = [*((a, 5) for a in FEW), *(pytest.param(a, 1, marks=pytest.mark.sweep) for a in stages())]
"""(asset, n): each n-th change of its table."""
LOOKED_AT_EACH_TIME = {"annotation_files"}


class Built:
    """A home in which everything was built twice, with failed rows among the others. read_by: stage -> what its plan
    read."""

    def __init__(self, home: Path) -> None:
        world = fill(SmallWorld(home), num_train=2, num_test=2)
        for split in world.rows:
            world.put_video(f"broken_{split}", NOT_A_VIDEO)
            world.add_query(split, {"train": 500, "test": 600}[split], f"broken_{split}")
            world.rows[split].append({**world.rows[split][0], "desc_id": 700 + len(split), "fig_desc": ""})
            world.write_annotations(split)
        self.view = world.view(stages(), START)
        for _ in range(2):
            for stage in self.view.stages.values():
                build_stage(self.view, stage, Execution(workers=1))
        self.read_by = {**self.view.read_by, **_read_now(fresh(self.view))}

    def must_look(self, asset: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> set[str]:
        """The stages whose plans read anything else of `asset` after a change than before."""
        return {asset} | {
            name
            for name, readings in self.read_by.items()
            for reading in readings
            if reading.asset == asset and seen(before, reading) != seen(after, reading)
        }


def _read_now(view: View) -> dict[str, frozenset[Reading]]:
    for stage in view.stages.values():
        stage.planned_rows(view)
    return view.read_by


def seen(rows: list[dict[str, Any]], reading: Reading) -> Any:
    """What a reading says of rows, by the naive way."""
    if reading.kind == "table":
        return repr(rows)
    found = [row for row in rows if reading.kind == "all" or row["status"] == "ok"]
    if reading.splits is not None:
        found = [row for row in found if {*reading.splits} & {row.get("split"), *(row.get("splits") or ())}]
    return [[repr(row[name]) for name in reading.columns or row] for row in found]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("short") / "home")


def another(value: Any, dtype: pl.DataType) -> Any:
    """Another value of a column's type."""
    if isinstance(dtype, pl.List):
        return [another(None, dtype.inner)] if not value else [another(value[0], dtype.inner), *value[1:]]  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        first = dtype.fields[0]
        kept = dict.fromkeys((f.name for f in dtype.fields), None) if value is None else value
        return {**kept, first.name: another(kept[first.name], first.dtype)}  # type: ignore[arg-type]
    if dtype == pl.Boolean:
        return not value
    if dtype.is_numeric():
        return 1 if value is None else value + 1
    return {"ok": "failed", "failed": "ok"}.get(value, f"{value or ''}x")


Change = Callable[[pl.DataFrame, int], pl.DataFrame]


def changed(frame: pl.DataFrame, row: int, column: str) -> pl.DataFrame:
    values = frame[column].to_list()
    values[row] = another(values[row], frame.schema[column])
    return frame.with_columns(pl.Series(column, values, frame.schema[column]))


def emptied(frame: pl.DataFrame, row: int, column: str) -> pl.DataFrame:
    values = frame[column].to_list()
    values[row] = None
    return frame.with_columns(pl.Series(column, values, frame.schema[column]))


def dropped(frame: pl.DataFrame, row: int, column: str) -> pl.DataFrame:
    return frame.with_row_index("_row").filter(pl.col("_row") != row).drop("_row")


def doubled(frame: pl.DataFrame, row: int, column: str) -> pl.DataFrame:
    """The row once more with another id, the last one."""
    return pl.concat([frame, frame[row].with_columns(pl.lit("zzz").alias(frame.columns[0]))])


def changes(table: Table) -> Iterator[pl.DataFrame]:
    """The rows of a table with one change: in each column, of one row of each kind, and with a row more or less."""
    frame = table.rows()
    kinds = [name for name in ("split", "splits", "status") if name in frame.columns]
    rows = frame.with_row_index("_row").unique(kinds, keep="first", maintain_order=True)["_row"]
    for row in rows:
        for column in frame.columns[1:]:
            yield changed(frame, row, column)
            yield emptied(frame, row, column)
        yield dropped(frame, row, "")
        yield doubled(frame, row, "")


@pytest.mark.slow
@pytest.mark.parametrize(("asset", "every"), CHANGES)
def test_whatever_changes_in_a_table_its_readers_are_looked_at_and_the_plan_is_that_of_all_rows(
    built: Built, asset: str, every: int
) -> None:
    table = built.view.table(asset)
    before, manifest = table.rows(), table.manifest_path.read_text()
    tried = [frame for frame in changes(table) if not frame.equals(before)][::every]
    for frame in tried:
        table.commit(frame, {})
        short = assert_short_cuts_are_exact(built.view)
        must = built.must_look(asset, before.to_dicts(), table.rows().to_dicts())
        table.rows_path.unlink()
        table.manifest_path.write_text(manifest)
        if short is not None and asset not in short.planned.keys() | short.unsettled:  # else they read what is planned
            assert must <= short.read_by.keys()
            assert short.planned or short.unsettled or short.read_by.keys() <= must | LOOKED_AT_EACH_TIME
    assert tried


@pytest.mark.slow
@pytest.mark.parametrize("asset", ASSETS)
def test_a_table_that_is_gone_or_has_a_shard_plans_what_all_rows_plan(built: Built, asset: str, tmp_path: Path) -> None:
    table, away = built.view.table(asset), tmp_path / "away"
    table.add_pending([{**table.rows()[0].to_dicts()[0], "row_inputs": "{}"}])
    assert_short_cuts_are_exact(built.view)
    shutil.rmtree(table.folder / "pending")
    shutil.move(table.folder, away)
    assert_short_cuts_are_exact(built.view)
    shutil.move(away, table.folder)
    assert_short_cuts_are_exact(built.view)


# ---- what a plan reads and where ---------------------------------------------------------------------------------

CONFIGURATIONS: Mapping[str, dict[str, Any]] = {
    "as it was built": {},
    "in windows": {"segments": SegmentRecipe(window_s=4.0)},
    "a teacher that is asked": {"teacher": dataclasses.replace(START.teacher, kind="endpoint")},
    "a pool that is filled": {"pool": dataclasses.replace(START.pool, fill_matched=True, random_share=0.5)},
    "models of a hub": {"models": dataclasses.replace(START.models, policy="Qwen/A", embedder="Qwen/B")},
    "two splits": {"evaluation": dataclasses.replace(START.evaluation, splits=("test", "train"))},
}


class Watched:
    """The files, folders and variables that Python code looks at meanwhile. Polars opens files by itself."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.paths, self.names = set[Path](), set[str]()
        for module, name in (
            *((builtins, "open"), (io, "open"), (os, "open"), (os, "listdir"), (os, "scandir"), (os, "stat")),
            *((os, "lstat"), (os, "readlink"), (pl, "scan_parquet"), (pl, "read_parquet"), (pl, "read_parquet_schema")),
        ):
            patch.setattr(module, name, self._noting(getattr(module, name)))
        ask = os.environ.__class__.__getitem__
        patch.setattr(os.environ.__class__, "__getitem__", lambda own, name: self.names.add(name) or ask(own, name))

    def _noting(self, called: Callable[..., Any]) -> Callable[..., Any]:
        def noted(path: Any, *rest: Any, **named: Any) -> Any:
            for one in path if isinstance(path, list) else [path]:
                if isinstance(one, str | os.PathLike):
                    self.paths.add(Path(os.fspath(one)).absolute())
            return called(path, *rest, **named)

        return noted


class AskedFiles(FileVersions):
    """Notes which versions are asked for."""

    @cached_property
    def asked(self) -> set[str]:
        return set()

    @property
    def videos(self) -> str:  # type: ignore[override]
        self.asked.add("videos")
        return "videos"

    @property
    def all(self) -> str:  # type: ignore[override]
        self.asked.add("all")
        return "all"


@pytest.mark.parametrize("changed_values", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_plan_that_may_be_skipped_looks_at_nothing_but_what_is_compared(
    built: Built, changed_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(START, **changed_values)
    view = View(built.view.lake, built.view.entry, config, cheap_stages(), home=built.view.home)
    records = {path for stage in view.stages.values() for path in stage.records(view)}
    records.add(view.lake.imported(view.entry.name) / "current.json")
    num_looked_at = 0
    for name, stage in view.stages.items():
        files = AskedFiles(view.entry, config)
        if stage.beside_tables(view, files) is None:
            continue
        num_looked_at += 1
        with monkeypatch.context() as patch, contextlib.suppress(NotYetKnown, ValueError):
            watched = Watched(patch)
            stage.planned_rows(view)
        folders = {view.table(asset).folder for asset in (name, *(reading.asset for reading in view.read_by[name]))}
        # What is kept of the annotations has a name that says of which content it is.
        folders |= {Path(view.entry.annotations), view.lake.cache("annotations")} if "all" in files.asked else set()
        # What is kept of the files' digests has path, size and time of each.
        folders |= {Path(view.entry.videos), view.lake.cache("digests")} if "videos" in files.asked else set()
        on_the_way = {*Path(view.entry.videos).parents} if "videos" in files.asked else set()  # which may be links
        strange = {p for p in watched.paths - records - on_the_way if not {p, *p.parents} & folders}
        assert not strange, name
        assert not {one for one in watched.names if not one.startswith("POLARS_")}, name
    assert num_looked_at > len(view.stages) / 2


@pytest.mark.parametrize("changed_values", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_plan_reads_its_own_table_and_those_before_it(built: Built, changed_values: dict[str, Any]) -> None:
    config = dataclasses.replace(START, **changed_values)
    view = View(built.view.lake, built.view.entry, config, cheap_stages(), home=built.view.home)
    before = set[str]()
    for name, stage in view.stages.items():
        with contextlib.suppress(NotYetKnown, ValueError):
            stage.planned_rows(view)
        before.add(name)
        read = {reading.asset for reading in view.read_by[name]}
        assert read <= (before if name == Report.name else with_all_before([name], lambda i: view.stages[i].upstream))


def test_rows_are_chosen_by_columns_that_are_known_before(built: Built) -> None:
    """A row that is still to be made would be missed otherwise."""
    chosen = {r.asset for readings in built.read_by.values() for r in readings if r.splits is not None}
    assert len(chosen) > 3
    for asset in chosen:
        for row in built.view.stages[asset].planned_rows(fresh(built.view)).values():
            assert row.known.get("status") == "failed" or {"split", "splits"} & row.known.keys()


# ---- digests -----------------------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[pl.DataType, st.SearchStrategy[Any]]] = {
    "text": (pl.String(), st.none() | st.sampled_from(["", "a", "b", "ab"])),
    "number": (pl.Float64(), st.none() | st.sampled_from([0.0, -0.0, 1.0, float("nan")])),
    "texts": (pl.List(pl.String), st.none() | st.lists(st.none() | st.sampled_from(["", "a", "ab"]), max_size=2)),
    "options": (
        pl.Struct({"seed": pl.Int64, "form": pl.Struct({"wide": pl.Boolean})}),
        st.none()
        | st.fixed_dictionaries(
            {"seed": st.none() | st.integers(0, 1), "form": st.sampled_from([None, {"wide": None}, {"wide": True}])}
        ),
    ),
}


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_only_equal_rows_have_the_same_digest(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(COLUMNS)))
    dtype, values = COLUMNS[name]
    drawn = st.lists(values, max_size=3)
    one, other = (pl.DataFrame({"value": pl.Series(data.draw(drawn), dtype=dtype)}) for _ in range(2))
    assert (content_digest([one]) == content_digest([other])) == (repr(one.rows()) == repr(other.rows()))
