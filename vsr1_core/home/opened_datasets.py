"""The opened models of a home's datasets, kept between searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view
from vsr1_core.stages.opened import OpenedModels


@dataclass
class OpenedDatasets:
    """home: the folder. execution: how the work runs; it is asked for when a dataset is opened. keep: how many datasets
    stay open; the one that was used longest ago is closed first. None keeps all."""

    home: Path
    execution: Callable[[], Execution]
    keep: int | None = None
    _opened: dict[str, OpenedModels] = field(default_factory=dict, init=False, repr=False)

    def get(self, dataset: str) -> OpenedModels:
        """The models of a dataset, opened anew where its entry or its configuration changed. LookupError: there is no
        such dataset."""
        view, kept = open_view(self.home, dataset), self._opened.pop(dataset, None)
        if kept is None or (kept.view.entry, kept.view.config) != (view.entry, view.config):
            while self.keep is not None and len(self._opened) >= self.keep:
                self._opened.pop(next(iter(self._opened)))
            kept = OpenedModels(view, self.execution())
        self._opened[dataset] = kept
        return kept

    def names(self) -> list[str]:
        """The datasets whose models are open, the one that was used last at the end."""
        return list(self._opened)

    def clear(self) -> None:
        """Release all models and their memory."""
        self._opened.clear()
