"""Vision features: computed once a video, shared over queries, turns and group samples.

In memory the key is the video id, because a store belongs to one model and one set of frames; it is bounded by bytes
and forgets the least recently used video. On disk the key names all that a feature depends on (`feature_key`): new
vision weights, another precision or new frames make a new key, nothing else does. A tower that learns is never kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLModel,
    Qwen3VLVisionAttention,
    apply_rotary_pos_emb_vision,
)

from vsr1_core.models.inputs import VideoLayout, VideoPatches
from vsr1_core.models.tensor_folder import TensorFolder


@dataclass(frozen=True)
class VideoFeatures:
    """tokens: [n, H]; deepstack: one [n, H] a level, added to the first layers' hidden states."""

    tokens: Tensor
    deepstack: tuple[Tensor, ...]
    layout: VideoLayout

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.tokens, *self.deepstack))


def encode_videos(model: Qwen3VLModel, videos: Sequence[VideoPatches]) -> list[VideoFeatures]:
    """One pass of the vision tower over all `videos`. Differentiable where gradients are on."""
    device = model.visual.patch_embed.proj.weight.device
    patches = torch.cat([v.patches for v in videos]).to(device)
    grids = torch.tensor([v.grid for v in videos], device=device)
    output = model.get_video_features(patches, grids, return_dict=True)
    levels = list(zip(*output.deepstack_features, strict=True)) or [()] * len(videos)
    return [
        VideoFeatures(tokens, tuple(deep), VideoLayout(video.grid, video.marks_s))
        for tokens, deep, video in zip(output.pooler_output, levels, videos, strict=True)
    ]


_NOT_IN_WEIGHTS = ("num_heads", "deepstack_visual_indexes", "hidden_act", "patch_size", "spatial_merge_size")
"""What of a tower's config decides its features, and no shape of a tensor tells for sure."""


