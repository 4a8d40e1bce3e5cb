"""Tables that are behind what they are made of: what leaves a home is refused while it is out of date."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from vsr1_core.stages.base import View
from vsr1_core.stages.graph import plan_graph


def stale_tables(view: View, assets: Iterable[str]) -> dict[str, str]:
    """Asset -> what a build would do to its table, in words, of those `assets` that a build would change."""
    wanted, found = set(assets), {}
    for planned in plan_graph(dataclasses.replace(view, planned={}, unsettled=set())):
        if planned.asset not in wanted:
            continue
        if planned.plan is None:
            found[planned.asset] = f"known once {planned.waits_for} has run"
        elif due := len(planned.plan.due()) + len(planned.plan.orphaned):
            found[planned.asset] = f"{due:,} rows"
    return found


def require_current(view: View, assets: Iterable[str]) -> None:
    """Raise ValueError, which names the tables, where a build would change the table of one of the `assets`."""
    stale = stale_tables(view, assets)
    if stale:
        named = ", ".join(f"{asset} ({what})" for asset, what in stale.items())
        raise ValueError(
            f"{view.entry.name} is out of date: a build would change {named}. Build first: vsr1 build --dataset "
            f"{view.entry.name}; or take the tables as they are: --stale"
        )
