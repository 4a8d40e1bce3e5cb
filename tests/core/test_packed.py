"""Packed passes with gradients give what the model of transformers gives on padded batches, up to rounding."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm, apply_rotary_pos_emb

from tests.core.tiny_models import (
    prompts_with_videos,
    query_text,
    random_video,
    small_config,
    tiny_embedder,
    tiny_policy,
)
from vsr1_core.models.prompts import Prompt, extended
from vsr1_core.models.qwen3_vl import embedder as embedder_module
from vsr1_core.models.qwen3_vl import reading, step_layer
from vsr1_core.models.qwen3_vl.fused import gated, rms_norm, rotated_heads, signed
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.packed import MIN_SHARED, num_shared, pack, packs
from vsr1_core.models.qwen3_vl.row_attention import attend, ends_of_rows
from vsr1_core.models.qwen3_vl.row_attention import whole_rows as whole_rows_of
from vsr1_core.models.qwen3_vl.vision import VideoFeatures
from vsr1_core.reasoning.conversation import REFINE_TOKEN, answer_text, build_messages
from vsr1_core.training import lora

CLOSE = 1e-5
"""The largest difference of a gradient, as a share of the largest element of the same parameter's gradient."""


def whole_rows(policy: LoadedPolicy) -> tuple[list[Prompt], list[VideoFeatures], list[int]]:
    """Prompts with answers, their videos, and the states that are wanted of each: those that predict the answer."""
    prompts, features = prompts_with_videos(policy, range(4))
    texts = ["a bar is shown.", "no ring.", "a red bar moves left, not a ring.", "no."]
    answers = [answer_text(text, False) for text in texts]
    ids = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in answers]
    assert all(text.endswith(REFINE_TOKEN) for text in answers)
    return [extended(p, row) for p, row in zip(prompts, ids, strict=True)], features, [len(row) + 1 for row in ids]


