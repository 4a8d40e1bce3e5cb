"""What a build of each dataset would do, planned again when its files or tables have changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.graph import StagePlan, open_view, plan_graph, stamp

UNUSABLE = (OSError, ValueError, LookupError)
"""Errors about the files or the entry of a dataset. Those of one dataset must not stop the others."""
MAX_CAUSES = 5


def is_built(view: View) -> bool:
    """Whether the dataset was ever built. A first build is left to `vsr1 build`, because it may train for hours."""
    return any(view.table(name).exists() for name, stage in view.stages.items() if stage.watches)


@dataclass(frozen=True)
class Outlook:
    """What a build of one dataset would do.

    due: Stages with rows to make or to drop.
    unknown: Stages that cannot be planned before other stages have run.
    held: Stages that train, where the configuration says that trainings are started by hand.
    behind: The stages that are due or unknown, each with a sentence about what and why.
    """

    due: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    behind: Mapping[str, str] = field(default_factory=dict)


class Planner:
    """Keeps the outlook of each dataset, and plans a dataset again when its files or tables have changed."""

    def __init__(self, home: Path, stages: Mapping[str, Stage]) -> None:
        self.home, self.stages = home, dict(stages)
        self._known: dict[str, tuple[str, Outlook]] = {}

    def outlook(self, dataset: str, log: logging.Logger) -> Outlook:
        """The outlook of `dataset`. If it cannot be planned at all (its files are gone), every stage is unknown, so
        none of them runs."""
        try:
            view = open_view(self.home, dataset, self.stages)
            now = stamp(view)
            if self._known.get(dataset, ("",))[0] != now:
                self._known[dataset] = (now, self._look(view))
            return self._known[dataset][1]
        except UNUSABLE as error:
            log.warning("%s is not rebuilt by itself: %s", dataset, error)
            return Outlook(unknown=frozenset(self.stages), behind=dict.fromkeys(self.stages, str(error)))

    def _look(self, view: View) -> Outlook:
        if not is_built(view):
            return Outlook(unknown=frozenset(self.stages))
        by_hand = view.config.retrain == "manual"
        held = frozenset(name for name, stage in self.stages.items() if by_hand and stage.trains(view))
        plans = plan_graph(view, kept=held)
        due = frozenset(p.asset for p in plans if p.plan and (p.plan.due() or p.plan.orphaned))
        unknown = frozenset(p.asset for p in plans if p.plan is None)
        return Outlook(due, unknown, held, {p.asset: what_is_due(p) for p in plans if p.asset in due | unknown})


def what_is_due(planned: StagePlan) -> str:
    """What a build would do to one asset, and why, in a sentence."""
    if planned.plan is None:
        return f"how many rows are due is known when {planned.waits_for} has run"
    counts = {"new": planned.plan.new, "stale": planned.plan.stale, "to drop": planned.plan.orphaned}
    rows = ", ".join(f"{len(ids):,} {name}" for name, ids in counts.items() if ids)
    why = [f"{cause} ({number:,})" for cause, number in planned.plan.why().items() if cause != "new row"]
    more = ", ..." if len(why) > MAX_CAUSES else ""
    return f"rows: {rows}" + (f"; {', '.join(why[:MAX_CAUSES])}{more}" if why else "")
