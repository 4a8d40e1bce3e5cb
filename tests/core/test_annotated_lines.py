"""Annotation files are parsed once for their content, and their tables say exactly what the files say."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.few_stages import START, stages
from tests.short_cuts import assert_short_cuts_are_exact, fresh
from tests.small_world import SmallWorld, clip, fill
from vsr1_core.configurations import NANO
from vsr1_core.datasets import sources, verified
from vsr1_core.datasets.line_table import line_tables, lines_of_table
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.rows.files import digest_file
from vsr1_core.rows.lake import Lake
from vsr1_core.stages import annotated
from vsr1_core.stages.annotated import annotated_lines, annotated_splits
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, plan_graph
from vsr1_core.stages.removals import RemovalsRefused
from vsr1_core.stages.unmoved import build_stage

CORPUS = ("annotation_files", "raw_videos", "videos", "moments")
LINES: list[Moment | BadLine] = [
    Moment("1_fig", "test", "a dog", "a dog", "a", 0.0, 1 / 3, 7.1, False),
    Moment("2_fig", "train", "x\t\n\u202e🙂 é", "", "sub/b", 1e-9, 1e9, None, True),
    BadLine("a.jsonl:3", "a.jsonl:3: fig_desc must be a text, got ''"),
]


def test_lines_come_back_from_their_table_as_they_were() -> None:
    table = pl.concat(line_tables((line.query_id, line) for line in LINES))
    assert [*lines_of_table(table)] == LINES
    assert table["version"].to_list() == [line.version for line in LINES]
    assert [line.version for line in lines_of_table(table)] == [line.version for line in LINES]


@pytest.fixture
def world(tmp_path: Path) -> SmallWorld:
    made = fill(SmallWorld(tmp_path / "home"), num_train=2, num_test=2).register()
    made.add_query("test", 990, "test_0", duration=None)
    made.add_query("test", 991, "nowhere", fig_desc="")
    made.add_query("test", 992, "test_0")
    made.rows["test"][-1]["split"] = "train"
    made.write_annotations("test")
    build(made)
    return made


def view_of(world: SmallWorld, entry: DatasetEntry | None = None) -> View:
    view = world.view(stages(), START)
    view = dataclasses.replace(view, stages={name: view.stages[name] for name in CORPUS})
    return view if entry is None else dataclasses.replace(view, entry=entry)


def build(world: SmallWorld) -> None:
    view = view_of(world)
    for stage in view.stages.values():
        build_stage(view, stage, Execution(workers=1))


def kept(world: SmallWorld) -> dict[str, str]:
    folder = view_of(world).lake.cache("annotations") / world.name
    return {path.name: digest_file(path) for path in folder.glob("*")}


def test_files_that_lost_all_their_lines_have_no_moments(world: SmallWorld) -> None:
    for split in world.rows:
        world.rows[split].clear()
        world.write_annotations(split)
    planned = {plan.asset: plan.plan for plan in plan_graph(view_of(world))}["moments"]
    assert planned is not None
    assert (list(planned.due()), len(planned.orphaned)) == ([], 11)
    with pytest.raises(RemovalsRefused):
        build(world)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are parsed, as in a process that parsed none before."""
    found, read = list[str](), verified.read_fig

    def noted(path: Path, split: str) -> Any:
        found.append(path.name)
        return read(path, split)

    monkeypatch.setattr(verified, "read_fig", noted)
    forget()
    return found


def forget() -> None:
    verified.parsed_fig.cache_clear()
    annotated._parsed.cache_clear()


def test_the_tables_of_the_files_say_what_the_files_say(world: SmallWorld) -> None:
    view = view_of(world)
    lines = annotated_lines(view)
    assert lines is not None
    said = sources.moments(view.entry, view.config)
    assert {line.query_id: line for line in lines_of_table(lines)} == said
    assert lines["query_id"].to_list() == [*said]
    splits = sources.corpus_splits(view.entry, view.config)
    of_table = annotated_splits(view)
    assert of_table is not None
    assert of_table.rows() == [*splits.items()]
    assert splits["test_0"] == ["test", "train"]
    assert "nowhere" not in splits


