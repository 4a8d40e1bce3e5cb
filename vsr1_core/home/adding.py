"""Add a dataset: choose its files, models and configuration, check them, and say what was found and what comes next.

Everything is checked before anything is saved; `datasets.registry` saves the entry.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vsr1_core.configuration_files import load_configuration
from vsr1_core.datasets import sources
from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.datasets.folder import find_videos
from vsr1_core.datasets.formats import get_format
from vsr1_core.datasets.registry import (
    REAL_CONFIG,
    DatasetEntry,
    builtin_entries,
    configuration_of,
    get_entry,
    load_entries,
    models_owner,
    own_configuration,
    without_policy,
)
from vsr1_core.datasets.verified import BadLine, Moment
from vsr1_core.media.jpeg_archive import SUFFIX as JPEG_SUFFIX
from vsr1_core.recipes import TRAININGS, Configuration, FrameRecipe, ModelRecipe
from vsr1_core.rows.files import check_name
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import all_stages, open_view

OWN_WINDOW_S = 120.0
"""Length of a window of the videos of a new dataset of one's own, in seconds."""
NUM_READ = 1000
"""How many lines of annotations are read when a dataset is added, unless all are needed."""
OF_MODELS = ("frames", "models", *TRAININGS)
"""Recipes that have no effect where models are borrowed: those of the dataset that makes the models apply."""
OF_DISK = ("frames.store", "frames.jpeg_quality")
"""Settings of these recipes that have an effect all the same."""


@dataclass(frozen=True)
class Wanted:
    """What the person asks for. names_models: whether a policy or an embedder is named besides the configuration."""

    name: str
    videos: Path | None
    annotations: Path | None
    models_from: str | None
    config: str | None
    names_models: bool = False
    toy: bool = False
    kind: str = ""
    """A kind of dataset of `datasets.formats`; empty chooses by name and files."""
    search_only: bool = False
    """An embedder and an index, and nothing else."""
    window_s: float | None = None
    """Length of the windows in which longer videos are searched; 0: videos are searched as a whole."""


def base_of(home: Path, wanted: Wanted) -> str:
    """Name of the configuration to build with, or to derive one from: the named one, else that of the models.

    ValueError where models are named in two ways; LookupError for an unknown dataset.
    """
    if wanted.names_models and wanted.models_from:
        raise ValueError(
            f"--policy and --embedder name models, and --models-from uses those of {wanted.models_from}: "
            "give only one of the two"
        )
    if wanted.config is not None:
        return wanted.config
    if wanted.toy:
        return "tiny"
    if wanted.models_from:
        return get_entry(home, wanted.models_from).config
    if wanted.name in BENCHMARKS:
        return get_entry(home, wanted.name).config
    if wanted.names_models:
        return REAL_CONFIG
    return "tiny" if wanted.models_from == "" else get_entry(home, "toy").config


def entry_of(home: Path, wanted: Wanted, config: str) -> DatasetEntry:
    """The entry of the dataset, after its files were checked. ValueError says what is missing or contradicts."""
    if wanted.kind and (wanted.toy or wanted.name in BENCHMARKS):
        raise ValueError(f"--kind {wanted.kind}: {wanted.name} has a kind of its own; leave --kind out")
    if wanted.search_only and (wanted.toy or wanted.name in BENCHMARKS or wanted.annotations is not None):
        raise ValueError("--search-only is for a folder of videos that nothing is annotated of: give --videos alone")
    if wanted.window_s is not None and wanted.window_s < 0:
        raise ValueError(f"--window is a number of seconds, 0 for whole videos, not {wanted.window_s:g}")
    if wanted.window_s is not None and (wanted.toy or wanted.name in BENCHMARKS):
        raise ValueError(f"--window is for a folder of your own videos, and {wanted.name} is none: leave it out")
    if wanted.kind == "toy":
        raise ValueError(
            "videos of the kind toy are rendered, and no video files are read: give --toy in place of --kind"
        )
    if wanted.toy:
        data = home / "data" / wanted.name
        return DatasetEntry(wanted.name, "toy", str(data / "videos"), str(data), config)
    if wanted.name in BENCHMARKS:
        return with_frame_store(home, _verified_entry(home, wanted, config))
    kind = wanted.kind or ("verified" if _has_fig_files(wanted.annotations) else "folder")
    return with_frame_store(home, _folder_entry(home, wanted, config, get_format(kind).kind))


def _has_fig_files(annotations: Path | None) -> bool:
    """Whether it is a folder with files in the FIG schema, one per split."""
    place = annotations.expanduser() if annotations else None
    return place is not None and place.is_dir() and any(place.glob("*_fig_*.jsonl"))


