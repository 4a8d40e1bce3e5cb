"""X-CLIP as embedder: what its vectors are, where soft tokens enter its text tower, and which frames it sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import processors

from tests.core.tiny_models import TEXTS, query_text
from tests.core.tiny_xclip import NUM_FRAMES, POSITIONS, SIZE, D, E, clip_tokenizer, write_xclip
from vsr1_core.models.checkpoints import load_embedder
from vsr1_core.models.protocols import VideoFrames
from vsr1_core.models.xclip.embedder import XCLIPEmbedder
from vsr1_core.models.xclip.pixels import Normalisation, pixel_values
from vsr1_core.rows.files import write_json

QUERIES = [query_text(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xclip(tmp_path_factory.mktemp("xclip"), TEXTS)


@pytest.fixture(scope="module")
def embedder(folder: Path) -> XCLIPEmbedder:
    loaded = load_embedder(folder)
    assert isinstance(loaded, XCLIPEmbedder)
    return loaded


def video(seed: int, frames: int = 6, height: int = 40, width: int = 64) -> VideoFrames:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return VideoFrames(pixels, [float(t) for t in range(frames)])


def soft(*lengths: int) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, E, generator=generator) if n else None for n in lengths]


@torch.no_grad()
def test_plain_queries_have_the_models_own_text_features(embedder: XCLIPEmbedder) -> None:
    ours = embedder.embed_queries(QUERIES)
    inputs = embedder.tokenizer(QUERIES, padding=True, return_tensors="pt")
    theirs = embedder.model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-5)
    assert ours.shape == (4, D)
    assert len({tuple(row) for row in ours.tolist()}) > 1


@torch.no_grad()
def test_soft_tokens_stand_right_after_the_text(embedder: XCLIPEmbedder) -> None:
    """Word embeddings given as soft tokens are read as the words themselves would be."""
    words = embedder.tokenizer(" and a golden bar", add_special_tokens=False)["input_ids"]
    z = embedder.model.text_model.embeddings.token_embedding(torch.tensor(words))
    spelled = embedder.embed_queries([f"{QUERIES[0]} and a golden bar", QUERIES[1]])
    torch.testing.assert_close(embedder.embed_queries(QUERIES[:2], [z, None]), spelled, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_query_is_the_same_alone_and_in_a_batch(embedder: XCLIPEmbedder) -> None:
    latents = soft(0, 3, 8, 16)
    alone = torch.cat([embedder.embed_queries([q], [z]) for q, z in zip(QUERIES, latents, strict=True)])
    torch.testing.assert_close(embedder.embed_queries(QUERIES, latents), alone, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_soft_token_and_nothing_else(embedder: XCLIPEmbedder) -> None:
    latents = [z.requires_grad_() for z in soft(1, 8, 16) if z is not None]
    embedder.embed_queries(QUERIES[:3], latents)[:, 0].sum().backward()
    assert all(z.grad is not None and bool((z.grad.abs().amax(dim=-1) > 0).all()) for z in latents)
    assert all(p.grad is None for p in embedder.model.parameters())


@torch.no_grad()
def test_a_long_text_is_cut_and_too_many_soft_tokens_are_refused(embedder: XCLIPEmbedder) -> None:
    endless = "a red bar moves left " * 60
    (z,) = soft(16)
    assert embedder.embed_queries([endless], [z]).shape == (1, D)
    ids = embedder.tokenizer(endless)["input_ids"]
    beginning = embedder.tokenizer.decode(ids[1 : POSITIONS - 16 - 1])
    torch.testing.assert_close(embedder.embed_queries([beginning], [z]), embedder.embed_queries([endless], [z]))
    with pytest.raises(ValueError, match="76 soft tokens leave no room"):
        embedder.embed_queries(QUERIES[:1], soft(76))


def test_a_tokenizer_that_closes_no_text_is_refused(embedder: XCLIPEmbedder) -> None:
    other = XCLIPEmbedder(embedder.model, embedder.tokenizer)
    other.tokenizer = clip_tokenizer(TEXTS)
    other.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    with pytest.raises(ValueError, match="latents cannot be inserted after the query 'a bar'"):
        other.embed_queries(["a bar"])


@torch.no_grad()
def test_a_head_changes_queries_and_no_video(embedder: XCLIPEmbedder) -> None:
    head = torch.nn.Linear(D, 10)
    headed = embedder.with_head(head)
    plain = embedder.embed_queries(QUERIES)
    assert headed.embed_queries(QUERIES).shape == (4, 10)
    assert torch.equal(headed.embed_videos([video(0)]), embedder.embed_videos([video(0)]))
    assert headed.with_head(head) is headed
    assert torch.equal(headed.with_head(None).embed_queries(QUERIES), plain)


@torch.no_grad()
def test_a_video_has_the_models_own_features_of_evenly_spread_frames(embedder: XCLIPEmbedder) -> None:
    """Of a size that needs no resizing, so that every step is plain arithmetic."""
    frames = video(3, frames=7, height=SIZE, width=SIZE)
    shown = torch.tensor(frames.pixels[[0, 2, 4, 6]]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (Normalisation().mean, Normalisation().std))
    theirs = embedder.model.get_video_features(((shown - mean) / std)[None]).pooler_output
    ours = embedder.embed_videos([frames, video(4)])
    torch.testing.assert_close(ours[:1], torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 32), (2, 90, 33), (40, 31, 200)])
def test_any_number_and_size_of_frames_is_taken(frames: int, height: int, width: int) -> None:
    values = pixel_values(video(0, frames, height, width), NUM_FRAMES, SIZE, Normalisation())
    assert values.shape == (NUM_FRAMES, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match="a video without frames"):
        pixel_values(VideoFrames(np.zeros((0, 8, 8, 3), np.uint8), []), NUM_FRAMES, SIZE, Normalisation())


def test_the_middle_of_a_wide_frame_is_kept() -> None:
    pixels = np.zeros((1, SIZE, 3 * SIZE, 3), np.uint8)
    pixels[:, :, SIZE : 2 * SIZE] = 255
    plain = Normalisation((0.0,) * 3, (1.0,) * 3)
    assert pixel_values(VideoFrames(pixels, [0.0]), 2, SIZE, plain).min() == 1


def test_the_checkpoints_own_normalisation_is_used(folder: Path, tmp_path: Path) -> None:
    copy = write_xclip(tmp_path / "other", TEXTS)
    write_json(copy / "preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0]})
    loaded = load_embedder(copy)
    assert isinstance(loaded, XCLIPEmbedder)
    assert loaded.scale == Normalisation((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    with torch.no_grad():
        assert not torch.allclose(loaded.embed_videos([video(0)]), load_embedder(folder).embed_videos([video(0)]))
