"""Which precision inference has: by the device, the processor, the models, and the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.settings import read_settings
from vsr1_core.models import weights
from vsr1_core.rows.files import write_json
from vsr1_core.stages import loading
from vsr1_core.stages.execution import Execution


@pytest.mark.parametrize(
    ("stored", "has_bf16", "execution", "expected"),
    [
        ("bfloat16", True, {}, torch.bfloat16),
        ("bfloat16", False, {}, torch.float32),
        ("float32", True, {}, torch.float32),
        ("bfloat16", True, {"precision": "fp32"}, torch.float32),
        ("float32", False, {"precision": "bf16"}, torch.bfloat16),
        ("float32", False, {"device": "cuda"}, torch.bfloat16),
        ("float32", False, {"device": "cuda", "precision": "fp32"}, torch.float32),
    ],
)
def test_precision_follows_device_processor_models_and_setting(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: str,
    has_bf16: bool,
    execution: dict[str, Any],
    expected: torch.dtype,
) -> None:
    write_json(tmp_path / "config.json", {"dtype": stored})
    monkeypatch.setattr(loading, "one_row", lambda *_: {"path": str(tmp_path)})
    monkeypatch.setattr(weights, "multiplies_bf16", lambda: has_bf16)
    assert loading.precision(None, Execution(**execution)) == expected  # type: ignore[arg-type]


def test_the_setting_is_read_from_the_environment() -> None:
    assert read_settings({}).precision == "auto"
    assert read_settings({"VSR1_PRECISION": "fp32"}).precision == "fp32"
    with pytest.raises(ValueError, match=r"VSR1_PRECISION must be one of auto, fp32, bf16"):
        read_settings({"VSR1_PRECISION": "fp16"})


def test_whether_this_processor_multiplies_bf16_is_answered() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "flags" in flags:
        assert weights.multiplies_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)
