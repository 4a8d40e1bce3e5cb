"""Random edits of a small corpus: what is rebuilt in steps equals what is built from scratch, and is what was planned.

The graph is the real one; models are hashes of what they would read (`tests.cheap_stages`). Left out are assets that
differ from others in nothing but the checkpoint they name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tests.edits import EDITS, LAKE_EDITS, SAVED, Edit, Edited, apply
from tests.few_stages import START, stages
from tests.short_cuts import KEPT, assert_short_cuts_are_exact, fresh
from tests.small_world import SmallWorld, build, fill
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import digest_file
from vsr1_core.rows.increments import Plan
from vsr1_core.segments import SegmentRecipe
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import plan_graph
from vsr1_core.stages.readings import NotYetKnown
from vsr1_core.stages.unmoved import Standing, build_stage

NUM_SCRIPTS, NUM_PARTS = 200, 20
PARTS = [0, *(pytest.param(part, marks=pytest.mark.sweep) for part in range(1, NUM_PARTS))]
IN_WINDOWS = dataclasses.replace(START, segments=SegmentRecipe(window_s=4.0))


SCRIPTS = st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6)


# ---- what is compared --------------------------------------------------------------------------------------------


def build_as_planned(view: View, execution: Execution) -> None:
    """Build stage by stage. Each does what the plan said before the first of them ran; where a row failed that nobody
    could know of, or results had to be there first, what the plan says by then.
    """
    planned: dict[str, Plan | None] = {}
    for name, stage in view.stages.items():
        if planned.get(name) is None:
            assert_short_cuts_are_exact(view)
            planned = {plan.asset: plan.plan for plan in plan_graph(fresh(view))}
        plan = planned[name]
        assert plan is not None, f"{name} cannot be planned though all that it reads is built"
        outcome = build_stage(view, stage, execution)
        assert outcome.plan.counts() == plan.counts(), name
        assert outcome.num_processed == len(plan.new) + len(plan.stale), name
        assert outcome.num_dropped == len(plan.orphaned), name
        if outcome.num_failed:
            planned = {}


def contents(view: View, name: str) -> pl.DataFrame:
    """A table's rows, with the place of the lake left out of paths, and the digests of the files they name."""
    rows = view.table(name).rows()
    if "path" not in rows.columns:
        return rows
    digests = [
        _digests(Path(path)) if path and status == "ok" else None for path, status in rows["path", "status"].rows()
    ]
    return rows.with_columns(
        pl.col("path").str.replace(str(view.lake.root), "", literal=True), files=pl.Series(digests)
    )