def test_a_plan_parses_only_the_files_that_moved(world: SmallWorld, parsed: list[str]) -> None:
    before = kept(world)
    assert len(before) == 2
    plan_graph(view_of(world))
    assert parsed == []
    world.rows["test"][0]["fig_desc"] = "something else moves"
    world.write_annotations("test")
    plan_graph(view_of(world))
    assert set(parsed) == {"small_fig_test.jsonl"}
    assert kept(world) == before, "a plan writes nothing"
    build(world)
    after = kept(world)
    assert len(after) == 2
    assert len(after.items() & before.items()) == 1
    parsed.clear()
    forget()
    plan_graph(view_of(world))
    world.rows["train"][0]["fig_desc"] = "again something else"
    world.write_annotations("train")
    plan_graph(view_of(world))
    assert set(parsed) == {"small_fig_train.jsonl"}


def test_a_file_of_the_same_content_with_another_split_is_another_file(world: SmallWorld) -> None:
    world.annotation_path("test").rename(world.annotation_path("val"))
    lines = annotated_lines(view_of(world))
    assert lines is not None
    assert {*lines["split"].drop_nulls()} == {"train", "val"}
    assert_short_cuts_are_exact(view_of(world))


def test_a_table_that_cannot_be_read_or_is_of_another_version_is_parsed_again(
    world: SmallWorld, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = view_of(world)
    lines = annotated_lines(view)
    assert lines is not None
    assert parsed == []
    with monkeypatch.context() as patch:
        patch.setattr(annotated, "CODE", "another")
        assert lines.equals(annotated_lines(fresh(view)), null_equal=True)
    assert len(parsed) == 2
    parsed.clear()
    forget()
    paths = sorted((view.lake.cache("annotations") / world.name).glob("*"))
    paths[0].write_bytes(b"PAR1 and no more")
    again = annotated_lines(fresh(view))
    assert again is not None
    assert again.equals(lines, null_equal=True)
    assert len(parsed) == 1
    build(world)
    assert sum(pl.read_parquet(path, columns=["reason"]).height for path in paths) == lines.height


def test_what_is_read_of_a_file_that_changes_meanwhile_is_not_kept(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read = kept(world), verified.read_fig
    original = world.annotation_path("test").read_text()
    world.rows["test"][0]["fig_desc"] = "something else moves"
    world.write_annotations("test")

    def overtaken(path: Path, split: str) -> Any:
        found = [*read(path, split)]
        if split == "test":
            path.write_text(original)
        return iter(found)

    view = view_of(world)
    with monkeypatch.context() as patch:
        patch.setattr(verified, "read_fig", overtaken)
        annotated.keep_lines(view)
    assert len(kept(world)) == 1
    assert kept(world).items() < before.items()
    lines = annotated_lines(view)
    assert lines is not None
    assert "something else moves" not in lines["query"]


def test_what_a_plan_reads_of_a_file_that_changes_meanwhile_is_not_remembered(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, path = verified.read_fig, world.annotation_path("test")
    original = path.read_text()
    world.rows["test"][0]["fig_desc"] = "something else moves"
    world.write_annotations("test")
    edited = path.read_text()

    def overtaken(path: Path, split: str) -> Any:
        path.write_text(original)
        return iter([*read(path, split)])

    forget()
    with monkeypatch.context() as patch:
        patch.setattr(verified, "read_fig", overtaken)
        assert annotated_lines(view_of(world)) is None
    path.write_text(edited)
    build(world)
    assert "something else moves" in view_of(world).table("moments").rows()["query"]


def test_tables_are_on_the_disk_before_they_have_their_names(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without checksums, a table with a page of zeros may be read as one of other lines."""
    synced, sync = list[str](), os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix)  # noqa: PTH115
        sync(descriptor)

    for name in kept(world):
        (view_of(world).lake.cache("annotations") / world.name / name).unlink()
    monkeypatch.setattr(os, "fsync", noted)
    annotated.keep_lines(view_of(world))
    assert synced.count(".parquet") == len(kept(world)) == 2


def test_where_an_id_comes_twice_all_lines_are_looked_at(world: SmallWorld) -> None:
    world.rows["test"].append({**world.rows["train"][0]})
    world.write_annotations("test")
    view = view_of(world)
    assert annotated_lines(view) is None
    assert annotated_splits(view) is None
    assert_short_cuts_are_exact(view)
    build(world)
    assert_short_cuts_are_exact(view_of(world))


def test_a_name_that_no_table_can_hold_is_no_table(world: SmallWorld) -> None:
    folder = os.fsencode(world.annotations)
    with open(folder + b"/small_fig_\xff.jsonl", "w") as file:  # noqa: PTH123
        file.write("{}\n")
    assert annotated_lines(view_of(world)) is None


def test_a_kind_whose_moments_are_not_those_of_files_has_no_table(tmp_path: Path) -> None:
    entry = DatasetEntry("toy", "toy", str(tmp_path / "videos"), str(tmp_path / "toy"), "nano")
    view = View(Lake(tmp_path / "lake"), entry, NANO, all_stages(), home=tmp_path)
    assert annotated_lines(view) is None
    sources.format_of(entry).prepare(entry, NANO)
    assert annotated_lines(view) is None


def test_a_table_of_ones_own_videos_is_kept_as_well(tmp_path: Path) -> None:
    world = SmallWorld(tmp_path / "home")
    world.put_video("a", clip(0))
    table = tmp_path / "home/a.csv"
    table.write_text(
        "video,start,end,query,id,duration\na,0,2,a dog runs,one,6\na,2,4,a cat sits,two,\na,4,2,x,three,\n"
    )
    entry = DatasetEntry("small", "folder", str(world.videos), str(table), "nano")
    view = view_of(world, entry)
    for stage in view.stages.values():
        build_stage(view, stage, Execution(workers=1))
    assert len(kept(world)) == 1
    table.write_text(table.read_text().replace("a dog", "a big dog"))
    plans = {plan.asset: plan.plan for plan in plan_graph(view_of(world, entry))}
    assert plans["moments"].stale == ("one_fig",)  # type: ignore[union-attr]
    assert_short_cuts_are_exact(view_of(world, entry))
    world.put_video("b", clip(1))
    table.unlink()
    entry = dataclasses.replace(entry, annotations="")
    assert annotated_lines(view_of(world, entry)) is None


def test_the_lines_are_kept_as_soon_as_the_files_are_known(world: SmallWorld, parsed: list[str]) -> None:
    before = kept(world)
    world.rows["test"][0]["fig_desc"] = "something else moves"
    world.write_annotations("test")
    view = view_of(world)
    build_stage(view, view.stages["annotation_files"], Execution(workers=1))
    assert len(kept(world)) == 2
    assert len(kept(world).items() & before.items()) == 1
    forget()
    build(world)
    assert parsed == ["small_fig_test.jsonl"], "no stage parses it again"
    assert "something else moves" in view_of(world).table("moments").rows()["query"]


def test_a_file_that_cannot_be_parsed_is_told_by_the_stage_that_reads_it(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("video,start,end\na,0,2\n")
    world = SmallWorld(tmp_path / "home")
    world.put_video("a", clip(0))
    view = view_of(world, DatasetEntry("small", "folder", str(world.videos), str(table), "nano"))
    for name in ("annotation_files", "raw_videos"):
        assert build_stage(view, view.stages[name], Execution(workers=1)).num_processed == 1
    for name in ("videos", "moments"):
        with pytest.raises(ValueError, match=r"a\.csv has no column query"):
            build_stage(view, view.stages[name], Execution(workers=1))
    assert kept(world) == {}


def test_a_first_build_plans_the_moments_that_the_files_say(world: SmallWorld) -> None:
    """With lines that are refused, without a length, and with a split of their own."""
    view = view_of(world)
    rows, said = view.stages["moments"].planned_rows(view), sources.moments(view.entry, view.config)
    assert list(rows) == list(said)
    for query_id, line in said.items():
        assert rows[query_id].facts == line
        assert rows[query_id].inputs["annotation"] == line.version
        has_length = isinstance(line, BadLine) or line.duration_s is not None
        assert ("video" in rows[query_id].inputs) == (not has_length)
