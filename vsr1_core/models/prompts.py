"""A prompt as a policy reads it: token ids, rotary positions, and the place of its video. No model, no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One row of L tokens for a policy, on the CPU."""

    token_ids: Tensor
    """int64 [L]."""
    positions: Tensor
    """int64 [A, L]: one row for each rotary axis of the family (Qwen3-VL has A = 3: time, height, width)."""
    video_mask: Tensor
    """bool [L]: True where a token is a placeholder of the video."""

    @property
    def next_position(self) -> int:
        """The position of the next token, which is the same on all axes."""
        return int(self.positions.max()) + 1


def extended(prompt: Prompt, token_ids: Sequence[int]) -> Prompt:
    """`prompt` followed by the text tokens `token_ids` [n]: a prompt of L + n tokens. The positions are those of
    generation: on all axes, each token is one position after the token before it.
    """
    added = torch.tensor(list(token_ids), dtype=torch.long)
    positions = (torch.arange(len(added)) + prompt.next_position).expand(len(prompt.positions), -1)
    return Prompt(
        torch.cat([prompt.token_ids, added]),
        torch.cat([prompt.positions, positions], dim=1),
        torch.cat([prompt.video_mask, torch.zeros(len(added), dtype=torch.bool)]),
    )