def _verified_entry(home: Path, wanted: Wanted, config: str) -> DatasetEntry:
    name, known = wanted.name, get_entry(home, wanted.name)
    if wanted.annotations is not None and not wanted.annotations.is_dir():
        raise ValueError(
            f"{wanted.annotations} is not a folder; give the folder that contains {name}_fig_<split>.jsonl"
        )
    return DatasetEntry(
        name,
        "verified",
        _full(wanted.videos) or known.videos,
        _full(wanted.annotations) or known.annotations,
        config,
        wanted.models_from or "",
    )


def _folder_entry(home: Path, wanted: Wanted, config: str, kind: str) -> DatasetEntry:
    name, annotations = wanted.name, wanted.annotations
    if wanted.videos is None:
        raise ValueError(f"give the folder of videos: vsr1 dataset add {name} --videos DIR")
    require_videos(wanted.videos)
    place = annotations.expanduser() if annotations else None
    if place is not None and place.is_dir() and kind == "folder":
        raise ValueError(f"{annotations} is a folder without files <name>_fig_<split>.jsonl; give an annotation file")
    if place is not None and not place.exists():
        raise ValueError(f"the annotation file {annotations} does not exist")
    source = wanted.models_from if wanted.models_from is not None else _default_source(home, wanted, config)
    if not source and not annotations and load_configuration(home, config).models.is_tiny:
        raise ValueError(
            f"{config} trains tiny models from annotated videos, and {name} has no annotations: give --annotations "
            "FILE, or --models-from toy to use the models of toy, or --policy and --embedder to use published ones"
        )
    only = wanted.search_only
    if wanted.window_s == 0 and (own_s := load_configuration(home, config).segments.window_s):
        raise ValueError(
            f"the configuration {config} searches in windows of {own_s:g} s, which --window 0 does not change: give "
            "--set segments.window_s=0"
        )
    window_s = new_window_s(home, name, config) if wanted.window_s is None else wanted.window_s
    entry = DatasetEntry(name, kind, _full(wanted.videos), _full(annotations), config, source, search_only=only)
    return replace(entry, window_s=window_s)


def new_window_s(home: Path, name: str, config: str) -> float:
    """The `window_s` of the entry of a folder of videos: OWN_WINDOW_S, unless the configuration has windows of its own.
    A dataset that is registered already keeps what it has, so that none of its rows moves."""
    known = load_entries(home).get(name)
    if known is not None:
        return known.window_s
    return 0.0 if load_configuration(home, config).segments.window_s else OWN_WINDOW_S


def with_frame_store(home: Path, entry: DatasetEntry) -> DatasetEntry:
    """The entry of a dataset that is added, with its `frame_store`: JPEGs for a new one whose configuration names
    published models. What is registered already, or has frames, keeps what it has, so that none of its rows moves."""
    known = load_entries(home).get(entry.name)
    if known is not None and known != builtin_entries(home).get(entry.name):
        return replace(entry, frame_store=known.frame_store)
    config = load_configuration(home, entry.config)
    paths = View(Lake(home / "lake"), entry, config, all_stages()).table("frame_tensors").rows(["path"])["path"]
    kept = [path for path in paths if path]
    is_jpeg = any(path.endswith(JPEG_SUFFIX) for path in kept) if kept else not config.models.is_tiny
    return replace(entry, frame_store="jpeg" if is_jpeg else "")


def annotation_findings(home: Path, entry: DatasetEntry) -> Iterator[str]:
    """Sentences about the first lines of a dataset's annotations: those that are no moments, or name no file.

    Raises:
        ValueError: The header is wrong, not one of these lines is a moment, or models are to be trained here and no
            line is in the split `train`.
    """
    if not entry.annotations or entry.kind == "toy" or entry.name in BENCHMARKS:
        return
    trains = not entry.models_from and configuration_of(home, entry).models.is_tiny
    lines = sources.format_of(entry).lines(entry, configuration_of(home, entry))
    rows = [row for _, row in (lines if trains else itertools.islice(lines, NUM_READ))]
    bad = [row for row in rows if isinstance(row, BadLine)]
    moments = [row for row in rows if isinstance(row, Moment)]
    if bad and not moments:
        raise ValueError(f"not one of the first {len(rows):,} annotation lines can be used; the first: {bad[0].reason}")
    if trains and not any(row.split == "train" for row in moments):
        raise ValueError(
            f"{entry.name} trains models of its own, and no line of {entry.annotations} is in the split `train`: give "
            "a column `split` with train and test, or leave out --train-own"
        )
    of_first = "" if trains else f" of the first {len(rows):,}"
    if bad:
        yield f"{len(bad):,} lines{of_first} cannot be used, e.g. {bad[0].reason}. All: vsr1 dataset check {entry.name}"
    files = sources.video_files(entry)
    absent = sorted({row.video_id for row in moments} - set(files))
    if absent:
        yield (
            f"{len(absent):,} annotated videos{of_first} have no file, e.g. {absent[0]!r}. "
            f"All: vsr1 dataset check {entry.name}"
        )


