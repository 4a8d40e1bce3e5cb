"""Makes model inputs from frames and text: patches, time marks, token ids, rotary positions. No weights, no batching.
The result equals that of the Qwen3-VL processor of transformers (tested), without torchvision: with the wrapper
`template` that of the releases from 5.10 on, with `published` that of 4.57 to 5.9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from vsr1_core.input_form import OURS, InputForm, VideoWrapper
from vsr1_core.media.sampling import ruled_size
from vsr1_core.models.prompts import Prompt
from vsr1_core.models.text_tokens import render, template_ids

VIDEO_PAD = "<|video_pad|>"
WRAPPED_PAD = f"<|vision_start|>{VIDEO_PAD}<|vision_end|>"
"""How the chat template spells a video."""
GROUPS_AT_ONCE = 8
"""Groups of frames whose patches are made together. On the way they take three times what the patches take."""


@dataclass(frozen=True)
class VideoPatches:
    """The input of the vision tower for one video."""

    patches: Tensor
    """float32 [P, 3 * 2 * patch * patch]."""
    grid: tuple[int, int, int]
    """(t, h, w) in patches."""
    marks_s: tuple[float, ...]
    """One time mark in seconds for each of the t groups of frames."""


@dataclass(frozen=True)
class VideoLayout:
    """What a prompt needs to know about a video."""

    grid: tuple[int, int, int]
    """(t, h, w) in patches."""
    marks_s: tuple[float, ...]
    """One time mark in seconds for each of the t groups of frames."""


def video_layout(
    height: int, width: int, timestamps_s: Sequence[float], config: Qwen3VLConfig, form: InputForm = OURS
) -> VideoLayout:
    """The layout of frames of one size, with one time per frame. A time mark is the mean of the times of a group of
    frames, or of their numbers, as `form` says; an odd last frame is repeated. Raises ValueError if the size in which
    the frames are shown is not a multiple of patch size times merge size.
    """
    vision = config.vision_config
    height, width = shown_size(height, width, form)
    multiple = vision.patch_size * vision.spatial_merge_size
    if height % multiple or width % multiple:
        raise ValueError(
            f"frames have {height}x{width} pixels, but both sides must be multiples of {multiple}; change their size"
        )
    times = timestamps_s if form.time_marks == "seconds" else range(len(timestamps_s))
    marks = _marks(times, vision.temporal_patch_size)
    return VideoLayout((len(marks), height // vision.patch_size, width // vision.patch_size), marks)


def shown_size(height: int, width: int, form: InputForm) -> tuple[int, int]:
    """The (height, width) in which `form` shows stored frames of this size."""
    if form.shown_frames == "stored":
        return height, width
    width, height = ruled_size(width, height, form.shown_frames)
    return height, width


def video_patches(
    pixels: np.ndarray, timestamps_s: Sequence[float], config: Qwen3VLConfig, form: InputForm = OURS
) -> VideoPatches:
    """Make patches, scaled to [-1, 1], and the time mark of each pair of frames from frames uint8 [T, H, W, 3].

    Raises ValueError if the frame size does not fit (see `video_layout`), or if times and frames differ in number.
    """
    vision = config.vision_config
    num_frames, height, width = pixels.shape[:3]
    if len(timestamps_s) != num_frames:
        raise ValueError(f"{num_frames} frames but {len(timestamps_s)} time stamps")
    layout = video_layout(height, width, timestamps_s, config, form)
    size, group = shown_size(height, width, form), vision.temporal_patch_size
    num_groups, rows, columns = layout.grid
    patches = torch.empty(num_groups * rows * columns, 3 * group * vision.patch_size**2)
    parts = patches.split(GROUPS_AT_ONCE * rows * columns)
    for part, start in zip(parts, range(0, num_frames, GROUPS_AT_ONCE * group), strict=True):
        some = torch.from_numpy(np.array(pixels[start : start + GROUPS_AT_ONCE * group]))
        scaled = _resized(some.permute(0, 3, 1, 2), size)[None].float() / 127.5 - 1
        made, *_ = Qwen3VLVideoProcessor.patchify(None, scaled, vision.patch_size, vision.spatial_merge_size, group)
        part[:] = made[0]
    return VideoPatches(patches, layout.grid, layout.marks_s)


def _resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames uint8 [T, 3, H, W] in another size, as torchvision resizes them for Qwen's processor: bicubic, smoothed
    where they shrink, rounded to whole values."""
    if frames.shape[-2:] == size:
        return frames
    scaled = F.interpolate(frames.float(), size=size, mode="bicubic", antialias=True)
    return scaled.clamp(0, 255).round().to(torch.uint8)


