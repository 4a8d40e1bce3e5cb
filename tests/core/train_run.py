"""`accelerate launch -m tests.core.train_run FOLDER`: a few steps of both stages; each process saves its weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from safetensors.torch import save_file

from tests.core import test_grpo, test_sft
from vsr1_core.models.checkpoints import LoadedPolicy

SFT = replace(test_sft.RECIPE, steps=3, num_negatives=2)
"""As many negatives as each row names itself: none is drawn."""
GRPO = replace(test_grpo.RECIPE, steps=2)


def save(policy: LoadedPolicy, path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in policy.model.named_parameters()}, path)


def main(folder: Path) -> None:
    state = PartialState(cpu=True)
    sft = test_sft.make_world()
    sft.train(SFT, folder / "trainer")
    save(sft.policy, folder / f"sft-{state.process_index}.safetensors")
    grpo = test_grpo.make_world()
    grpo.train(GRPO, folder / "trainer")
    save(grpo.policy, folder / f"grpo-{state.process_index}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