def imported_entry(home: Path, name: str, config: str, models_from: str) -> DatasetEntry:
    """The entry of a dataset that prepared data are imported into under a new name. ValueError: its configuration names
    other models than the dataset whose models it uses; LookupError: there is no such dataset or configuration."""
    chosen = config or (get_entry(home, models_from).config if models_from else REAL_CONFIG)
    load_configuration(home, chosen)
    data = home / "data" / check_name(name)
    entry = DatasetEntry(name, "verified", str(data / "videos"), str(data / "annotations"), chosen, models_from)
    list(borrowed(home, entry))
    return entry


def require_videos(folder: Path) -> None:
    """Raise ValueError for a folder without video files, and FileNotFoundError for a folder that does not exist."""
    if not find_videos(Path(_full(folder))):
        raise ValueError(
            f"no video files in {folder}; give the folder that contains them (mp4, mkv, webm, mov, avi, ...)"
        )


def _full(path: Path | None) -> str:
    return str(path.expanduser().resolve()) if path else ""


def _default_source(home: Path, wanted: Wanted, config: str) -> str:
    """The dataset whose models a folder of videos uses by default: toy, unless its configuration names other models."""
    return "toy" if not wanted.names_models and load_configuration(home, config).models.is_tiny else ""


def what_was_found(entry: DatasetEntry) -> str:
    """One sentence about the files of a dataset that was added."""
    if entry.kind == "toy":
        return f"{entry.name}: videos will be rendered into {entry.videos}"
    if entry.kind == "verified" and entry.name in BENCHMARKS:
        return f"{entry.name}: VERIFIED FIG annotations from {entry.annotations}"
    annotated = "annotated" if entry.annotations else "no annotations"
    models = "embedder" if entry.search_only else "models"
    source = f"{models} from {entry.models_from}" if entry.models_from else f"its own {models}"
    return f"{entry.name}: {len(find_videos(Path(entry.videos))):,} videos, {annotated}, {source}"


def what_is_done_without(home: Path, entry: DatasetEntry) -> Iterator[str]:
    """What will and will not be done with videos that have no annotations."""
    if entry.annotations or entry.kind != "folder":
        return
    if entry.search_only:
        yield (
            "Its videos will be embedded and ranked. No policy is fetched, trained or asked: what a search finds is "
            "not verified, and has no spans."
        )
        return
    verifies = configuration_of(home, entry).models.policy != ""
    told = "verified by the policy" if verifies else "ranked by the embedder alone"
    yield (
        f"Its videos will be searched, and what is found {told}. Without --annotations nothing is trained on them and "
        "no search is scored." + (" For the embedder alone: --search-only." if verifies else "")
    )


def borrowed(home: Path, entry: DatasetEntry, changes: Sequence[str] = ()) -> Iterator[str]:
    """Sentences about what `entry` borrows in addition to the models: frames, sizes and options. Also a sentence about
    those of `changes` (KEY=VALUE) that have no effect because the models are borrowed.

    Raises:
        ValueError: Its configuration names other models than the dataset has that makes them.
    """
    if not entry.models_from:
        return
    owner = models_owner(home, entry)
    own, theirs = (own_configuration(home, e) for e in (entry, owner))
    theirs = without_policy(theirs) if entry.search_only else theirs
    if models_text(own.models) != models_text(theirs.models):
        raise ValueError(
            f"--config {entry.config} names the models {models_text(own.models)}, and {owner.name} has "
            f"{models_text(theirs.models)}: leave out --config to use the latter, or --models-from to make its own"
        )
    why = f"as the models of {owner.name} were trained with them"
    if own.frames != theirs.frames.stored_as(own.frames):
        frames, others = frames_text(theirs.frames), frames_text(own.frames)
        yield f"{entry.name}: frames are sampled at {frames}, {why}; not at {others}, as {entry.config} says"
    if own.models != theirs.models:
        yield (
            f"{entry.name}: sizes and options of the models are those of {owner.config}, {why}; not those of "
            f"{entry.config}"
        )
    keys = {change: change.partition("=")[0].strip() for change in changes}
    idle = [change for change, key in keys.items() if key.partition(".")[0] in OF_MODELS and key not in OF_DISK]
    if idle:
        yield (
            f"{entry.name}: {', '.join(idle)} has no effect while the models of {owner.name} are used; to train its "
            "own models, add it with --train-own"
        )


