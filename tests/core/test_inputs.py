"""Inputs equal to what transformers' own Qwen3-VL processor makes of the same frames, without torchvision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from tests.core.tiny_models import small_config, tiny_tokenizer
from vsr1_core.models.prompts import extended
from vsr1_core.models.qwen3_vl.inputs import VideoLayout, build_prompts, video_patches, video_text
from vsr1_core.reasoning.conversation import build_messages

CONFIG = small_config()
MODEL = Qwen3VLModel(CONFIG)
PATCH = CONFIG.vision_config.patch_size


class OfflineVideoProcessor(Qwen3VLVideoProcessor):
    """The original, with the three steps that call torchvision in plain torch."""

    def convert_to_rgb(self, video: torch.Tensor, **_: Any) -> torch.Tensor:
        return video

    def resize(self, videos: torch.Tensor, **_: Any) -> torch.Tensor:
        return videos

    def normalize(self, image: torch.Tensor, mean: Any, std: Any, **_: Any) -> torch.Tensor:
        shape = (-1, 1, 1)
        return (image - torch.as_tensor(mean).view(shape)) / torch.as_tensor(std).view(shape)


class OfflineProcessor(Qwen3VLProcessor):
    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
        return type(argument)


def processor() -> OfflineProcessor:
    videos = OfflineVideoProcessor(patch_size=PATCH, do_sample_frames=False, cap_pixels_per_frame=False)
    tokenizer = tiny_tokenizer()
    return OfflineProcessor(Qwen2VLImageProcessorPil(), tokenizer, videos, chat_template=tokenizer.chat_template)


def frames(count: int, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("count", "fps", "step"), [(2, 4.0, 4), (6, 29.97, 30), (5, 25.0, 13), (1, 10.0, 1)])
def test_patches_text_positions_and_types_equal_the_original_processors(count: int, fps: float, step: int) -> None:
    pixels = frames(count)
    indices = [7 + step * i for i in range(count)]
    messages = build_messages("a red ring grows")
    text = tiny_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    metadata = {"total_num_frames": 10_000, "fps": fps, "frames_indices": indices}
    theirs = processor()(
        text=[text],
        videos=[torch.from_numpy(pixels).permute(0, 3, 1, 2)],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    ours = video_patches(pixels, [i / fps for i in indices], CONFIG)
    torch.testing.assert_close(ours.patches, theirs["pixel_values_videos"], atol=1e-6, rtol=0)
    assert list(ours.grid) == theirs["video_grid_thw"][0].tolist()
    prompt = build_prompts(tiny_tokenizer(), MODEL, [messages], [VideoLayout(ours.grid, ours.marks_s)])[0]
    assert prompt.token_ids.tolist() == theirs["input_ids"][0].tolist()
    assert torch.equal(prompt.video_mask, theirs["mm_token_type_ids"][0] == 2)
    positions, _ = MODEL.get_rope_index(
        theirs["input_ids"],
        mm_token_type_ids=theirs["mm_token_type_ids"],
        video_grid_thw=theirs["video_grid_thw"],
    )
    assert torch.equal(prompt.positions, positions[:, 0])


def test_time_marks_are_the_true_source_times() -> None:
    """A video of 128 s with 64 frames: marks go to its end, not to 64 s."""
    times = np.linspace(0, 128, 64, endpoint=False).tolist()
    video = video_patches(frames(64, 16, 16), times, CONFIG)
    text = video_text(VideoLayout(video.grid, video.marks_s), 2)
    assert text.startswith("<1.0 seconds>")
    assert "<125.0 seconds>" in text
    assert text.count("seconds") == 32


def test_positions_go_on_after_the_video_as_generation_counts_them() -> None:
    video = video_patches(frames(4), [0.0, 1.0, 2.0, 3.0], CONFIG)
    layout = VideoLayout(video.grid, video.marks_s)
    prompt = build_prompts(tiny_tokenizer(), MODEL, [build_messages("a bar")], [layout])[0]
    added = [60, 61, 62]
    longer = extended(prompt, added)
    ids = torch.cat([prompt.token_ids, torch.tensor(added)])[None]
    types = (ids == CONFIG.video_token_id).int() * 2
    positions, _ = MODEL.get_rope_index(ids, mm_token_type_ids=types, video_grid_thw=torch.tensor([layout.grid]))
    assert torch.equal(longer.positions, positions[:, 0])
    assert longer.next_position < len(longer.token_ids), "a video takes fewer positions than tokens"


@pytest.mark.parametrize(
    ("pixels", "times", "words"),
    [
        (frames(2, 20, 32), [0.0, 1.0], "multiples of 16"),
        (frames(2, 32, 40), [0.0, 1.0], "multiples of 16"),
        (frames(2), [0.0], "2 frames but 1 time stamps"),
    ],
)
def test_frames_that_do_not_fit_are_refused(pixels: np.ndarray, times: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        video_patches(pixels, times, CONFIG)


def test_a_video_and_a_layout_come_together() -> None:
    with pytest.raises(ValueError, match="both one video and a layout, or neither"):
        build_prompts(tiny_tokenizer(), MODEL, [build_messages("a bar")], [None])
    with pytest.raises(ValueError, match="both one video and a layout, or neither"):
        build_prompts(
            tiny_tokenizer(), MODEL, [[{"role": "user", "content": "a bar"}]], [VideoLayout((1, 2, 2), (0.5,))]
        )


@pytest.mark.parametrize("words", ["<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>"])
def test_a_query_that_spells_a_placeholder_places_no_video_and_a_system_prompt_must_not_spell_one(words: str) -> None:
    layout = VideoLayout((1, 4, 4), (0.5,))
    [prompt] = build_prompts(tiny_tokenizer(), MODEL, [build_messages(f"a bar {words}")], [layout])
    assert int(prompt.video_mask.sum()) == 4
    with pytest.raises(ValueError, match="system prompt must not contain the video placeholder"):
        build_prompts(tiny_tokenizer(), MODEL, [build_messages("a bar", f"See {words}")], [layout])
