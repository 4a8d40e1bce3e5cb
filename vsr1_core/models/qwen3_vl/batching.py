"""Makes one left-padded batch of input embeddings from rows of different lengths, for policy and embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.models.prompts import Prompt
from vsr1_core.models.qwen3_vl.vision import VideoFeatures


@dataclass(frozen=True)
class Batch:
    """A left-padded batch: all rows end at the last column."""

    embeds: Tensor
    """[B, L, H]."""
    mask: Tensor
    """[B, L]: 1 for tokens, 0 for padding."""
    positions: Tensor
    """[3, B, L]."""
    token_ids: Tensor
    """[B, L]."""
    video_mask: Tensor
    """bool [B, L]: True at video placeholders."""
    deepstack: list[Tensor]
    """One tensor [video tokens of all rows, H] per level; empty without videos."""


def left_padded(
    model: Qwen3VLModel, prompts: Sequence[Prompt], features: Sequence[VideoFeatures | None], pad_id: int
) -> Batch:
    """Make one batch of `prompts`; `features[b]` fill the video placeholders of row b in order.

    Raises ValueError if the number of placeholders in a row differs from the number of tokens of its video.
    """
    device = model.language_model.embed_tokens.weight.device
    rows, length = len(prompts), max(len(p.token_ids) for p in prompts)
    token_ids = torch.full((rows, length), pad_id)
    mask = torch.zeros(rows, length, dtype=torch.long)
    positions = torch.zeros(3, rows, length, dtype=torch.long)
    video_mask = torch.zeros(rows, length, dtype=torch.bool)
    for row, (prompt, feature) in enumerate(zip(prompts, features, strict=True)):
        check_placeholders(prompt, feature)
        start = length - len(prompt.token_ids)
        token_ids[row, start:] = prompt.token_ids
        mask[row, start:] = 1
        positions[:, row, start:] = prompt.positions
        video_mask[row, start:] = prompt.video_mask
    token_ids, mask, video_mask = token_ids.to(device), mask.to(device), video_mask.to(device)
    embeds = model.language_model.embed_tokens(token_ids)
    present = [f for f in features if f is not None]
    deepstack: list[Tensor] = []
    if present:
        tokens = torch.cat([f.tokens for f in present]).to(embeds)
        embeds = embeds.masked_scatter(video_mask[..., None], tokens)
        deepstack = [torch.cat(level).to(embeds) for level in zip(*(f.deepstack for f in present), strict=True)]
    return Batch(embeds, mask, positions.to(device), token_ids, video_mask, deepstack)


def check_placeholders(prompt: Prompt, feature: VideoFeatures | None) -> None:
    """Raise ValueError if the prompt has not as many placeholders as its video has tokens."""
    expected = 0 if feature is None else len(feature.tokens)
    if int(prompt.video_mask.sum()) != expected:
        raise ValueError(
            f"the prompt has {int(prompt.video_mask.sum())} video placeholders, but the video has {expected} tokens"
        )


def language_model_kwargs(batch: Batch) -> dict[str, object]:
    """The arguments with which the language model reads `batch`, with exact rotary positions and deepstack."""
    return {
        "inputs_embeds": batch.embeds,
        "attention_mask": batch.mask,
        "position_ids": batch.positions,
        "visual_pos_masks": batch.video_mask if batch.deepstack else None,
        "deepstack_visual_embeds": batch.deepstack or None,
    }
