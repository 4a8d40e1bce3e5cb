"""How the parts of an asset find each other: its key, and what its steps get from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import dagster as dg

from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution


class Workplace(Protocol):
    """What the body of an asset needs from outside; `pipelines.resources` implements it."""

    def view(self, dataset: str) -> View: ...

    def execution(self, log: Callable[[str], None]) -> Execution: ...


def asset_key(stage_name: str) -> dg.AssetKey:
    """`predictions.zero_shot` -> predictions/zero_shot. A `+` is not allowed in a key and becomes `_`."""
    return dg.AssetKey([part.replace("+", "_") for part in stage_name.split(".")])
