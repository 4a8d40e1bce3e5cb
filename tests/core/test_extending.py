"""What is added is one entry in one place: a dataset format, an asset, a trained ablation, a view of the database."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.cheap_stages import cheap_stages
from tests.small_world import SmallWorld, build, clip, fill
from vsr1_core.configurations import NANO
from vsr1_core.datasets import formats
from vsr1_core.datasets.format import AnnotationFile, DatasetFormat
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import BadLine, Moment, make_moment
from vsr1_core.home import warehouse, warehouse_views
from vsr1_core.home.adding import OWN_WINDOW_S, Wanted, entry_of
from vsr1_core.home.explain import explain
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import digest_file
from vsr1_core.rows.lake import Lake
from vsr1_core.stages import graph, methods, predictions
from vsr1_core.stages import trained as trained_stages
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.columns import integer
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.reads import same


class WordLengths(Stage):
    """How many words each query has."""

    name = "word_counts"
    key = "query_id"
    group = "corpus"
    says = "How many words each query has."
    reads = {"moments": same("moments")}
    columns = {"num_words": integer("Words of the query.")}

    def plan(self, view: View) -> dict[str, Row]:
        rows = view.rows("moments", ["query_id", "query", "row_version"]).iter_rows()
        return {query_id: Row({"moments": version}, facts=query) for query_id, query, version in rows}

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        yield from ({"query_id": i, "num_words": len(row.facts.split())} for i, row in rows.items())


@pytest.fixture
def world(tmp_path: Path) -> SmallWorld:
    return fill(SmallWorld(tmp_path), num_train=3, num_test=2).register()


@pytest.fixture
def with_word_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a file `vsr1_core/stages/word_counts.py` had been added."""
    module = ModuleType("vsr1_core.stages.word_counts")
    module.STAGES = (WordLengths,)  # type: ignore[attr-defined]
    modules = [*graph._stage_modules(), module]
    monkeypatch.setattr(graph, "_stage_modules", lambda: modules)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_an_asset_is_one_module_of_stages(world: SmallWorld, with_word_counts: None) -> None:
    from pipelines.definitions import build_defs
    from pipelines.settings import Settings

    stages = {name: stage for name, stage in graph.all_stages().items() if stage.group in ("sources", "corpus")}
    assert "word_counts" in stages
    view = world.view(stages, NANO)
    build(view)
    assert set(view.rows("word_counts")["num_words"]) == {6}
    explained = explain(view, "word_counts", "900_fig")
    assert [row.asset for item in explained.inputs for row in item.rows] == ["moments"]
    warehouse.refresh(world.home, stages)
    assert warehouse.query(world.home, "select max(num_words) from word_counts").item() == 6
    asked = "select comment from duckdb_columns() where table_name = 'word_counts' and column_name = 'num_words'"
    assert warehouse.query(world.home, asked).item() == "Words of the query."
    nodes = build_defs(Settings(world.home, "cpu"), stages).resolve_asset_graph().asset_nodes
    node = next(node for node in nodes if node.key.path == ["word_counts"])
    assert node.description == "How many words each query has."
    assert {key.path[-1] for key in node.parent_keys} == {"moments"}


class TabbedFormat(DatasetFormat):
    """A made-up format: `video<TAB>start<TAB>end<TAB>query` lines, all of them test."""

    kind = "tabbed"
    says = "Lines with tabs between their four parts."

    def annotation_files(self, entry: DatasetEntry, config: Configuration) -> dict[str, AnnotationFile]:
        path, digest = Path(entry.annotations), digest_file(Path(entry.annotations))
        return {path.name: AnnotationFile(path.name, path, "test", digest, digest=digest)}

    def lines(self, entry: DatasetEntry, config: Configuration) -> Iterator[tuple[str, Moment | BadLine]]:
        for number, line in enumerate(Path(entry.annotations).read_text().splitlines(), 1):
            video, start_s, end_s, query = line.split("\t")
            text = {"query_id": f"q{number}", "split": "test", "query": query, "plain_query": ""}
            yield f"lines:{number}", make_moment(**text, video=video, span=(start_s, end_s), duration=None)

    def video_files(self, entry: DatasetEntry) -> dict[str, list[Path]]:
        return {path.stem: [path] for path in Path(entry.videos).glob("*.mp4")}


