"""The losses of both training stages as plain tensor functions; no model, no trainer, no reward.

Differences from the paper: negatives that outrank the right video are kept (the authors' code drops those that are near
the original query: `judged_by`), and all sums are float32, whatever the precision of the model. The policy loss is the
clipped loss of TRL with its loss types. Its rows are whole episodes: the text tokens of all turns side by side, with
prompts and latents masked out, so that an episode has the same weight however many turns it takes. Soft tokens are not
part of it: they are a deterministic function of the parameters, so they have no probability, and learn from the
retrieval loss.
Shapes: B rows, L tokens, K negatives, D embedding size, V vocabulary, Q queries, G samples per query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo")
ADVANTAGE_EPSILON = 1e-4
NEAR_POSITIVE = 0.0005
"""The margin of similarity with which the authors' code drops negatives near the right video."""


def retrieval_losses(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    negative_mask: Tensor,
    *,
    temperature: float = 0.1,
    in_batch: Tensor | None = None,
    in_batch_mask: Tensor | None = None,
    judged_by: Tensor | None = None,
) -> Tensor:
    """L_ret of each row: -log(exp(q.p / t) / (exp(q.p / t) + sum_k exp(q.n_k / t))) with temperature t.

    Args:
        queries: Unit vectors [B, D].
        positives: Unit vectors [B, D] of the right videos.
        negatives: Unit vectors [B, K, D]; or [K, D], the same for all rows.
        negative_mask: [B, K], False where a row has fewer than K negatives.
        temperature: t, above 0.
        in_batch: Positives [C, D] of a batch, which are also negatives of each row whose own video they are not.
        in_batch_mask: [B, C], False for further pairs that are no negatives (videos that share the query's text).
        judged_by: Query vectors [B, D] that judge the negatives: one whose similarity to them is at least that of the
            right video less `NEAR_POSITIVE` is dropped. The authors judge by the vectors of the original queries.

    Returns:
        float32 [B]; 0 for a row without negatives.

    Raises:
        ValueError: There are no rows, or the temperature is not positive.
    """
    if not len(queries):
        raise ValueError("the retrieval loss of no rows is not defined; skip it if no row refines")
    if temperature <= 0:
        raise ValueError(f"the retrieval temperature must be above 0, not {temperature}")
    with torch.autocast(device_type=queries.device.type, enabled=False):
        queries, positives, negatives = queries.float(), positives.float(), negatives.float()
        right = (queries * positives).sum(-1, keepdim=True)  # [B, 1]
        wrong = _similarities(queries, negatives)
        allowed = negative_mask.bool()
        if in_batch is not None:
            wrong = torch.cat([wrong, queries @ in_batch.float().T], dim=1)
            allowed = torch.cat([allowed, _in_batch_allowed(positives, in_batch.float(), in_batch_mask)], dim=1)
        if judged_by is not None:
            allowed = allowed & _below_positive(judged_by.detach().float(), positives, negatives, in_batch)
        scores = torch.cat([right, wrong.masked_fill(~allowed, -torch.inf)], dim=1) / temperature
        return torch.logsumexp(scores, dim=1) - scores[:, 0]


def _similarities(queries: Tensor, negatives: Tensor) -> Tensor:
    """[B, K] of queries [B, D] with their own negatives [B, K, D], or with the same [K, D] for all."""
    return queries @ negatives.T if negatives.ndim == 2 else torch.einsum("bd,bkd->bk", queries, negatives)


def _below_positive(judges: Tensor, positives: Tensor, negatives: Tensor, in_batch: Tensor | None) -> Tensor:
    """bool [B, K + C]: True where a negative is less similar to its row of `judges` than the right video, by more than
    the margin."""
    wrong = _similarities(judges, negatives)
    if in_batch is not None:
        wrong = torch.cat([wrong, judges @ in_batch.float().T], dim=1)
    return wrong < (judges * positives).sum(-1, keepdim=True) - NEAR_POSITIVE


def _in_batch_allowed(positives: Tensor, in_batch: Tensor, mask: Tensor | None) -> Tensor:
    """bool [B, C]: False where a column is the row's own video (equal vectors), or where `mask` is False."""
    is_own = (positives[:, None] == in_batch[None]).all(-1)
    return ~is_own if mask is None else ~is_own & mask.bool().to(is_own.device)


