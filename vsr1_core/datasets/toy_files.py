"""Writes the toy corpus as files: h264 clips and FIG annotations. `toy` decides what they show and say."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from vsr1_core.datasets import toy
from vsr1_core.datasets.toy import Scene
from vsr1_core.rows.files import atomic_path, digest_file, read_json, write_json, write_jsonl
from vsr1_core.rows.versions import fingerprint
from vsr1_core.toy_recipe import ToyRecipe

TOY_VERSION = 2
"""Version of the code that describes scenes and their annotations. Raise it by hand when the descriptions change."""


def scene_fingerprint(scene: Scene, recipe: ToyRecipe) -> str:
    """A fingerprint of what decides a clip's pixels: the scene, the frame size and the frame rate. The size of the
    corpus has no influence."""
    return fingerprint({"scene": scene, "size": recipe.size, "source_fps": recipe.source_fps})


def render_clip(scene: Scene, recipe: ToyRecipe, path: Path) -> None:
    """Draw and encode one scene, unless `path` is already the clip of this scene."""
    mark = scene_fingerprint(scene, recipe)
    if clip_mark(path) != mark:
        encode_clip(path, toy.draw(scene, recipe), recipe.source_fps, mark)


def clip_mark(path: Path) -> str | None:
    """The mark that a clip was encoded with; None when there is no readable clip at `path`."""
    import av

    if not path.is_file():
        return None
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment")
    except (av.error.FFmpegError, OSError):
        return None


def encode_clip(path: Path, frames: np.ndarray, fps: int, mark: str) -> None:
    """Write frames, uint8 [T, H, W, 3], as an h264 mp4 with `fps` frames per second. The write is atomic. `mark`
    becomes the comment of the file.

    The encoder uses one thread and fixed settings, so that the same FFmpeg writes the same bytes for the same frames,
    but for about one clip in two thousand, which x264 writes in one of two forms.
    """
    import av

    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        container.metadata["comment"] = mark
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "18", "preset": "veryfast", "g": "16", "threads": "1"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def annotation_path(folder: Path, split: str) -> Path:
    """The annotation file of one split."""
    return folder / f"toy_fig_{split}.jsonl"


def _world(recipe: ToyRecipe) -> str:
    """A fingerprint of the recipe and of `TOY_VERSION`, which stands for the code that describes scenes."""
    return fingerprint([recipe, TOY_VERSION])


def _record_path(folder: Path) -> Path:
    return folder / "written.json"


def is_written(folder: Path, recipe: ToyRecipe) -> bool:
    """Whether the annotation files in `folder` were written for this recipe. They may have been edited by hand
    since."""
    path = _record_path(folder)
    record = read_json(path) if path.is_file() else None
    if record is None or record["recipe"] != _world(recipe):
        return False
    return all(annotation_path(folder, split).is_file() for split in record["digests"])


def write_annotations(folder: Path, recipe: ToyRecipe) -> None:
    """Write `toy_fig_<split>.jsonl` for every split, and a record with the recipe's fingerprint and the digests of the
    files."""
    digests = {}
    for split, rows in toy.annotations(recipe).items():
        write_jsonl(annotation_path(folder, split), rows)
        digests[split] = digest_file(annotation_path(folder, split))
    write_json(_record_path(folder), {"recipe": _world(recipe), "digests": digests})


def annotation_content(folder: Path, recipe: ToyRecipe, split: str) -> str:
    """The version of a split's annotations: the fingerprint of the recipe if the file is not yet written or is
    unchanged, and the digest of the file if it was edited."""
    if is_written(folder, recipe):
        digest = digest_file(annotation_path(folder, split))
        if digest != read_json(_record_path(folder))["digests"][split]:
            return digest
    return _world(recipe)
