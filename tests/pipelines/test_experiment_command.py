"""`vsr1 experiment`: a dataset a seed over one corpus; and, at the smallest size, all of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from pipelines import builds
from pipelines.cli import app
from pipelines.experiment_commands import parse_seeds, register, seed_entry
from pipelines.settings import Settings
from tests.small_world import build
from vsr1_core.configurations import CONFIGURATIONS, NANO
from vsr1_core.datasets.registry import get_entry, save_entry
from vsr1_core.evaluation import report
from vsr1_core.stages.graph import open_view


def test_seeds_are_different_numbers() -> None:
    assert parse_seeds("1, 2,30") == [1, 2, 30]
    for text in ("", "1,1", "a", "1;2", "-1", "01,1"):
        with pytest.raises(ValueError, match="--seeds"):
            parse_seeds(text)


def test_a_seed_is_a_dataset_of_its_own_on_the_corpus_of_all(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    first, second = (seed_entry(settings, "nano", seed) for seed in (1, 2))
    assert (first.name, first.videos, first.annotations) == ("nano-seed-1", second.videos, second.annotations)
    register(settings, first)
    register(settings, first)
    found = get_entry(tmp_path, "nano-seed-1")
    assert found == first
    assert (found.own_configuration.sft.seed, found.own_configuration.toy.seed) == (1, 42)
    save_entry(tmp_path, seed_entry(settings, "tiny", 2).__class__("nano-seed-2", "folder"))
    with pytest.raises(ValueError, match="vsr1 dataset remove nano-seed-2"):
        register(settings, second)


def build_without_dagster(settings: Settings, dataset: str) -> builds.BuildResult:
    """All stages one after the other: what Dagster adds to that is tested elsewhere, and takes half of the time."""
    view = open_view(settings.home, dataset)
    num_processed.append(sum(outcome.num_processed for outcome in build(view).values()))
    return builds.BuildResult(True, "", [], [], "")


num_processed: list[int] = []


@pytest.mark.slow
def test_an_experiment_trains_each_seed_once_and_says_what_they_have_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    monkeypatch.setenv("VSR1_DEVICE", "cpu")
    evaluation = dataclasses.replace(NANO.evaluation, methods=("zero_shot", "sqr_sft"))
    monkeypatch.setitem(CONFIGURATIONS, "nano", dataclasses.replace(NANO, evaluation=evaluation))
    monkeypatch.setattr(report, "_figures", lambda *_: ())
    monkeypatch.setattr(builds, "run_build", build_without_dagster)
    command = ["experiment", "--config", "nano", "--seeds", "1,2"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "Configuration `nano`, seeds 1, 2, 8 test queries." in first.stdout
    folder = tmp_path / "experiments" / "nano"
    record = json.loads((folder / "results.json").read_text())
    one, two = (open_view(tmp_path, f"nano-seed-{seed}") for seed in (1, 2))
    assert {row["method"] for row in record["results"]} == set(one.config.evaluation.methods)
    assert one.rows("moments", ["query_id", "query"]).equals(two.rows("moments", ["query_id", "query"]))
    assert one.rows("base_models")["digest"].to_list() != two.rows("base_models")["digest"].to_list()
    assert len(list((tmp_path / "data/nano-corpus/videos").glob("*.mp4"))) == 36
    metric = (pl.col("method") == "sqr_sft") & (pl.col("metric") == "mrr")
    values = [view.rows("metrics").filter(metric)["value"][0] for view in (one, two)]
    shown = pl.read_parquet(folder / "results.parquet").filter(metric)["values"][0].to_list()
    assert shown == pytest.approx(values)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert [number > 0 for number in num_processed] == [True, True, False, False]
    assert json.loads((folder / "results.json").read_text())["results"] == record["results"]
