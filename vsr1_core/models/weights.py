"""Reads what a checkpoint folder holds, and checks that all of it was loaded. All families use it; it has no model
class."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vsr1_core.rows.files import digest_file, read_json

LOADING = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments of `from_pretrained`. Transformers accepts wrong shapes, so that `check_loaded` can refuse them with a
message that names them."""


_LOADER_LOG = logging.getLogger("transformers.modeling_utils")
_REPORT = "LOAD REPORT"


def load_quietly(
    kind: Any, source: str | Path, is_expected: Callable[[str], bool], **arguments: Any
) -> tuple[Any, dict[str, Any]]:
    """`kind.from_pretrained(source, ...)` with `LOADING`; returns the model and its loading info.

    Transformers prints a table of all missing and unexpected tensors, also of those that a load like this one never
    finds: new modules, and a head that is tied or not needed. The table is shown only if it has a tensor whose name is
    not `is_expected`, or one of a wrong shape.
    """
    held: list[logging.LogRecord] = []

    def holds_back(record: logging.LogRecord) -> bool:
        if _REPORT not in str(record.msg):
            return True
        held.append(record)
        return False

    _LOADER_LOG.addFilter(holds_back)
    try:
        model, info = kind.from_pretrained(source, **LOADING, **arguments)
    finally:
        _LOADER_LOG.removeFilter(holds_back)
    if info["mismatched_keys"] or not all(map(is_expected, [*info["missing_keys"], *info["unexpected_keys"]])):
        for record in held:
            _LOADER_LOG.handle(record)
    return model, info


def digest_weights(folder: Path) -> str:
    """Digest of all weight files and the config of a checkpoint folder: 12 hex digits per file, joined by `-`."""
    paths = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
    return "-".join(digest_file(path)[:12] for path in paths)


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the safetensors files of the folder; no weight is read. Raises FileNotFoundError
    if there is no such file."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no .safetensors file")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    return shapes


def stored_dtype(folder: Path) -> torch.dtype:
    """The type of the weights according to the config; float32 if the config does not say it."""
    config = read_json(folder / "config.json")
    return getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")


def inference_dtype(precision: str, device: str, embedder: Callable[[], Path]) -> torch.dtype:
    """The dtype of inference on `device`. `precision` (fp32, bf16) decides it, unless it is `auto`.

    With `auto` it is bf16 on an accelerator. On a CPU it is bf16 if the processor multiplies it and the embedder, in
    the folder that `embedder` gives, is published in it, and fp32 otherwise: bf16 makes small models no faster.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device != "cpu":
        return torch.bfloat16
    in_bf16 = multiplies_bf16() and stored_dtype(embedder()) == torch.bfloat16
    return torch.bfloat16 if in_bf16 else torch.float32


def multiplies_bf16() -> bool:
    """Whether this processor has instructions that multiply bf16: AVX-512 BF16 or AMX, or those of an ARM processor.
    Without them bf16 is slower than fp32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _has_bf16_products()


def _has_bf16_products() -> bool:
    cpu = torch.cpu
    if torch.backends.cpu.get_cpu_capability().startswith(("AVX", "DEFAULT", "NO AVX")):
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return True


def check_loaded(source: str, info: dict[str, Any], allowed_missing: Collection[str] = ()) -> None:
    """Raise ValueError if `info`, the loading info of transformers for the checkpoint `source`, has missing, unexpected
    or wrongly shaped tensors. The message names the first eight, and says how many more there are."""
    problems = [f"missing {k}" for k in sorted(set(info["missing_keys"]) - set(allowed_missing))]
    problems += [f"unexpected {k}" for k in sorted(info["unexpected_keys"])]
    problems += [
        f"{name} has the shape {list(stored)}, the config asks for {list(wanted)}"
        for name, stored, wanted in sorted(info["mismatched_keys"])
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"checkpoint {source} does not fit its config: {shown}")
