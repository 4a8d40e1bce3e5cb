"""The format of the rendered toy corpus, whose annotations and clips are made from a recipe. `datasets.toy` decides
what they show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vsr1_core.datasets import toy, toy_files, verified
from vsr1_core.datasets.format import AnnotationFile, DatasetFormat, MadeVideo
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import digest_file, read_stamp


class ToyFormat(DatasetFormat):
    """Rendered videos with captions of what they show. Users may edit the annotation files after they are written."""

    kind = "toy"
    says = "Rendered videos of coloured shapes that move, with their captions."

    def annotation_files(self, entry: DatasetEntry, config: Configuration) -> dict[str, AnnotationFile]:
        root = Path(entry.annotations).absolute()
        return {
            path.name: AnnotationFile(path.name, path, split, toy_files.annotation_content(root, config.toy, split))
            for split in toy.SPLITS
            for path in [toy_files.annotation_path(root, split)]
        }

    def lines(self, entry: DatasetEntry, config: Configuration) -> Iterator[tuple[str, Moment | BadLine]]:
        """The lines of the annotation files as they are, or as they will be written if they do not exist yet."""
        root = Path(entry.annotations).absolute()
        if toy_files.is_written(root, config.toy):
            for split in toy.SPLITS:
                path = toy_files.annotation_path(root, split)
                yield from verified.parsed_fig(path, split, digest_file(path))
            return
        for split, rows in toy.annotations(config.toy).items():
            name = toy_files.annotation_path(root, split).name
            yield from ((f"{name}:{n}", verified.fig_moment(row, split)) for n, row in enumerate(rows, 1))

    def video_files(self, entry: DatasetEntry) -> Mapping[str, list[Path]]:
        return {}

    def prepare(self, entry: DatasetEntry, config: Configuration) -> None:
        root = Path(entry.annotations).absolute()
        if not toy_files.is_written(root, config.toy):
            toy_files.write_annotations(root, config.toy)

    def made_videos(self, entry: DatasetEntry, config: Configuration) -> dict[str, MadeVideo]:
        root = Path(entry.videos).absolute()
        made = {}
        for scene in toy.scenes(config.toy):
            path = root / f"{scene.video_id}.mp4"
            content = toy_files.scene_fingerprint(scene, config.toy)
            made[scene.video_id] = MadeVideo(path, content, (scene, path, config.toy))
        return made

    @staticmethod
    def render(task: Any) -> dict[str, Any]:
        scene, path, recipe = task
        toy_files.render_clip(scene, recipe, path)
        stamp, content = read_stamp(path), toy_files.scene_fingerprint(scene, recipe)
        facts = {"path": stamp.path, "bytes": stamp.bytes, "mtime_ns": stamp.mtime_ns}
        return facts | {"digest": digest_file(path), "content": content}

    def splits_of_videos(self, entry: DatasetEntry, config: Configuration) -> dict[str, str]:
        return {scene.video_id: scene.split for scene in toy.scenes(config.toy)}


FORMAT = ToyFormat()
