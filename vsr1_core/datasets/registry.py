"""The datasets that a home knows. Each registered dataset has one JSON file in `<home>/datasets/`. `sources` reads the
annotations and videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vsr1_core.configuration_files import load_configuration
from vsr1_core.configurations import with_seed
from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import check_name, read_json, write_json
from vsr1_core.rows.places import Places
from vsr1_core.rows.texts import did_you_mean

REAL_CONFIG = "qwen3-vl-2b"


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset of a home.

    kind: the kind of a format in `datasets.formats`: toy, verified or folder. videos: the folder of the video files.
    annotations: a file (kind folder) or a folder with `<corpus>_fig_<split>.jsonl` (kind verified). config: the name of
    a built-in configuration, or of one of the home. models_from: the dataset whose models this one borrows; empty when
    it makes its own. seed: the seed of its trainings, which replaces that of the configuration
    (`configurations.with_seed`); None keeps the configuration's. noise: with a seed, the draw of the noise on the first
    weights (`recipes.TinyRecipe.noise`). embedder, policy: folders or hub ids that replace the
    models of the configuration; with an embedder and no policy, videos are ranked but not verified. same_corpus_as: the
    dataset whose files and imports this one reads, under the name of that dataset; empty when it has its own.
    search_only: it has an embedder and an index and nothing else: no policy is fetched, trained or asked. window_s:
    length of the windows in which longer videos are searched, in place of the configuration's; 0 keeps that.
    frame_store: how its frames are kept where the configuration says `frames.store = "auto"`; empty for arrays.
    """

    name: str
    kind: str
    videos: str = ""
    annotations: str = ""
    config: str = "tiny"
    models_from: str = ""
    seed: int | None = None
    noise: int = 0
    embedder: str = ""
    policy: str = ""
    same_corpus_as: str = ""
    search_only: bool = False
    window_s: float = 0.0
    frame_store: Literal["", "jpeg"] = ""

    @property
    def corpus(self) -> str:
        """The dataset name that stands in the file names of the corpus."""
        return self.same_corpus_as or self.name


def builtin_entries(home: Path) -> dict[str, DatasetEntry]:
    """The four datasets that every home has. Their folders are below `<home>/data/` unless they are registered with
    other ones."""
    entries = [DatasetEntry("toy", "toy", str(home / "data/toy/videos"), str(home / "data/toy"))]
    for name in BENCHMARKS:
        data = home / "data" / name
        entries.append(DatasetEntry(name, "verified", str(data / "videos"), str(data / "annotations"), REAL_CONFIG))
    return {entry.name: entry for entry in entries}


def load_entries(home: Path) -> dict[str, DatasetEntry]:
    """Map name -> dataset: the built-in datasets, overridden and extended by the registered ones. Raises ValueError,
    naming the file, for a file that is no registration of the dataset of its name."""
    entries = builtin_entries(home)
    for path in sorted((home / "datasets").glob("[!.]*.json")):
        entry = _read_entry(path, Places(home))
        entries[entry.name] = entry
    return entries


def _read_entry(path: Path, places: Places) -> DatasetEntry:
    kept = read_json(path)
    try:
        entry = _entry_of(_with_paths(dict(kept), places.placed))
        if check_name(entry.name) != path.stem:  # a copy would take the place of the one that it was copied from
            raise ValueError(f"it says that it is {entry.name!r}; the file and `name` have to agree")
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no registration of a dataset: {error}. Put it right, or move it away and add the dataset anew: "
            "vsr1 dataset add"
        ) from error
    return entry


def _entry_of(fields: Mapping[str, Any]) -> DatasetEntry:
    known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(DatasetEntry)}
    unknown, missing = sorted(set(fields) - set(known)), [name for name in known if known[name] and name not in fields]
    if unknown or missing:
        what = f"the unknown field {unknown[0]!r}" if unknown else f"no field {missing[0]!r}"
        raise ValueError(f"it has {what}, so it is of another version of this project, or was edited by hand")
    return DatasetEntry(**fields)


def get_entry(home: Path, name: str) -> DatasetEntry:
    """One dataset by its name. Raises LookupError, which lists the known names, when there is none of this name."""
    entries = load_entries(home)
    if name not in entries:
        meant = did_you_mean(name, entries)
        raise LookupError(
            f"no dataset {name!r}{meant or ';'} known: {', '.join(sorted(entries))}. Add one with: vsr1 dataset add"
        )
    return entries[name]


