"""Decodes many prompts in batches of similar length that fit into a budget. `models.decoding` decodes one batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from vsr1_core.models.batches import Budget
from vsr1_core.models.decoding import decode
from vsr1_core.models.memory import Passes, weight_bytes
from vsr1_core.models.prompts import Prompt
from vsr1_core.models.protocols import Decoded, DecodeSettings, PolicyModel, VideoFeatures
from vsr1_core.reasoning.conversation import asks_to_refine


def decode_in_batches(
    policy: PolicyModel,
    prompts: Sequence[Prompt],
    videos: Sequence[VideoFeatures],
    settings: DecodeSettings,
    batch_size: int,
    budget: Budget,
    generator: torch.Generator | None = None,
) -> list[Decoded]:
    """One result per prompt, in order; prompts of similar length are decoded together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
    passes = Passes(policy.size, weight_bytes(policy.text_model))
    wants_refine = partial(asks_to_refine, is_forced=policy.model.soft_query.form.force_refine)
    num_new = settings.max_new_tokens + settings.num_soft_tokens

    def decoded(some: Sequence[int]) -> list[Decoded]:
        return decode(
            policy,
            [prompts[i] for i in some],
            [videos[i] for i in some],
            settings,
            wants_refine=wants_refine,
            generator=generator,
        )

    bytes_of = lambda some: passes.decoding([len(prompts[i].token_ids) for i in some], num_new)  # noqa: E731
    device = next(policy.text_model.parameters()).device
    found = dict(budget.map(order, bytes_of, decoded, device, batch_size))
    return [found[i] for i in range(len(prompts))]