def test_a_dataset_format_is_one_module_of_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(sorted({**formats.all_formats(), "tabbed": TabbedFormat()}.items()))
    monkeypatch.setattr(formats, "all_formats", lambda: known)
    (tmp_path / "a.mp4").write_bytes(clip(1))
    (tmp_path / "lines.txt").write_text("a\t1\t3\ta thing moves\nb\t0\t1\tnobody has this\n")
    wanted = Wanted("mine", tmp_path, tmp_path / "lines.txt", "", "nano", kind="tabbed")
    entry = entry_of(tmp_path, wanted, "nano")
    assert entry == DatasetEntry(
        "mine", "tabbed", str(tmp_path), str(tmp_path / "lines.txt"), "nano", window_s=OWN_WINDOW_S
    )
    with pytest.raises(ValueError, match="dataset kind 'other' is not one of folder, tabbed, toy, verified"):
        entry_of(tmp_path, dataclasses.replace(wanted, kind="other"), "nano")
    with pytest.raises(ValueError, match="charades has a kind of its own; leave --kind out"):
        entry_of(tmp_path, dataclasses.replace(wanted, name="charades"), "nano")
    with pytest.raises(ValueError, match="no video files are read: give --toy in place of --kind"):
        entry_of(tmp_path, dataclasses.replace(wanted, kind="toy"), "nano")
    stages = {
        name: stage for name, stage in graph.all_stages().items() if stage.group in ("sources", "corpus", "media")
    }
    view = View(Lake(tmp_path / "lake"), entry, NANO, stages, home=tmp_path)
    build(view)
    assert dict(view.rows("moments", ["query", "end_s"]).iter_rows()) == {"a thing moves": 3.0, "nobody has this": 1.0}
    assert view.rows("frame_tensors")["video_id"].to_list() == ["a"]
    assert "no video file for 'b'" in view.table("videos").rows().filter(video_id="b")["error"].item()


def test_a_trained_ablation_is_one_entry_of_methods(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = dataclasses.replace(
        methods.TRAINED["sft_checkpoint"],
        name="few_negatives_checkpoint",
        says="An ablation of stage 1: four negatives.",
        recipe=lambda config: dataclasses.replace(config.sft, num_negatives=4),
        always=False,
    )
    method = dataclasses.replace(methods.BASIC["sqr_sft"], name="sqr_sft+few_negatives", model=trained.name)
    with_entry(monkeypatch, trained, method)
    evaluation = dataclasses.replace(NANO.evaluation, methods=("sqr_sft", method.name), num_resamples=2)
    view = world.view(cheap_stages(), dataclasses.replace(NANO, evaluation=evaluation))
    build(view)
    assert view.rows(trained.name)["checkpoint"].to_list() == [trained.name]
    assert view.rows(f"predictions.{method.name}").height == 4
    assert method.name in set(view.rows("metrics")["method"])
    other = dataclasses.replace(view.config, sft=dataclasses.replace(view.config.sft, num_negatives=5))
    fresh = world.view(view.stages, other)
    assert not view.stages[trained.name].due(fresh).stale, "its own number of negatives is 4, whatever stage 1's is"
    assert view.stages["sft_checkpoint"].due(fresh).stale


def with_entry(monkeypatch: pytest.MonkeyPatch, trained: methods.Trained, method: methods.Method) -> None:
    """As if both entries stood in `stages.methods` when the modules that make stages of them were read."""
    monkeypatch.setitem(methods.TRAINED, trained.name, trained)
    monkeypatch.setitem(methods.ALL, method.name, method)
    made = partial(trained_stages.trained_stage, trained)
    monkeypatch.setattr(trained_stages, "STAGES", (*trained_stages.STAGES, made))
    monkeypatch.setattr(predictions, "STAGES", (*predictions.STAGES, partial(predictions.Predictions, method)))


def test_a_view_is_one_function(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warehouse_views, "VIEWS", [*warehouse_views.VIEWS])

    @warehouse_views.sql_view("long_queries", "Queries of many words.", {"query": "The query."})
    def long_queries(tables: warehouse_views.Tables) -> str | None:
        return "SELECT dataset, query FROM moments WHERE length(query) > 3" if "moments" in tables.stages else None

    stages = {name: stage for name, stage in graph.all_stages().items() if stage.group in ("sources", "corpus")}
    build(world.view(stages, NANO))
    warehouse.refresh(world.home, stages)
    assert warehouse.query(world.home, "from long_queries").height == 10
    listed = warehouse.views(world.home).filter(view="long_queries")
    assert listed["holds"].item() == "Queries of many words."
