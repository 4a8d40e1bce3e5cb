"""A home that knows Charades, without one video on disk and without a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tests.core.datasets.prepared_folder import read_lines, write_lines
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.registry import builtin_entries
from vsr1_core.home.prepared.importing import Summary, import_prepared
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, plan_graph

GROUPS = ("sources", "corpus", "media", "embeddings", "retrieval", "sft", "grpo")
TAKEN_IN = tuple(name for name, stage in all_stages().items() if stage.imports == "rows")
DATA = ("videos", "video_index", *TAKEN_IN)


class Home:
    """Charades without one video on disk, and no model."""

    def __init__(self, root: Path, config: str = "tiny") -> None:
        self.root = root
        self.entry = dataclasses.replace(builtin_entries(root)["charades"], config=config)
        self.config = CONFIGURATIONS[config]

    @property
    def annotations(self) -> Path:
        return Path(self.entry.annotations)

    def view(self) -> View:
        stages = {n: s for n, s in all_stages().items() if s.group in GROUPS or n == "base_models"}
        return View(Lake(self.root / "lake"), self.entry, self.config, stages)

    def take(self, folder: Path, **options: Any) -> Summary:
        return import_prepared(self.view(), folder, Execution(workers=1), **options)

    def build(self) -> dict[str, int]:
        """Rows processed of each data asset that had any due."""
        stages = {name: stage for name, stage in self.view().stages.items() if name != "base_models"}
        done = {n: s.build(self.view(), Execution(workers=1)).num_processed for n, s in stages.items()}
        return {name: count for name, count in done.items() if count}

    def plan(self) -> dict[str, dict[str, int]]:
        """Counts of each asset that holds data; models are not made here."""
        return {p.asset: p.plan.counts() if p.plan else {} for p in plan_graph(self.view()) if p.asset in DATA}

    def due(self) -> dict[str, int]:
        return {name: c["new"] + c["stale"] for name, c in self.plan().items() if c.get("new") or c.get("stale")}

    def rows(self, asset: str) -> dict[str, dict[str, Any]]:
        table = self.view().table(asset)
        return {row[table.key]: row for row in table.rows().iter_rows(named=True)}

    def edit(self, query_id: str, **changes: Any) -> None:
        path = self.annotations / "charades_fig_train.jsonl"
        rows = read_lines(path)
        write_lines(path, [r | changes if f"{r['desc_id']}_fig" == query_id else r for r in rows])
