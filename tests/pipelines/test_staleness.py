"""The plan, Dagster's own staleness and automation agree, on the main methods' graph with cheap models.

Each test edits the corpus, looks at what the three say, and lets automation settle; the next one goes on from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cheap_stages import cheap_main_stages
from tests.one_connection import instance_in_memory
from tests.small_world import SmallWorld, clip, fill
from tests.ticker import Ticker
from tests.undrawn import draw_nothing
from vsr1_core.configurations import CONFIGURATIONS, NANO
from vsr1_core.stages.graph import StagePlan, open_view, plan_graph

pytestmark = pytest.mark.slow

TRAINING = {"base_models", "fine_tuned_checkpoint", "sft_checkpoint", "grpo_checkpoint"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return fill(SmallWorld(tmp_path_factory.mktemp("home")), num_train=3, num_test=2).register()


@pytest.fixture(scope="module")
def ticker(world: SmallWorld) -> Iterator[Ticker]:
    with pytest.MonkeyPatch.context() as patch, instance_in_memory() as instance:
        draw_nothing(patch)
        ticker = Ticker(world.home, instance, cheap_main_stages)
        ticker.build("small")
        assert ticker.settle("small") == []
        yield ticker


def plans(ticker: Ticker) -> dict[str, StagePlan]:
    return {p.asset: p for p in plan_graph(open_view(ticker.home, "small", cheap_main_stages()))}


def moving(planned: dict[str, StagePlan]) -> set[str]:
    """Assets whose data version will move: some row is to be made or to be dropped."""
    return {name for name, p in planned.items() if p.plan and (p.plan.due() or p.plan.orphaned)}


def concerned(planned: dict[str, StagePlan], stale: set[str]) -> set[str]:
    """Assets that will run: those that move, the direct readers of these, and those that Dagster finds behind what ran
    before; as far as the plan knows them and all that they are made from.
    """
    moves, reads = moving(planned), {name: {*stage.upstream} for name, stage in cheap_main_stages().items()}
    known: set[str] = set()
    for name, plan in planned.items():  # upstream first
        if plan.plan and reads[name] <= known:
            known.add(name)
    return {name for name in known if name in moves | stale or moves & reads[name]}


def rows(planned: dict[str, StagePlan], names: set[str]) -> dict[str, int]:
    return {name: len(p.plan.due()) for name, p in planned.items() if p.plan and name in names}


@dataclass(frozen=True)
class Told:
    """What is said before a tick: the plan, and the assets that Dagster marks as out of date."""

    planned: dict[str, StagePlan]
    stale: set[str]


def tell(ticker: Ticker) -> Told:
    return Told(plans(ticker), ticker.stale("small"))


def settle_as_planned(ticker: Ticker, told: Told) -> dict[str, int]:
    """Let automation run until it asks for nothing more. Each run does what the plan said just before; no asset runs
    twice. Returns the rows processed. told: what is said now, before the first tick.
    """
    processed: dict[str, int] = {}
    for _ in range(4):
        ran = ticker.tick().get("small", {})
        if not ran:
            break
        ran.pop("warehouse", None)
        assert set(ran) == concerned(told.planned, told.stale)
        assert ran == rows(told.planned, set(ran))
        assert not set(ran) & set(processed)
        processed |= ran
        told = tell(ticker)
    assert moving(told.planned) == set()
    assert told.stale == set()
    return processed


def see(ticker: Ticker) -> tuple[set[str], Told]:
    """Observe the files; what Dagster then marks is where the plan begins. Returns that, and all that is said."""
    ticker.observe("small")
    sources = {name for name, stage in cheap_main_stages().items() if stage.group == "sources"}
    told = tell(ticker)
    assert told.stale == moving(told.planned) & sources
    return told.stale, told


def test_nothing_is_stale_due_or_run_after_files_were_touched(world: SmallWorld, ticker: Ticker) -> None:
    for path in [world.annotation_path("train"), world.video_path("train_0")]:
        world.touch(path)
    marked, told = see(ticker)
    assert marked == set()
    assert settle_as_planned(ticker, told) == {}


def test_a_query_of_the_test_split_retrains_nothing(world: SmallWorld, ticker: Ticker) -> None:
    world.find(900)[1]["fig_desc"] = "another thing"
    world.write_annotations("test")
    marked, told = see(ticker)
    assert marked == {"annotation_files"}
    processed = settle_as_planned(ticker, told)
    assert {name: number for name, number in processed.items() if name in TRAINING and number} == {}
    assert processed["query_embeddings"] == processed["predictions.sqr_sft"] == 1


@pytest.mark.long
def test_a_train_video_with_other_bytes_trains_each_model_once(world: SmallWorld, ticker: Ticker) -> None:
    world.put_video("train_1", clip(3))
    marked, told = see(ticker)
    assert marked == {"raw_videos"}
    processed = settle_as_planned(ticker, told)
    assert {name: processed[name] for name in TRAINING} == {"base_models": 2} | dict.fromkeys(
        TRAINING - {"base_models"}, 1
    )


@pytest.mark.long
def test_a_deleted_video_and_its_queries(world: SmallWorld, ticker: Ticker) -> None:
    world.delete_video("test_1")
    world.rows["test"] = [row for row in world.rows["test"] if row["video"] != "test_1"]
    world.write_annotations("test")
    marked, told = see(ticker)
    assert marked == {"annotation_files", "raw_videos"}
    processed = settle_as_planned(ticker, told)
    assert {name for name in TRAINING if processed.get(name)} == set()


@pytest.mark.long
def test_another_recipe_runs_what_it_concerns(ticker: Ticker, monkeypatch: pytest.MonkeyPatch) -> None:
    retrieval = dataclasses.replace(NANO.retrieval, num_hard_negatives=1)
    monkeypatch.setitem(CONFIGURATIONS, "nano", dataclasses.replace(NANO, retrieval=retrieval))
    ticker.reload()
    told = tell(ticker)
    assert told.stale == set(), "Dagster has one code version for all datasets, so the plan has to tell"
    assert "hard_negatives" in moving(told.planned)
    processed = settle_as_planned(ticker, told)
    assert processed["hard_negatives"] > 0
    assert processed["sft_checkpoint"] == 1
    assert "base_models" not in processed


@pytest.mark.long
def test_where_training_is_started_by_hand_the_rest_goes_on_with_the_models_there_are(
    world: SmallWorld, ticker: Ticker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticker.reload()
    settle_as_planned(ticker, tell(ticker))  # the recipe of the test before is gone
    monkeypatch.setitem(CONFIGURATIONS, "nano", dataclasses.replace(NANO, retrain="manual"))
    ticker.reload()
    world.find(110)[1]["fig_desc"] = "another train thing"
    world.write_annotations("train")
    ticker.observe("small")
    processed: dict[str, int] = {}
    for ran in ticker.settle("small"):
        processed |= ran
    assert {name: number for name, number in processed.items() if name in TRAINING and number} == {}
    assert processed["query_embeddings"] == 1
    assert processed["grpo_prompts"] >= 1
    assert moving(plans(ticker)) & TRAINING == {"base_models"}, "the others are not known before"
    assert "base_models" in ticker.stale("small"), "the UI says so, too"
    ticker.build("small")
    assert ticker.settle("small") == []
    assert ticker.stale("small") == moving(plans(ticker)) == set()
