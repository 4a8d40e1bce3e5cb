"""Plans with and without the short cuts of `stages.unmoved` and `stages.annotated`, to be compared: whatever
moved, both say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.rows.increments import STATES
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import plan_graph

KEPT = Path("lake/cache/plans")
CACHES = (KEPT, Path("lake/cache/annotations"))
FAILURES = (ValueError, TypeError, LookupError, AttributeError, pl.exceptions.PolarsError)
"""What a plan may raise of rows that no build would leave."""


def fresh(view: View) -> View:
    return View(view.lake, view.entry, view.config, view.stages, home=view.home)


def assert_short_cuts_are_exact(view: View) -> View | None:
    """The plan says the same where it may not skip the stages of which nothing moved, and parses all annotations.
    Returns the view of the plan that may, with what it read and with the tables as it leaves them; None where both
    fail, with the same error."""
    short, home = fresh(view), view.lake.root.parent
    said, kept = planned(short), [home / cache for cache in CACHES if (home / cache).exists()]
    assert home / KEPT in kept
    for cache in kept:
        cache.rename(cache.with_name(f"{cache.name} away"))
    try:
        assert planned(fresh(view)) == said
    finally:
        for cache in kept:
            cache.with_name(f"{cache.name} away").rename(cache)
    return None if "error" in said else short


def planned(view: View) -> dict[str, Any]:
    """Asset -> its plan, with sorted ids; what it waits for, where it has none; its rows as the plan leaves them, where
    these are others; whether more is still to be made of it. Where the plan fails, the error alone."""
    try:
        plans = plan_graph(view)
    except FAILURES as error:
        return {"error": repr(error)}
    found: dict[str, Any] = {}
    for item in plans:
        plan, future = item.plan, view.planned.get(item.asset)
        groups = plan and [sorted(getattr(plan, state)) for state in STATES]
        found[item.asset] = [
            *(groups, plan and plan.counts(), plan and dict(plan.causes), item.waits_for, item.num_imported),
            *(future and repr(future.rows().to_dicts()), item.asset in view.unsettled),
        ]
    return found
