"""All stages in the order in which they run, and the plan of the whole graph before any stage runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import polars as pl

from vsr1_core.datasets import sources
from vsr1_core.datasets.registry import configuration_of, get_entry, keep_relative
from vsr1_core.rows.blocks import blocks
from vsr1_core.rows.files import file_state
from vsr1_core.rows.frames import in_id_order
from vsr1_core.rows.increments import Future, Plan, moved_columns, with_others, without_gc
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.versions import Inputs, fingerprint, row_version
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.readings import NotYetKnown
from vsr1_core.stages.unmoved import Standing

Key = TypeVar("Key")

GROUPS = (
    *("sources", "corpus", "media", "checkpoints", "embeddings", "retrieval"),
    *("sft", "grpo", "evaluation"),
)
"""The groups of stages, in the order in which they are shown."""


def all_stages() -> dict[str, Stage]:
    """Every stage by name, upstream before downstream. The modules of `vsr1_core.stages` list them in STAGES."""
    return in_order([make() for module in _stage_modules() for make in module.STAGES])


@functools.cache
def _stage_modules() -> list[ModuleType]:
    """The modules that have a list STAGES. A new module is found by this function and has to be named nowhere."""
    import vsr1_core.stages as package

    modules = []
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if info.name in (__name__, "vsr1_core.stages.launched"):
            continue
        module = importlib.import_module(info.name)
        if hasattr(module, "STAGES"):
            modules.append(module)
    return modules


def in_order(stages: list[Stage]) -> dict[str, Stage]:
    """The stages by name in topological order; stages that are ready together are ordered by group, then by name.

    Raises:
        ValueError: The stages read each other in a cycle, one reads an asset that is not among them, or one has an
            unknown group.
    """
    strange = next((stage for stage in stages if stage.group not in GROUPS), None)
    if strange is not None:
        raise ValueError(f"stage {strange.name!r} has the group {strange.group!r}; the groups are: {', '.join(GROUPS)}")
    done: dict[str, Stage] = {}
    left = sorted(stages, key=lambda stage: (GROUPS.index(stage.group), stage.name))
    while left:
        ready = next((s for s in left if all(name in done for name in s.upstream)), None)
        if ready is None:
            raise ValueError(f"cycle or unknown upstream among {[s.name for s in left]}")
        done[ready.name] = ready
        left.remove(ready)
    return done


def open_view(home: Path, dataset: str, stages: dict[str, Stage] | None = None) -> View:
    """The tables of one dataset of the home folder, with the configuration that it is built with.

    stages: the stages to use; all stages by default. LookupError where the home has no such dataset.
    """
    entry = get_entry(home, dataset)
    return View(Lake(home / "lake"), entry, configuration_of(home, entry), stages or all_stages(), home=home)


INDEX = "video_index"


def stages_of(view: View) -> dict[str, Stage]:
    """The stages that concern the dataset, upstream before downstream: all, or, where it is only searched, those that
    its index is made with."""
    if not view.entry.search_only:
        return dict(view.stages)
    wanted = with_all_before([INDEX], lambda name: view.stages[name].upstream)
    return {name: stage for name, stage in view.stages.items() if name in wanted}


def with_all_before(names: Iterable[Key], reads: Callable[[Key], Iterable[Key]]) -> set[Key]:
    """The names and everything that is made before them, by what each of them reads."""
    found, left = set[Key](), list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += reads(name)
    return found


@contextlib.contextmanager
def writing(
    view: View,
    what: str,
    run: str = "",
    *,
    also: Sequence[int] = (),
    wait: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[View]:
    """The view, for the block as the only writer of its dataset. The other arguments are those of `Lake.written`.

    Raises:
        LeaseHeld: Something else writes the dataset; the message says what.
    """
    with view.lake.written(view.entry.name, what, run, also=also, wait=wait, log=log) as lake:
        if view.home is not None:
            keep_relative(view.home, view.entry.name)
        yield dataclasses.replace(view, lake=lake)


def stamp(view: View) -> str:
    """A fingerprint that changes when the plan of a dataset may have changed. No video is opened.

    It covers the dataset's entry and configuration, its files by size and time, its tables, its import, and the tables
    and configuration of the dataset whose models it borrows.
    """
    models = view.models_view()
    read = [v.table(name).manifest_path for v in (view, models) if v for name in view.stages]
    read += [path for stage in view.stages.values() for path in stage.records(view)]
    imported = view.imported.folder if view.imported else None
    files = sources.files_version(view.entry)
    versions = {name: stage.version for name, stage in view.stages.items()}
    written = [file_state(path) for path in read]
    configs = [view.config, models.config if models else None]  # the owner's decides which checkpoints exist
    return fingerprint([versions, view.entry, configs, files, written, str(imported)])


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage. plan: None where it cannot be known before `waits_for` has run. num_imported: number of
    rows that keep their imported values."""

    asset: str
    plan: Plan | None
    waits_for: str = ""
    num_imported: int = 0