def next_steps(home: Path, entry: DatasetEntry) -> Iterator[str]:
    """Lines that say what was registered, and which commands come next and what they do."""
    name, source, needed = entry.name, entry.models_from, "base_models" if entry.search_only else ""
    yield f"Added {name}, to be built with the configuration {entry.config}."
    if entry.window_s:
        yield f"Videos longer than {entry.window_s:g} s are searched in windows of that length; --window changes it."
    if (frames := own_configuration(home, entry).frames).store == "jpeg":
        yield f"Frames are kept as JPEGs of quality {frames.jpeg_quality}; frames.store=npy keeps them as decoded."
    if entry.kind == "verified":
        yield f"First: vsr1 dataset check {name} (says which files are missing)"
    if source and not _is_built(home, source, needed):
        part = f" --assets {needed}" if needed else ""
        yield f"First: vsr1 build --dataset {source}{part} (makes the models that {name} uses)"
    yield f"Next: vsr1 build --dataset {name} ({', '.join(_work(home, entry))})"
    if entry.annotations:
        yield f"Then: vsr1 report --dataset {name} (how well its queries are answered)"
    yield f"Then: {search_command(name)}"


def search_command(dataset: str) -> str:
    """The command that searches a dataset, to be typed with other words."""
    return f'vsr1 search "what happens in it" --dataset {dataset}'


def _is_built(home: Path, dataset: str, asset: str = "") -> bool:
    view = open_view(home, dataset)
    return any(view.table(name).exists() for name in ([asset] if asset else view.stages))


def _work(home: Path, entry: DatasetEntry) -> Iterator[str]:
    """What the first build does, step by step."""
    if entry.kind == "toy":
        yield "renders the videos"
    yield "samples frames"
    if entry.models_from:
        yield f"uses the {'embedder' if entry.search_only else 'models'} of {entry.models_from}"
    else:
        is_tiny = configuration_of(home, entry).models.is_tiny
        published = "loads the published embedder" if entry.search_only else "loads the published models"
        yield "trains tiny models" if is_tiny else published
    yield "embeds and indexes the videos"
    if entry.annotations:
        yield "evaluates the annotated queries" if entry.models_from else "trains and evaluates the methods"


# ---- what datasets are built with ----------------------------------------------------------------------------------


def _built_with(home: Path, entry: DatasetEntry) -> Configuration | str:
    """The configuration that a dataset is built with, or a text that says why it cannot be read: a list of datasets
    shows such a dataset as well."""
    try:
        return configuration_of(home, entry)
    except (LookupError, ValueError) as error:
        return f"unknown: {error.args[0]}"


def frames_as_in(home: Path, entry: DatasetEntry) -> str:
    """Name of the configuration that decides the dataset's frames: its own, or that of the models' owner."""
    config = _built_with(home, entry)
    if isinstance(config, str):
        return "unknown"
    is_own = config.frames == own_configuration(home, entry).frames
    return entry.config if is_own else models_owner(home, entry).config


def frames_of(home: Path, entry: DatasetEntry) -> str:
    """Which frames of its videos are sampled, in words, and whether borrowed models decide it."""
    config = _built_with(home, entry)
    if isinstance(config, str):
        return config
    differs = config.frames != own_configuration(home, entry).frames
    text = frames_text(config.frames) + (f", as the models of {entry.models_from} saw" if differs else "")
    window_s = config.segments.window_s
    text += f"; kept as JPEGs of quality {config.frames.jpeg_quality}" if config.frames.store == "jpeg" else ""
    return text + (f"; of videos longer than {window_s:g} s in windows of that length" if window_s else "")


def frames_text(recipe: FrameRecipe) -> str:
    """Which frames a recipe samples, in words."""
    return f"{recipe.fps:g} per second, at most {recipe.max_frames} of {recipe.max_pixels:,} pixels"


def models_of(home: Path, entry: DatasetEntry) -> str:
    """Which models the dataset is built with, in words."""
    config = _built_with(home, entry)
    return config if isinstance(config, str) else models_text(config.models)


def models_text(models: ModelRecipe) -> str:
    """Which models a recipe names, in words."""
    return "tiny" if models.is_tiny else f"{models.policy or 'no policy'} and {models.embedder}"
