"""Vision features: the batched attention is the original one, and each video is encoded once while it is kept."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from tests.core.tiny_models import random_video, small_config, spread, tiny_embedder
from vsr1_core.models.batches import Budget
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.memory import Passes
from vsr1_core.models.protocols import VideoFrames
from vsr1_core.models.qwen3_vl import inputs
from vsr1_core.models.qwen3_vl.inputs import VideoPatches, video_patches
from vsr1_core.models.qwen3_vl.vision import (
    PatchProduct,
    VisionTower,
    encode_videos,
    fast_vision,
    use_patch_product,
)
from vsr1_core.models.video_vectors import embedded_videos


def plain_model() -> Qwen3VLModel:
    model = Qwen3VLModel(small_config()).eval()
    spread(model, 3)
    return model


PLAIN = plain_model()
MODEL = fast_vision(copy.deepcopy(PLAIN))


def video(seed: int) -> VideoPatches:
    return random_video(seed, MODEL.config)


@pytest.mark.parametrize("seeds", [[0], [0, 0, 0], [1, 2, 3, 4]], ids=["one", "of one size", "of several sizes"])
@torch.no_grad()
def test_batched_attention_equals_the_original(seeds: list[int]) -> None:
    videos = [video(seed) for seed in seeds]
    for ours, theirs in zip(encode_videos(MODEL, videos), encode_videos(PLAIN, videos), strict=True):
        torch.testing.assert_close(ours.tokens, theirs.tokens, atol=1e-5, rtol=1e-5)
        assert len(ours.deepstack) == 2
        for a, b in zip(ours.deepstack, theirs.deepstack, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_patch_product_equals_the_convolution_under_the_same_names() -> None:
    product = copy.deepcopy(PLAIN)
    use_patch_product(product)
    assert list(product.state_dict()) == list(PLAIN.state_dict())
    patches = video(1).patches
    torch.testing.assert_close(
        product.visual.patch_embed(patches), PLAIN.visual.patch_embed(patches), atol=1e-5, rtol=1e-5
    )
    product.load_state_dict(PLAIN.state_dict())


def test_towers_use_the_product() -> None:
    assert isinstance(MODEL.visual.patch_embed, PatchProduct)


def test_overlapping_windows_are_no_product() -> None:
    overlapping = copy.deepcopy(PLAIN)
    overlapping.visual.patch_embed.proj.stride = (1, 1, 1)
    with pytest.raises(ValueError, match="no matrix product"):
        use_patch_product(overlapping)


def test_batched_attention_has_the_originals_gradients_and_names() -> None:
    grads = []
    for model in (MODEL, PLAIN):
        model.zero_grad()
        feature = encode_videos(model, [video(2)])[0]
        (feature.tokens.square().sum() + sum(d.sum() for d in feature.deepstack)).backward()
        grads.append({n: p.grad for n, p in model.visual.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-3, rtol=1e-3, msg=name)


@torch.no_grad()
def test_features_of_a_video_do_not_depend_on_its_batch() -> None:
    together = encode_videos(MODEL, [video(seed) for seed in range(5)])
    for seed, feature in enumerate(together):
        alone = encode_videos(MODEL, [video(seed)])[0]
        torch.testing.assert_close(feature.tokens, alone.tokens, atol=1e-5, rtol=1e-5)
        assert feature.layout == alone.layout


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
@torch.no_grad()
def test_a_video_in_parts_has_the_features_of_one_pass(dtype: torch.dtype, tolerance: float) -> None:
    """In bf16 a rounding may fall otherwise where a matrix product has another number of rows."""
    model = copy.deepcopy(MODEL).to(dtype)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (13, 32, 48, 3), dtype=np.uint8)  # the last one is repeated
    tower = VisionTower(model)
    long = tower.prepare(VideoFrames(frames, [0.5 * i for i in range(13)]))
    [whole] = tower.encode([long])
    of_group = Passes(tower.size, tower.number_bytes).vision(24)
    for pass_bytes, num_passes in ((1, 7), (3.5 * of_group, 3), (100 * of_group, 1)):
        seen = count_passes(model)
        [parts] = tower.encode([long], pass_bytes)
        assert sum(seen) == 7 * 24
        assert len(seen) == num_passes
        assert parts.layout == whole.layout
        for one, other in zip((parts.tokens, *parts.deepstack), (whole.tokens, *whole.deepstack), strict=True):
            torch.testing.assert_close(one, other, atol=tolerance * float(other.abs().max()), rtol=0)


def count_passes(model: Qwen3VLModel) -> list[int]:
    """The numbers of patches in the passes of the tower from now on."""
    seen: list[int] = []
    for hook in [*model.visual._forward_pre_hooks]:
        del model.visual._forward_pre_hooks[hook]
    model.visual.register_forward_pre_hook(lambda _module, args, **_: seen.append(len(args[0])))
    return seen


def test_a_store_and_an_embedder_read_a_video_above_the_budget_in_parts() -> None:
    embedder = tiny_embedder()
    frames = VideoFrames(np.zeros((12, 32, 32, 3), np.uint8), [float(i) for i in range(12)])
    seen = count_passes(embedder.model)
    store = FeatureStore(embedder.encoder, lambda _: embedder.encoder.prepare(frames), budget=Budget(limit=1))
    store.get(["v"])
    assert seen == [16] * 6
    seen.clear()
    assert len(list(embedded_videos(embedder, [("v", frames)], Budget(limit=1), 32))) == 1
    assert seen == [16] * 6


def test_patches_do_not_depend_on_how_many_groups_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (7, 32, 64, 3), dtype=np.uint8)
    whole = video_patches(pixels, range(7), MODEL.config)
    for size in (1, 3):
        monkeypatch.setattr(inputs, "GROUPS_AT_ONCE", size)
        assert torch.equal(video_patches(pixels, range(7), MODEL.config).patches, whole.patches)


class Loader:
    """Counts how often each video is read."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()

    def __call__(self, video_id: str) -> VideoPatches:
        self.reads[video_id] += 1
        return video(int(video_id))


