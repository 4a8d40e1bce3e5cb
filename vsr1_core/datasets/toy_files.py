"""The toy corpus as files: h264 clips and FIG annotations. `toy` decides what they show and say."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from vsr1_core.datasets import toy
from vsr1_core.datasets.toy import Scene
from vsr1_core.recipes import ToyRecipe
from vsr1_core.rows.files import atomic_path, digest_file, read_json, write_json, write_jsonl
from vsr1_core.rows.versions import fingerprint

TOY_VERSION = 2
"""Of the code that describes scenes and their annotations: bumped by hand when it describes them otherwise."""


def scene_fingerprint(scene: Scene, recipe: ToyRecipe) -> str:
    """What decides a clip's pixels: the scene, and how it is drawn. Not the size of the corpus."""
    return fingerprint({"scene": scene, "size": recipe.size, "source_fps": recipe.source_fps})


def render_clip(scene: Scene, recipe: ToyRecipe, path: Path) -> None:
    """Draw and encode one scene, unless `path` already holds just this one."""
    mark = scene_fingerprint(scene, recipe)
    if clip_mark(path) != mark:
        encode_clip(path, toy.draw(scene, recipe), recipe.source_fps, mark)


def clip_mark(path: Path) -> str | None:
    """The mark a clip was encoded with; None where there is no readable clip."""
    import av

    if not path.is_file():
        return None
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment")
    except (av.error.FFmpegError, OSError):
        return None


def encode_clip(path: Path, frames: np.ndarray, fps: int, mark: str) -> None:
    """Write uint8 [T, H, W, 3] as an h264 mp4, all or nothing; `mark` is kept as its comment.

    One thread and fixed settings: the same frames give the same bytes with the same FFmpeg.
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
    return folder / f"toy_fig_{split}.jsonl"


def _world(recipe: ToyRecipe) -> str:
    """Changes with the recipe, and with the code that describes scenes: by `TOY_VERSION`, bumped by hand."""
    return fingerprint([recipe, TOY_VERSION])


def _record_path(folder: Path) -> Path:
    return folder / "written.json"


def is_written(folder: Path, recipe: ToyRecipe) -> bool:
    """Whether the annotation files there are this recipe's (they may have been edited by hand since)."""
    record = _record_path(folder)
    if not record.is_file() or read_json(record)["recipe"] != _world(recipe):
        return False
    return all(annotation_path(folder, split).is_file() for split in read_json(record)["digests"])


def write_annotations(folder: Path, recipe: ToyRecipe) -> None:
    """Write `toy_fig_<split>.jsonl` of every split, and a record of the recipe and of what was written."""
    digests = {}
    for split, rows in toy.annotations(recipe).items():
        write_jsonl(annotation_path(folder, split), rows)
        digests[split] = digest_file(annotation_path(folder, split))
    write_json(_record_path(folder), {"recipe": _world(recipe), "digests": digests})


def annotation_content(folder: Path, recipe: ToyRecipe, split: str) -> str:
    """Version of a split's annotations: the recipe's as long as the file is as written or not yet there, else the
    digest of the edited file."""
    if is_written(folder, recipe):
        digest = digest_file(annotation_path(folder, split))
        if digest != read_json(_record_path(folder))["digests"][split]:
            return digest
    return _world(recipe)
