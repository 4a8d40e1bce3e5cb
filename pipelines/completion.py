"""What a shell offers while a command is typed: names of datasets, assets and methods. Nothing here may raise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipelines.settings import read_settings


def _offered(names: Callable[[], Iterable[str]], incomplete: str) -> list[str]:
    """The names that begin like what is typed; none where the home or a setting cannot be read."""
    try:
        return [name for name in names() if name.startswith(incomplete)]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def datasets(incomplete: str) -> list[str]:
    """Names of the datasets of this home."""
    from vsr1_core.datasets.registry import load_entries

    return _offered(lambda: load_entries(read_settings().home), incomplete)


def assets(incomplete: str) -> list[str]:
    """Names of the assets."""
    from vsr1_core.stages.graph import all_stages

    return _offered(all_stages, incomplete)


def asset_list(incomplete: str) -> list[str]:
    """Names of the assets and groups, for the last of a list that is separated by commas."""
    from vsr1_core.stages.graph import GROUPS, all_stages

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _offered(lambda: [*all_stages(), *GROUPS], last)]


def methods(incomplete: str) -> list[str]:
    """Names of the methods."""
    from vsr1_core.stages.methods import ALL

    return _offered(lambda: ALL, incomplete)
