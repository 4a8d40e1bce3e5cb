"""Losses against numbers worked out by hand, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from vsr1_core.training.losses import group_advantages, k3_kl, policy_loss, retrieval_losses, token_cross_entropy

E = torch.eye(4)
Q = torch.tensor([[0.6, 0.8, 0.0, 0.0]])
MASK = torch.tensor([[True, True]])
ONE_ROW = (Q, E[:1], E[None, [1, 2]], MASK)  # scores: right 0.6, wrong 0.8 and 0


def row_loss(right, *wrong, temperature=0.1):
    top = math.exp(right / temperature)
    return -math.log(top / (top + sum(math.exp(w / temperature) for w in wrong)))


def test_the_retrieval_loss_is_the_formula_of_the_method():
    assert retrieval_losses(*ONE_ROW).item() == pytest.approx(row_loss(0.6, 0.8, 0.0), rel=1e-5)
    assert row_loss(0.6, 0.8, 0.0) == pytest.approx(2.1272, abs=1e-4)
    assert retrieval_losses(*ONE_ROW, temperature=1.0).item() == pytest.approx(row_loss(0.6, 0.8, 0.0, temperature=1))


def test_masked_negatives_do_not_count():
    masked = (*ONE_ROW[:3], torch.tensor([[False, True]]))
    assert retrieval_losses(*masked).item() == pytest.approx(row_loss(0.6, 0.0), rel=1e-4)
    assert retrieval_losses(*ONE_ROW[:3], torch.zeros(1, 2)).item() == 0.0


def test_negatives_are_dropped_by_their_similarity_to_the_judging_query():
    assert retrieval_losses(*ONE_ROW, judged_by=Q).item() == pytest.approx(row_loss(0.6, 0.0), rel=1e-4)
    original = torch.tensor([[0.8, 0.6, 0.0, 0.0]])  # before it was refined, it ranked the right video first
    assert retrieval_losses(*ONE_ROW, judged_by=original).item() == pytest.approx(row_loss(0.6, 0.8, 0.0), rel=1e-4)


@pytest.mark.parametrize(("below", "is_kept"), [(0.0006, True), (0.0004, False), (0.0, False), (-0.1, False)])
def test_negatives_within_the_authors_margin_below_the_right_video_are_dropped(below, is_kept):
    judge = torch.tensor([[0.6, 0.6 - below, 0.0, 0.0]])
    expected = row_loss(0.6, 0.8, 0.0) if is_kept else row_loss(0.6, 0.0)
    assert retrieval_losses(*ONE_ROW, judged_by=judge).item() == pytest.approx(expected, rel=1e-4)


def test_in_batch_positives_above_the_right_video_are_dropped_too_and_no_gradient_reaches_the_judges():
    judge = Q.clone().requires_grad_()
    query = Q.clone().requires_grad_()
    none = (torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.bool))
    loss = retrieval_losses(query, E[:1], *none, in_batch=E[[1, 2]], judged_by=judge)
    assert loss.item() == pytest.approx(row_loss(0.6, 0.0), rel=1e-4)
    loss.sum().backward()
    assert judge.grad is None
    assert query.grad.abs().sum() > 0


def test_in_batch_positives_are_negatives_of_other_rows_only():
    queries, positives = torch.cat([Q, Q]), E[[0, 1]]
    none = (torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool))
    losses = retrieval_losses(queries, positives, *none, in_batch=positives)
    assert losses.tolist() == pytest.approx([row_loss(0.6, 0.8), row_loss(0.8, 0.6)], rel=1e-5)
    same = retrieval_losses(queries, E[[0, 0]], *none, in_batch=E[[0, 0]])
    assert same.tolist() == [0, 0]
    forbidden = torch.tensor([[True, False], [True, True]])
    losses = retrieval_losses(queries, positives, *none, in_batch=positives, in_batch_mask=forbidden)
    assert losses.tolist() == pytest.approx([0, row_loss(0.8, 0.6)], rel=1e-5)


def test_the_retrieval_loss_has_a_finite_gradient_that_pulls_towards_the_right_video():
    query = Q.clone().requires_grad_()
    retrieval_losses(query, *ONE_ROW[1:3], torch.tensor([[True, False]])).backward()
    assert query.grad.isfinite().all()
    assert query.grad[0, 0] < 0 < query.grad[0, 1]


def test_the_retrieval_loss_stays_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = retrieval_losses(*ONE_ROW)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(row_loss(0.6, 0.8, 0.0), rel=1e-5)


def test_what_the_retrieval_loss_cannot_do_is_an_error():
    with pytest.raises(ValueError, match="temperature"):
        retrieval_losses(*ONE_ROW, temperature=0)
    with pytest.raises(ValueError, match="no rows"):
        retrieval_losses(*(t[:0] for t in ONE_ROW))


def test_cross_entropy_is_split_by_part_and_summed_over_all():
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]]))
    mean, parts = token_cross_entropy(
        logits, torch.tensor([0, 0, 1]), torch.tensor([0, 0, 2]), ("reasoning", "verification", "grounding")
    )
    nll = [math.log(2), math.log(4), -math.log(0.9)]
    assert mean.item() == pytest.approx(sum(nll) / 3)
    assert {k: v.item() for k, v in parts.items()} == pytest.approx(
        {"reasoning": sum(nll[:2]) / 2, "grounding": nll[2]}
    )
    with pytest.raises(ValueError, match="no tokens"):
        token_cross_entropy(logits[:0], torch.zeros(0), torch.zeros(0), ("a",))


def test_advantages_are_centred_and_scaled_within_each_group():
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0])
    std = math.sqrt(2)  # of 1 and 3, with n - 1 below
    assert group_advantages(rewards, 2).tolist() == pytest.approx([-1 / (std + 1e-4), 1 / (std + 1e-4), 0, 0])
    assert group_advantages(rewards, 1).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="whole groups"):
        group_advantages(rewards, 3)


def test_k3_is_zero_for_equal_models_and_positive_otherwise():
    logprobs = torch.tensor([-1.0, -2.0, -3.0])
    assert k3_kl(logprobs, logprobs).tolist() == [0, 0, 0]
    assert k3_kl(torch.tensor(-1.0), torch.tensor(-2.0)).item() == pytest.approx(math.exp(-1))
    assert k3_kl(torch.tensor(-2.0), torch.tensor(-1.0)).item() == pytest.approx(math.e - 2)


RATIOS = torch.tensor([[1.0, 1.5, 0.5], [1.0, 1.0, 9.0]])
ADVANTAGES = torch.tensor([2.0, -1.0])
TOKENS = torch.tensor([[1, 1, 1], [1, 0, 0]])
OLD = torch.full((2, 3), -1.0)
NEW = OLD + RATIOS.log()
# Row 1: -2 * (1, 1.2 clipped, 0.5); row 2: one token, +1.
SUM_1, SUM_2 = -5.4, 1.0


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", (SUM_1 / 3 + SUM_2) / 2),
        ("bnpo", (SUM_1 + SUM_2) / 4),
        ("dapo", (SUM_1 + SUM_2) / 4),
        ("dr_grpo", (SUM_1 + SUM_2) / (2 * 10)),
    ],
)
def test_policy_loss_types(loss_type, expected):
    result = policy_loss(NEW, OLD, ADVANTAGES, TOKENS, loss_type=loss_type, max_tokens=10)
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)
    assert result.clip_fraction.item() == pytest.approx(1 / 4)
    assert result.kl.item() == 0


def test_dapo_divides_by_the_tokens_of_the_whole_step():
    loss = policy_loss(NEW, OLD, ADVANTAGES, TOKENS, loss_type="dapo", num_tokens=8).loss
    assert loss.item() == pytest.approx((SUM_1 + SUM_2) / 8, rel=1e-5)


def test_a_negative_advantage_is_clipped_below_only():
    ratios = torch.tensor([[0.5, 1.5]])
    loss = policy_loss(ratios.log(), torch.zeros(1, 2), torch.tensor([-1.0]), torch.ones(1, 2)).loss
    assert loss.item() == pytest.approx((0.8 + 1.5) / 2)


def test_the_kl_enters_with_its_weight():
    plain = policy_loss(OLD, OLD, ADVANTAGES, TOKENS)
    with_kl = policy_loss(OLD, OLD, ADVANTAGES, TOKENS, reference_logprobs=OLD - 1, beta=0.01)
    assert with_kl.kl.item() == pytest.approx(math.exp(-1))
    assert (with_kl.loss - plain.loss).item() == pytest.approx(0.01 * math.exp(-1), rel=1e-4)


def test_the_first_step_is_the_plain_policy_gradient():
    logprobs = OLD.clone().requires_grad_()
    policy_loss(logprobs, OLD, ADVANTAGES, TOKENS).loss.backward()
    assert torch.allclose(logprobs.grad, torch.tensor([[-1 / 3, -1 / 3, -1 / 3], [0.5, 0, 0]]))


def test_infinities_in_padding_do_no_harm():
    logprobs = torch.where(TOKENS > 0, NEW, -torch.inf).requires_grad_()
    result = policy_loss(logprobs, torch.where(TOKENS > 0, OLD, -1e9), ADVANTAGES, TOKENS)
    assert result.loss.item() == pytest.approx((SUM_1 / 3 + SUM_2) / 2, rel=1e-5)


def test_equal_rewards_give_no_gradient():
    logprobs = OLD.clone().requires_grad_()
    policy_loss(logprobs, OLD, group_advantages(torch.ones(2), 2), TOKENS).loss.backward()
    assert not logprobs.grad.any()


def test_impossible_settings_are_refused():
    for settings, message in [
        ({"loss_type": "ppo"}, "not one of grpo"),
        ({"loss_type": "dr_grpo"}, "max_tokens"),
        ({"beta": 0.1}, "reference"),
    ]:
        with pytest.raises(ValueError, match=message):
            policy_loss(NEW, OLD, ADVANTAGES, TOKENS, **settings)


def test_the_policy_loss_agrees_with_trl():
    """TRL's own loss code on the same numbers."""
    trainer = pytest.importorskip("trl").GRPOTrainer
    from types import SimpleNamespace as Fake

    reference = OLD - 0.3
    for loss_type in ("grpo", "bnpo", "dr_grpo"):
        fake = _fake_trainer(Fake, loss_type)
        inputs = {
            "prompt_ids": torch.zeros(2, 1), "prompt_mask": torch.ones(2, 1), "completion_ids": torch.zeros(2, 3),
            "completion_mask": TOKENS, "advantages": ADVANTAGES, "old_per_token_logps": OLD,
            "ref_per_token_logps": reference,
        }  # fmt: skip
        expected = trainer._compute_loss(fake, None, inputs)
        ours = policy_loss(
            NEW, OLD, ADVANTAGES, TOKENS, reference_logprobs=reference, beta=0.1, loss_type=loss_type, max_tokens=10
        )
        assert ours.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def _fake_trainer(fake, loss_type):
    from collections import defaultdict

    accelerator = fake(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1)
    return fake(
        _get_per_token_logps_and_entropies=lambda *a, **k: (NEW, torch.zeros_like(NEW), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="token", beta=0.1, loss_type=loss_type, epsilon_low=0.2, epsilon_high=0.2,
        args=fake(delta=None, use_bias_correction_kl=False), use_vllm=False, model=fake(training=False),
        max_completion_length=10, accelerator=accelerator, _entropy_bonus_enabled=False,
        _metrics={"eval": defaultdict(list)}, current_gradient_accumulation_steps=1,
    )  # fmt: skip
