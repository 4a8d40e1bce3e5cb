"""The datasets a home knows: one JSON file each under `<home>/datasets/`. Reading their files is not done here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vsr1_core.configuration_files import load_configuration
from vsr1_core.configurations import with_seed
from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.recipes import Configuration
from vsr1_core.rows.files import check_name, read_json, write_json

REAL_CONFIG = "qwen3-vl-2b"


@dataclass(frozen=True)
class DatasetEntry:
    """kind: of a format of `datasets.formats`: toy | verified | folder. videos: folder of video files. annotations: a
    file (folder kind) or a folder of `<corpus>_fig_<split>.jsonl` (verified kind). config: the name of a built-in
    configuration or of one of the home. models_from: the dataset whose checkpoints this one uses; empty when it trains
    its own. seed: of its trainings, in place of the configuration's (`configurations.with_seed`). embedder, policy:
    folders or hub ids, in place of the configuration's; with an embedder and no policy, videos are ranked and none is
    verified. same_corpus_as: the dataset whose files and imports it reads under that one's name; empty for its own."""

    name: str
    kind: str
    videos: str = ""
    annotations: str = ""
    config: str = "tiny"
    models_from: str = ""
    seed: int | None = None
    embedder: str = ""
    policy: str = ""
    same_corpus_as: str = ""

    @property
    def corpus(self) -> str:
        """The name that the files of the corpus bear."""
        return self.same_corpus_as or self.name


def builtin_entries(home: Path) -> dict[str, DatasetEntry]:
    """The four datasets every home has; their folders are under `<home>/data/` unless registered otherwise."""
    entries = [DatasetEntry("toy", "toy", str(home / "data/toy/videos"), str(home / "data/toy"))]
    for name in BENCHMARKS:
        data = home / "data" / name
        entries.append(DatasetEntry(name, "verified", str(data / "videos"), str(data / "annotations"), REAL_CONFIG))
    return {entry.name: entry for entry in entries}


def load_entries(home: Path) -> dict[str, DatasetEntry]:
    """All datasets by name: the built-in ones, overridden or extended by what was registered."""
    entries = builtin_entries(home)
    for path in sorted((home / "datasets").glob("[!.]*.json")):
        entry = DatasetEntry(**read_json(path))
        entries[check_name(entry.name)] = entry
    return entries


def get_entry(home: Path, name: str) -> DatasetEntry:
    """One dataset. KeyError lists the known names."""
    entries = load_entries(home)
    if name not in entries:
        raise KeyError(f"no dataset {name!r}; known: {', '.join(sorted(entries))}. Add one with: vsr1 dataset add")
    return entries[name]


def models_owner(home: Path, entry: DatasetEntry) -> DatasetEntry:
    """The dataset that makes the models which `entry` uses: itself, or the end of the chain that `models_from` begins.

    LookupError where a dataset of the chain is not known; ValueError where the chain comes back to where it was.
    """
    entries, chain = load_entries(home) | {entry.name: entry}, [entry.name]
    while source := entries[chain[-1]].models_from:
        if source in chain:
            raise ValueError(
                f"the models of dataset {entry.name!r} are nobody's: {' from '.join([*chain, source])}; one of them "
                "has to make its own: vsr1 dataset add ... --models-from ''"
            )
        if source not in entries:
            raise LookupError(f"dataset {chain[-1]!r} uses the models of {source!r}, which is not among the datasets")
        chain.append(source)
    return entries[chain[-1]]


def own_configuration(home: Path, entry: DatasetEntry) -> Configuration:
    """The one that `entry` names. What it is built with is `configuration_of`, which knows about borrowed models.

    LookupError or ValueError where the configuration is gone or cannot be used.
    """
    try:
        config = load_configuration(home, entry.config)
    except LookupError as error:
        raise LookupError(f"dataset {entry.name!r} cannot be built as it was: {error.args[0]}") from error
    if entry.embedder:
        models = dataclasses.replace(config.models, embedder=entry.embedder, policy=entry.policy)
        config = dataclasses.replace(config, models=models)
    return config if entry.seed is None else with_seed(config, entry.seed)


def configuration_of(home: Path, entry: DatasetEntry) -> Configuration:
    """What `entry` is built with: its own configuration, with the frames and models of the dataset whose models it
    uses. Models see what they were trained on, and a policy carries its options with it."""
    own = own_configuration(home, entry)
    if not entry.models_from:
        return own
    owner = own_configuration(home, models_owner(home, entry))
    return dataclasses.replace(own, frames=owner.frames, models=owner.models)


def save_entry(home: Path, entry: DatasetEntry) -> None:
    write_json(home / "datasets" / f"{check_name(entry.name)}.json", dataclasses.asdict(entry))


def remove_entry(home: Path, name: str) -> bool:
    """Forget a registered dataset. False when it was not registered. Tables and files are the caller's."""
    path = home / "datasets" / f"{check_name(name)}.json"
    existed = path.exists()
    path.unlink(missing_ok=True)
    return existed
