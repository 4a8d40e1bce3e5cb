"""The written report, on made-up results with known properties."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from fake_results import STRENGTHS, fake_moments, fake_predictions, moments_frame, predictions_frame

from vsr1_core.evaluation import curves, plots, report
from vsr1_core.evaluation.bootstrap import summarise
from vsr1_core.evaluation.episodes import OUTCOMES, load_episodes
from vsr1_core.evaluation.metrics import score
from vsr1_core.evaluation.published import PUBLISHED
from vsr1_core.evaluation.refinement import refinement_warnings, warnings_by_split
from vsr1_core.evaluation.report import write_report
from vsr1_core.evaluation.report_data import CAPTIONS, NO_CURVES, Analysis, ReportInputs
from vsr1_core.stages.method_styles import STYLES


def curve(num_steps: int) -> pl.DataFrame:
    names = ("loss", "retrieval")
    rows = [{"step": s, "name": name, "value": 2.0 / (s + 1)} for s in range(num_steps) for name in names]
    return pl.DataFrame(rows)


def inputs_for(
    num_queries: int, *, dataset: str = "toy", kind: str = "toy", num_missing: int = 0, query: str | None = None
) -> ReportInputs:
    moments = fake_moments(num_queries)
    for moment in moments if query is not None else ():
        moment["query"] = query
    frame, predictions, tables, points = moments_frame(moments), {}, [], []
    for i, (method, strength) in enumerate(STRENGTHS.items() if num_queries else ()):
        rows = fake_predictions(moments, strength, seed=i)
        rows[0] = {"query_id": rows[0]["query_id"], "status": "failed", "error": "no frames"}
        predictions[method] = predictions_frame(rows[: len(rows) - num_missing])
        episodes = load_episodes(frame, predictions[method])
        tables.append(summarise(score(episodes), 50).with_columns(method=pl.lit(method)))
        scored = [curves.score_turns(episodes, 3), curves.score_soft_tokens(episodes, predictions[method], 8)]
        points.extend(summarise(scores, 50).with_columns(method=pl.lit(method)) for scores in scored)
    schema = {"metric": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "method": pl.String}
    return ReportInputs(
        dataset=dataset, kind=kind, split="test", config="tiny", styles=STYLES, moments=frame, predictions=predictions,
        metrics=pl.concat(tables) if tables else pl.DataFrame(schema=schema), num_videos=num_queries or None,
        curves={"sft_checkpoint": curve(60)} if num_queries else {}, num_resamples=50,
        refinement=as_curves(pl.concat(points)) if points else NO_CURVES,
    )  # fmt: skip


def as_curves(points: pl.DataFrame) -> pl.DataFrame:
    """`refinement_curves` rows from scores whose metrics are named curve/x/metric."""
    parts = pl.col("metric").str.split("/").list
    return points.with_columns(curve=parts.get(0), x=parts.get(1).cast(pl.Int64), metric=parts.get(2))


def text_of(inputs: ReportInputs) -> str:
    """The text alone: drawing takes seconds."""
    return report.markdown(inputs, Analysis.of(inputs))


@pytest.fixture(scope="module")
def toy_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(inputs_for(80, num_missing=3), tmp_path_factory.mktemp("toy") / "report")


@pytest.mark.slow
def test_a_report_shows_each_score_as_the_table_has_it(toy_report: Path) -> None:
    inputs = inputs_for(80, num_missing=3)
    row = inputs.metrics.filter((pl.col("method") == "sqr_sft") & (pl.col("metric") == "vcmr_0.5")).row(0, named=True)
    shown = f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    assert shown in toy_report.read_text()


def test_a_refinement_that_lowers_recall_at_10_is_warned_of() -> None:
    rows = [("a", "first_recall_at_10", 0.6), ("a", "recall_at_10", 0.55), ("b", "first_recall_at_10", 0.6)]
    rows += [("b", "recall_at_10", 0.6), ("c", "recall_at_10", None), ("c", "first_recall_at_10", None)]
    metrics = pl.DataFrame(rows, schema=["method", "metric", "value"], orient="row")
    warned = "refinement lowers R@10 of a from 60.0 to 55.0 %"
    assert refinement_warnings(metrics) == [warned]
    both = pl.concat([metrics.with_columns(split=pl.lit(split)) for split in ("test", "val")])
    assert warnings_by_split(both) == [f"{warned} on test", f"{warned} on val"]
    inputs = inputs_for(60)
    assert "Warning" not in text_of(inputs)
    worse = inputs.metrics.filter(pl.col("method") != "sqr_sft")
    lower = pl.DataFrame({"method": "sqr_sft", "metric": [r[1] for r in rows[:2]], "value": [0.6, 0.55]})
    shown = text_of(replace(inputs, metrics=pl.concat([worse, lower], how="diagonal")))
    assert "**Warning:** refinement lowers R@10 of sqr_sft from 60.0 to 55.0 %." in shown


@pytest.mark.slow
def test_every_plot_the_text_shows_lies_beside_it_and_no_other(toy_report: Path) -> None:
    text = toy_report.read_text()
    beside = {path.name for path in toy_report.parent.glob("*.png")}
    assert beside == {f"{name}.png" for name in CAPTIONS}
    assert all(f"]({name})" in text for name in beside)
    assert all(path.stat().st_size > 5_000 for path in toy_report.parent.glob("*.png"))


def test_curves_have_a_column_a_turn_and_a_soft_token(toy_report: Path) -> None:
    text = toy_report.read_text()
    assert "| R@1, 1 turn | R@1, 2 turns | R@1, 3 turns | VCMR 0.5, 1 turn |" in text
    assert "Recall is by the ranking from which the last shown video came." in text
    assert "| method | R@1, 0 | R@1, 1 |" in text.split("## By the number of soft tokens")[1]


def test_an_interval_without_width_is_not_told_as_certainty() -> None:
    assert "these 60 queries still allows a true share of up to 5.0 %" in text_of(inputs_for(60))


def test_a_report_without_a_training_tells_of_none() -> None:
    inputs = inputs_for(60)
    assert ", trained once (one seed). Shares" in text_of(inputs)
    assert "trained once" not in text_of(replace(inputs, curves={}))


def test_an_option_is_compared_with_the_same_method_without_it() -> None:
    inputs = inputs_for(40)
    predictions = {**inputs.predictions, "sqr_sft+last_latents": inputs.predictions["sqr_sft"]}
    text = text_of(replace(inputs, predictions=predictions))
    ablations = text.split("## Ablations")[1].split("##")[0]
    assert "| sqr_sft+last_latents − sqr_sft | +0.0 [+0.0, +0.0] |" in ablations
    assert "last_latents" not in text.split("## Differences between methods")[1].split("##")[0]


def test_failed_and_missing_predictions_are_counted(toy_report: Path) -> None:
    assert "`sqr_sft`: failed: 1, without a prediction: 3" in toy_report.read_text()


def test_the_toy_report_shows_published_numbers_as_not_comparable(toy_report: Path) -> None:
    text = toy_report.read_text()
    assert "Nothing in this report is comparable" in text
    assert "| VideoSearch-R1 (didemo) | 33.3 | 30.2 | 19.7 | 74.6 | 59.0 | 82.0 | 87.8 | 97.5 |" in text


def test_a_real_dataset_has_its_published_rows_beside_ours(tmp_path: Path) -> None:
    text = text_of(inputs_for(60, dataset="charades", kind="verified"))
    assert "| VideoSearch-R1 (published) | 16.5 | 13.4 | 8.2 | 75.7 | 24.6 | 42.9 | 52.2 | 84.7 |" in text
    assert "| videosearch_r1 (ours) |" in text
    assert "(didemo)" not in text


def test_a_folder_of_videos_has_no_published_part_and_is_told_how_few_queries_it_has(tmp_path: Path) -> None:
    text = text_of(inputs_for(18, dataset="clips", kind="folder"))
    assert "published" not in text.lower()
    assert "Only 18 queries" in text
    assert "5.6 percentage points" in text


def test_without_annotations_there_is_nothing_to_score_and_the_report_says_so(tmp_path: Path) -> None:
    text = write_report(inputs_for(0, dataset="mine", kind="folder"), tmp_path / "report").read_text()
    assert "nothing to score" in text
    assert "VCMR" not in text
    assert not list((tmp_path / "report").glob("*.png"))


def test_queries_without_any_prediction_are_reported_with_the_reason(tmp_path: Path) -> None:
    failures = pl.DataFrame({"asset": ["videos"] * 2, "row_id": ["a", "b"], "error": ["put a.mp4 into /data", "x"]})
    inputs = inputs_for(0, dataset="charades", kind="verified")
    inputs = ReportInputs(**{**vars(inputs), "moments": moments_frame(fake_moments(5)), "failures": failures})
    text = text_of(inputs)
    assert "No method has predictions" in text
    assert "put a.mp4 into /data" in text
    assert "`zero_shot`" in text.split("What is missing")[1]


def test_one_query_is_enough_for_a_report(tmp_path: Path) -> None:
    assert "Only 1 query:" in text_of(inputs_for(1))


def test_a_query_cannot_break_the_tables_or_bring_markup(tmp_path: Path) -> None:
    text = text_of(inputs_for(12, query="a | b <script>alert(1)</script>\n# not a title `x`"))
    assert "<script>" not in text
    assert "\n# not" not in text
    assert "a &#124; b &#60;script&#62;" in text


def test_each_ending_has_an_episode_with_all_its_turns(toy_report: Path) -> None:
    episodes = toy_report.read_text().split("## Episodes")[1].split("## How to read")[0]
    assert OUTCOMES["found"] in episodes
    assert OUTCOMES["wrong_video_accepted"] in episodes
    assert "1. Shown" in episodes
    assert "3. Shown" in episodes
    assert "> The video shows" in episodes


def test_a_new_report_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "recall.png").write_bytes(b"old")
    write_report(inputs_for(0), folder)
    assert [path.name for path in folder.iterdir()] == ["report.md"]


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(toy_report: Path) -> None:
    inputs = inputs_for(80, num_missing=3)
    figures = dict(report._figures(inputs, Analysis.of(inputs)))
    assert plots.png(figures["tokens"]) == (toy_report.parent / "tokens.png").read_bytes()
    assert text_of(inputs).splitlines()[:10] == toy_report.read_text().splitlines()[:10]


def test_the_published_table_is_complete() -> None:
    assert set(PUBLISHED) == {"charades", "didemo", "activitynet"}
    for rows in PUBLISHED.values():
        assert [row.method for row in rows][-1] == "VideoSearch-R1"
        for row in rows:
            assert list(row.recall) == sorted(row.recall)
            known = [value for value in row.vcmr if value is not None]
            assert known == sorted(known, reverse=True)
