"""What outlives a process on disk: exact, bounded, keyed by all it depends on, and never trusted when broken."""

from __future__ import annotations

import copy
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from tests.core.test_vision import MODEL, Loader
from tests.core.tiny_models import query_text, small_config, spread, tiny_embedder
from vsr1_core.models.feature_store import FeatureStore, feature_key
from vsr1_core.models.query_vectors import QueryVectors
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.vision import VisionTower, vision_digest
from vsr1_core.models.tensor_folder import TensorFolder

DIGEST = vision_digest(MODEL)


def store(folder: Path, load: Loader, frames_version: str = "f1", digest: str = DIGEST) -> FeatureStore:
    return FeatureStore(
        VisionTower(MODEL),
        load,
        disk=TensorFolder(folder),
        key_of=lambda video_id: feature_key(digest, video_id, frames_version),
    )


def test_another_process_reads_the_same_features_without_the_video(tmp_path: Path) -> None:
    load = Loader()
    first = store(tmp_path, load).get(["1", "2"])
    again = store(tmp_path, load).get(["2", "1"])[::-1]
    assert load.reads == Counter(["1", "2"])
    for one, other in zip(first, again, strict=True):
        assert one.layout == other.layout
        assert torch.equal(one.tokens, other.tokens)
        assert all(torch.equal(a, b) for a, b in zip(one.deepstack, other.deepstack, strict=True))


@pytest.mark.parametrize("change", [{"frames_version": "f2"}, {"digest": "other"}])
def test_new_frames_or_new_weights_are_computed_anew(tmp_path: Path, change: dict[str, str]) -> None:
    load = Loader()
    store(tmp_path, load).get(["1"])
    store(tmp_path, load, **change).get(["1"])
    assert load.reads["1"] == 2


def test_the_digest_follows_the_vision_tower_and_nothing_else() -> None:
    model = Qwen3VLModel(small_config()).eval()
    spread(model, 3)
    digest = vision_digest(model)
    model.language_model.norm.weight.data += 1
    assert vision_digest(model) == digest
    assert vision_digest(model.bfloat16()) != digest
    model = model.float()
    model.visual.patch_embed.proj.bias.data[0] += 1
    assert vision_digest(model) != digest
    digest = vision_digest(model)
    model.config.vision_config.num_heads *= 2
    assert vision_digest(model) != digest, "no weight tells how many heads share it"


def test_a_broken_file_is_computed_anew_and_replaced(tmp_path: Path) -> None:
    load = Loader()
    store(tmp_path, load).get(["1"])
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    store(tmp_path, load).get(["1"])
    store(tmp_path, load).get(["1"])
    assert load.reads["1"] == 2


def test_the_folder_keeps_its_bound_and_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    tensor = {"x": torch.zeros(1000)}
    folder = TensorFolder(tmp_path, max_bytes=6 * 4200)
    for n in range(5):
        folder.put(f"k{n}", tensor, {"n": n})
        os.utime(folder._path(f"k{n}"), (n, n))
    assert folder.get("k0") is not None
    for n in range(5, 12):
        folder.put(f"k{n}", tensor, {"n": n})
    size = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert size <= 6 * 4200
    assert folder.get("k1") is None
    entry = folder.get("k11")
    assert entry is not None
    assert entry[1] == {"n": 11}


def test_several_processes_keep_the_bound_together_and_a_lower_one_clears_at_once(tmp_path: Path) -> None:
    bound = 20 * 4200
    folders = [TensorFolder(tmp_path, bound) for _ in range(4)]
    for n in range(60):
        folders[n % 4].put(f"k{n}", {"x": torch.zeros(1000)}, {})
        assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 1.2 * bound, "each recounts after 5 % of the bound"
    TensorFolder(tmp_path, max_bytes=3 * 4200)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_process_left_half_written_ages_out(tmp_path: Path) -> None:
    left = tmp_path / ".k.0123abcd.tmp.safetensors"
    left.write_bytes(b"x" * 8000)
    os.utime(left, (1, 1))
    TensorFolder(tmp_path, max_bytes=8400).put("k", {"x": torch.zeros(1000)}, {})
    assert not left.exists()
    assert TensorFolder(tmp_path).get("k") is not None


