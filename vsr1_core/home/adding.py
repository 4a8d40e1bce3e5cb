"""Entries for datasets that a person adds: checked here, before any of it is saved. Saving is `datasets.registry`'s."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.folder import find_videos
from vsr1_core.datasets.registry import DatasetEntry, get_entry, models_owner
from vsr1_core.recipes import FrameRecipe, ModelRecipe


def toy_entry(home: Path, name: str, config: str = "tiny") -> DatasetEntry:
    """A rendered corpus of its own, as large as the configuration says."""
    data = home / "data" / name
    return DatasetEntry(name, "toy", str(data / "videos"), str(data), config)


def verified_entry(
    home: Path,
    name: str,
    videos: Path | None = None,
    annotations: Path | None = None,
    config: str | None = None,
    models_from: str | None = None,
) -> DatasetEntry:
    """One of the public datasets (`datasets.benchmarks`); what is None stays as it is registered."""
    known = get_entry(home, name)
    if annotations is not None and not annotations.is_dir():
        raise ValueError(f"{annotations} is not a folder; give the one that holds {name}_fig_<split>.jsonl")
    source = get_entry(home, models_from) if models_from else known
    return DatasetEntry(
        name,
        "verified",
        str(videos.expanduser().resolve()) if videos else known.videos,
        str(annotations.expanduser().resolve()) if annotations else known.annotations,
        config or source.config,
        models_from or "",
    )


def folder_entry(
    home: Path,
    name: str,
    videos: Path,
    annotations: Path | None = None,
    config: str | None = None,
    models_from: str | None = None,
) -> DatasetEntry:
    """A folder of one's own videos. ValueError where it holds none, or where the annotation file is not there.

    Where nothing is said of its models they are toy's, unless the configuration names others; the configuration is by
    default that of the dataset whose models are used.
    """
    folder = videos.expanduser().resolve()
    if not find_videos(folder):
        raise ValueError(f"no video files in {videos}; give the folder that holds them (mp4, mkv, webm, mov, avi, ...)")
    if annotations is not None and not annotations.expanduser().is_file():
        raise ValueError(f"the annotation file {annotations} is not there")
    if models_from is None:
        models_from = "toy" if config is None or CONFIGURATIONS[config].models.is_tiny else ""
    config = config or (get_entry(home, models_from).config if models_from else "tiny")
    annotated = str(annotations.expanduser().resolve()) if annotations else ""
    return DatasetEntry(name, "folder", str(folder), annotated, config, models_from)


def borrowed(home: Path, entry: DatasetEntry) -> Iterator[str]:
    """What `entry` takes from the dataset that makes its models, beside the models: one sentence each.

    Raises ValueError where its configuration names other models than that dataset has.
    """
    if not entry.models_from:
        return
    owner = models_owner(home, entry)
    own, theirs = entry.own_configuration, owner.own_configuration
    if models_text(own.models) != models_text(theirs.models):
        raise ValueError(
            f"--config {entry.config} names the models {models_text(own.models)}, and {owner.name} has "
            f"{models_text(theirs.models)}: leave --config out to use these, or --models-from to make its own"
        )
    why = f"as the models of {owner.name} were trained with them"
    if own.frames != theirs.frames:
        frames, others = frames_text(theirs.frames), frames_text(own.frames)
        yield f"{entry.name}: frames are sampled at {frames}, {why}; not at {others}, as {entry.config} says"
    if own.models != theirs.models:
        yield (
            f"{entry.name}: sizes and options of the models are those of {owner.config}, {why}; not those of "
            f"{entry.config}"
        )


def frames_text(recipe: FrameRecipe) -> str:
    """Which frames are sampled, in words."""
    return f"{recipe.fps:g} a second, at most {recipe.max_frames} of {recipe.max_pixels:,} pixels"


def models_text(models: ModelRecipe) -> str:
    """Which models there are, in words."""
    return "tiny" if models.is_tiny else f"{models.policy or 'no policy'} and {models.embedder}"
