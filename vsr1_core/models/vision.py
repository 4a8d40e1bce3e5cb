"""Vision features: computed once a video, shared over queries, turns and group samples.

A feature's key is (digest of the vision weights, video id, version of its frames): new weights or new frames make a
new key, nothing else does. The store is bounded by bytes and forgets the least recently used video.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


class FeatureStore:
    """Features by video id for one set of vision weights, at most `max_bytes` of them in memory."""

    def __init__(
        self,
        model: Qwen3VLModel,
        load: Callable[[str], VideoPatches],
        max_bytes: int = 2 << 30,
        batch_size: int = 32,
    ) -> None:
        self.model = model
        self.load = load
        self.max_bytes = max_bytes
        self.batch_size = batch_size
        self._kept: OrderedDict[str, VideoFeatures] = OrderedDict()
        self._bytes = 0

    def get(self, video_ids: Sequence[str]) -> list[VideoFeatures]:
        """Features in the order of `video_ids`; what is not kept is loaded and encoded in batches."""
        found: dict[str, VideoFeatures] = {}
        for video_id in dict.fromkeys(video_ids):
            if video_id in self._kept:
                self._kept.move_to_end(video_id)
                found[video_id] = self._kept[video_id]
        missing = [v for v in dict.fromkeys(video_ids) if v not in found]
        for start in range(0, len(missing), self.batch_size):
            names = missing[start : start + self.batch_size]
            with torch.no_grad():
                features = encode_videos(self.model, [self.load(v) for v in names])
            for name, feature in zip(names, features, strict=True):
                found[name] = self._keep(name, feature)
        return [found[v] for v in video_ids]

    def _keep(self, name: str, feature: VideoFeatures) -> VideoFeatures:
        # Clones: a split is a view that would hold the whole batch's memory.
        own = VideoFeatures(feature.tokens.clone(), tuple(d.clone() for d in feature.deepstack), feature.layout)
        self._kept[name] = own
        self._bytes += own.num_bytes
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].num_bytes
        return own


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
