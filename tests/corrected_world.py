"""A small corpus that is built with cheap stages, behind a server that corrects and rebuilds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from tests.core.serve.served import FakeModels, state_of
from tests.few_stages import METHODS, START, stages
from tests.small_world import SmallWorld, build, fill
from vsr1_core.home import warehouse
from vsr1_core.serve.builds import Builds
from vsr1_core.serve.library import Library
from vsr1_core.serve.state import ServerState
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution


def view_of(world: SmallWorld) -> View:
    return world.view(stages(), START)


@dataclass(frozen=True)
class FewLibrary(Library):
    def datasets(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Without what reads stages that are left out here."""
        evaluated = [{"name": name, "label": name} for name in METHODS]
        small = {"name": "small", "num_videos": 2, "splits": {"test": 2}, "methods": [], "evaluated": evaluated}
        return [small], {}


@dataclass(frozen=True)
class CheapLibrary(FewLibrary):
    def view(self, dataset: str) -> View:
        super().view(dataset)  # LookupError where there is no such dataset
        return view_of(SmallWorld(self.home))


@dataclass
class CorrectedWorld:
    """made: id of a build -> asset -> rows that it made."""

    world: SmallWorld
    made: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def built(cls, home: Path) -> CorrectedWorld:
        made = cls(fill(SmallWorld(home), num_train=2, num_test=2).register())
        made.build("small", lambda line: None)
        warehouse.refresh(home)
        return made

    @property
    def processed(self) -> dict[str, int]:
        """Asset -> rows that the last build made."""
        return list(self.made.values())[-1]

    def state(self) -> ServerState:
        state = state_of(self.world.home, FakeModels())
        return dataclasses.replace(state, library=CheapLibrary(self.world.home), builds=Builds(self.build))

    def build(self, dataset: str, told: Callable[[str], None]) -> str:
        run = Execution(workers=1, run_id=f"run-{len(self.made)}")
        made = self.made[run.run_id] = {}
        for name, outcome in build(view_of(self.world), run).items():
            made |= {name: outcome.num_processed} if outcome.num_processed else {}
            told(f"{name}: {outcome.num_processed} rows processed")
        return ""

    def tables(self) -> dict[str, pl.DataFrame]:
        view = view_of(self.world)
        return {name: view.table(name).rows() for name in view.stages}