def vision_digest(model: Qwen3VLModel) -> str:
    """Digest of the vision tower: weights, precision, shape; 16 hex digits. What features depend on beside the frames.

    Training that leaves the tower alone (the default) leaves it as it is, so all checkpoints of a run share features.
    """
    vision = model.config.vision_config
    digest = hashlib.sha256(repr([getattr(vision, name) for name in _NOT_IN_WEIGHTS]).encode())
    for name, tensor in sorted(model.visual.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def feature_key(weights: str, video_id: str, frames_version: str) -> str:
    """The key on disk: `weights` is a vision_digest, `frames_version` the row version of the video's frames."""
    return f"{video_id}/{frames_version}/{weights}"


@dataclass
class FeatureStore:
    """Features by video id for one vision tower, at most `max_bytes` of them in memory.

    load: video id -> its patches. key_of: video id -> `feature_key`; with it, features outlive the process in `disk`.
    One pass of the tower takes at most `batch_size` videos and `max_patches` patches (at least one video).
    is_learning: the tower is being trained, so every `get` encodes anew, with gradients where they are on; nothing is
    kept. What is kept is in the tower's own precision, whatever autocast is on where it is asked for.
    """

    model: Qwen3VLModel
    load: Callable[[str], VideoPatches]
    max_bytes: int = 2 << 30
    batch_size: int = 32
    max_patches: int = 131_072
    disk: TensorFolder | None = None
    key_of: Callable[[str], str] | None = None
    is_learning: bool = False
    _kept: OrderedDict[str, VideoFeatures] = field(default_factory=OrderedDict, repr=False)
    num_bytes: int = 0

    def __post_init__(self) -> None:
        if (self.disk is None) != (self.key_of is None):
            raise ValueError("features on disk need both the folder and the keys")
        if self.is_learning and self.disk is not None:
            raise ValueError("features of a tower that learns are not kept on disk")

    @property
    def num_videos(self) -> int:
        return len(self._kept)

    def get(self, video_ids: Sequence[str]) -> list[VideoFeatures]:
        """Features in the order of `video_ids`; what is not kept is read from disk, or encoded in batches."""
        found: dict[str, VideoFeatures] = {}
        missing = []
        for video_id in dict.fromkeys(video_ids):
            feature = self._recall(video_id)
            if feature is None:
                missing.append(video_id)
            else:
                found[video_id] = feature
        for some in self._batches(missing):
            if self.is_learning:
                found.update(zip(some, encode_videos(self.model, list(some.values())), strict=True))
            else:
                found.update(self._encode_to_keep(some))
        return [found[v] for v in video_ids]

    @torch.no_grad()
    def _encode_to_keep(self, videos: dict[str, VideoPatches]) -> dict[str, VideoFeatures]:
        with torch.autocast(self.model.visual.patch_embed.proj.weight.device.type, enabled=False):
            features = encode_videos(self.model, list(videos.values()))
        made = {}
        for video_id, feature in zip(videos, features, strict=True):
            # Clones: a split is a view that would hold the whole batch's memory.
            own = VideoFeatures(feature.tokens.clone(), tuple(d.clone() for d in feature.deepstack), feature.layout)
            if self.disk is not None and self.key_of is not None:
                self.disk.put(self.key_of(video_id), *_stored(own))
            made[video_id] = self._keep(video_id, own)
        return made

    def _recall(self, video_id: str) -> VideoFeatures | None:
        if video_id in self._kept:
            self._kept.move_to_end(video_id)
            return self._kept[video_id]
        if self.disk is None or self.key_of is None:
            return None
        entry = self.disk.get(self.key_of(video_id))
        return None if entry is None else self._keep(video_id, _restored(*entry, self.model))

    def _batches(self, video_ids: Sequence[str]) -> Iterator[dict[str, VideoPatches]]:
        """The videos' patches in groups that one pass may take."""
        group: dict[str, VideoPatches] = {}
        size = 0
        for video_id in video_ids:
            video = self.load(video_id)
            if group and (len(group) == self.batch_size or size + len(video.patches) > self.max_patches):
                yield group
                group, size = {}, 0
            group[video_id] = video
            size += len(video.patches)
        if group:
            yield group

    def _keep(self, video_id: str, feature: VideoFeatures) -> VideoFeatures:
        self._kept[video_id] = feature
        self.num_bytes += feature.num_bytes
        while self.num_bytes > self.max_bytes and len(self._kept) > 1:
            self.num_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return feature


def _stored(feature: VideoFeatures) -> tuple[dict[str, Tensor], dict[str, object]]:
    levels = {f"deepstack.{i}": level for i, level in enumerate(feature.deepstack)}
    note: dict[str, object] = {"grid": feature.layout.grid, "marks_s": feature.layout.marks_s}
    return {"tokens": feature.tokens, **levels}, note


def _restored(tensors: dict[str, Tensor], note: dict[str, Any], model: Qwen3VLModel) -> VideoFeatures:
    device = model.visual.patch_embed.proj.weight.device
    levels = tuple(tensors[f"deepstack.{i}"].to(device) for i in range(len(tensors) - 1))
    layout = VideoLayout(tuple(note["grid"]), tuple(note["marks_s"]))
    return VideoFeatures(tensors["tokens"].to(device), levels, layout)


class BatchedVisionAttention(Qwen3VLVisionAttention):
    """Attention within each frame as one batched call where all frames have one size.

    transformers calls attention once a frame without flash-attention: 512 calls a layer for 64 videos of 8 pairs of
    frames. Same numbers, tested; frames of several sizes take the original way.
    """

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        lengths = cu_seqlens.diff()
        if position_embeddings is None or not bool((lengths == lengths[0]).all()):
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        frames, size = len(lengths), int(lengths[0])
        query, key, value = self.qkv(hidden_states).reshape(frames * size, 3, self.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        query, key, value = (t.reshape(frames, size, self.num_heads, -1).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return self.proj(mixed.transpose(1, 2).reshape(frames * size, -1))


def batch_vision_attention(model: Qwen3VLModel) -> Qwen3VLModel:
    """Make every vision block of `model` attend in batches; weights and names stay. Returns `model`."""
    for block in model.visual.blocks:
        block.attn.__class__ = BatchedVisionAttention
    return model