def seed_name(experiment: str, seed: int, noise: int = 0) -> str:
    """Name of the dataset of one seed of an experiment, trained with this draw of noise (0: none)."""
    return f"{experiment}-seed-{seed}" + (f"-noise-{noise}" if noise else "")


def models_owner(home: Path, entry: DatasetEntry) -> DatasetEntry:
    """The dataset that makes the models which `entry` uses: `entry` itself, or the last dataset in the chain of
    `models_from`.

    Raises LookupError when a dataset of the chain is unknown, and ValueError when the chain is a circle.
    """
    entries, chain = load_entries(home) | {entry.name: entry}, [entry.name]
    while source := entries[chain[-1]].models_from:
        if source in chain:
            raise ValueError(
                f"no dataset makes the models of dataset {entry.name!r}, because the datasets borrow in a circle: "
                f"{' from '.join([*chain, source])}; one of them has to make its own: "
                "vsr1 dataset add ... --train-own"
            )
        if source not in entries:
            raise LookupError(f"dataset {chain[-1]!r} borrows the models of {source!r}, which is not a known dataset")
        chain.append(source)
    return entries[chain[-1]]


def own_configuration(home: Path, entry: DatasetEntry) -> Configuration:
    """The configuration that `entry` names, with the entry's own models and seed. `configuration_of` is the one that
    the dataset is built with, which respects borrowed models.

    Raises LookupError when the configuration does not exist, and ValueError when it cannot be used.
    """
    try:
        config = load_configuration(home, entry.config)
    except LookupError as error:
        raise LookupError(f"the configuration of dataset {entry.name!r} is missing: {error.args[0]}") from error
    if entry.embedder:
        models = dataclasses.replace(config.models, embedder=entry.embedder, policy=entry.policy)
        config = dataclasses.replace(config, models=models)
    if entry.window_s:
        config = dataclasses.replace(config, segments=dataclasses.replace(config.segments, window_s=entry.window_s))
    if entry.frame_store and config.frames.store == "auto":
        config = dataclasses.replace(config, frames=dataclasses.replace(config.frames, store=entry.frame_store))
    config = config if entry.seed is None else with_seed(config, entry.seed, entry.noise)
    return without_policy(config) if entry.search_only else config


def without_policy(config: Configuration) -> Configuration:
    """`config` with no published policy. A configuration of tiny models stays as it is: they are trained together."""
    if config.models.is_tiny:
        return config
    return dataclasses.replace(config, models=dataclasses.replace(config.models, policy=""))


def configuration_of(home: Path, entry: DatasetEntry) -> Configuration:
    """The configuration that `entry` is built with: its own one, with the frame and model recipes of the dataset whose
    models it borrows. Models then see frames as they were trained on, and a policy keeps its options. How frames are
    kept on disk stays its own."""
    own = own_configuration(home, entry)
    if not entry.models_from:
        return own
    owner = own_configuration(home, models_owner(home, entry))
    config = dataclasses.replace(own, frames=owner.frames.stored_as(own.frames), models=owner.models)
    return without_policy(config) if entry.search_only else config


def save_entry(home: Path, entry: DatasetEntry) -> None:
    """Register a dataset, or replace its registration."""
    write_json(_entry_path(home, entry.name), _with_paths(dataclasses.asdict(entry), Places(home).stored))


def keep_relative(home: Path, name: str) -> None:
    """Register a dataset again whose registration has absolute paths inside the home, as all had before."""
    path = _entry_path(home, name)
    if path.exists():
        kept = read_json(path)
        if kept != _with_paths(kept, Places(home).stored):
            save_entry(home, get_entry(home, name))


def _entry_path(home: Path, name: str) -> Path:
    return home / "datasets" / f"{check_name(name)}.json"


def _with_paths(kept: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A registration with `change` done to each field that may be a path."""
    paths = ("videos", "annotations", "embedder", "policy")
    return {name: change(value) if name in paths else value for name, value in kept.items()}


def remove_entry(home: Path, name: str) -> bool:
    """Remove the registration of a dataset. Returns False when it was not registered. Its tables and files stay; the
    caller may remove them."""
    path = _entry_path(home, name)
    existed = path.exists()
    path.unlink(missing_ok=True)
    return existed
