"""The vision tower, which makes features from patches (`VisionTower`), the digest of its weights, and its attention in
batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLModel,
    Qwen3VLVisionAttention,
    Qwen3VLVisionPatchEmbed,
    apply_rotary_pos_emb_vision,
)

from vsr1_core.input_form import OURS, InputForm
from vsr1_core.models.memory import Passes
from vsr1_core.models.protocols import VideoFrames
from vsr1_core.models.qwen3_vl.inputs import VideoLayout, VideoPatches, video_layout, video_patches
from vsr1_core.models.qwen3_vl.sizes import size_of
from vsr1_core.models.sizes import ModelSize


@dataclass(frozen=True)
class VideoFeatures:
    """The features of one video. tokens: [n, H]; deepstack: one [n, H] per level, which is added to the hidden states
    of the first layers."""

    tokens: Tensor
    deepstack: tuple[Tensor, ...]
    layout: VideoLayout

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.tokens, *self.deepstack))

    def copied(self) -> VideoFeatures:
        """A copy in memory of its own: a part of a batch is a view that keeps the whole batch."""
        return VideoFeatures(self.tokens.clone(), tuple(d.clone() for d in self.deepstack), self.layout)


def encode_videos(model: Qwen3VLModel, videos: Sequence[VideoPatches]) -> list[VideoFeatures]:
    """Encode all `videos` in one pass of the vision tower. Differentiable if gradients are on."""
    device = model.visual.patch_embed.proj.weight.device
    patches = torch.cat([v.patches for v in videos]).to(device)
    grids = torch.tensor([v.grid for v in videos], device=device)
    output = model.get_video_features(patches, grids, return_dict=True)
    levels = list(zip(*output.deepstack_features, strict=True)) or [()] * len(videos)
    return [
        VideoFeatures(tokens, tuple(deep), VideoLayout(video.grid, video.marks_s))
        for tokens, deep, video in zip(output.pooler_output, levels, videos, strict=True)
    ]


def encode_in_parts(model: Qwen3VLModel, video: VideoPatches, most_patches: float) -> VideoFeatures:
    """Encode one video in passes of at most `most_patches` patches, but of at least one group of frames.

    Nothing in the tower reaches from one group of frames to another: attention, positions and the merger stay within
    it. So features differ from those of one pass by rounding alone."""
    num_groups, height, width = video.grid
    size = max(1, int(min(most_patches // (height * width), num_groups)))
    if size == num_groups:
        return encode_videos(model, [video])[0]
    parts = [
        encode_videos(model, [VideoPatches(patches, (len(patches) // (height * width), height, width), ())])[0]
        for patches in video.patches.split(size * height * width)
    ]
    levels = zip(*(part.deepstack for part in parts), strict=True)
    layout = VideoLayout(video.grid, video.marks_s)
    return VideoFeatures(torch.cat([part.tokens for part in parts]), tuple(map(torch.cat, levels)), layout)


_NOT_IN_WEIGHTS = ("num_heads", "deepstack_visual_indexes", "hidden_act", "patch_size", "spatial_merge_size")
"""Settings of the tower's config that decide its features and cannot be told from the shapes of tensors."""


def vision_digest(model: Qwen3VLModel) -> str:
    """Digest (16 hex digits) of everything but the frames that decides features: weights, precision and shape.

    Training that does not change the tower (the default) does not change the digest, so all checkpoints of a run share
    features.
    """
    vision = model.config.vision_config
    digest = hashlib.sha256(repr([getattr(vision, name) for name in _NOT_IN_WEIGHTS]).encode())
    for name, tensor in sorted(model.visual.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class VisionTower:
    """The vision tower of `model`; implements `protocols.VideoEncoder`. Its input is VideoPatches. `form` says
    in which size frames are shown, and what their time marks count."""

    model: Qwen3VLModel
    form: InputForm = OURS

    @property
    def device(self) -> torch.device:
        return self.model.visual.patch_embed.proj.weight.device

    def prepare(self, frames: VideoFrames) -> VideoPatches:
        return video_patches(frames.pixels, frames.timestamps_s, self.model.config, self.form)

    def layout(self, height: int, width: int, timestamps_s: Sequence[float]) -> VideoLayout:
        return video_layout(height, width, timestamps_s, self.model.config, self.form)

    @property
    def size(self) -> ModelSize:
        return size_of(self.model.config, self.model)

    @property
    def number_bytes(self) -> int:
        return self.model.visual.patch_embed.proj.weight.element_size()

    def num_patches(self, layout: VideoLayout | VideoPatches) -> int:
        return math.prod(layout.grid)

    def encode(self, videos: Sequence[VideoPatches], pass_bytes: float = math.inf) -> list[VideoFeatures]:
        if len(videos) != 1 or pass_bytes == math.inf:
            return encode_videos(self.model, videos)
        return [encode_in_parts(self.model, videos[0], pass_bytes / Passes(self.size, self.number_bytes).vision(1))]

    def digest(self) -> str:
        shown = (self.form.time_marks, self.form.shown_frames)
        own = shown != (OURS.time_marks, OURS.shown_frames)
        return "-".join([vision_digest(self.model), *(shown if own else ())])

    def stored(self, feature: VideoFeatures) -> tuple[dict[str, Tensor], dict[str, object]]:
        levels = {f"deepstack.{i}": level for i, level in enumerate(feature.deepstack)}
        note: dict[str, object] = {"grid": feature.layout.grid, "marks_s": feature.layout.marks_s}
        return {"tokens": feature.tokens, **levels}, note

    def restored(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> VideoFeatures:
        levels = tuple(tensors[f"deepstack.{i}"].to(self.device) for i in range(len(tensors) - 1))
        layout = VideoLayout(tuple(note["grid"]), tuple(note["marks_s"]))
        return VideoFeatures(tensors["tokens"].to(self.device), levels, layout)


class BatchedVisionAttention(Qwen3VLVisionAttention):
    """Attention within each frame, as one batched call if all frames have the same size.

    Without flash-attention, transformers calls attention once per frame: 512 calls per layer for 64 videos of 8 pairs
    of frames. The numbers are the same (tested). For frames of different sizes, the original method runs.
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


class PatchProduct(Qwen3VLVisionPatchEmbed):
    """The patch embedding as one matrix product: its convolution does not overlap, so it is one.

    The convolution takes 7 (fp32) and 40 (bf16) times as long on a CPU, and is slow on several versions of cuDNN. The
    weight keeps its name and shape; results differ by rounding.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.proj.weight
        return F.linear(hidden_states.reshape(-1, weight[0].numel()).to(weight), weight.flatten(1), self.proj.bias)


def fast_vision(model: Qwen3VLModel) -> Qwen3VLModel:
    """Let the vision tower of `model` compute attention in batches, and embed patches by a product. Weights and names
    stay. Returns `model`."""
    for block in model.visual.blocks:
        block.attn.__class__ = BatchedVisionAttention
    use_patch_product(model)
    return model


def use_patch_product(model: Qwen3VLModel) -> None:
    """Embed patches by `PatchProduct`. Raises ValueError if the windows of the convolution overlap or leave gaps."""
    proj = model.visual.patch_embed.proj
    if proj.kernel_size != proj.stride or any(proj.padding):
        raise ValueError(f"patches of {proj.kernel_size} every {proj.stride} are no matrix product")
    model.visual.patch_embed.__class__ = PatchProduct
