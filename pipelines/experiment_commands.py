"""`vsr1 experiment`: one configuration trained and evaluated with several seeds, and the result of all of them.

Each seed is a dataset of its own (`<config>-seed-<seed>`), so a stopped experiment goes on where it was, the UI shows
its runs, and the tables hold its rows. All of them read one corpus. For the statistics: `evaluation.experiment`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipelines import show
from pipelines.commands import command, fail, known_configuration, require_dagster
from pipelines.settings import Settings, read_settings
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.registry import DatasetEntry, load_entries, save_entry
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.graph import open_view

experiments = typer.Typer()


@experiments.command(epilog="Example: [bold]vsr1 experiment --config experiment --seeds 1,2,3[/bold]")
@command
def experiment(
    config: Annotated[str, typer.Option(help="A configuration that makes its own toy models.")] = "experiment",
    seeds: Annotated[str, typer.Option(help="Numbers, comma separated; each trains everything anew.")] = "1,2,3",
) -> None:
    """Train and evaluate a configuration on the toy corpus with several seeds: means, intervals, claims."""
    require_dagster("vsr1 experiment")
    from pipelines.builds import run_build

    settings = read_settings()
    known_configuration(config)
    entries = [seed_entry(settings, config, seed) for seed in parse_seeds(seeds)]
    started = time.monotonic()
    for entry in entries:
        register(settings, entry)
        typer.echo(f"{entry.name}: {entries.index(entry) + 1} of {len(entries)}", err=True)
        result = run_build(settings, entry.name)
        if not result.success:
            stopped = f"the build of {entry.name} stopped; the same command goes on from there"
            fail("\n".join([stopped, *result.problems]))
    path = summarise(settings, config, entries, time.monotonic() - started)
    show.console().print(path.read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    typer.echo(f"Written: {path.parent}")


def parse_seeds(text: str) -> list[int]:
    """ValueError for what is no list of different numbers."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ValueError(f"--seeds has to be different numbers, comma separated, such as 1,2,3; not {text!r}")
    return [int(part) for part in parts]


def seed_entry(settings: Settings, config: str, seed: int) -> DatasetEntry:
    """The dataset of one seed. All seeds of a configuration share the folders of its corpus."""
    data = settings.home / "data" / f"{config}-corpus"
    return DatasetEntry(f"{config}-seed-{seed}", "toy", str(data / "videos"), str(data), config, seed=seed)


def register(settings: Settings, entry: DatasetEntry) -> None:
    """ValueError where the name belongs to another dataset."""
    known = load_entries(settings.home).get(entry.name)
    if known is not None and known != entry:
        raise ValueError(f"there is another dataset {entry.name!r}; remove it with: vsr1 dataset remove {entry.name}")
    if known is None:
        save_entry(settings.home, entry)


def summarise(settings: Settings, config: str, entries: Sequence[DatasetEntry], seconds: float) -> Path:
    """Score all seeds together and write the result. `seconds` is how long the builds took this time."""
    from vsr1_core.evaluation.claims import claims
    from vsr1_core.evaluation.experiment import Experiment
    from vsr1_core.evaluation.experiment_text import write_experiment
    from vsr1_core.stages.method_styles import STYLES
    from vsr1_core.stages.reporting import num_soft_tokens_of, scores_of

    recipe = CONFIGURATIONS[config]
    split = recipe.evaluation.splits[0]
    views = {entry.seed or 0: open_view(settings.home, entry.name) for entry in entries}
    runs = {seed: scores_of(view, split) for seed, view in views.items()}
    found = Experiment(config, runs, STYLES, recipe.evaluation.num_resamples, recipe.evaluation.seed)
    facts = {"split": split, "configuration": fingerprint(recipe), "seconds": round(seconds)}
    facts["datasets"] = [entry.name for entry in entries]
    folder = settings.home / "experiments" / config
    num_tokens = num_soft_tokens_of(next(iter(views.values())), "videosearch_r1")
    return write_experiment(found, claims(found, num_tokens), folder, facts)
