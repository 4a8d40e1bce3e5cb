"""What models make of videos and queries, kept on disk in a real (nano) dataset: computed once for all stages and
processes, anew for other weights and other frames, and never trusted when broken."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.qwen3_vl import vision
from vsr1_core.models.qwen3_vl.vision import VideoFeatures, VisionTower
from vsr1_core.recipes import SFTRecipe
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view
from vsr1_core.stages.loading import embedder_of, frame_store, layouts_of, policy_of, query_vectors
from vsr1_core.stages.methods import TRAINED
from vsr1_core.stages.trained import SFTCheckpoint

BASE = ("annotation_files", "raw_videos", "videos", "moments", "frame_tensors", "base_models")
SEARCH = ("query_embeddings", "video_embeddings", "video_index", "first_ranking", "hard_negatives")
EXAMPLES = ("top1_pool", "reasoning_traces", "sft_examples")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    save_entry(folder, DatasetEntry("nano", "toy", str(folder / "videos"), str(folder / "annotations"), "nano"))
    for name in (*BASE, *SEARCH, *EXAMPLES):
        build(folder, name)
    return folder


@pytest.fixture(autouse=True)
def empty_cache(home: Path) -> None:
    for file in (home / "lake" / "cache").rglob("*.safetensors"):
        file.unlink()


@contextlib.contextmanager
def passes() -> Iterator[list[int]]:
    """How many videos each pass of a vision tower takes meanwhile."""
    sizes: list[int] = []
    original = vision.encode_videos

    def encode_videos(model: Any, videos: Any) -> list[VideoFeatures]:
        sizes.append(len(videos))
        return original(model, videos)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision, "encode_videos", encode_videos)
        yield sizes


def view_of(home: Path) -> View:
    return open_view(home, "nano")


def build(home: Path, name: str) -> int:
    """Build one asset; how many videos had to be encoded for it."""
    view = view_of(home)
    with passes() as sizes:
        outcome = view.stages[name].build(view, Execution(workers=1))
    assert outcome.num_failed == 0
    return sum(sizes)


def store_of(home: Path, model: Any = None, **execution: Any) -> FeatureStore:
    model = model or policy_of(view_of(home), Execution(), "base_models", "policy").model.model
    return frame_store(view_of(home), VisionTower(model), Execution(**execution))


def video_ids(home: Path) -> list[str]:
    return view_of(home).rows("frame_tensors", ["video_id"])["video_id"].sort().to_list()


def encode_all(home: Path, **execution: Any) -> int:
    """How many of all videos a new store has to encode."""
    with passes() as sizes:
        store_of(home, **execution).get(video_ids(home))
    return sum(sizes)


@pytest.mark.long
@pytest.mark.slow
def test_a_second_process_computes_no_vision_pass_and_finds_equal_features(home: Path) -> None:
    assert encode_all(home) == len(video_ids(home)) == 36
    call = f"from pathlib import Path; from tests.core.{Path(__file__).stem} import encode_all as f; "
    done = subprocess.run(
        [sys.executable, "-c", call + f"print(f(Path({str(home)!r})))"],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.stdout.split()[-1] == "0"
    fresh, kept = (store_of(home, cache_bytes=size).get(video_ids(home)) for size in (0, 1 << 30))
    for one, other in zip(fresh, kept, strict=True):
        assert one.layout == other.layout
        torch.testing.assert_close(one.tokens, other.tokens)
        torch.testing.assert_close(one.deepstack, other.deepstack)


@pytest.mark.slow
def test_stages_share_features_as_long_as_training_leaves_the_tower_alone(home: Path) -> None:
    assert 0 < build(home, "predictions.zero_shot") <= 8
    assert 0 < build(home, "fine_tuned_checkpoint") <= 24
    assert build(home, "sft_checkpoint") == 0, "stage 1 leaves the tower as it is, and both train on the same videos"
    assert build(home, "predictions.fine_tuned") == 0, "only the first ranking decides what it is shown"


@pytest.mark.slow
def test_changed_weights_are_computed_anew(home: Path) -> None:
    encode_all(home)
    model = policy_of(view_of(home), Execution(), "base_models", "policy").model.model
    with torch.no_grad():
        model.visual.merger.linear_fc2.bias[0] += 0.5
    with passes() as sizes:
        store_of(home, model).get(video_ids(home)[:5])
        store_of(home, model.bfloat16()).get(video_ids(home)[:5])
    assert sum(sizes) == 5 + 5, "the weights, then their precision"


def test_only_the_video_whose_frames_changed_is_computed_anew(home: Path) -> None:
    encode_all(home)
    table, changed = view_of(home).table("frame_tensors"), pl.col("video_id") == video_ids(home)[3]
    rows = table.rows()
    other = pl.when(changed).then(pl.lit("other frames")).otherwise(pl.col("content"))
    table.commit(rows.with_columns(content=other), {})
    try:
        assert encode_all(home) == 1
    finally:
        table.commit(rows, {})
    assert encode_all(home) == 0, "the features of the old frames are there still"


def test_damaged_and_half_written_files_are_computed_anew(home: Path) -> None:
    encode_all(home)
    files = sorted((home / "lake" / "cache" / "vision_features").glob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].write_bytes(b"\xff" * 64)
    files[2].write_bytes(b"")
    files[3].rename(files[3].with_name(f".{files[3].stem}.0123abcd.tmp.safetensors"))
    assert encode_all(home) == 4
    assert encode_all(home) == 0


def test_the_cache_keeps_its_bound_and_zero_keeps_nothing(home: Path) -> None:
    folder = home / "lake" / "cache" / "vision_features"
    assert encode_all(home, cache_bytes=0) == encode_all(home, cache_bytes=0) == 36
    assert not list(folder.glob("*"))
    encode_all(home)
    one = max(file.stat().st_size for file in folder.iterdir())
    assert encode_all(home, cache_bytes=10 * one) > 0
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 10 * one


def test_a_tower_that_learns_is_followed_and_kept_nowhere(home: Path) -> None:
    model = policy_of(view_of(home), Execution(), "base_models", "policy").model.model
    store = frame_store(view_of(home), VisionTower(model), Execution(), is_learning=True)
    first = store.get(video_ids(home)[:2])
    sum(f.tokens.square().sum() for f in first).backward()  # type: ignore[union-attr]
    assert model.visual.patch_embed.proj.weight.grad.abs().sum() > 0
    with torch.no_grad():
        model.visual.merger.linear_fc2.bias += 1
    assert not torch.allclose(store.get(video_ids(home)[:1])[0].tokens, first[0].tokens)
    assert store.num_videos == 0
    assert not list((home / "lake" / "cache").rglob("vision_features/*"))


def test_stage_1_trains_the_tower_where_it_is_asked_to(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(home)
    recipe = SFTRecipe(steps=1, batch_size=2, lr=1e-2, train_vision=True)
    monkeypatch.setattr(SFTCheckpoint, "recipe", lambda *_: recipe)
    policy = policy_of(view, Execution(), "base_models", "policy")
    before = policy.model.model.visual.patch_embed.proj.weight.clone()
    SFTCheckpoint(TRAINED["sft_checkpoint"]).train(view, policy, Execution())
    assert not torch.equal(policy.model.model.visual.patch_embed.proj.weight, before)
    assert not list((home / "lake" / "cache").rglob("vision_features/*"))


def test_what_is_kept_does_not_depend_on_who_asks(home: Path) -> None:
    """Training asks under autocast, whose rounding is not in the key."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        asked = store_of(home, cache_bytes=0).get(video_ids(home)[:3])
    for one, other in zip(asked, store_of(home, cache_bytes=0).get(video_ids(home)[:3]), strict=True):
        assert torch.equal(one.tokens, other.tokens)


def test_layouts_are_known_without_the_frames(home: Path) -> None:
    view = view_of(home)
    store = store_of(home)
    assert layouts_of(view, video_ids(home), store.encoder) == [f.layout for f in store.get(video_ids(home))]


def test_queries_are_embedded_once_for_all_processes(home: Path) -> None:
    view = view_of(home)
    texts = view.rows("moments", ["query"])["query"].unique().sort().to_list()
    first = query_vectors(view, embedder_of(view, Execution()), Execution()).get(texts)
    embedder = embedder_of(view, Execution())
    embedder.embed_queries = pytest.fail  # type: ignore[method-assign,assignment]
    again = query_vectors(view, embedder, Execution()).get(texts)
    assert torch.equal(first, again)
