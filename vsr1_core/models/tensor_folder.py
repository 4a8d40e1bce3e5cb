"""Tensors on disk by key: one safetensors file a key, written by a rename, bounded, least recently used out first.

Nothing here knows what a key means; who puts tensors in names everything they depend on in the key (see
`vision.FeatureStore`, `embedder.QueryVectors`), so an entry is never wrong, only unused, and ages out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vsr1_core.lake import atomic_path, file_stem

_SLACK = 0.8
"""How full the folder is after it was cleared: not every write should have to look for what to remove."""


class TensorFolder:
    """A folder of tensors, at most `max_bytes` of files. Several processes may read and write it."""

    def __init__(self, folder: Path, max_bytes: int = 20 << 30) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._bytes = sum(path.stat().st_size for path in self._files())

    def get(self, key: str) -> tuple[dict[str, Tensor], dict[str, object]] | None:
        """The tensors and the note of `key`; None where it is not there, or its file is broken (it is then removed)."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                note = json.loads((file.metadata() or {})["note"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, OSError):
            path.unlink(missing_ok=True)
            return None
        return tensors, note

    def put(self, key: str, tensors: Mapping[str, Tensor], note: Mapping[str, object]) -> None:
        """Keep `tensors` (any device) and a JSON `note` under `key`, and let old entries go where it gets too much."""
        path = self._path(key)
        with atomic_path(path) as temporary:
            on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(on_cpu, temporary, metadata={"note": json.dumps(dict(note))})
        self._bytes += path.stat().st_size
        if self._bytes > self.max_bytes:
            self._clear()

    def _clear(self) -> None:
        """Remove the least recently used files until `_SLACK` of the bound is left."""
        found = []
        for path in self._files():
            try:
                status = path.stat()
            except FileNotFoundError:  # another process cleared it
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        self._bytes = sum(size for _, size, _ in found)
        for _, size, path in sorted(found, key=lambda entry: entry[:2]):
            if self._bytes <= self.max_bytes * _SLACK:
                break
            path.unlink(missing_ok=True)
            self._bytes -= size

    def _files(self) -> list[Path]:
        return [p for p in self.folder.glob("*.safetensors") if not p.name.startswith(".")]

    def _path(self, key: str) -> Path:
        return self.folder / f"{file_stem(key)}.safetensors"
