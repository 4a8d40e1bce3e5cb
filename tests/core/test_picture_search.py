"""Searching with a picture: how the file is read, that it is one frame, and who refuses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.core.tiny_models import tiny_embedder
from tests.core.tiny_xclip import write_xclip
from vsr1_core.configurations import NANO
from vsr1_core.home import search
from vsr1_core.home.search import search_by_picture
from vsr1_core.media.picture import read_picture
from vsr1_core.models.protocols import VideoFrames
from vsr1_core.models.xclip.family import FAMILY
from vsr1_core.recipes import FrameRecipe
from vsr1_core.search.index import build_index
from vsr1_core.stages import loading

RECIPE = FrameRecipe(max_pixels=64 * 64, size_multiple=32)


def test_a_picture_is_read_upright_in_the_size_of_the_frames(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (400, 200), (10, 20, 30, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    picture.convert("RGB").save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "plain.png")
    assert read_picture(tmp_path / "plain.png", RECIPE).shape == (1, 32, 64, 3)
    turned = read_picture(tmp_path / "turned.jpg", RECIPE)
    assert turned.shape == (1, 64, 32, 3)
    assert np.abs(turned.astype(int) - [10, 20, 30]).max() < 4


def test_a_file_that_is_no_usable_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    Image.new("RGB", (50, 50)).save(tmp_path / "large.png")
    cut = (tmp_path / "large.png").read_bytes()[:60]
    (tmp_path / "cut.png").write_bytes(cut)
    for name, reason in {"a.png": "cannot identify", "cut.png": "", "large.png": "more than 100 pixels"}.items():
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a picture .*{reason}"):
            read_picture(tmp_path / name, RECIPE, max_pixels=100)
    with pytest.raises(FileNotFoundError, match=r"gone\.png does not exist"):
        read_picture(tmp_path / "gone.png", RECIPE)


def test_one_frame_has_the_vector_of_that_frame_shown_twice_at_once() -> None:
    embedder, pixels = tiny_embedder(), np.random.default_rng(3).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    assert embedder.takes_pictures
    with torch.no_grad():
        one = embedder.embed_videos([VideoFrames(pixels, [0.0])])
        two = embedder.embed_videos([VideoFrames(pixels.repeat(2, 0), [0.0, 0.0])])
    torch.testing.assert_close(one, two)


class Opened:
    """Opened models of three videos of one frame each."""

    def __init__(self, embedder: Any) -> None:
        entry = type("Entry", (), {"name": "mine"})
        self.view: Any = type("View", (), {"entry": entry, "config": NANO})
        self.embedder = embedder

    def frames(self, number: int) -> np.ndarray:
        return np.random.default_rng(number).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)

    def index(self, split: str) -> Any:
        videos = [VideoFrames(self.frames(n), [0.0]) for n in range(3)]
        with torch.no_grad():
            return build_index(["v0", "v1", "v2"], self.embedder.embed_videos(videos).numpy())


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "method_of", lambda view, request: None)
    monkeypatch.setattr(search, "paths_of", lambda view, videos: {})
    monkeypatch.setattr(loading, "one_row", lambda *row: {"digest": "ab", "path": "/models/small-clip"})


def test_the_video_that_shows_the_picture_comes_first_and_no_text_is_compared(tmp_path: Path) -> None:
    opened: Any = Opened(tiny_embedder())
    Image.fromarray(opened.frames(1)[0]).save(tmp_path / "frame.png")
    found = search_by_picture(opened, tmp_path / "frame.png", top_k=2)
    assert (found[0].video, found[0].score) == ("v1", pytest.approx(1.0, abs=1e-3))
    assert (found.image, found.text, found.unrelated_share) == ("frame.png", "", None)
    assert found.verdict == "not verified; videos by similarity follow"


def test_an_embedder_that_takes_no_pictures_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "frame.png")
    clip = FAMILY.load_embedder(write_xclip(tmp_path / "x", ["a dog"]), "cpu", torch.float32, "")
    opened: Any = Opened(clip)
    with pytest.raises(ValueError, match="the embedder of mine, small-clip, takes no pictures: search with words"):
        search_by_picture(opened, tmp_path / "frame.png")
