"""ActivityNet-shaped data: ids that begin with `v_`, videos of three minutes, and time marks that are true seconds.

Each frame carries its number in its pixels, so what a prompt says of a frame is held against the frame itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.core.tiny_models import tiny_policy
from tests.videos import write_video
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.registry import builtin_entries
from vsr1_core.media.frame_store import read_frames
from vsr1_core.models.qwen3_vl.inputs import VideoLayout, build_prompts
from vsr1_core.reasoning.conversation import build_messages
from vsr1_core.recipes import FrameRecipe
from vsr1_core.rows.lake import Lake
from vsr1_core.stages import corpus, frames
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import in_order
from vsr1_core.stages.loading import frames_of, layouts_of

VIDEO = "v_vYxBAbbvSxc"
NUM_FRAMES, SECONDS = 400, 180.0
STEP, BASE = 12, 20
"""A frame's number is written as two digits of base 20, each a grey level."""


def times_s() -> np.ndarray:
    """When each frame begins: steps of 0.2 to 0.7 s, as a screen recording or a re-encoded download has them."""
    steps = np.random.default_rng(0).uniform(0.2, 0.7, NUM_FRAMES)
    return np.round(np.concatenate([[0.0], np.cumsum(steps)[:-1]]) * SECONDS / steps.sum(), 3)


def numbered(number: int) -> np.ndarray:
    picture = np.empty((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = STEP + STEP * (number // BASE), STEP + STEP * (number % BASE)
    return picture


def number_in(picture: np.ndarray) -> int:
    tens, ones = (round((float(half.mean()) - STEP) / STEP) for half in (picture[:, 4:28], picture[:, 36:60]))
    return tens * BASE + ones


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    home = tmp_path_factory.mktemp("home")
    entry = builtin_entries(home)["activitynet"]
    for folder in (entry.videos, entry.annotations):
        Path(folder).mkdir(parents=True)
    pictures = np.stack([numbered(n) for n in range(NUM_FRAMES)])
    write_video(Path(entry.videos) / f"{VIDEO}.mp4", times_s().tolist(), pictures)
    row = {"video": VIDEO, "time": [95.5, 140.0], "desc_id": 7, "duration": SECONDS, "cog_desc": "x", "fig_desc": "y"}
    (Path(entry.annotations) / "activitynet_fig_val_2.jsonl").write_text(json.dumps(row) + "\n")
    stages = in_order([stage() for stage in (*corpus.STAGES, *frames.STAGES)])
    config = CONFIGURATIONS["qwen3-vl-2b"]
    assert (config.frames.fps, config.frames.max_frames) == (FrameRecipe.fps, 64)
    view = View(Lake(home / "lake"), entry, config, stages)
    for stage in stages.values():
        stage.build(view, Execution(workers=1))
    return view


def test_the_second_validation_file_is_the_test_split_and_the_id_keeps_its_prefix(view: View) -> None:
    moment = view.rows("moments").row(0, named=True)
    assert (moment["split"], moment["video_id"]) == ("test", VIDEO)
    assert (moment["start_s"], moment["end_s"]) == (95.5, 140.0)
    assert view.rows("videos").row(0, named=True)["splits"] == ["test"]


def test_time_marks_in_the_prompt_are_the_true_seconds_of_the_frames_shown(view: View) -> None:
    row = view.rows("frame_tensors").row(0, named=True)
    shown = [number_in(picture) for picture in read_frames(row["path"])]
    assert len(shown) == 64
    true_s = times_s()[shown].reshape(-1, 2).mean(axis=1)
    policy = tiny_policy()
    patches = policy.encoder.prepare(frames_of(row))
    layouts = [VideoLayout(patches.grid, patches.marks_s), *layouts_of(view, [VIDEO], policy.encoder)]
    for layout in layouts:  # as made from the pixels, and as made from the table alone
        [prompt] = build_prompts(policy.tokenizer, policy.model.model, [build_messages("y")], [layout])
        marks = [float(m) for m in re.findall(r"<(\d+\.\d) seconds>", policy.tokenizer.decode(prompt.token_ids))]
        assert len(marks) == 32
        assert marks == pytest.approx(true_s, abs=0.051)
    assert true_s[-1] > 175
    assert np.abs(true_s - np.arange(0.5, 64, 2)).max() > 100  # counting frames would be that far off
