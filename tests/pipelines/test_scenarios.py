"""What a user edits, on the real graph with real models at the smallest size: the rows of each asset that run again.

The corpus is built once; every scenario starts from that state, edits files, and states which assets process how many
rows. All others process none, the plan says so beforehand, and a second build processes nothing.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.cheap_stages import CheapReport
from tests.small_world import NOT_A_VIDEO, SmallWorld, build, clip, fill, plans
from vsr1_core.configurations import NANO
from vsr1_core.evaluation.metrics import metrics_of
from vsr1_core.recipes import ModelRecipe
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages

pytestmark = pytest.mark.slow

METHODS = ("zero_shot", "fine_tuned", "sqr_sft", "videosearch_r1")
PROBED = METHODS[1:]
CONFIG = dataclasses.replace(
    NANO,
    models=ModelRecipe(tiny=dataclasses.replace(NANO.models.tiny, contrastive_steps=1, num_layers=1, vision_depth=1)),
    pool=dataclasses.replace(NANO.pool, num_matched=2, num_not_matched=2),
    sft=dataclasses.replace(NANO.sft, steps=1, batch_size=2),
    fine_tuned=dataclasses.replace(NANO.fine_tuned, steps=1, batch_size=2),
    grpo=dataclasses.replace(NANO.grpo, num_turns=1, max_new_tokens=4),
    evaluation=dataclasses.replace(NANO.evaluation, methods=METHODS, num_turns=1, max_new_tokens=4, num_resamples=2),
)
NUM_TRAIN, NUM_TEST = 3, 2
TRAINING = ("base_models", "fine_tuned_checkpoint", "sft_checkpoint", "grpo_checkpoint")


class Scene:
    """The corpus and its lake, as they were first built."""

    def __init__(self, home: Path) -> None:
        self.world = fill(SmallWorld(home), NUM_TRAIN, NUM_TEST)
        self.config = CONFIG

    def view(self) -> View:
        return self.world.view({**all_stages(), "report": CheapReport()}, self.config)  # plots take 9 parts of 10

    def rebuild(self, execution: Execution | None = None) -> dict[str, int]:
        """Asset -> rows processed, where there were any. The plan said so where it could, and nothing is left."""
        for split in self.world.rows:
            self.world.write_annotations(split)
        planned = plans(self.view())
        outcomes = build(self.view(), execution)
        for name, outcome in outcomes.items():
            plan = planned[name]
            assert plan is None or plan.counts() == outcome.plan.counts(), name
        again = build(self.view(), execution)
        assert {name: o.num_processed for name, o in again.items() if o.num_processed or o.num_dropped} == {}
        return {name: outcome.num_processed for name, outcome in outcomes.items() if outcome.num_processed}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("scenarios") / "home"
    Scene(home).rebuild()
    return shutil.copytree(home, home.with_name("saved"))


@pytest.fixture
def scene(saved: Path) -> Scene:
    """At the same place every time: rows hold absolute paths."""
    home = saved.with_name("home")
    shutil.rmtree(home)
    shutil.copytree(saved, home)
    return Scene(home)


def predictions(number: int) -> dict[str, int]:
    return {f"predictions.{method}": number for method in METHODS}


def probes(number: int) -> dict[str, int]:
    return {f"verification_probe.{method}": number for method in PROBED}


def reported(scene: Scene) -> dict[str, int]:
    """All scores, and what is made of them. The scores of probes are no one's where a method has no probes."""
    tables = {name: scene.view().table(name) for name in ("metrics", "refinement_curves", "report")}
    counts = {name: table.manifest()["num_rows"] for name, table in tables.items()}
    unprobed = ~pl.col("method").is_in(PROBED) & pl.col("metric").is_in([m.name for m in metrics_of("probes")])
    counts["metrics"] -= tables["metrics"].rows(["method", "metric"]).filter(unprobed).height
    return counts


def test_touching_every_file_runs_nothing(scene: Scene) -> None:
    for path in scene.world.annotations.rglob("*.*"):
        scene.world.touch(path)
    assert scene.rebuild() == {}
    known = scene.view().table("raw_videos").rows(["path", "mtime_ns"]).iter_rows()
    assert all(Path(path).stat().st_mtime_ns == time for path, time in known), "each plan would read the files again"


def test_a_changed_span_of_a_test_query_searches_it_again_and_embeds_nothing(scene: Scene) -> None:
    scene.world.find(900)[1]["time"] = [0.5, 2.0]
    assert scene.rebuild() == {"annotation_files": 1, "moments": 1, **predictions(1), **probes(1), **reported(scene)}


def test_a_changed_text_of_a_test_query_embeds_and_ranks_that_query(scene: Scene) -> None:
    scene.world.find(900)[1]["fig_desc"] = "another thing moves"
    once = {"annotation_files": 1, "moments": 1, "query_embeddings": 1, "first_ranking": 1}
    assert scene.rebuild() == {**once, **predictions(1), **probes(2), **reported(scene)}