def token_cross_entropy(
    logits: Tensor, targets: Tensor, parts: Tensor, part_names: Sequence[str]
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Cross-entropy of answer tokens: the mean over all tokens, and, detached for logs, the mean of each part that
    occurs.

    logits [N, V] are those of the position before each target; targets [N]; parts [N] are indices into `part_names`,
    such as reasoning, verification (the answer tag) and grounding (the span tags). Raises ValueError if there are no
    tokens.
    """
    if not len(targets):
        raise ValueError("the cross-entropy of no tokens is not defined; no row has an answer")
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    detached, parts = losses.detach(), parts.to(losses.device)
    present = set(parts.tolist())
    return losses.mean(), {name: detached[parts == k].mean() for k, name in enumerate(part_names) if k in present}


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """(reward - group mean) / (group standard deviation + 1e-4), for `rewards` [Q * G] in which the samples of a group
    are side by side. Returns [Q * G].

    The standard deviation divides by n - 1, as in TRL. A group of equal rewards, or of one reward, has advantages that
    are exactly 0, whatever rounding makes of their mean.
    """
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not make whole groups of {group_size}")
    groups = rewards.float().view(-1, group_size)
    is_equal = (groups == groups[:, :1]).all(dim=1, keepdim=True)
    centred = (groups - groups.mean(dim=1, keepdim=True)).masked_fill(is_equal, 0.0)
    spread = groups.std(dim=1, keepdim=True) if group_size > 1 else torch.zeros_like(centred)
    return (centred / (spread + ADVANTAGE_EPSILON)).view(-1)


def k3_kl(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """KL(policy || reference) per token, by Schulman's k3 estimator: r - 1 - log r with r = reference / policy."""
    log_ratio = reference_logprobs - logprobs
    return torch.exp(log_ratio) - log_ratio - 1


@dataclass(frozen=True)
class PolicyLoss:
    """The policy loss. `loss` has a gradient; `kl` and `clip_fraction` are detached means over the tokens, for logs."""

    loss: Tensor
    kl: Tensor
    clip_fraction: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    reference_logprobs: Tensor | None = None,
    clip: float = 0.2,
    beta: float = 0.0,
    loss_type: str = "grpo",
    max_tokens: int = 0,
    num_tokens: float = 0,
) -> PolicyLoss:
    """The clipped policy loss over text tokens.

    Args:
        logprobs: Log-probabilities [B, L] of the policy, with gradients.
        old_logprobs: Log-probabilities [B, L] at sampling time; no gradient flows to them.
        advantages: [B].
        mask: [B, L], True for the tokens that count.
        reference_logprobs: Log-probabilities [B, L] of the reference model; no gradient flows to them.
        clip: The ratio is clipped to [1 - clip, 1 + clip].
        beta: Weight of the KL term.
        loss_type: One of `LOSS_TYPES`.
        max_tokens: The token budget of a row, by which `dr_grpo` divides.
        num_tokens: The tokens of the whole optimiser step, for `dapo` under accumulation; 0 means those of this batch.

    Raises:
        ValueError: The loss type is unknown, `dr_grpo` has no max_tokens, or beta has no reference.
    """
    if beta and reference_logprobs is None:
        raise ValueError("a KL weight needs the reference model's log-probabilities")
    mask = mask.to(logprobs.dtype)
    ratio = torch.exp(logprobs - old_logprobs.detach())
    clipped = ratio.clamp(1 - clip, 1 + clip)
    gain = advantages.detach()[:, None]
    losses = -torch.minimum(ratio * gain, clipped * gain)
    kl = torch.zeros_like(losses)
    if reference_logprobs is not None:
        kl = k3_kl(logprobs, reference_logprobs.detach())
        losses = losses + beta * kl
    is_clipped = ((ratio < 1 - clip) & (gain < 0)) | ((ratio > 1 + clip) & (gain > 0))
    return PolicyLoss(
        loss=_over_tokens(losses, mask, loss_type, max_tokens, num_tokens),
        kl=_masked_mean(kl.detach(), mask),
        clip_fraction=_masked_mean(is_clipped.to(mask.dtype), mask),
    )


def _over_tokens(losses: Tensor, mask: Tensor, loss_type: str, max_tokens: int, num_tokens: float) -> Tensor:
    """Reduce losses [B, L] to a scalar. grpo: the mean of row means. bnpo: the mean over the tokens of the batch. dapo:
    the mean over the tokens of the step. dr_grpo: the sum over tokens divided by a constant, so that long rows are not
    favoured."""
    if loss_type == "grpo":
        return (_masked(losses, mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    if loss_type == "bnpo":
        return _masked_mean(losses, mask)
    if loss_type == "dapo":
        return _masked(losses, mask).sum() / num_tokens if num_tokens else _masked_mean(losses, mask)
    if loss_type == "dr_grpo":
        if max_tokens < 1:
            raise ValueError("dr_grpo divides by the token budget of a row; give max_tokens")
        return _masked(losses, mask).sum() / (len(losses) * max_tokens)
    raise ValueError(f"loss type {loss_type!r} is not one of {', '.join(LOSS_TYPES)}")


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where the mask is on, otherwise 0. This is not a product, as padding may be infinite: 0 * inf is NaN."""
    return torch.where(mask > 0, values, torch.zeros_like(values))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return _masked(values, mask).sum() / mask.sum().clamp(min=1)
