"""Random edits of a small corpus: what is rebuilt in steps equals what is built from scratch, and is what was planned.

The graph is the real one; models are hashes of what they would read (`tests.cheap_stages`). Left out are assets that
differ from others in nothing but the checkpoint they name.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tests.few_stages import START, stages
from tests.small_world import NOT_A_VIDEO, SmallWorld, build, clip, fill
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import digest_file
from vsr1_core.rows.increments import STATES, Plan
from vsr1_core.segments import SegmentRecipe
from vsr1_core.stages.base import NotYetKnown, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import plan_graph
from vsr1_core.stages.unmoved import Standing, build_stage

NUM_SCRIPTS, NUM_PARTS = 200, 20
KEPT = Path("lake/cache/plans")
TEXTS = ("a dog runs", "A DOG runs ", "a cat sleeps", "rain falls on a red roof")
IN_WINDOWS = dataclasses.replace(START, segments=SegmentRecipe(window_s=4.0))


# ---- edits -------------------------------------------------------------------------------------------------------


@dataclass
class Edited:
    """The corpus on disk, and how it is built."""

    world: SmallWorld
    config: Configuration = START
    execution: Execution = dataclasses.field(default_factory=lambda: Execution(workers=1))

    def query(self, number: int) -> dict[str, Any]:
        """One of the queries, but never the first two, which train."""
        rows = [row for split in ("train", "test") for row in self.world.rows[split]][2:]
        return rows[number % len(rows)]

    def video(self, number: int) -> str:
        """A video that is annotated, on disk, or neither; never the first one, which trains."""
        return ("train_1", "test_0", "test_1", "new_0", "new_1")[number % 5]


Edit = Callable[[Edited, int, int], None]


def add_query(at: Edited, a: int, b: int) -> None:
    split = ("train", "test")[b % 2]
    at.world.add_query(split, 1000 + a, at.video(b), fig_desc=TEXTS[a % 4], time=[a % 3, a % 3 + 2.0])


def add_video_with_two_queries(at: Edited, a: int, b: int) -> None:
    at.world.put_video("new_0", clip(50 + a))
    for number in range(2):
        at.world.add_query(("train", "test")[b % 2], 2000 + 10 * a + number, "new_0")


def delete_query(at: Edited, a: int, b: int) -> None:
    row = at.query(a)
    for rows in at.world.rows.values():
        if row in rows and len(rows) > 2:
            rows.remove(row)


def move_query(at: Edited, a: int, b: int) -> None:
    row = at.query(a)
    for split, other in (("train", "test"), ("test", "train")):
        if row in at.world.rows[split] and len(at.world.rows[split]) > 2:
            at.world.rows[split].remove(row)
            at.world.rows[other].insert(2, row)
            return


def change_text(at: Edited, a: int, b: int) -> None:
    at.query(a)["fig_desc"] = TEXTS[b % 4]


def change_caption(at: Edited, a: int, b: int) -> None:
    at.query(a)["cog_desc"] = TEXTS[b % 4]


def change_span(at: Edited, a: int, b: int) -> None:
    """Within the video, beyond its end, reversed, or after it."""
    at.query(a)["time"] = [[0.5, 2.5], [2, 99], [4, 1], [50, 60]][b % 4]


def change_id(at: Edited, a: int, b: int) -> None:
    """A new one, or that of another query."""
    at.query(a)["desc_id"] = 3000 + b if b % 2 else at.query(b)["desc_id"]


def spoil_line(at: Edited, a: int, b: int) -> None:
    at.query(a)["fig_desc"] = ""


def replace_video(at: Edited, a: int, b: int) -> None:
    at.world.put_video(at.video(a), clip(70 + b))


def spoil_video(at: Edited, a: int, b: int) -> None:
    at.world.put_video(at.video(a), NOT_A_VIDEO)


def delete_video(at: Edited, a: int, b: int) -> None:
    at.world.delete_video(at.video(a))


def move_video(at: Edited, a: int, b: int) -> None:
    path = at.world.video_path(at.video(a))
    if path.exists():
        (path.parent / "elsewhere").mkdir(exist_ok=True)
        path.rename(path.parent / "elsewhere" / path.name)


def claim_the_same_id(at: Edited, a: int, b: int) -> None:
    """A second file of the same name with another suffix; gone again the next time."""
    path = at.world.video_path(at.video(a)).with_suffix(".mkv")
    if path.exists():
        path.unlink()
    else:
        path.write_bytes(clip(a))


def touch_all(at: Edited, a: int, b: int) -> None:
    for path in sorted(at.world.annotations.rglob("*.*")):
        at.world.touch(path)


STORES: tuple[Literal["auto", "npy", "jpeg"], ...] = ("auto", "npy", "jpeg")


def change_recipe(at: Edited, a: int, b: int) -> None:
    models = at.config.models
    changes: tuple[dict[str, Any], ...] = (
        {"models": dataclasses.replace(models, tiny=dataclasses.replace(models.tiny, contrastive_lr=0.1 * (b + 1)))},
        {"models": dataclasses.replace(models, options=dataclasses.replace(models.options, num_soft_tokens=1 + b))},
        {"frames": dataclasses.replace(at.config.frames, max_frames=2 + 2 * (b % 3), store=STORES[b // 3 % 3])},
        {"retrieval": dataclasses.replace(at.config.retrieval, num_hard_negatives=1 + b % 3)},
        {"pool": dataclasses.replace(at.config.pool, num_not_matched=1 + b % 4)},
        {"sft": dataclasses.replace(at.config.sft, lr=0.1 * (b + 1))},
        {"evaluation": dataclasses.replace(at.config.evaluation, max_new_tokens=8 + b)},
        {"segments": SegmentRecipe(window_s=(0.0, 3.0, 4.0)[b % 3], overlap=0.25)},
    )
    at.config = dataclasses.replace(at.config, **changes[a % len(changes)])


def change_batch_size(at: Edited, a: int, b: int) -> None:
    at.execution = Execution(workers=1, batch_size=1 + a, shard_rows=1 + b)


EDITS: tuple[Edit, ...] = (
    *(add_query, add_video_with_two_queries, delete_query, move_query, change_text, change_caption, change_span),
    *(change_id, spoil_line, replace_video, spoil_video, delete_video, move_video, claim_the_same_id, touch_all),
    *(change_recipe, change_batch_size),
)
SCRIPTS = st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6)


def apply(at: Edited, script: list[tuple[Edit, int, int]]) -> None:
    for edit, a, b in script:
        edit(at, a, b)
    for split in at.world.rows:
        at.world.write_annotations(split)


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


def fresh(view: View) -> View:
    return View(view.lake, view.entry, view.config, view.stages, home=view.home)


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
    saved = home.with_name("saved")
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
    saved = home.with_name("saved")
    shutil.rmtree(home)
    shutil.copytree(saved, home, ignore=shutil.ignore_patterns("lake"))
    shutil.copytree(saved / "lake", home / "lake", copy_function=os.link)


def assert_short_cuts_are_exact(view: View) -> None:
    """The plan says the same where it may not skip the stages of which nothing moved."""
    short, kept = _described(view), view.lake.root.parent / KEPT
    kept.rename(kept.with_name("away"))
    assert _described(view) == short
    kept.with_name("away").rename(kept)


def _described(view: View) -> dict[str, Any]:
    """Asset -> its plan, with sorted ids; what it waits for, where it has none."""
    found: dict[str, Any] = {}
    for item in plan_graph(fresh(view)):
        plan = item.plan
        groups = plan and [sorted(getattr(plan, state)) for state in STATES]
        found[item.asset] = [groups, plan and dict(plan.causes), item.waits_for, item.num_imported]
    return found


def rebuild_and_compare(home: Path, script: list[tuple[Edit, int, int]], config: Configuration = START) -> None:
    """Edit the corpus, rebuild what is due, and compare each table with one built from scratch."""
    restore(home)
    at = Edited(fill(SmallWorld(home), num_train=2, num_test=2), config)
    apply(at, script)
    rebuilt = at.world.view(stages(), at.config)
    build_as_planned(rebuilt, at.execution)
    assert_short_cuts_are_exact(rebuilt)
    looked_at = [name for name, stage in rebuilt.stages.items() if Standing(fresh(rebuilt)).plan(stage) is None]
    assert looked_at == ["annotation_files", "raw_videos"]
    assert {name: plan.due() for name, plan in _plans(rebuilt).items() if plan.due() or plan.orphaned} == {}
    scratch = at.world.view(stages(), at.config, root=home / "scratch")
    build(scratch)
    for name in rebuilt.stages:
        # Scores differ in their last bits with how many queries are searched at a time.
        assert_frame_equal(contents(rebuilt, name), contents(scratch, name), abs_tol=1e-6, rel_tol=0)
        versions = {view.table(name).manifest()["data_version"] for view in (rebuilt, scratch)}
        assert len(versions) == 1, name


MARKS = (pytest.mark.slow, pytest.mark.sweep)
PARTS = [pytest.param(part, marks=MARKS if part > 1 else MARKS[:1]) for part in range(NUM_PARTS)]


@pytest.mark.parametrize("part", PARTS)
def test_what_is_rebuilt_was_planned_and_equals_what_is_built_from_scratch(built: Path, part: int) -> None:
    compare_after_scripts(built, START, part, NUM_SCRIPTS // NUM_PARTS)


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.sweep) for part in range(1, NUM_PARTS))])
def test_the_same_holds_where_videos_are_searched_in_windows(built_in_windows: Path, part: int) -> None:
    compare_after_scripts(built_in_windows, IN_WINDOWS, part, 5)


def compare_after_scripts(home: Path, config: Configuration, number: int, num_scripts: int) -> None:
    """`rebuild_and_compare` after each of so many random scripts, which `number` draws."""

    @seed(number)
    @settings(
        max_examples=num_scripts,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a script is short enough to be read as it is; shrinking one takes many minutes
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(script=SCRIPTS)
    def every_script(script: list[tuple[Edit, int, int]]) -> None:
        tried.append(script)
        rebuild_and_compare(home, script, config)

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
