"""`vsr1 experiment`: a dataset a seed over one corpus; and, at the smallest size, all of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from pipelines import builds, cli
from pipelines.cli import app
from pipelines.commands import UserError
from pipelines.experiment_commands import check_can_train, parse_seeds, register, seed_entry
from pipelines.settings import Settings
from pipelines.show import expected_lines
from tests.cheap_stages import cheap_main_stages
from tests.small_world import SmallWorld, build, fill
from vsr1_core.configuration_files import write_configuration
from vsr1_core.configurations import CONFIGURATIONS, NANO, QWEN3_VL_2B, TINY
from vsr1_core.datasets import sources
from vsr1_core.datasets.registry import DatasetEntry, get_entry, own_configuration, save_entry
from vsr1_core.evaluation import report
from vsr1_core.evaluation.expected import ExpectedRanges, Range
from vsr1_core.home import compare
from vsr1_core.stages import graph
from vsr1_core.stages.graph import open_view


def test_seeds_are_different_numbers() -> None:
    assert parse_seeds("1, 2,30") == [1, 2, 30]
    for text in ("", "1,1", "a", "1;2", "-1", "01,1"):
        with pytest.raises(ValueError, match="--seeds"):
            parse_seeds(text)


def test_a_seed_is_a_dataset_of_its_own_on_the_corpus_of_all(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    toy = get_entry(tmp_path, "toy")
    first, second = (seed_entry(settings, toy, "nano", seed) for seed in (1, 2))
    assert (first.name, first.videos, first.annotations) == ("nano-seed-1", second.videos, second.annotations)
    register(settings, first)
    register(settings, first)
    found = get_entry(tmp_path, "nano-seed-1")
    assert found == first
    config = own_configuration(tmp_path, found)
    assert (config.sft.seed, config.toy.seed) == (1, 42)
    save_entry(tmp_path, DatasetEntry("nano-seed-2", "folder"))
    with pytest.raises(ValueError, match="vsr1 dataset remove nano-seed-2"):
        register(settings, second)


def test_a_draw_of_noise_is_a_run_of_its_own_with_the_same_seed_and_corpus(tmp_path: Path) -> None:
    settings, toy = Settings(tmp_path), get_entry(tmp_path, "toy")
    plain, noisy = (seed_entry(settings, toy, "nano", 1, noise) for noise in (0, 2))
    assert (noisy.name, noisy.videos) == ("nano-seed-1-noise-2", plain.videos)
    configs = [own_configuration(tmp_path, entry) for entry in (plain, noisy)]
    assert [(c.sft.seed, c.sft.noise, c.models.tiny.noise) for c in configs] == [(1, 0, 0), (1, 2, 2)]
    assert dataclasses.replace(configs[1].sft, noise=0) == configs[0].sft


def test_a_seed_of_another_dataset_reads_that_ones_files_under_its_name(tmp_path: Path) -> None:
    world = fill(SmallWorld(tmp_path), num_train=2, num_test=1).register()
    source = get_entry(tmp_path, "small")
    entry = seed_entry(Settings(tmp_path), source, "nano", 3)
    assert (entry.name, entry.seed, entry.videos) == ("small-nano-seed-3", 3, str(world.videos))
    config = own_configuration(tmp_path, entry)
    assert sources.moments(entry, config).keys() == sources.moments(source, config).keys() != set()
    assert sources.video_files(entry) == sources.video_files(source)
    again = seed_entry(Settings(tmp_path), entry, "tiny", 1)
    assert again.corpus == "small"


def test_a_seed_trains_its_own_models(tmp_path: Path) -> None:
    borrower = DatasetEntry("mine", "folder", "clips", "clips.csv", models_from="toy")
    assert seed_entry(Settings(tmp_path), borrower, "tiny", 1).models_from == ""


def test_what_trains_needs_train_videos(tmp_path: Path) -> None:
    annotations = tmp_path / "a.csv"
    annotations.write_text("video,start,end,query\na,0,4,one\n")
    entry = DatasetEntry("mine", "folder", str(tmp_path), str(annotations))
    zero_shot = dataclasses.replace(QWEN3_VL_2B.evaluation, methods=("zero_shot",))
    for config in (TINY, QWEN3_VL_2B, dataclasses.replace(TINY, evaluation=zero_shot)):
        with pytest.raises(UserError, match=f"{config.name} trains on annotated videos .* mine has none"):
            check_can_train(entry, config)
    check_can_train(entry, dataclasses.replace(QWEN3_VL_2B, evaluation=zero_shot))
    annotations.write_text("video,start,end,query,split\na,0,4,one,train\n")
    check_can_train(entry, TINY)


@pytest.mark.slow
def test_an_experiment_on_ones_own_dataset_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path))
    fill(SmallWorld(tmp_path), num_train=3, num_test=2).register()
    methods = ["zero_shot", "sqr_sft"]
    write_configuration(tmp_path, "mine", "nano", {"evaluation": {"methods": methods}}, "--set")
    for module in (graph, compare):
        monkeypatch.setattr(module, "open_view", lambda home, name: open_view(home, name, cheap_main_stages()))
    monkeypatch.setattr(builds, "run_build", build_cheaply)
    asked = ["experiment", "--dataset", "small", "--config", "mine", "--seeds", "1,2"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "experiments/small-mine/results.json").read_text())
    ranges = json.loads((tmp_path / "experiments/small-mine/ranges.json").read_text())
    assert (ranges["command"], ranges["num_runs"], set(ranges["ranges"])) == (
        f"vsr1 {' '.join(asked)}",
        2,
        set(methods),
    )
    assert record["datasets"] == ["small-mine-seed-1", "small-mine-seed-2"]
    assert {row["method"] for row in record["results"]} == set(methods)
    assert not any("stage 2" in claim["text"] or "fine-tuned" in claim["text"] for claim in record["claims"])
    assert "vsr1 compare small-mine-seed-1 small-mine-seed-2" in result.output
    out = CliRunner().invoke(app, ["compare", "small-mine-seed-1", "small-mine-seed-2"])
    assert out.exit_code == 0, out.output
    assert "sft.seed" in out.output
    assert "over 4 queries" in out.output
    assert "won" in out.output
    as_json = CliRunner().invoke(app, ["compare", "small-mine-seed-1", "small-mine-seed-2", "--format", "json"])
    assert {row["method"] for row in json.loads(as_json.stdout)["metrics"]} == set(methods)


def build_cheaply(settings: Settings, dataset: str) -> builds.BuildResult:
    build(open_view(settings.home, dataset, cheap_main_stages()))
    return builds.BuildResult(True, "", [], [], "")


def build_without_dagster(settings: Settings, dataset: str) -> builds.BuildResult:
    """All stages one after the other: what Dagster adds to that is tested elsewhere, and takes half of the time."""
    view = open_view(settings.home, dataset)
    num_processed.append(sum(outcome.num_processed for outcome in build(view).values()))
    return builds.BuildResult(True, "", [], [], "")


num_processed: list[int] = []


@pytest.mark.long
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


def test_a_report_says_whether_its_numbers_are_those_to_be_expected() -> None:
    expected = ExpectedRanges("", "vsr1 experiment", "test", 3, {"sqr_sft": {"recall_at_1": Range((0.24, 0.25, 0.26))}})
    frame = pl.DataFrame({"method": ["sqr_sft"], "metric": ["recall_at_1"], "split": ["test"], "value": [0.25]})
    inside, outside = (expected_lines(frame.with_columns(value=pl.lit(value)), expected)[1] for value in (0.25, 0.4))
    assert inside.startswith("All 1 values are in the range")
    assert outside.startswith("1 of 1 values are OUTSIDE the range")
    assert "vsr1 experiment" in outside


def test_a_report_says_where_the_range_to_be_expected_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(SmallWorld(tmp_path), num_train=1).register()
    view = open_view(tmp_path, "small")
    view.config = dataclasses.replace(NANO, name="mine")
    cli._say_what_is_expected(view, pl.DataFrame())
    assert "vsr1 experiment --config mine --seeds 1,2,3,4,5,6 --perturb 1" in capsys.readouterr().out