@without_gc()
def plan_graph(view: View, kept: Collection[str] = ()) -> list[StagePlan]:
    """What a build would do, stage by stage, given the tables as they will be when each stage runs. Writes nothing.

    kept: stages that the build leaves out. They are planned as well, but downstream stages see their present tables.
    """
    standing = Standing(view)
    return [_planned(stage, standing, name in kept) for name, stage in stages_of(view).items()]


@without_gc()
def is_anything_due(view: View, names: Collection[str], retry_failed: bool = False) -> bool:
    """Whether a build of the named stages would make, drop, update or finish any row. It looks no further than the
    first stage of which that is so, or of which it cannot be known."""
    standing = Standing(view)
    for name, stage in stages_of(view).items():
        if name in names:
            plan = _planned(stage, standing, False).plan
            if plan is None or plan.due(retry_failed) or name in view.planned or not view.table(name).is_whole():
                return True
    return False


def _planned(stage: Stage, standing: Standing, is_left_out: bool) -> StagePlan:
    """The plan of a stage, whose rows are forgotten before those of the next one are planned. The view has its table as
    it will be, unless the build leaves the stage out."""
    view, name = standing.view, stage.name
    table, ids = view.table(name), standing.moved_ids(stage)
    if ids is not None and not ids:
        return StagePlan(name, with_others(table, Plan()))
    try:
        rows = stage.planned_rows(view, ids)
    except NotYetKnown as reason:
        if not is_left_out:
            view.unsettled.add(name)
        return StagePlan(name, None, reason.asset)
    inputs = stage.inputs_of(view, rows)
    plan = stage.plan_of(inputs, table, ids)
    if not is_left_out and (future := _future(view, stage, rows, inputs, plan)) is not None:
        view.planned[name] = future
    if not is_left_out and plan.due():
        view.unsettled.add(name)
    num_imported = 0 if view.imported is None else sum(row.is_imported for row in rows.values())
    return StagePlan(name, plan if ids is None else with_others(table, plan), num_imported=num_imported)


def _future(
    view: View, stage: Stage, rows: Mapping[str, Row], inputs: Mapping[str, Inputs], plan: Plan
) -> Future | None:
    """The table after the build: unchanged and failed rows as they are, new and stale ones with known columns only.
    None where it stays as it is."""
    table = view.table(stage.name)
    moved = moved_columns(table, plan, stage.unversioned(table, rows))
    if moved is None and not plan.due() and not plan.orphaned and table.is_whole():
        return None
    due = ({stage.key: i, "row_version": row_version(inputs[i]), "status": "ok", **rows[i].known} for i in plan.due())
    made = pl.concat([table.frame([]), *map(table.frame, blocks(due))])
    return Future(table, in_id_order(made, stage.key), plan.orphaned, moved)
