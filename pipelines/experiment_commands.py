"""`vsr1 experiment`: trains and evaluates one configuration with several seeds, and summarises all of them.

Each run (a seed, and a draw of noise) is registered as a dataset over the files of the dataset that was named. So a
stopped experiment continues where it stopped, the UI shows its runs, and the tables hold its rows. The statistics are
in `evaluation.experiment`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands import (
    ConfigurationName,
    UserError,
    command,
    fail,
    known_configuration,
    require_dagster,
)
from pipelines.settings import Settings, read_settings

if TYPE_CHECKING:
    from vsr1_core.datasets.registry import DatasetEntry
    from vsr1_core.recipes import Configuration

experiments = typer.Typer()


@experiments.command(
    epilog="Examples: [bold]vsr1 experiment[/bold] (three seeds on rendered videos, two hours); "
    "[bold]vsr1 experiment --dataset mine --config longer --seeds 1,2,3[/bold]"
)
@command
def experiment(
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset", "-d", help="The dataset whose videos and annotations are used; a name from vsr1 dataset list."
        ),
    ] = "toy",
    config: Annotated[
        str | None,
        typer.Option(
            click_type=ConfigurationName(),
            help="How each seed is built (default: experiment for toy, otherwise the configuration of the dataset).",
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Numbers, separated by commas. All models are trained once per seed.")
    ] = "1,2,3",
    perturb: Annotated[
        int,
        typer.Option(
            min=0,
            help="Train each seed so many times, each time with another noise of 1e-6 on the first weights, which "
            "stands for another processor (0: once, without noise).",
        ),
    ] = 0,
) -> None:
    """Train and evaluate a configuration with several seeds; print means, intervals, ranges, and which claims hold."""
    from pipelines import show
    from vsr1_core.datasets.registry import get_entry

    require_dagster("vsr1 experiment")
    from pipelines.builds import run_build

    settings = read_settings()
    source = get_entry(settings.home, dataset)
    name = config or ("experiment" if dataset == "toy" else source.config)
    numbers, noises = parse_seeds(seeds), range(1, perturb + 1) if perturb else (0,)
    entries = [seed_entry(settings, source, name, seed, noise) for seed in numbers for noise in noises]
    check_can_train(source, known_configuration(settings, name))
    started = time.monotonic()
    for number, entry in enumerate(entries, 1):
        register(settings, entry)
        typer.echo(f"{entry.name}: {number} of {len(entries)}", err=True)
        result = run_build(settings, entry.name)
        if not result.success:
            stopped = f"the build of {entry.name} stopped; the same command continues from there"
            fail("\n".join([stopped, *result.problems]))
    typed = f"vsr1 experiment --dataset {dataset} --config {name} --seeds {','.join(map(str, numbers))}"
    typed += f" --perturb {perturb}" if perturb else ""
    path = summarise(settings, entries, typed, time.monotonic() - started)
    show.console().print(path.read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    typer.echo(f"Wrote {path.parent}")
    if len(entries) > 1:
        typer.echo(f"To compare two runs: vsr1 compare {entries[0].name} {entries[1].name}")


def parse_seeds(text: str) -> list[int]:
    """The seeds in `text`. Raises ValueError if it is not a list of different numbers."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ValueError(f"--seeds must be different numbers separated by commas, such as 1,2,3, not {text!r}")
    return [int(part) for part in parts]


def experiment_name(source: DatasetEntry, config: str) -> str:
    """The name from which the folder and the datasets of an experiment get theirs."""
    return config if source.name == "toy" else f"{source.name}-{config}"