def _marks(times: Sequence[float], group: int) -> tuple[float, ...]:
    padded = [*times, *[times[-1]] * (-len(times) % group)]
    return tuple((padded[i] + padded[i + group - 1]) / 2 for i in range(0, len(padded), group))


def video_text(layout: VideoLayout, merge_size: int) -> str:
    """The video as prompt text: for each pair of frames, a time mark and the placeholders between vision tokens."""
    _, height, width = layout.grid
    pads = VIDEO_PAD * (height * width // merge_size**2)
    return "".join(f"{mark_text(mark)}<|vision_start|>{pads}<|vision_end|>" for mark in layout.marks_s)


def mark_text(mark_s: float) -> str:
    """A time mark as the prompt spells it: seconds with one decimal."""
    return f"<{mark_s:.1f} seconds>"


def build_prompts(
    tokenizer: PreTrainedTokenizerBase,
    model: Qwen3VLModel,
    conversations: Sequence[Sequence[dict[str, Any]]],
    layouts: Sequence[VideoLayout | None],
    add_special_tokens: bool = False,
    video_wrapper: VideoWrapper = "template",
) -> list[Prompt]:
    """Render, tokenize and position one conversation per row, with at most one video each, up to the assistant's turn.

    The texts of the user's turns are words, whatever they spell (`models.text_tokens`). The text of the video
    takes the place of the template's placeholder. With the wrapper `published`, the vision tokens around the
    placeholder are replaced with it; with `template`, they stay around the video.

    With `add_special_tokens`, a tokenizer that appends an end-of-text token does so: this is right for an embedding,
    and wrong for a prompt that is continued. Raises ValueError if a conversation and its layout disagree about whether
    there is a video, or if the system prompt contains a video placeholder.
    """
    merge_size = model.config.vision_config.spatial_merge_size
    replaced = WRAPPED_PAD if video_wrapper == "published" else VIDEO_PAD
    rows = []
    for conversation, layout in zip(conversations, layouts, strict=True):
        row = render(tokenizer, conversation)
        if row.text.count(VIDEO_PAD) != (layout is not None):
            raise ValueError(
                "a conversation must have both one video and a layout, or neither, and its system prompt must not "
                f"contain the video placeholder {VIDEO_PAD}"
            )
        if layout is not None and replaced not in row.text:
            raise ValueError(
                f"the chat template does not write {WRAPPED_PAD} for a video, so its vision tokens cannot be replaced; "
                "set the video_wrapper of the model's form to 'template'"
            )
        shown = row.text if layout is None else row.text.replace(replaced, video_text(layout, merge_size))
        rows.append(replace(row, text=shown))
    ids = template_ids(tokenizer, rows, add_special_tokens)
    return [_positioned(model, torch.tensor(row), layout) for row, layout in zip(ids, layouts, strict=True)]


def _positioned(model: Qwen3VLModel, token_ids: Tensor, layout: VideoLayout | None) -> Prompt:
    video_mask = token_ids == model.config.video_token_id
    if layout is None:
        return Prompt(token_ids, torch.arange(len(token_ids)).expand(3, -1), video_mask)
    merge_size = model.config.vision_config.spatial_merge_size
    return Prompt(token_ids, _positions(video_mask, layout, merge_size), video_mask)


def _positions(video_mask: Tensor, layout: VideoLayout, merge_size: int) -> Tensor:
    """Rotary positions [3, L], equal to those of `Qwen3VLModel.get_rope_index` (tested), without its loop over all
    tokens (2 ms for 1,200 tokens, and an evaluation makes one prompt per turn).

    A text token advances the position by one. A pair of frames has one position in time: its rows and columns are
    counted from there, and the token after it is advanced by the longer of its sides.
    """
    num_frames, height, width = layout.grid[0], layout.grid[1] // merge_size, layout.grid[2] // merge_size
    ends = video_mask & ~torch.cat([video_mask[1:], video_mask.new_zeros(1)])
    advance = torch.where(ends, max(height, width), (~video_mask).long())
    positions = (advance.cumsum(0) - advance).repeat(3, 1)
    rows = torch.arange(height).repeat_interleave(width).repeat(num_frames)
    columns = torch.arange(width).repeat(height * num_frames)
    positions[1, video_mask] += rows
    positions[2, video_mask] += columns
    return positions
