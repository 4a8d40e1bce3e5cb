"""What a checkpoint folder holds, and whether all of it was loaded: shared by all families. No model class here."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vsr1_core.rows.files import digest_file, read_json

LOADING = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
"""For `from_pretrained`. Wrong shapes are let through by transformers and refused by `check_loaded`, which can say
which and why."""


def digest_weights(folder: Path) -> str:
    """One digest over all weight files and the config of a checkpoint folder: 12 hex digits a file, joined by `-`."""
    paths = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
    return "-".join(digest_file(path)[:12] for path in paths)


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the folder's safetensors files; no weight is read."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no .safetensors file")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    return shapes


def stored_dtype(folder: Path) -> torch.dtype:
    """What the weights are stored in, as the config says; float32 where it does not."""
    config = read_json(folder / "config.json")
    return getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")


def check_loaded(source: str, info: dict[str, Any], allowed_missing: Collection[str] = ()) -> None:
    """ValueError that names what is missing, unexpected or wrongly shaped in `info`, transformers' loading info of the
    checkpoint `source`; the first eight, and how many more."""
    problems = [f"missing {k}" for k in sorted(set(info["missing_keys"]) - set(allowed_missing))]
    problems += [f"unexpected {k}" for k in sorted(info["unexpected_keys"])]
    problems += [
        f"{name} has the shape {list(stored)}, the config asks for {list(wanted)}"
        for name, stored, wanted in sorted(info["mismatched_keys"])
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"checkpoint {source} does not fit its config: {shown}")
