"""The replay of stage 2 without anything shared: every turn is a row of its own, prompt and all. The plain computation
that the tests and benchmarks of the shared one compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.prompts import extended
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.training.rollout import Replay, Rollout, fed_tokens


def unshared_replay(
    policy: LoadedPolicy, rollouts: Sequence[Rollout], features: FeatureStore, temperature: float = 1.0
) -> Replay:
    """What `rollout.replay` gives, by one left-padded batch of whole rows."""
    turns = [turn for rollout in rollouts for turn in rollout.episode.turns]
    rows = [extended(turn.prompt, fed_tokens(turn, policy)) for turn in turns]
    refining = [i for i, turn in enumerate(turns) if turn.decoded.latents is not None]
    videos = features.get([turn.video_id for turn in turns])
    count = policy.model.soft_query.num_soft_tokens
    last = [1 + len(fed_tokens(turn, policy)) for turn in turns]
    hidden, latents = policy.teacher_forced(rows, videos, last=last, refining=refining, num_soft_tokens=count)
    chosen, entropy = [], []
    for states, turn in zip(hidden, turns, strict=True):
        logits = policy.model.lm_head(states[: turn.decoded.num_text_tokens]).float() / temperature
        log_probs = logits.log_softmax(-1)
        targets = torch.tensor(turn.decoded.token_ids)
        chosen.append(log_probs.gather(-1, targets[:, None])[:, 0])
        entropy.append(-(log_probs.detach().exp() * log_probs.detach()).sum(-1))
    lengths = [rollout.num_sampled_tokens for rollout in rollouts]
    by_turn = iter(latents)
    return Replay(
        log_probs=_rows(torch.cat(chosen), lengths),
        entropy=_rows(torch.cat(entropy), lengths),
        mask=_rows(torch.ones(sum(lengths), dtype=torch.bool), lengths),
        latents=[[next(by_turn) for turn in r.episode.turns if turn.decoded.latents is not None] for r in rollouts],
    )


def _rows(flat: Tensor, lengths: list[int]) -> Tensor:
    return pad_sequence(list(flat.split(lengths)), batch_first=True)


def gradients(policy: LoadedPolicy, played: Replay, seed: int = 0) -> dict[str, Tensor]:
    """The gradients of a sum over all log-probabilities and latents, each with a weight of its own."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda values: torch.randn(values.shape, generator=generator)  # noqa: E731
    total = torch.where(played.mask, played.log_probs * draw(played.log_probs), 0.0).sum()
    total = total + sum((z * draw(z)).sum() for latents in played.latents for z in latents)
    policy.model.zero_grad()
    total.backward()
    found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


def largest_difference(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """The largest difference of two gradients, as a share of the largest element of the parameter's gradient."""
    assert ours.keys() == plain.keys()
    return max(float((ours[n] - g).abs().max() / g.abs().max().clamp(min=1e-6)) for n, g in plain.items())