def _digests(path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return " ".join(digest_file(file) for file in files)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the corpus before any edit, and its lake."""
    return _built(tmp_path_factory, START)


@pytest.fixture(scope="module")
def built_in_windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with every video in two windows."""
    return _built(tmp_path_factory, IN_WINDOWS)


def _built(tmp_path_factory: pytest.TempPathFactory, config: Configuration) -> Path:
    home = tmp_path_factory.mktemp("edits") / "home"
    saved = home.with_name(SAVED)
    world = fill(SmallWorld(home), num_train=2, num_test=2)
    build(world.view(stages(), config))
    shutil.copytree(home, saved)
    restore(home)
    view = world.view(stages(), config)
    for stage in view.stages.values():
        build_stage(view, stage, Execution(workers=1))  # keeps what it was planned from
    shutil.copytree(home / KEPT, saved / KEPT)
    return home


def restore(home: Path) -> None:
    """The home as it was saved. Files of tables are the same files: what is built renames what it writes."""
    saved = home.with_name(SAVED)
    shutil.rmtree(home)
    shutil.copytree(saved, home, ignore=shutil.ignore_patterns("lake"))
    shutil.copytree(saved / "lake", home / "lake", copy_function=os.link)


def rebuild_and_compare(home: Path, script: list[tuple[Edit, int, int]], config: Configuration = START) -> None:
    """Edit the corpus, rebuild what is due, and compare each table with one built from scratch."""
    restore(home)
    at = Edited(fill(SmallWorld(home), num_train=2, num_test=2), config)
    apply(at, script)
    finish_and_compare(at)


def finish_and_compare(at: Edited) -> None:
    """Build what is due, and compare each table with one built from scratch."""
    rebuilt = at.world.view(stages(), at.config)
    build_as_planned(rebuilt, at.execution)
    assert_short_cuts_are_exact(rebuilt)
    looked_at = [name for name, stage in rebuilt.stages.items() if Standing(fresh(rebuilt)).plan(stage) is None]
    assert looked_at == ["annotation_files"]
    assert {name: plan.due() for name, plan in _plans(rebuilt).items() if plan.due() or plan.orphaned} == {}
    scratch = at.world.view(stages(), at.config, root=at.world.home / "scratch")
    build(scratch)
    for name in rebuilt.stages:
        # Scores differ in their last bits with how many queries are searched at a time.
        assert_frame_equal(contents(rebuilt, name), contents(scratch, name), abs_tol=1e-6, rel_tol=0)
        versions = {view.table(name).manifest()["data_version"] for view in (rebuilt, scratch)}
        assert len(versions) == 1, name


# ---- parts of builds ---------------------------------------------------------------------------------------------


NAMES = tuple(stages())
STEPS = st.lists(
    st.tuples(
        st.sampled_from((*EDITS, *LAKE_EDITS, *LAKE_EDITS)),
        *(st.integers(0, 9), st.integers(0, 9)),
        st.sets(st.sampled_from(NAMES)) | st.integers(0, len(NAMES)).map(lambda n: {*NAMES[:n]}),
    ),
    min_size=3,
    max_size=6,
)


def build_parts_and_compare(home: Path, steps: list[tuple[Edit, int, int, set[str]]], config: Configuration) -> None:
    """Edit the corpus or the lake, build some stages, and again. Plans are the same with and without short cuts between
    all steps, and the end is that of a build from scratch."""
    restore(home)
    at = Edited(fill(SmallWorld(home), num_train=2, num_test=2), config)
    for edit, a, b, names in steps:
        apply(at, [(edit, a, b)])
        view = at.world.view(stages(), at.config)
        assert_short_cuts_are_exact(view)
        for name in (name for name in NAMES if name in names):
            with contextlib.suppress(NotYetKnown, ValueError, LookupError):
                build_stage(view, view.stages[name], at.execution)
        assert_short_cuts_are_exact(view)
    finish_and_compare(at)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_whatever_part_is_built_in_between_plans_are_exact(built: Path, part: int) -> None:
    compare_after_scripts(built, START, part, 2, STEPS, build_parts_and_compare)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_what_is_rebuilt_was_planned_and_equals_what_is_built_from_scratch(built: Path, part: int) -> None:
    compare_after_scripts(built, START, part, NUM_SCRIPTS // NUM_PARTS)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_the_same_holds_where_videos_are_searched_in_windows(built_in_windows: Path, part: int) -> None:
    compare_after_scripts(built_in_windows, IN_WINDOWS, part, 5)


def compare_after_scripts(
    home: Path,
    config: Configuration,
    number: int,
    num_scripts: int,
    scripts: st.SearchStrategy[Any] = SCRIPTS,
    compare: Callable[[Path, Any, Configuration], None] = rebuild_and_compare,
) -> None:
    """`compare` after each of so many random scripts, which `number` draws."""

    @seed(number)
    @settings(
        max_examples=num_scripts,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a script is short enough to be read as it is; shrinking one takes many minutes
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(script=scripts)
    def every_script(script: list[Any]) -> None:
        tried.append(script)
        compare(home, script, config)

    tried: list[Any] = []
    every_script()
    assert len(tried) == num_scripts


def _plans(view: View) -> dict[str, Plan]:
    found = {}
    for plan in plan_graph(fresh(view)):
        if plan.plan is None:
            raise NotYetKnown(plan.waits_for)
        found[plan.asset] = plan.plan
    return found
