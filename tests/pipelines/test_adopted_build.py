"""`vsr1 build` of a method whose checkpoint was adopted: nothing that only its training would read is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.builds import run_build
from pipelines.definitions import build_defs
from pipelines.settings import Settings
from tests.cheap_stages import cheap_stages
from tests.small_world import SmallWorld, fill
from vsr1_core.rows.files import write_json
from vsr1_core.stages.adopted import Adopted, write_adopted
from vsr1_core.stages.graph import open_view

TRAINING = {"top1_pool", "reasoning_traces", "sft_examples", "grpo_prompts", "sft_checkpoint"}


@pytest.mark.slow
def test_the_predictions_of_an_adopted_checkpoint_are_built_without_its_training_data(tmp_path: Path) -> None:
    fill(SmallWorld(tmp_path), num_train=2, num_test=2).register()
    view = open_view(tmp_path, "small", cheap_stages())
    write_json(tmp_path / "elsewhere/config.json", {"soft_query": {"num_soft_tokens": 8}})
    write_adopted(view, "grpo_checkpoint", Adopted(str(tmp_path / "elsewhere"), "a1b2", "org/stage2"))
    settings = Settings(tmp_path, "cpu", 1)
    defs = build_defs(settings, cheap_stages())
    result = run_build(settings, "small", "predictions.videosearch_r1", defs=defs)
    assert result.success, result.problems
    built = {asset.name: asset.num_processed for asset in result.assets}
    assert TRAINING.isdisjoint(built)
    assert (built["grpo_checkpoint"], built["predictions.videosearch_r1"]) == (1, 4)
    assert view.rows("predictions.videosearch_r1")["checkpoint"].unique().to_list() == ["a1b2"]