def test_a_video_is_encoded_once_for_all_queries_turns_and_samples() -> None:
    load = Loader()
    store = FeatureStore(VisionTower(MODEL), load, batch_size=2)
    first = store.get(["1", "2", "1", "3", "1"])
    again = store.get(["3", "1"])
    assert set(load.reads.values()) == {1}
    assert first[0] is first[2] is first[4] is again[1]
    assert [f.layout for f in first] == [f.layout for f in store.get(["1", "2", "1", "3", "1"])]


def test_the_store_keeps_its_bound_and_forgets_the_least_recently_used() -> None:
    sizes = {str(s): encode_videos(MODEL, [video(s)])[0].num_bytes for s in range(6)}
    load = Loader()
    store = FeatureStore(VisionTower(MODEL), load, max_bytes=sizes["0"] + sizes["1"] + sizes["2"])
    store.get(["0", "1", "2"])
    store.get(["0"])
    store.get(["3"])
    assert store.num_bytes <= sizes["0"] + sizes["1"] + sizes["2"]
    store.get(["0"])
    assert load.reads["0"] == 1, "the most recently used stays"
    store.get(["1"])
    assert load.reads["1"] == 2, "the least recently used has gone"


def test_more_videos_at_once_than_fit_still_all_come_back() -> None:
    store = FeatureStore(VisionTower(MODEL), Loader(), max_bytes=1)
    assert len(store.get([str(s) for s in range(6)])) == 6
    assert store.num_videos <= 1


def test_a_kept_video_holds_no_other_videos_memory() -> None:
    store = FeatureStore(VisionTower(MODEL), Loader(), batch_size=8)
    for feature in store.get(["1", "2", "3"]):
        assert feature.tokens.untyped_storage().nbytes() == feature.tokens.numel() * feature.tokens.element_size()


@torch.no_grad()
def test_a_pass_of_the_vision_tower_takes_no_more_patches_than_allowed() -> None:
    seen: list[int] = []
    encoder = VisionTower(MODEL)
    hook = MODEL.visual.register_forward_pre_hook(lambda _m, args: seen.append(len(args[0])))
    largest = max(len(video(s).patches) for s in range(6))
    try:
        budget = Budget(limit=Passes(encoder.size, encoder.number_bytes).vision(largest))
        features = FeatureStore(encoder, Loader(), budget=budget).get([str(s) for s in range(6)])
    finally:
        hook.remove()
    assert max(seen) <= largest
    assert sum(seen) == sum(len(video(s).patches) for s in range(6))
    assert all(f.layout.grid == video(s).grid for s, f in enumerate(features))
