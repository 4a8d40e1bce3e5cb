"""Which precision inference has: by the device, the processor, the models, and the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.settings import read_settings
from tests.core.tiny_models import small_config, tiny_embedder, tiny_policy
from vsr1_core.models import weights
from vsr1_core.models.checkpoints import save_policy
from vsr1_core.recipes import GRPORecipe, SFTRecipe
from vsr1_core.rows.files import write_json
from vsr1_core.stages import loading
from vsr1_core.stages.execution import Execution
from vsr1_core.training import grpo, sft


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


@pytest.mark.parametrize("is_tied", [True, False])  # the 8B model has an output layer of its own
@pytest.mark.parametrize("recipe", [SFTRecipe(lora_rank=2), GRPORecipe(lora_rank=2)], ids=["stage 1", "stage 2"])
def test_beside_adapters_the_base_keeps_the_precision_of_inference_and_what_learns_is_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: SFTRecipe | GRPORecipe, is_tied: bool
) -> None:
    config = small_config(tie_word_embeddings=is_tied)
    config.tie_word_embeddings = is_tied
    saved = tiny_policy(config=config)
    words = saved.model.get_input_embeddings().weight
    assert (saved.model.lm_head.weight is words) == is_tied
    save_policy(saved, tmp_path, {})
    monkeypatch.setattr(loading, "one_row", lambda *_: {"path": str(tmp_path), "options": None})
    opened: Any = loading.learning_policy_of
    policy = opened(None, Execution(precision="bf16"), "asset", "row", lora_rank=recipe.lora_rank)
    if isinstance(recipe, SFTRecipe):
        sft._choose_what_learns(policy, recipe)
    else:
        grpo._choose_what_learns(policy, tiny_embedder(), recipe)
    kinds = {
        (p.dtype, p.requires_grad) for name, p in policy.model.named_parameters() if not name.startswith("refine_gate")
    }
    assert kinds == {(torch.bfloat16, False), (torch.float32, True)}
    whole = opened(None, Execution(precision="bf16"), "asset", "row")
    assert {p.dtype for p in whole.text_model.parameters()} == {torch.float32}
    assert {p.dtype for p in whole.vision_tower.parameters()} == {torch.bfloat16}


def test_the_setting_is_read_from_the_environment() -> None:
    assert read_settings({}).precision == "auto"
    assert read_settings({"VSR1_PRECISION": "fp32"}).precision == "fp32"
    with pytest.raises(ValueError, match=r"VSR1_PRECISION must be one of auto, fp32, bf16"):
        read_settings({"VSR1_PRECISION": "fp16"})


def test_whether_this_processor_multiplies_bf16_is_answered() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "flags" in flags:
        assert weights.multiplies_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)