def seed_entry(settings: Settings, source: DatasetEntry, config: str, seed: int, noise: int = 0) -> DatasetEntry:
    """The dataset of one run (a seed, and a draw of noise), with models of its own. All runs read the same corpus: that
    of `source`, or, for rendered videos, one corpus per configuration, because the configuration says how videos are
    rendered."""
    from vsr1_core.datasets.registry import seed_name

    name = experiment_name(source, config)
    own: dict[str, Any] = {
        "name": seed_name(name, seed, noise),
        "config": config,
        "models_from": "",
        "seed": seed,
        "noise": noise,
    }
    entry = dataclasses.replace(source, **own)
    if source.kind != "toy":
        return dataclasses.replace(entry, same_corpus_as=source.corpus)
    data = settings.home / "data" / f"{name}-corpus"
    return dataclasses.replace(entry, videos=str(data / "videos"), annotations=str(data))


def check_can_train(source: DatasetEntry, config: Configuration) -> None:
    """Raise UserError if the configuration trains on annotated train videos and the dataset has none."""
    from vsr1_core.datasets import sources
    from vsr1_core.datasets.verified import Moment
    from vsr1_core.stages.methods import ALL, methods_of

    trains = config.models.is_tiny or any(ALL[name].is_trained for name in methods_of(config))
    if source.kind == "toy" or not trains:
        return
    moments = sources.moments(source, config).values()
    if not any(moment.split == "train" for moment in moments if isinstance(moment, Moment)):
        raise UserError(
            f"{config.name} trains on annotated videos of the split train, and {source.name} has none; add rows with "
            f"`train` in a column `split` to {source.annotations or 'a file of annotations'}, or evaluate published "
            "models without training: vsr1 config new NAME --base qwen3-vl-2b --set evaluation.methods=zero_shot"
        )


def register(settings: Settings, entry: DatasetEntry) -> None:
    """Register `entry`. Raises ValueError if the name belongs to another dataset."""
    from vsr1_core.datasets.registry import load_entries, save_entry

    known = load_entries(settings.home).get(entry.name)
    if known is not None and known != entry:
        raise ValueError(
            f"there is another dataset {entry.name!r} already; to remove it: vsr1 dataset remove {entry.name}"
        )
    if known is None:
        save_entry(settings.home, entry)


def summarise(settings: Settings, entries: Sequence[DatasetEntry], typed: str, seconds: float) -> Path:
    """Score all runs together, write the result, and return the path of its Markdown file. `typed` is the
    command that does all this, and `seconds` is how long the builds took this time."""
    from vsr1_core.datasets.registry import seed_name
    from vsr1_core.evaluation.claims import claims
    from vsr1_core.evaluation.expected import configuration_key, measured_ranges
    from vsr1_core.evaluation.experiment import Experiment, Run
    from vsr1_core.evaluation.experiment_text import write_experiment
    from vsr1_core.rows.versions import fingerprint
    from vsr1_core.stages.graph import open_view
    from vsr1_core.stages.method_styles import STYLES
    from vsr1_core.stages.methods import ALL
    from vsr1_core.stages.reporting import num_soft_tokens_of, scores_of

    first = entries[0]
    name = first.name.removesuffix(seed_name("", first.seed or 0, first.noise))
    recipe = dataclasses.replace(known_configuration(settings, first.config), name=name)
    split = recipe.evaluation.splits[0]
    views = {Run(entry.seed or 0, entry.noise): open_view(settings.home, entry.name) for entry in entries}
    runs = {run: scores_of(view, split) for run, view in views.items()}
    found = Experiment(name, runs, STYLES, recipe.evaluation.num_resamples, recipe.evaluation.seed)
    ranges = measured_ranges(found, configuration_key(known_configuration(settings, first.config)), typed, split)
    facts = {"split": split, "configuration": fingerprint(recipe), "command": typed, "seconds": round(seconds)}
    facts["datasets"] = [entry.name for entry in entries]
    soft = [method for method in recipe.evaluation.methods if ALL[method].refine == "soft"]
    num_tokens = num_soft_tokens_of(next(iter(views.values())), soft[0]) if soft else 0
    return write_experiment(found, claims(found, num_tokens), settings.home / "experiments" / name, facts, ranges)