def test_an_added_test_query_is_embedded_ranked_and_answered(scene: Scene) -> None:
    scene.world.add_query("test", 999, "test_0")
    once = {"annotation_files": 1, "moments": 1, "query_embeddings": 1, "first_ranking": 1}
    assert scene.rebuild() == {**once, **predictions(1), **probes(2), **reported(scene)}


def test_a_deleted_test_query_is_dropped_and_the_scores_made_again(scene: Scene) -> None:
    scene.world.rows["test"].pop()
    assert scene.rebuild() == {"annotation_files": 1, **reported(scene)}
    dropped = scene.view().table("predictions.sqr_sft").rows(["query_id"])
    assert dropped.height == 2 * NUM_TEST - 1


def test_an_added_test_video_with_two_queries_is_decoded_once_and_its_split_ranked_again(scene: Scene) -> None:
    scene.world.put_video("test_9", clip(42))
    for number in (990, 991):
        scene.world.add_query("test", number, "test_9")
    new = dict.fromkeys(("raw_videos", "videos", "frame_tensors", "video_embeddings"), 1)
    queries = 2 * NUM_TEST + 2
    processed = scene.rebuild()
    asked_anew = processed.pop("verification_probe.sqr_sft"), processed.pop("verification_probe.fine_tuned")
    assert 4 <= asked_anew[0] == asked_anew[1] == processed.pop("verification_probe.videosearch_r1") <= 4 + queries - 2
    assert processed == {
        "annotation_files": 1,
        **new,
        "moments": 2,
        "query_embeddings": 2,
        "video_index": 1,
        "first_ranking": queries,
        **predictions(queries),
        **reported(scene),
    }


def test_a_deleted_test_video_leaves_the_index_and_fails_its_rows(scene: Scene) -> None:
    scene.world.delete_video("test_1")
    processed = scene.rebuild()
    queries = 2 * NUM_TEST
    assert {name: processed.pop(name, 0) for name in probes(0)} == probes(0)
    assert processed == {
        "videos": 1,
        "video_index": 1,
        "first_ranking": queries,
        **predictions(queries),
        **reported(scene),
    }
    assert scene.view().table("videos").manifest()["num_failed"] == 1


def test_other_bytes_of_a_test_video_decode_and_embed_it_and_rank_its_split_again(scene: Scene) -> None:
    scene.world.put_video("test_1", clip(77))
    processed = scene.rebuild()
    queries = 2 * NUM_TEST
    assert {name: processed.pop(name) for name in probes(0)} == probes(queries)
    once = dict.fromkeys(("raw_videos", "videos", "frame_tensors", "video_embeddings", "video_index"), 1)
    assert processed == {**once, "first_ranking": queries, **predictions(queries), **reported(scene)}


def test_a_video_that_failed_and_is_good_again_runs_without_being_asked_for(scene: Scene) -> None:
    good = scene.world.video_path("test_1").read_bytes()
    scene.world.put_video("test_1", NOT_A_VIDEO)
    build(scene.view())  # no plan can know that it will not open
    assert scene.view().table("videos").manifest()["num_failed"] == 1
    scene.world.put_video("test_1", good)
    processed = scene.rebuild()
    once = dict.fromkeys(("raw_videos", "videos", "frame_tensors", "video_embeddings", "video_index"), 1)
    queries = 2 * NUM_TEST
    # While it could not be shown, its two queries had no probes at all, and the others no wrong video.
    assert {name: processed.pop(name) for name in probes(0)} == probes(2 * 2 + queries - 2)
    assert processed == {**once, "first_ranking": queries, **predictions(queries), **reported(scene)}
    assert scene.view().table("videos").manifest()["num_failed"] == 0


def test_another_embedder_recipe_makes_the_models_and_all_that_follows_again(scene: Scene) -> None:
    scene.config = dataclasses.replace(
        CONFIG, models=ModelRecipe(tiny=dataclasses.replace(CONFIG.models.tiny, contrastive_temperature=0.1))
    )
    processed = scene.rebuild()
    untouched = {"annotation_files", "raw_videos", "videos", "moments", "frame_tensors"}
    assert not untouched & set(processed)
    assert {name: processed[name] for name in TRAINING} == {**dict.fromkeys(TRAINING, 1), "base_models": 2}
    assert processed["query_embeddings"] == 2 * (NUM_TRAIN + NUM_TEST)
    assert processed["video_embeddings"] == NUM_TRAIN + NUM_TEST
    assert {name: processed[name] for name in predictions(0)} == predictions(2 * NUM_TEST)


def test_a_train_query_in_other_words_trains_and_a_test_query_never_does(scene: Scene) -> None:
    scene.world.find(100)[1]["fig_desc"] = "another thing moves"
    assert {name for name in scene.rebuild() if name in TRAINING} == set(TRAINING)


def test_another_batch_size_runs_nothing(scene: Scene) -> None:
    assert scene.rebuild(Execution(workers=1, batch_size=2, shard_rows=3)) == {}
