"""A cache of tensors on disk: one safetensors file per key, written by a rename. The size is bounded, and the least
recently used entries are removed first.

This module does not know what a key means. The caller puts everything that the tensors depend on into the key (see
`feature_store.FeatureStore`, `query_vectors.QueryVectors`), so an entry is never wrong; an entry that is no longer used
is removed in time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vsr1_core.rows.files import atomic_path, file_stem

_SLACK = 0.8
"""How full the folder is after entries were removed, so that not every write has to remove some."""
_RECOUNT = 0.05
"""After writing this share of the bound, the files are counted again, because other processes write too."""
_LEFT_FREE = 1 << 30
"""Bytes of the disk that are left free: a cache must never fill a disk."""


class TensorFolder:
    """A folder of tensors with at most about `max_bytes` of files. Several processes may read and write it."""

    def __init__(self, folder: Path, max_bytes: int = 20 << 30) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._keep_bound()

    def get(self, key: str) -> tuple[dict[str, Tensor], dict[str, object]] | None:
        """The tensors and the note of `key`; None if there is no entry. A broken file is removed and counts as none."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about["key"] != key:  # file names hold 40 bits of the key's hash
                    return None
                note = json.loads(about["note"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, OSError):
            path.unlink(missing_ok=True)
            return None
        return tensors, note

    def put(self, key: str, tensors: Mapping[str, Tensor], note: Mapping[str, object]) -> None:
        """Keep `tensors` (on any device) and a JSON `note` under `key`, and remove old entries if there are too many.

        Nothing is kept if the disk is almost full.
        """
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in on_cpu.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free < size + _LEFT_FREE:
            return
        with atomic_path(self._path(key), lasting=False) as temporary:
            save_file(on_cpu, temporary, metadata={"key": key, "note": json.dumps(dict(note))})
            size = temporary.stat().st_size
        self._bytes += size
        self._written += size
        if self._bytes > self.max_bytes or self._written > _RECOUNT * self.max_bytes:
            self._keep_bound()

    def _keep_bound(self) -> None:
        """Count the files; if they take too much space, remove the least recently used until `_SLACK` of the bound is
        left.

        Temporary files count too, so those that a killed process left behind are removed like all others.
        """
        found = []
        for path in self.folder.glob("*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process cleared it
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        self._bytes, self._written = sum(size for _, size, _ in found), 0
        if self._bytes <= self.max_bytes:
            return
        for _, size, path in sorted(found, key=lambda entry: entry[:2]):
            if self._bytes <= self.max_bytes * _SLACK:
                break
            path.unlink(missing_ok=True)
            self._bytes -= size

    def _path(self, key: str) -> Path:
        return self.folder / f"{file_stem(key)}.safetensors"
