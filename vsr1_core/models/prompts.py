"""A prompt as a policy reads it: token ids, rotary positions and where its video stands. No model and no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One row for a policy, on the CPU.

    token_ids: int64 [L]. positions: int64 [A, L], a row for each rotary axis of the family (Qwen3-VL has A = 3: time,
    height, width). video_mask: bool [L], True where a token is a placeholder of the video.
    """

    token_ids: Tensor
    positions: Tensor
    video_mask: Tensor

    @property
    def next_position(self) -> int:
        """The position, on all axes, of the token that comes next."""
        return int(self.positions.max()) + 1


def extended(prompt: Prompt, token_ids: Sequence[int]) -> Prompt:
    """`prompt` followed by the text tokens `token_ids` [n], positioned as generation positions them: each one on from
    the token before it, on all axes. Returns a prompt of L + n tokens.
    """
    added = torch.tensor(list(token_ids), dtype=torch.long)
    positions = (torch.arange(len(added)) + prompt.next_position).expand(len(prompt.positions), -1)
    return Prompt(
        torch.cat([prompt.token_ids, added]),
        torch.cat([prompt.positions, positions], dim=1),
        torch.cat([prompt.video_mask, torch.zeros(len(added), dtype=torch.bool)]),
    )
