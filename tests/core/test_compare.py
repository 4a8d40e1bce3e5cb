"""Two builds of one corpus side by side, on made-up predictions of known strength."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from fake_results import (
    CHECKPOINT_COLUMNS,
    MOMENT_COLUMNS,
    OPTIONS_OF_ALL,
    PREDICTION_COLUMNS,
    STRENGTHS,
    Strength,
    commit_rows,
    fake_moments,
    fake_predictions,
    fake_stages,
)

from vsr1_core.configuration_files import write_configuration
from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.evaluation.bootstrap import paired_differences
from vsr1_core.evaluation.scores import values
from vsr1_core.home import compare as module
from vsr1_core.home.compare import compare
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.graph import open_view
from vsr1_core.stages.reporting import scores_of

STRONG = Strength(0.3, 0.95, 0.95, 0.05)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "open_view", lambda home, name: open_view(home, name, fake_stages()))
    return tmp_path


def evaluated(
    home: Path, name: str, strengths: dict[str, Strength], queries: slice = slice(60), **entry: object
) -> None:
    """A dataset with predictions of these methods."""
    save_entry(home, dataclasses.replace(DatasetEntry(name, "folder", config="tiny"), **entry))  # type: ignore[arg-type]
    lake, moments = Lake(home / "lake"), fake_moments(80)[queries]
    commit_rows(lake, "moments", name, "query_id", MOMENT_COLUMNS, moments)
    for asset in ("sft_checkpoint", "grpo_checkpoint"):
        row = {"checkpoint": asset, "path": "x", "options": OPTIONS_OF_ALL}
        commit_rows(lake, asset, name, "checkpoint", CHECKPOINT_COLUMNS, [row])
    for i, (method, strength) in enumerate(strengths.items()):
        rows = fake_predictions(moments, strength, seed=i + (entry.get("seed") or 0))  # type: ignore[operator]
        commit_rows(lake, f"predictions.{method}", name, "query_id", PREDICTION_COLUMNS, rows)


def test_differences_are_the_paired_ones_of_the_report(home: Path) -> None:
    evaluated(home, "weak", STRENGTHS)
    evaluated(home, "strong", {**STRENGTHS, "sqr_sft": STRONG})
    found = compare(home, "weak", "strong")
    ours, theirs = (scores_of(open_view(home, n, fake_stages()), "test")["sqr_sft"] for n in ("strong", "weak"))
    wanted = paired_differences(ours, theirs, 1000, 42).select("metric", "difference", "low", "high")
    rows = found.metrics.filter(pl.col("method") == "sqr_sft")
    joined = rows.join(wanted, on="metric", suffix="_report").drop_nulls()
    assert joined.height > 20
    for name in ("difference", "low", "high"):
        assert joined[name].to_list() == pytest.approx(joined[f"{name}_report"].to_list())
    same = found.metrics.filter((pl.col("method") == "fine_tuned") & pl.col("difference").is_not_null())
    assert set(same["difference"]) == set(same["low"]) == set(same["high"]) == {0.0}
    assert found.recipes == {}


def test_queries_are_won_lost_or_ranked_otherwise(home: Path) -> None:
    evaluated(home, "weak", STRENGTHS)
    evaluated(home, "strong", {**STRENGTHS, "sqr_sft": STRONG})
    found = compare(home, "weak", "strong", methods=["sqr_sft"])
    back = compare(home, "strong", "weak", methods=["sqr_sft"])
    counts = found.counts()["sqr_sft"]
    assert counts["won"] > 5 * counts["lost"]
    assert Counter(q.change for q in back.queries) == Counter(
        {"won": counts["lost"], "lost": counts["won"], "rank up": counts["rank down"], "rank down": counts["rank up"]}
    )
    texts = {m["query_id"]: m["query"] for m in fake_moments(80)}
    assert all(q.query == texts[q.query_id] for q in found.queries)
    assert [q.change for q in found.queries[: counts["won"]]] == ["won"] * counts["won"]
    shares = dict(found.metrics.filter(pl.col("metric") == "vcmr_0.5").select("method", "difference").iter_rows())
    assert (counts["won"] - counts["lost"]) / 60 == pytest.approx(shares["sqr_sft"])
    assert json.loads(json.dumps(found.record()))["queries"][0]["change"] == "won"


def test_only_queries_that_both_have_count(home: Path) -> None:
    evaluated(home, "all", STRENGTHS)
    evaluated(home, "half", STRENGTHS, slice(30, 80))
    found = compare(home, "all", "half", metrics=["recall_at_1"])
    assert found.num_queries == 30
    assert {q.query_id for q in found.queries} <= {m["query_id"] for m in fake_moments(80)[30:60]}
    assert set(found.metrics["metric"]) == {"recall_at_1"}


def test_seeds_of_a_configuration_are_averaged(home: Path) -> None:
    write_configuration(home, "longer", "tiny", {"sft": {"steps": 500}}, "--set")
    for config in ("tiny", "longer"):
        for seed in (1, 2):
            evaluated(home, f"{config}-seed-{seed}", {"sqr_sft": STRONG}, config=config, seed=seed + len(config))
            save_entry(home, DatasetEntry(f"{config}-seed-{seed}", "folder", config=config, seed=seed))
    found = compare(home, "tiny", "longer", metrics=["mrr"])
    assert found.recipes == {"sft.steps": (300, 500)}
    each = [scores_of(open_view(home, f"tiny-seed-{s}", fake_stages()), "test")["sqr_sft"] for s in (1, 2)]
    row = found.metrics.row(0, named=True)
    assert row["a"] == pytest.approx(sum(values(s)["mrr"] for s in each) / 2)
    assert row["low"] <= row["difference"] <= row["high"]
    assert {q.found_a for q in found.queries} <= {0.0, 0.5, 1.0}
    seeds = compare(home, "tiny-seed-1", "tiny-seed-2", metrics=["mrr"])
    assert {key.rpartition(".")[2] for key in seeds.recipes} == {"seed"}


def test_what_cannot_be_compared_is_said(home: Path) -> None:
    evaluated(home, "some", STRENGTHS, slice(0, 30))
    evaluated(home, "others", STRENGTHS, slice(30, 60))
    evaluated(home, "one", {"zero_shot": STRENGTHS["zero_shot"]}, slice(0, 30))
    save_entry(home, DatasetEntry("empty", "folder"))
    with pytest.raises(
        ValueError, match=r"some \(30 queries of test\) and others \(30 of test\) have no query in common"
    ):
        compare(home, "some", "others")
    with pytest.raises(ValueError, match="empty is not evaluated yet; run: vsr1 build --dataset empty"):
        compare(home, "some", "empty")
    with pytest.raises(LookupError, match="'nobody' is not a dataset, and no experiment"):
        compare(home, "some", "nobody")
    with pytest.raises(LookupError, match="no method 'sqr_sft' in both some and one; there are: zero_shot"):
        compare(home, "some", "one", methods=["sqr_sft"])
    with pytest.raises(LookupError, match="no metric 'beauty' in both"):
        compare(home, "some", "one", metrics=["beauty"])
