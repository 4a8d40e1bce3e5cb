"""A metric that is added by one decorated function appears wherever metrics are listed, and a wrong one is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import polars as pl
import pytest
from fake_results import STRENGTHS, commit_results, fake_stages

from assets.evaluation import metrics_extras
from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.evaluation import report
from vsr1_core.evaluation.episodes import Episodes
from vsr1_core.evaluation.experiment import Experiment, Run, differences, results
from vsr1_core.evaluation.experiment_text import markdown
from vsr1_core.evaluation.metric_registry import REGISTERED, Place, Section, episode_metric
from vsr1_core.evaluation.metrics import all_metrics, metrics_in, metrics_shown, over_all
from vsr1_core.evaluation.scores import Parts, Scores
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.checks import dropped
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.method_styles import STYLES
from vsr1_core.stages.reporting import scores_of

ADDED = ("patience_2", "patience_3")


@pytest.fixture
def added() -> Iterator[None]:
    """The one function, and nothing else; both of its metrics are gone again afterwards."""

    @episode_metric(
        "patience_{turns}",
        label="patience, {turns} turns",
        says="Share of queries whose search took at least {turns} turns.",
        places={
            **dict.fromkeys(("overview", "differences", "experiment", "turns", "history", "card", "warning"), (2, 3)),
            "turns plot": (2,),
        },
        turns=(2, 3),
    )
    def patience(episodes: Episodes, turns: int) -> Parts:
        return over_all(episodes.per_query(episodes.verifications.turn >= turns) > 0)

    yield
    for name in ADDED:
        del REGISTERED[name]


@pytest.fixture
def view(added: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> View:
    """A fake build of everything that is scored, without plots."""
    monkeypatch.setattr(report, "_figures", lambda inputs, analysis: iter(()))
    commit_results(tmp_path, "toy", num_queries=40)
    view = View(Lake(tmp_path), DatasetEntry("toy", "toy"), NANO, fake_stages())
    for name in ("metrics", "refinement_curves", "report"):
        view.stages[name].build(view, Execution())
    return view


def test_an_added_metric_has_rows_curves_and_its_place_in_the_report(view: View) -> None:
    rows = view.rows("metrics").filter(pl.col("metric").is_in(ADDED))
    assert rows.height == 2 * len(STRENGTHS)
    two, three = (rows.filter(pl.col("metric") == name).sort("method")["value"] for name in ADDED)
    assert (two > three).any()
    assert (two >= three).all()
    points = view.rows("refinement_curves").filter(pl.col("metric") == "patience_2")
    assert points.filter(pl.col("x") == 1)["value"].to_list() == [0.0] * len(STRENGTHS)
    assert set(points["x"]) == set(range(1, NANO.evaluation.num_turns + 1))
    sections = Path(view.rows("report")["path"][0]).read_text().split("## ")
    of = {section.partition("\n")[0]: section for section in sections}
    assert "patience, 2 turns | patience, 3 turns |" in of["At a glance"]
    assert "| method | patience, 2 turns | patience, 3 turns |" in of["Further metrics"]
    assert "Share of queries whose search took at least 3 turns." in of["Further metrics"]
    assert "patience, 3 turns |" in of["Differences between methods"]
    assert "patience, 2 turns, 1 turn |" in of["By the number of turns allowed"]
    assert "| `patience_3` | higher |" in of["How to read the numbers"]


def test_an_added_metric_is_shown_by_the_ui_warns_and_is_compared_over_seeds(view: View) -> None:
    shown = metrics_extras(view, "metrics")
    assert {f"test/patience_2/{method}" for method in STRENGTHS} <= set(shown)
    assert "took at least 2 turns" in shown["meanings"].value
    assert "| patience_3 |" in shown["metrics"].value
    before = view.rows("metrics")
    now = before.with_columns(value=pl.when(pl.col("metric") == "patience_2").then(0.0).otherwise(pl.col("value")))
    assert all(text.startswith("patience_2 of ") for text in dropped(now, before))
    assert len(dropped(now, before)) == len(STRENGTHS)
    runs: dict[Run, dict[str, Scores]] = {Run(seed): scores_of(view, "test") for seed in (1, 2)}
    experiment = Experiment("nano", runs, STYLES, num_resamples=20)
    assert {"patience_2", "turns/1/patience_3"} <= set(results(experiment)["metric"])
    assert "patience_3" in set(differences(experiment)["metric"])
    assert "| patience, 3 turns |" in markdown(experiment, [])


def test_what_was_added_for_a_test_is_gone_again() -> None:
    assert not set(ADDED) & set(all_metrics())


def test_every_metric_says_what_it_is_and_stands_in_one_table_of_the_report() -> None:
    metrics = list(all_metrics().values())
    in_tables = [metric.name for section in get_args(Section) for metric in metrics_in(section)]
    assert sorted(in_tables) == sorted(all_metrics())
    assert all(m.says.endswith(".") and "{" not in m.says + m.label + m.short + m.name for m in metrics)
    assert len({m.label for m in metrics}) == len(metrics)
    assert all(metrics_shown(place) for place in get_args(Place))
    assert not {m.name for m in metrics_shown("turns") if m.source == "probes"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "mrr"}, "there is a metric 'mrr' already"),
        ({"places": ("front page",)}, "no place 'front page'; there are: overview, "),
        ({"places": ("warning",), "unit": "tokens"}, "only a share can have the place 'warning'"),
    ],
)
def test_a_metric_that_cannot_be_shown_is_refused(changes: dict[str, object], problem: str) -> None:
    facts = {"name": "mine", "label": "mine", "says": "Nothing.", **changes}
    with pytest.raises(ValueError, match=problem):
        episode_metric(**facts)(lambda episodes: over_all(episodes.rank))  # type: ignore[arg-type]
    assert "mine" not in all_metrics()