def test_another_key_of_the_same_file_name_is_not_found(tmp_path: Path) -> None:
    folder = TensorFolder(tmp_path)
    folder.put("k", {"x": torch.zeros(1)}, {})
    folder._path("k").rename(folder._path("other"))
    assert folder.get("other") is None


def test_a_disk_that_is_all_but_full_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(100 << 30, 99 << 30, 1 << 30))
    folder = TensorFolder(tmp_path)
    folder.put("k", {"x": torch.zeros(1)}, {})
    assert folder.get("k") is None


def test_keys_of_any_spelling_stay_inside_the_folder(tmp_path: Path) -> None:
    folder = TensorFolder(tmp_path / "inside")
    for key in ("../../outside", "a/b", "a_b", "ü" * 300):
        folder.put(key, {"x": torch.ones(1)}, {"key": key})
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
    assert folder.get("a/b")[1] != folder.get("a_b")[1]  # type: ignore[index]


def test_folder_and_keys_come_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both"):
        FeatureStore(VisionTower(MODEL), Loader(), disk=TensorFolder(tmp_path))
    with pytest.raises(ValueError, match="both"):
        QueryVectors(tiny_embedder(), disk=TensorFolder(tmp_path))


def test_each_query_is_embedded_once_in_order_and_on_disk_once_for_all(tmp_path: Path) -> None:
    embedder = tiny_embedder()
    texts = [query_text(s) for s in (3, 1, 3, 2, 1)]
    passes: list[int] = []
    hook = embedder.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: passes.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    try:
        vectors = QueryVectors(embedder, disk=TensorFolder(tmp_path), weights="w1")
        first, again = vectors.get(texts), vectors.get(texts)
        other_process = QueryVectors(embedder, disk=TensorFolder(tmp_path), weights="w1").get(texts)
        assert sum(passes) == 3
        QueryVectors(embedder, disk=TensorFolder(tmp_path), weights="w2").get(texts)
        assert sum(passes) == 6
    finally:
        hook.remove()
    assert torch.equal(first, again)
    assert torch.equal(first, other_process)
    torch.testing.assert_close(first, embedder.embed_queries(texts), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("what", ["template", "tokenizer"])
def test_a_query_that_is_spelled_otherwise_is_embedded_anew(tmp_path: Path, what: str) -> None:
    """Hubs change a model's template without its weights."""
    embedder, texts = tiny_embedder(), [query_text(0)]
    first = QueryVectors(embedder, disk=TensorFolder(tmp_path), weights="w").get(texts)
    other = Qwen3VLEmbedder(embedder.model, copy.deepcopy(embedder.tokenizer))
    if what == "template":
        other.tokenizer.chat_template = str(other.tokenizer.chat_template).replace("assistant", "user")
        assert other.text_digest != embedder.text_digest
    else:
        other.tokenizer.add_tokens([texts[0].split()[0]])
    second = QueryVectors(other, disk=TensorFolder(tmp_path), weights="w").get(texts)
    assert not torch.equal(first, second)


def test_vectors_behind_a_head_follow_it_as_it_learns() -> None:
    head = torch.nn.Linear(48, 24)
    vectors = QueryVectors(tiny_embedder().with_head(head))
    first = vectors.get([query_text(0)])
    with torch.no_grad():
        head.weight += 1
    assert not torch.allclose(first, vectors.get([query_text(0)]))


def test_kept_queries_have_a_bound() -> None:
    vectors = QueryVectors(tiny_embedder(), max_queries=2)
    vectors.get([query_text(s) for s in range(5)])
    assert len(vectors._kept) == 2
