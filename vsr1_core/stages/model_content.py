"""What stands for a configured model in the version of its row: the content of its folder, or its pinned revision."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from vsr1_core.models.published import content_files, hub_name
from vsr1_core.rows.known_digests import KnownDigests, digests_of
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import View


def model_identity(view: View, name: str) -> str:
    """The identity of the model `name`, which changes with its content and not with the place of its folder.

    A local folder is read once: the digests of its files are kept by path, size and time. A model on the hub is its id
    and the revision; one without a known revision is its id alone, and `fetched_name` keeps it at what was fetched
    first. Nothing is fetched.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file():
        return "@".join(part for part in hub_name(name) if part)
    known = KnownDigests.of(view.lake, view.entry.name, ".models")
    before = known.read()
    files = list(content_files(folder.absolute()))
    found = digests_of(files, before)
    fresh = dict(found)
    if not fresh.keys() <= before.keys():
        known.write({stamp: digest for stamp, digest in before.items() if Path(stamp.path).exists()} | fresh)
    return fingerprint({file.name: digest for file, (_, digest) in zip(files, found, strict=True)})


def fetched_name(view: View, row_id: str, name: str) -> str:
    """`name` with the revision that its row was made from before, so that a further build fetches the same."""
    if Path(name).is_dir() or hub_name(name)[1]:
        return name
    table = view.table("base_models")
    rows = table.rows([table.key, "record"]).filter(pl.col(table.key) == row_id).drop_nulls()
    record = json.loads(rows["record"][0]) if rows.height else {}
    revision = record.get("revision") if record.get("model") == name else None
    return f"{name}@{revision}" if revision else name