def weighted_sum(values: list[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([(v * torch.randn(v.shape, generator=generator)).sum() for v in values]).sum()


def values_and_gradients(work: Callable[[], list[Tensor]], model: nn.Module) -> tuple[list[Tensor], dict[str, Tensor]]:
    model.zero_grad()
    values = work()
    weighted_sum(values).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return [v.detach() for v in values], grads


def assert_padded_and_packed_agree(
    work: Callable[[], list[Tensor]], model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for module in (reading, embedder_module):
            patch.setattr(module, "packs", lambda model: False)
        padded, padded_grads = values_and_gradients(work, model)
    packed, packed_grads = values_and_gradients(work, model)
    for ours, plain in zip(packed, padded, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    assert packed_grads.keys() == padded_grads.keys()
    for name, grad in packed_grads.items():
        scale = float(padded_grads[name].abs().max())
        assert float((grad - padded_grads[name]).abs().max()) <= CLOSE * scale, name


@pytest.mark.parametrize("num_layers", [3, 2])  # with two layers, a level of deepstack follows the last one
@pytest.mark.parametrize("seed_hidden", ["post_norm", "pre_norm"])
def test_states_latents_and_all_gradients_equal_those_of_a_padded_batch(
    num_layers: int, seed_hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(grouped_heads=False, num_hidden_layers=num_layers)
    policy = tiny_policy(config=config, seed_hidden=seed_hidden)
    assert packs(policy.model.model.language_model)
    rows, features, last = whole_rows(policy)
    assert pack(policy.model.model, rows, features, last).shared >= MIN_SHARED

    def work() -> list[Tensor]:
        states, latents = policy.teacher_forced(rows, features, last=last, refining=[0, 2, 3], num_soft_tokens=3)
        return [*states, latents]

    assert_padded_and_packed_agree(work, policy.model, monkeypatch)


def test_gradients_of_an_early_latent_alone_equal_those_of_a_padded_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps after it are never gone backward through."""
    policy = tiny_policy(config=small_config(grouped_heads=False))
    rows, features, last = whole_rows(policy)

    def work() -> list[Tensor]:
        latents = policy.teacher_forced(rows, features, last=last, refining=[1, 3], num_soft_tokens=5)[1]
        return [latents[:, 2]]

    assert_padded_and_packed_agree(work, policy.model, monkeypatch)


@pytest.mark.parametrize("refining", [[0, 2], [1, 1]])  # a row that is named twice is continued twice
def test_a_second_backward_pass_through_the_same_steps_adds_what_the_first_did(
    refining: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(config=small_config(grouped_heads=False))
    rows, features, last = whole_rows(policy)

    def gradients() -> dict[str, Tensor]:
        policy.model.zero_grad()
        latents = policy.teacher_forced(rows, features, last=last, refining=refining, num_soft_tokens=4)[1]
        for number in range(4):
            latents[:, number].square().sum().backward(retain_graph=number < 3)
        return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}

    packed = gradients()
    monkeypatch.setattr(reading, "packs", lambda model: False)
    for name, padded in gradients().items():
        assert float((packed[name] - padded).abs().max()) <= CLOSE * float(padded.abs().max()), name


@pytest.mark.parametrize("frozen", ["self_attn.k_proj", "mlp", "norm", "embed_tokens"])
def test_weights_that_do_not_learn_get_no_gradient_and_change_none_of_the_others(
    frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(config=small_config(grouped_heads=False))
    rows, features, last = whole_rows(policy)
    parameters = dict(policy.model.named_parameters())
    still = [parameter for name, parameter in parameters.items() if frozen in name]
    assert still
    for parameter in still:
        parameter.requires_grad_(False)

    def work() -> list[Tensor]:
        return [policy.teacher_forced(rows, features, last=last, refining=[1, 3], num_soft_tokens=4)[1]]

    assert_padded_and_packed_agree(work, policy.model, monkeypatch)
    assert all(parameter.grad is None for parameter in still)


def num_layers() -> int:
    """Layers of steps, with the keys, values and weights that they keep."""
    return sum(type(kept) is step_layer.StepLayer for kept in gc.get_objects())


@pytest.mark.parametrize("learns", [True, False])
def test_nothing_of_a_step_stays(learns: bool) -> None:
    """Python cannot collect a circle that goes through autograd: a training would fill the memory."""
    policy = tiny_policy(config=small_config(grouped_heads=False, num_hidden_layers=2))
    policy.model.model.language_model.requires_grad_(learns)
    rows, features, last = whole_rows(policy)
    gc.collect()
    before = num_layers()
    for _ in range(2):
        latents = policy.teacher_forced(rows, features, last=last, refining=[0, 2], num_soft_tokens=4)[1]
        assert num_layers() > before
        latents.sum().backward()
    del latents
    policy.model.zero_grad()
    gc.collect()
    assert num_layers() == before


def test_vectors_and_answers_of_a_model_that_learns_equal_those_of_a_padded_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedder = tiny_embedder(config=small_config(grouped_heads=False))
    embedder.model.requires_grad_(True)
    videos = [random_video(seed, embedder.model.config) for seed in range(3)]
    queries = [query_text(seed) for seed in range(5)]
    conversations = [build_messages(query) for query in queries[:3]]

    def work() -> list[Tensor]:
        features = embedder.encoder.encode(videos)
        answers = embedder.answer_logits(conversations, features, [[5, 6, 7], [8], [9, 10]])
        return [embedder.embed_queries(queries), embedder.embed_features(features), answers]

    assert_padded_and_packed_agree(work, embedder.model, monkeypatch)


def columns(*tokens: int) -> Tensor:
    return torch.tensor([tokens])


def test_what_all_rows_begin_with_is_shared_where_it_pays() -> None:
    start = range(MIN_SHARED)
    assert num_shared([columns(*start, 90, 91), columns(*start, 92)], [1, 1]) == MIN_SHARED
    assert num_shared([columns(*start, 90, 91), columns(*start, 90)], [1, 0]) == MIN_SHARED + 1
    assert num_shared([columns(*start, 90), columns(*start)], [1, 1]) == 0  # one token of the second row is its own
    assert num_shared([columns(*start[1:], 90), columns(*start[1:], 91)], [0, 0]) == 0
    assert num_shared([columns(*start, 90)], [1]) == 0
    moved = torch.stack([torch.arange(20), torch.arange(20)])
    assert num_shared([moved, moved + torch.tensor([[0], [1]])], [1, 1]) == 0  # the same tokens at other positions


def test_videos_are_not_shared() -> None:
    policy = tiny_policy(config=small_config(grouped_heads=False))
    [prompt], [feature] = prompts_with_videos(policy, [0])
    packed = pack(policy.model.model, [prompt, prompt], [feature, feature], [1, 1])
    assert packed.shared == int(prompt.video_mask.nonzero()[0, 0])
    assert packed.spans == [(packed.shared, len(prompt.token_ids)), (len(prompt.token_ids), len(packed.embeds))]


def test_gradients_through_the_frozen_embedder_reach_latents_and_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = tiny_embedder(config=small_config(grouped_heads=False))
    latents = nn.ParameterList([torch.randn(n, embedder.hidden_size) for n in (3, 1, 3)])
    queries = [query_text(seed) for seed in range(3)]
    work = lambda: [embedder.embed_queries(queries, list(latents))]  # noqa: E731
    assert_padded_and_packed_agree(work, latents, monkeypatch)
    assert all(p.grad is None for p in embedder.model.parameters())


def test_models_that_cannot_be_packed_are_read_in_a_padded_batch() -> None:
    grouped, plain = tiny_policy(), tiny_policy(config=small_config(grouped_heads=False))
    text_model = plain.model.model.language_model
    assert packs(text_model)
    assert not packs(grouped.model.model.language_model)
    with torch.no_grad():
        assert not packs(text_model)
    with torch.autocast("cpu"):
        assert not packs(text_model)
    plain.model.train().activation_checkpointing_enable()
    assert not packs(text_model)
    plain.model.eval().activation_checkpointing_disable()
    lora.attach(text_model, 2, seed=0)
    assert not packs(text_model)


# Parts of a layer, in float64 against the same formulas of single operations.


def agree(ours: Callable[[], Tensor], plain: Callable[[], Tensor], *inputs: Tensor, close: float = 1e-12) -> None:
    results = []
    for work in (ours, plain):
        value = work()
        weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=value.dtype)
        results.append([value, *torch.autograd.grad((value * weights).sum(), inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=close, rtol=close)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def norm_of(size: int) -> Qwen3VLTextRMSNorm:
    norm = Qwen3VLTextRMSNorm(size).double()
    nn.init.normal_(norm.weight)
    return norm


def plain_norm(hidden: Tensor, norm: Qwen3VLTextRMSNorm) -> Tensor:
    """As the class computes it, without its conversion to float32."""
    return norm.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


def test_the_norm_and_its_gradients_equal_the_formula() -> None:
    torch.manual_seed(0)
    norm, hidden = norm_of(12), random(7, 12)
    agree(lambda: rms_norm(hidden, norm), lambda: plain_norm(hidden, norm), hidden, norm.weight)


def test_rotated_heads_and_their_gradients_equal_norm_and_rotation_of_transformers() -> None:
    torch.manual_seed(0)
    norm, heads = norm_of(8), random(7, 3, 8)
    angles = torch.randn(7, 4, dtype=torch.float64).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()

    def plain() -> Tensor:
        normed = plain_norm(heads, norm).transpose(0, 1)[None]
        return apply_rotary_pos_emb(normed, normed, cos[None], sin[None])[0][0].transpose(0, 1)

    agree(lambda: rotated_heads(heads, norm, signed(cos, sin)), plain, heads, norm.weight)


def test_the_gate_and_its_gradient_equal_the_formula() -> None:
    torch.manual_seed(0)
    both = random(7, 10)
    agree(lambda: gated(both), lambda: F.silu(both[:, :5]) * both[:, 5:], both)


@pytest.mark.parametrize("shared", [0, 3])
@pytest.mark.parametrize("counts", [(5, 5, 1, 4), (2, 2, 1, 1), (5, 5, 1, 2)])
def test_attention_within_rows_and_its_gradients_equal_a_call_per_row(shared: int, counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    lengths = (5, 5, 1, 4)
    whole = counts == lengths
    layout = whole_rows_of(lengths, shared) if whole else ends_of_rows(lengths, counts, shared)
    queries = random(sum(counts) + whole * shared, 2, 6)
    keys, values = random(shared + sum(lengths), 2, 6), random(shared + sum(lengths), 2, 6)

    def plain() -> Tensor:
        of_queries = queries.split([shared, *counts]) if whole else (queries[:0], *queries.split(counts))
        of_keys, of_values = keys.split([shared, *lengths]), values.split([shared, *lengths])
        mixed = [one_row(of_queries[0], of_keys[0], of_values[0])] if whole and shared else []
        for query, key, value in zip(of_queries[1:], of_keys[1:], of_values[1:], strict=True):
            mixed.append(one_row(query, torch.cat([of_keys[0], key]), torch.cat([of_values[0], value])))
        return torch.cat(mixed).flatten(1)

    agree(lambda: attend(queries, keys, values, layout, 0.3), plain, queries, keys, values)


def one_row(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    earlier = torch.ones(len(key), len(key), dtype=torch.bool).tril()[-len(query) :]
    row = (t.transpose(0, 1) for t in (query, key, value))
    return F.scaled_dot_product_attention(*row, attn_mask=earlier, scale=0.3).transpose(0, 1)
