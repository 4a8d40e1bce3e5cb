"""What is on the disk, in memory: a home as a cut leaves it, and what has to be equal after every completed build."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from vsr1_core.rows.row_files import row_files


class File(NamedTuple):
    """written_ns: its modification time."""

    content: bytes
    written_ns: int


Tree = dict[str, File | None]
"""Absolute path -> file, or None for a folder. The root is among them; a folder comes before what is in it."""


def read_tree(root: str) -> Tree:
    """Everything below a folder, as the system has it; what a process has not flushed is not there."""
    tree: Tree = {root: None}
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                tree |= read_tree(entry.path)
            else:
                descriptor = os.open(entry.path, os.O_RDONLY)  # and not `open`, which passes through the faults
                try:
                    status = os.fstat(descriptor)
                    tree[entry.path] = File(os.read(descriptor, status.st_size), status.st_mtime_ns)
                finally:
                    os.close(descriptor)
    return tree


def write_tree(tree: Tree) -> None:
    """Make the files and folders of a tree, whose root must not exist."""
    for path, node in sorted(tree.items()):
        if node is None:
            Path(path).mkdir()
        else:
            Path(path).write_bytes(node.content)
            os.utime(path, ns=(node.written_ns, node.written_ns))


def moved(tree: Tree, old: str, new: str) -> None:
    """Rename a file or folder in place, as `os.replace` does."""
    for path in [path for path in tree if path == old or path.startswith(f"{old}/")]:
        tree[new + path.removeprefix(old)] = tree.pop(path)


def is_empty(tree: Tree, folder: str) -> bool:
    return not any(path.startswith(f"{folder}/") for path in tree)


def digest_of(tree: Tree) -> str:
    """Equal for trees that differ in nothing but times of files, and whether a lease is free or its holder is dead,
    which `lease` takes for the same."""
    whole = hashlib.sha256()
    for path, node in sorted(tree.items()):
        content = b"" if node is None else node.content
        if path.endswith("/lease.json"):
            content = _without_dead(content)
        whole.update(repr((path, node is None, len(content))).encode() + content)
    return whole.hexdigest()[:16]


A_TIME = 1_000_000_000
"""The fencing number after a lease file that was lost is the time, and so not the same in two runs."""


def _without_dead(lease: bytes) -> bytes:
    with contextlib.suppress(ValueError):
        fence = json.loads(lease)["fence"]
        return repr(min(fence, A_TIME)).encode()
    return lease


def state_of(home: Path) -> dict[str, Any]:
    """What has to be equal after every build that was completed: rows, data versions, and the names of files."""
    tables = {}
    for manifest in sorted((home / "lake/tables").rglob("manifest.json")):
        kept = json.loads(manifest.read_text())
        files = row_files(manifest.parent)
        assert files is not None
        frame = files.read(list(files.schema))
        facts = {name: kept[name] for name in ("num_rows", "num_ok", "num_failed", "data_version")}
        tables[f"{manifest.parent.parent.name}"] = {"facts": facts, "rows": json.loads(frame.write_json())}
    files = sorted(str(path.relative_to(home)) for path in (home / "lake").rglob("*"))
    kept_files = [name for name in files if name.startswith(("lake/files", "lake/imported"))]
    hidden = [name for name in files if Path(name).name.startswith(".") or "/pending" in name]
    return {"tables": tables, "files": kept_files, "leftovers": hidden}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Sentences about how two states differ."""
    said = [f"left over: {name}" for name in found["leftovers"]]
    for what, some, others in (("more", found, wanted), ("fewer", wanted, found)):
        said += [f"{what} files: {name}" for name in sorted({*some["files"]} - {*others["files"]})]
    for asset in sorted({*found["tables"], *wanted["tables"]}):
        one, other = found["tables"].get(asset), wanted["tables"].get(asset)
        if one is None or other is None:
            said.append(f"{asset}: only one has the table")
        elif differs := _first_difference(one, other):
            said.append(f"{asset}: {differs}")
    return said


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    if one["facts"] != other["facts"]:
        return f"manifest {one['facts']} and not {other['facts']}"
    pairs = zip(one["rows"], other["rows"], strict=True)
    rows = ({n: (a[n], b[n]) for n in a if not is_same(a[n], b[n])} for a, b in pairs)
    return str(next(filter(None, rows), ""))


TOLERANCE = 1e-6
"""Of scores: a BLAS sums in another order for another number of queries, and a build that goes on searches fewer."""


def is_same(one: Any, other: Any) -> bool:
    """Whether two values of a table are equal, numbers with a fraction up to TOLERANCE."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= TOLERANCE
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[name], other[name]) for name in one)
    return bool(one == other)
