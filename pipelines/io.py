"""The IO manager: a handle is written as a small JSON record, and on load the tables on disk must agree with it.

Tensors, frames and tables never pass through the IO manager; stages read them through `View`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from assets.handle import Handle
from vsr1_core.rows.files import read_json, write_json
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.table import Table
from vsr1_core.stages.adopted import adopted_path
from vsr1_core.stages.base import Stage

_MAX_NAMED = 3


class HandleIOManager(dg.IOManager):
    """Keeps handles as records under `<home>/lake/handles/<asset>/<dataset>.json`."""

    def __init__(self, home: Path, stages: Mapping[str, Stage]) -> None:
        self.lake = Lake(home / "lake")
        self.stages = stages

    def handle_output(self, context: dg.OutputContext, obj: Handle) -> None:
        write_json(self._path(context.asset_key, context.partition_key), dataclasses.asdict(obj))

    def load_input(self, context: dg.InputContext) -> Handle:
        path = self._path(context.asset_key, context.partition_key)
        if not path.exists():
            name = context.asset_key.to_user_string().replace("/", ".")
            if adopted_path(self.lake, context.partition_key, context.op_def.name).exists():
                return Handle(name, context.partition_key, "", 0)  # an adopted checkpoint reads nothing
            raise FileNotFoundError(_hint(f"{name} has not been built for {context.partition_key!r}", context, name))
        handle = Handle(**read_json(path))
        problem = self._problem(handle)
        if problem:
            raise FileNotFoundError(_hint(problem, context, handle.asset))
        return handle

    def _path(self, key: dg.AssetKey, dataset: str) -> Path:
        return self.lake.root / "handles" / ".".join(key.path) / f"{dataset}.json"

    def _problem(self, handle: Handle) -> str:
        """How the table on disk differs from the record; empty if they agree."""
        stage = self.stages[handle.asset]
        table = self.lake.table(handle.asset, handle.dataset, stage.key, stage.dtypes)
        return claim_problem(handle, table)


def claim_problem(handle: Handle, table: Table) -> str:
    """Compare a handle with the table that it names: rows, version, and the files of its ok rows. Empty if they
    agree."""
    files = table.files()
    if files is None:
        return f"the record of {handle.asset} says {handle.num_rows:,} rows, but {table.rows_path} is gone"
    num_rows, version = files.num_rows(), table.manifest()["data_version"]
    if (num_rows, version) != (handle.num_rows, handle.data_version):
        return (
            f"the record of {handle.asset} says {handle.num_rows:,} rows at version {handle.data_version}, "
            f"but {table.folder} holds {num_rows:,} at {version}"
        )
    missing = missing_files(table)
    if missing:
        return f"{len(missing):,} files of {handle.asset} are gone, e.g. {', '.join(missing[:_MAX_NAMED])}"
    return ""


def missing_files(table: Table) -> list[str]:
    """Paths that ok rows name and that do not exist on disk."""
    if "path" not in table.columns:
        return []
    paths = table.ok_rows(["path"])["path"].drop_nulls()
    return [path for path in paths if not os.path.exists(path)]  # noqa: PTH110  # a quarter of `Path.exists`' time


def _hint(problem: str, context: dg.InputContext, asset: str) -> str:
    command = f"vsr1 build --dataset {context.partition_key} --assets {asset}"
    return f"{problem}. If files are gone, first delete its folder under lake/tables. To build it again: {command}"
