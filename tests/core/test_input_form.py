"""The form in which a checkpoint is asked: texts, token ids, marks and frame sizes that were written down by hand from
public facts (Qwen's template and utilities, the authors' scripts), and that a form is kept with its checkpoint."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.core.test_inputs import CONFIG, frames, processor
from tests.core.test_policy_checkpoints import PROMPT, edit, write_released
from tests.core.tiny_models import random_video, tiny_embedder, tiny_policy, tiny_tokenizer, write_published
from vsr1_core.evaluation.report_data import Analysis
from vsr1_core.evaluation.report_queries import input_forms
from vsr1_core.home.hub.forms import form_text
from vsr1_core.input_form import AUTHORS, OURS, EmbedderForm, InputForm
from vsr1_core.media.sampling import frame_times, num_frames, output_size, ruled_size
from vsr1_core.models.checkpoints import (
    fetch_model,
    load_embedder,
    load_policy,
    open_policy,
    save_embedder,
    save_policy,
)
from vsr1_core.models.protocols import VideoFrames
from vsr1_core.models.published import REVISIONS, hub_name
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.inputs import video_layout, video_patches
from vsr1_core.models.qwen3_vl.loading import load_base_policy, load_body
from vsr1_core.models.qwen3_vl.released import load_released_policy, search_prompt
from vsr1_core.models.qwen3_vl.vision import VisionTower, encode_videos
from vsr1_core.models.soft_query import SoftQueryConfig, checkpoint_kind, in_own_precision
from vsr1_core.reasoning.conversation import build_messages
from vsr1_core.recipes import EvalRecipe, FrameRecipe, MethodOptions
from vsr1_core.stages.methods import BASIC, settings_of


def published_inputs(pixels: np.ndarray, times: list[float], text: str) -> Any:
    """What Qwen's processor makes of a text in which the whole wrapped placeholder stands for the video. The processor
    that is installed replaces the placeholder alone, so its vision tokens are taken off before."""
    metadata = {"total_num_frames": 1000, "fps": 10.0, "frames_indices": [round(10 * t) for t in times]}
    return processor()(
        text=[text.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")],
        videos=[torch.from_numpy(pixels).permute(0, 3, 1, 2)],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )


def test_a_policys_published_prompt_equals_that_of_qwens_processor() -> None:
    pixels, times = frames(6), [0.0, 1.1, 2.3, 3.0, 4.6, 5.9]
    policy = tiny_policy(form=InputForm(video_wrapper="published"))
    messages = build_messages("a red ring grows")
    text = policy.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    theirs = published_inputs(pixels, times, text)
    prompt = policy.prompts([messages], [policy.encoder.layout(32, 48, times)])[0]
    assert prompt.token_ids.tolist() == theirs["input_ids"][0].tolist()
    positions, _ = policy.model.model.get_rope_index(
        theirs["input_ids"],
        mm_token_type_ids=theirs["mm_token_type_ids"],
        video_grid_thw=theirs["video_grid_thw"],
    )
    assert torch.equal(prompt.positions, positions[:, 0])


@torch.no_grad()
def test_the_vector_of_a_video_equals_that_of_qwens_model_on_its_own_inputs() -> None:
    embedder, pixels, times = tiny_embedder(), frames(4, seed=3), [0.0, 1.0, 2.0, 3.5]
    assert embedder.form == EmbedderForm("published")
    head, tail = embedder._template
    theirs = published_inputs(pixels, times, f"{head}<|vision_start|><|video_pad|><|vision_end|>{tail}")
    embedder.model.rope_deltas = None
    hidden = embedder.model(
        input_ids=theirs["input_ids"],
        pixel_values_videos=theirs["pixel_values_videos"],
        video_grid_thw=theirs["video_grid_thw"],
        mm_token_type_ids=theirs["mm_token_type_ids"],
    ).last_hidden_state[0, -1]
    ours = embedder.embed_videos([VideoFrames(pixels, times)])[0]
    torch.testing.assert_close(ours, hidden / hidden.norm(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "ours", "official", "paper"),
    [
        # official: 131,072 to 786,432 pixels. paper: stored with at most 200,704, shown with 100,352 to 602,112.
        ((1920, 1080), (576, 320), (1152, 640), (608, 320)),
        ((640, 480), (512, 384), (640, 480), (512, 384)),
        ((854, 480), (576, 320), (864, 480), (608, 320)),  # 597 x 335 as stored
        ((320, 240), (320, 256), (448, 320), (384, 288)),
        ((480, 360), (480, 352), (480, 352), (480, 352)),
        ((240, 320), (256, 320), (320, 448), (288, 384)),
        ((64, 64), (64, 64), (384, 384), (320, 320)),
    ],
)
def test_frame_sizes_follow_the_named_rule(source: Any, ours: Any, official: Any, paper: Any) -> None:
    assert output_size(*source, FrameRecipe()) == ours
    assert output_size(*source, FrameRecipe(rule="official", max_pixels=786_432)) == official
    assert output_size(*source, FrameRecipe(rule="paper")) == paper
    assert ruled_size(*official, "official") == official
    assert ruled_size(*paper, "paper") == paper


@pytest.mark.parametrize(
    ("duration_s", "ours", "official", "paper"),
    [(0.4, 2, 4, 2), (3.2, 4, 4, 4), (5.0, 6, 4, 6), (7.9, 8, 6, 8), (8.0, 8, 8, 8), (300.0, 64, 64, 64)],
)
def test_the_number_of_frames_follows_the_named_rule(duration_s: float, ours: int, official: int, paper: int) -> None:
    for rule, expected in (("ours", ours), ("official", official), ("paper", paper)):
        recipe = FrameRecipe(rule=rule)
        assert num_frames(duration_s, recipe) == len(frame_times(duration_s, duration_s, recipe)) == expected


def test_the_paper_repeats_the_last_frame_where_ours_samples_one_more() -> None:
    assert frame_times(5.0, 4.8, FrameRecipe(rule="paper")).tolist() == pytest.approx([0, 1.2, 2.4, 3.6, 4.8, 4.8])
    assert frame_times(5.0, 4.8, FrameRecipe()).tolist() == pytest.approx([0, 0.96, 1.92, 2.88, 3.84, 4.8])


@pytest.mark.parametrize(
    ("times", "seconds", "counted"),
    [
        ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], (1.0, 5.0, 9.0), (0.5, 2.5, 4.5)),
        ([0.0, 1.5, 3.0], (0.75, 3.0), (0.5, 2.0)),  # the odd last frame is repeated
    ],
)
def test_time_marks_are_seconds_or_the_number_of_sampled_frames(times: Any, seconds: Any, counted: Any) -> None:
    assert video_layout(32, 32, times, CONFIG).marks_s == seconds
    assert video_layout(32, 32, times, CONFIG, InputForm(time_marks="frame_count")).marks_s == counted


def test_small_frames_are_enlarged_for_a_form_that_shows_them_so() -> None:
    across, down = np.linspace(0, 255, 96), np.linspace(0, 255, 64)[:, None]
    picture = np.stack([across + 0 * down, down + 0 * across, (across + down) / 2], axis=-1).astype(np.uint8)
    shown = video_patches(np.stack([picture, picture]), [0.0, 1.0], CONFIG, InputForm(shown_frames="paper"))
    # 64 x 96 is scaled by sqrt(100,352 / 6,144) = 4.04, and both sides are rounded up: 288 x 416.
    assert shown.grid == (1, 288 // 8, 416 // 8)
    scaled = np.asarray(Image.fromarray(picture).resize((416, 288), Image.Resampling.BICUBIC))
    expected = video_patches(np.stack([scaled, scaled]), [0.0, 1.0], CONFIG)
    assert float((shown.patches - expected.patches).abs().max()) * 127.5 <= 1.1, "Pillow rounds once more"
    assert video_patches(np.stack([picture, picture]), [0.0, 1.0], CONFIG).grid == (1, 8, 12)


def test_features_of_another_form_have_another_digest() -> None:
    model = tiny_policy().model.model
    plain = VisionTower(model).digest()
    assert VisionTower(model, replace(AUTHORS, time_marks="seconds", shown_frames="stored")).digest() == plain
    others = {VisionTower(model, form).digest() for form in (AUTHORS, InputForm(time_marks="frame_count"))}
    assert len({plain, *others}) == 3


SFT_WORDS = (
    "write <answer>matched</answer> <REFINE>. Append the special token <REFINE> then. If not, write "
    "<answer>not_matched</answer> <REFINE>; the <REFINE> token is required there. End with the special token <REFINE>."
)
SEARCH_WORDS = (
    "write <answer>matched</answer> <REFINE>. Append the special token(s) <REFINE> then. If not, write "
    "<answer>not_matched</answer> <REFINE>; the special token(s) are required there. "
    "End with the special token(s) <REFINE>."
)


def test_a_released_checkpoint_gets_the_authors_form_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "released").mkdir()
    write_released(tmp_path / "released")
    file = tmp_path / "released" / "train_oneturn.json"
    file.write_text(file.read_text().replace(PROMPT, SFT_WORDS))
    assert checkpoint_kind(tmp_path / "released") == "released"
    policy = load_released_policy(tmp_path / "released", training_file=file)
    soft_query = policy.model.soft_query
    assert soft_query.system_prompt == search_prompt(SFT_WORDS) == SEARCH_WORDS
    assert soft_query.form == InputForm("published", "frame_count", "paper", False, 2, 1024, 128, SFT_WORDS)
    save_policy(policy, tmp_path / "ours", {})
    assert checkpoint_kind(tmp_path / "ours") == "own"
    assert load_policy(tmp_path / "ours").model.soft_query == soft_query
    text = form_text(tmp_path / "ours")
    for line in ("video_wrapper: published", "time_marks: frame_count", "shown_frames: paper", "query_tokens: 128"):
        assert f"  {line}\n" in text
    assert "num_turns: 2" in form_text(tmp_path / "released")


def test_the_prompt_of_a_released_policy_is_the_authors(tmp_path: Path) -> None:
    write_released(tmp_path)
    policy = load_released_policy(tmp_path, system_prompt="Look.")
    layout = policy.encoder.layout(320, 320, [0.0, 3.0, 6.0, 9.0])
    prompt = policy.prompts([build_messages("a red bar", "Look.")], [layout])[0]
    # 320 x 320 pixels are 102,400, so they stay; tiny models have one token per 16 x 16 pixels.
    pads = "<|video_pad|>" * (20 * 20)
    video = "".join(f"<{mark} seconds><|vision_start|>{pads}<|vision_end|>" for mark in ("0.5", "2.5"))
    assert policy.tokenizer.decode(prompt.token_ids) == (
        "<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\n"
        f'Query: "a red bar"\nRetrieved video: {video}<|im_end|>\n<|im_start|>assistant\n'
    )


def test_a_policy_is_searched_with_the_limits_of_its_form() -> None:
    recipe = EvalRecipe(num_turns=3, max_new_tokens=256)
    theirs, ours = (settings_of(BASIC["sqr_sft"], recipe, SoftQueryConfig(4, 4, form=f), 8) for f in (AUTHORS, OURS))
    assert (theirs.num_turns, theirs.decode.max_new_tokens) == (2, 1024)
    assert (ours.num_turns, ours.decode.max_new_tokens) == (3, 256)


def test_the_report_names_the_forms_and_the_methods_that_share_one() -> None:
    forms = {"zero_shot": OURS, "sqr_sft": AUTHORS, "videosearch_r1": AUTHORS}
    inputs: Any = SimpleNamespace(methods=[*forms, "hard_refine"], forms=forms)
    table = [line for line in input_forms(inputs, Analysis({}, {})) if line.startswith("|")]
    assert [cell.strip() for cell in table[0].split("|")[1:4]] == ["methods", "video wrapper", "time marks"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]
    assert rows[0][0] == "zero_shot"
    assert rows[1] == ["sqr_sft, videosearch_r1", "published", "frame_count", "paper", "False", "2", "1024", "128"]
    assert input_forms(SimpleNamespace(methods=["zero_shot"], forms={}), Analysis({}, {})) == []  # type: ignore[arg-type]


def test_checkpoints_older_than_forms_keep_the_wrapper_that_they_were_trained_with(tmp_path: Path) -> None:
    save_policy(tiny_policy(), tmp_path / "policy", {})
    path = tmp_path / "policy" / "config.json"
    config = json.loads(path.read_text())
    del config["soft_query"]["form"]
    path.write_text(json.dumps(config))
    assert load_policy(tmp_path / "policy").model.soft_query.form == InputForm(video_wrapper="template")
    embedder = Qwen3VLEmbedder(tiny_embedder().model, tiny_tokenizer(), EmbedderForm("template", "Look."))
    save_embedder(embedder, tmp_path / "embedder", {"recipe": "r"})
    assert load_embedder(tmp_path / "embedder", instruction="Find.").form == embedder.form  # type: ignore[attr-defined]
    (tmp_path / "embedder" / "record.json").write_text('{"recipe": "r"}')
    assert load_embedder(tmp_path / "embedder").form == EmbedderForm("template")  # type: ignore[attr-defined]


def test_published_models_get_the_published_form(tmp_path: Path) -> None:
    write_published(tmp_path)
    assert open_policy(tmp_path, tmp_path, MethodOptions()).model.soft_query.form.video_wrapper == "published"
    embedder = load_embedder(tmp_path, instruction="Find a clip")
    assert embedder.form == EmbedderForm("published", "Find a clip")  # type: ignore[attr-defined]


@torch.no_grad()
def test_the_instruction_is_told_with_queries_and_with_no_video() -> None:
    plain = tiny_embedder()
    told = Qwen3VLEmbedder(plain.model, plain.tokenizer, EmbedderForm(instruction="Find a clip"))
    assert told.tokenizer.decode(told.split_query("a bar").before) == (
        "<|im_start|>system\nFind a clip.<|im_end|>\n<|im_start|>user\na bar"
    )
    assert not torch.allclose(told.embed_queries(["a bar"]), plain.embed_queries(["a bar"]))
    features = encode_videos(plain.model, [random_video(1, plain.model.config)])
    assert torch.equal(told.embed_features(features), plain.embed_features(features))
    assert told.text_digest != plain.text_digest


@torch.no_grad()
def test_the_soft_query_modules_stay_float32_in_a_bf16_policy(tmp_path: Path) -> None:
    save_policy(tiny_policy(), tmp_path, {})
    exact, policy = load_policy(tmp_path), load_policy(tmp_path, dtype=torch.bfloat16)
    assert policy.model.lm_head.weight.dtype == torch.bfloat16
    assert {p.dtype for p in policy.model.refine_parameters} == {torch.float32}
    for ours, stored in zip(policy.model.refine_parameters, exact.model.refine_parameters, strict=True):
        assert torch.equal(ours, stored)
    hidden = torch.randn(3, 48).bfloat16()
    assert torch.equal(policy.model.latent(hidden), exact.model.latent(hidden.float()))
    published = write_published(tmp_path / "published")
    fresh = load_base_policy(str(published), SoftQueryConfig(48, 48), dtype=torch.bfloat16)
    assert {p.dtype for p in fresh.model.refine_parameters} == {torch.float32}


def test_the_soft_query_modules_compute_in_float32_also_under_autocast() -> None:
    policy, head = tiny_policy().model, torch.nn.Linear(48, 20)
    hidden = torch.randn(5, 48, generator=torch.Generator().manual_seed(0)).bfloat16()

    def made() -> list[torch.Tensor]:
        of_head = in_own_precision(head, hidden)
        return [policy.latent(hidden), policy.latent_input(hidden), policy.append_input(hidden), of_head]

    exact = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(hidden).dtype == torch.bfloat16
        under = made()
    assert {row.dtype for row in under} == {torch.float32}
    for one, other in zip(under, exact, strict=True):
        assert torch.equal(one, other)
    under[0].sum().backward()
    assert {p.grad.dtype for p in policy.refine_projector.parameters() if p.grad is not None} == {torch.float32}


@pytest.fixture
def loader_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", False)  # transformers sets it where the variable CI is set
    logger.addHandler(caplog.handler)
    yield lambda: [r.getMessage() for r in caplog.records if "LOAD REPORT" in r.getMessage()]
    logger.removeHandler(caplog.handler)


def test_the_report_of_the_loader_is_silent_about_expected_tensors_only(tmp_path: Path, loader_log: Any) -> None:
    published = write_published(tmp_path / "published")
    load_base_policy(str(published), SoftQueryConfig(48, 48))
    load_body(published)
    assert loader_log() == []
    edit(published, lambda tensors: tensors.pop("model.visual.merger.norm.weight"))
    with pytest.raises(ValueError, match=r"missing model\.visual\.merger\.norm\.weight"):
        load_base_policy(str(published), SoftQueryConfig(48, 48))
    assert len(loader_log()) == 1


def test_a_hub_model_is_fetched_in_a_pinned_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(repo_id: str, revision: str | None, **_: Any) -> str:
        asked.append((repo_id, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for name in ("Qwen/Qwen3-VL-2B-Instruct", "me/model@abc", "me/model"):
        assert fetch_model(name) == tmp_path
    assert asked == [
        ("Qwen/Qwen3-VL-2B-Instruct", "89644892e4d85e24eaac8bacfd4f463576704203"),
        ("me/model", "abc"),
        ("me/model", None),
    ]
    assert all(len(revision) == 40 for revision in REVISIONS.values())
    assert hub_name("Qwen/Qwen3-VL-2B-Instruct@main") == ("Qwen/Qwen3-VL-2B-Instruct", "main")
