"""Training of the tiny base model: loss and targets against hand-computed values, and what steps which weights."""

from __future__ import annotations

import math

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.configurations import NANO
from vsr1_core.models.qwen3_vl.inputs import VideoLayout
from vsr1_core.models.qwen3_vl.tiny import tiny_config
from vsr1_core.models.qwen3_vl.tokenizer import train_tokenizer
from vsr1_core.models.qwen3_vl.vision import VideoFeatures
from vsr1_core.reasoning.tasks import EventNote
from vsr1_core.training.contrastive import info_nce
from vsr1_core.training.muon import BatchedMuon, MuonWithAdamW
from vsr1_core.training.optimizers import MuonAndAdamW
from vsr1_core.training.vision_pretraining import mean_within, word_targets


def test_the_contrastive_loss_is_the_mean_of_both_directions() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    videos = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    by_row = math.log(2)  # each query sees two equal videos
    by_column = (
        math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))
    ) / 2  # video 0 fits its query, video 1 the other
    assert math.isclose(info_nce(queries, videos, 0.5).item(), (by_row + by_column) / 2, rel_tol=1e-6)


def test_the_words_to_see_are_the_captions_own_and_rare_ones_weigh_more() -> None:
    captions = ["a red circle before a blue square", "a blue square after a red circle", "a red bar"]
    tokenizer = train_tokenizer(captions * 20, 400)
    first, second, third = (EventNote(i, i + 1.0, caption) for i, caption in enumerate(captions))
    targets = word_targets(tokenizer, {"v": [first, second], "w": [third]})

    def weight(target: torch.Tensor, word: str) -> float:
        (token,) = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return float(target[token])

    red_circle = targets["v"][0]
    assert math.isclose(float(red_circle.sum()), 1.0, rel_tol=1e-6)
    assert weight(red_circle, "a") == weight(red_circle, "blue") == weight(red_circle, "before") == 0
    rare, common = math.log(3 / 1), math.log(3 / 2)
    assert math.isclose(weight(red_circle, "circle"), rare / (rare + common), rel_tol=1e-5)
    assert math.isclose(weight(red_circle, "red"), common / (rare + common), rel_tol=1e-5)


def test_an_event_sees_the_tokens_whose_marks_lie_in_it() -> None:
    tokens = torch.arange(12.0).view(6, 2)  # three marks of two tokens
    features = VideoFeatures(tokens, (), VideoLayout((3, 2, 4), (0.5, 2.5, 4.5)))
    seen = mean_within(features, EventNote(2.0, 5.0, "x"))
    assert seen is not None
    assert torch.equal(seen, tokens[2:].mean(0))
    assert mean_within(features, EventNote(5.0, 9.0, "x")) is None


def test_every_weight_has_one_optimiser_and_only_layers_have_muon() -> None:
    model = Qwen3VLModel(tiny_config(NANO.models.tiny, train_tokenizer(["a red circle"], 300)))
    muon, adam = MuonAndAdamW(model.named_parameters(), 1e-3, num_steps=2).optimizer.parts
    held = [{id(p) for group in part.param_groups for p in group["params"]} for part in (muon, adam)]
    assert not held[0] & held[1]
    assert held[0] | held[1] == {id(p) for p in model.parameters()}
    assert id(model.language_model.embed_tokens.weight) in held[1]
    assert id(model.language_model.layers[0].mlp.up_proj.weight) in held[0]


def test_steps_lower_a_loss_and_end_small() -> None:
    torch.manual_seed(0)
    matrix, bias = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4))
    optimizer = MuonAndAdamW([("matrix", matrix), ("bias", bias)], 0.2, num_steps=60)
    losses = []
    for _ in range(60):
        loss = (matrix.square().sum() + bias.square().sum()) / 2
        optimizer.step(loss)
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert all(rate < 1e-3 for rate in optimizer.schedule.get_last_lr())


def stepped(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], num_steps: int) -> None:
    for _ in range(num_steps):
        optimizer.zero_grad()
        sum((w - 1).square().sum() for w in weights).backward()
        optimizer.step()


def two_weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)), torch.nn.Parameter(torch.zeros(4))]


def muon_of(weights: list[torch.nn.Parameter]) -> MuonWithAdamW:
    return MuonWithAdamW([{"named": list(zip(("layer.weight", "layer.bias"), weights, strict=True)), "lr": 0.05}])


def test_muon_with_adamw_steps_as_the_two_do_by_themselves_and_follows_a_schedule() -> None:
    ours, theirs = two_weights(), two_weights()
    optimizer = muon_of(ours)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    stepped(optimizer, ours, 3)
    apart = [torch.optim.Muon(theirs[:1], lr=0.05, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")]
    apart.append(torch.optim.AdamW(theirs[1:], lr=0.025, weight_decay=0.0))
    for part, weight in zip(apart, theirs, strict=True):
        stepped(part, [weight], 3)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=BF16 * 0.05, rtol=0)


BF16 = 2.0**-7
"""Muon's orthogonal matrices have elements below 1, in bfloat16, whose sums processors round differently."""


def test_matrices_of_one_shape_step_together_as_they_do_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 6), (8, 6), (6, 8), (6, 6), (8, 6)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    for weights, kind in ((ours, BatchedMuon), (theirs, torch.optim.Muon)):
        weights.append(torch.nn.Parameter(torch.ones(2, 2)))  # without a gradient: it stays
        optimizer = kind(weights, lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        stepped(optimizer, weights[:-1], 3)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=BF16 * 0.05, rtol=0)
    assert torch.equal(ours[-1], torch.ones(2, 2))
    assert all(float((mine.detach() - start).abs().max()) > 0.02 for mine, start in zip(ours, starts, strict=False))


def test_muon_with_adamw_continues_from_its_saved_state() -> None:
    whole, stopped = two_weights(), two_weights()
    stepped(muon_of(whole), whole, 4)
    first = muon_of(stopped)
    stepped(first, stopped, 2)
    again = muon_of(stopped)
    again.load_state_dict(first.state_dict())
    stepped(again, stopped, 2)
    for mine, other in zip(stopped, whole, strict=True):
        assert torch.equal(mine, other)
