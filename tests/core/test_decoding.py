"""The cached loop against slow ways: `generate` for text, N full passes for latents, their gradients for training."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core import naive
from tests.core.tiny_models import prompts_with_videos, random_video, tiny_policy, tiny_tokenizer
from vsr1_core.models.decoding import decode
from vsr1_core.models.prompts import Prompt, extended
from vsr1_core.models.protocols import Decoded, DecodeSettings
from vsr1_core.models.qwen3_vl.inputs import build_prompts
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.reading import teacher_forced
from vsr1_core.models.qwen3_vl.tokenizer import end_tokens
from vsr1_core.models.qwen3_vl.vision import VideoFeatures, encode_videos
from vsr1_core.reasoning.conversation import REFINE_TOKEN, answer_text

REFINE_ID = tiny_tokenizer().convert_tokens_to_ids(REFINE_TOKEN)
EXACT = 1e-5


@functools.cache
def world(seed_hidden: str = "post_norm") -> tuple[LoadedPolicy, list[Prompt], list[VideoFeatures]]:
    policy = tiny_policy(seed_hidden=seed_hidden)
    return policy, *prompts_with_videos(policy, range(20))


def run(
    policy: LoadedPolicy, prompts: list[Prompt], features: list[Any], refine: bool = True, **settings: Any
) -> list[Decoded]:
    return decode(
        policy,
        prompts,
        features,
        DecodeSettings(**settings),
        wants_refine=lambda _text: refine,
    )


def naive_latents(policy: LoadedPolicy, prompt: Prompt, written: list[int], seed: int, num: int) -> Tensor:
    """N full passes over prompt, text and <REFINE>; the pixels are read again in each."""
    video = random_video(seed, policy.model.config)
    ids = torch.cat([prompt.token_ids, torch.tensor([*written, REFINE_ID])])
    weights = dict(policy.model.named_parameters())
    form = policy.model.soft_query.seed_hidden
    return naive.latents(policy.model, weights, ids, video.patches, video.grid, num, form)


def without_end(token_ids: list[int]) -> list[int]:
    return token_ids[:-1] if token_ids and token_ids[-1] in (REFINE_ID, *STOPS) else token_ids


STOPS = (tiny_tokenizer().eos_token_id, tiny_tokenizer().pad_token_id)


@pytest.mark.slow
def test_text_equals_generate_token_by_token() -> None:
    policy, prompts, features = world()
    ours = run(policy, prompts, features, refine=False, max_new_tokens=24)
    lengths = set()
    for seed, (prompt, row) in enumerate(zip(prompts, ours, strict=True)):
        video = random_video(seed, policy.model.config)
        theirs = naive.greedy_ids(
            policy.model,
            prompt.token_ids,
            video.patches,
            video.grid,
            max_new_tokens=24,
            eos_token_id=[*STOPS, REFINE_ID],
            pad_token_id=STOPS[1],
        )
        assert row.token_ids == theirs
        lengths.add(len(theirs))
    assert len({tuple(row.token_ids) for row in ours}) == len(ours), "rows must differ, or the test shows little"


@pytest.mark.parametrize("seed_hidden", ["post_norm", "pre_norm"])
@pytest.mark.parametrize("num_soft_tokens", [1, 2, 8])
@torch.no_grad()
def test_latents_equal_n_full_passes(seed_hidden: str, num_soft_tokens: int) -> None:
    policy, prompts, features = world(seed_hidden)
    rows = run(policy, prompts[:6], features[:6], max_new_tokens=7, num_soft_tokens=num_soft_tokens)
    for seed, (prompt, row) in enumerate(zip(prompts, rows, strict=False)):
        expected = naive_latents(policy, prompt, without_end(row.token_ids), seed, num_soft_tokens)
        assert row.latents is not None
        torch.testing.assert_close(row.latents, expected, atol=EXACT, rtol=EXACT)


@torch.no_grad()
def test_where_the_seed_is_read_changes_all_latents() -> None:
    latents = []
    for form in ("post_norm", "pre_norm"):
        policy, prompts, features = world(form)
        latents.append(run(policy, prompts[:1], features[:1], max_new_tokens=3)[0].latents)
    assert ((latents[0] - latents[1]).abs().amax(dim=-1) > 1e-3).all(), "a test at 1e-5 must be able to tell them apart"


@torch.no_grad()
def test_a_row_is_the_same_alone_and_in_a_batch_of_other_lengths() -> None:
    policy, prompts, features = world()
    together = run(policy, prompts[:9], features[:9], max_new_tokens=12)
    for prompt, feature, row in zip(prompts, features, together, strict=False):
        alone = run(policy, [prompt], [feature], max_new_tokens=12)[0]
        assert row.token_ids == alone.token_ids
        assert row.text == alone.text
        torch.testing.assert_close(row.latents, alone.latents, atol=EXACT, rtol=EXACT)
        torch.testing.assert_close(row.log_probs, alone.log_probs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rows_without_a_video_share_a_batch_with_rows_that_have_one() -> None:
    policy, prompts, features = world()
    bare = build_prompts(
        policy.tokenizer, policy.model.model, [[{"role": "user", "content": "a red ring, where is it?"}]], [None]
    )[0]
    mixed = run(policy, [bare, *prompts[:2]], [None, *features[:2]], max_new_tokens=6)
    ids = torch.cat([bare.token_ids, torch.tensor([*without_end(mixed[0].token_ids), REFINE_ID])])
    expected = naive.latents(policy.model, dict(policy.model.named_parameters()), ids, None, None, 8)
    torch.testing.assert_close(mixed[0].latents, expected, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(
        mixed[2].latents, run(policy, prompts[1:2], features[1:2], max_new_tokens=6)[0].latents, atol=EXACT, rtol=EXACT
    )


def test_a_row_at_the_limit_keeps_that_many_tokens_and_still_refines_exactly() -> None:
    policy, prompts, features = world()
    for limit in (1, 5):
        rows = run(policy, prompts, features, max_new_tokens=limit, num_soft_tokens=2)
        assert all(len(row.token_ids) <= limit for row in rows)
        assert all(len(row.log_probs) == len(row.token_ids) for row in rows)
        cut = next(i for i, row in enumerate(rows) if len(without_end(row.token_ids)) == limit)
        with torch.no_grad():
            expected = naive_latents(policy, prompts[cut], rows[cut].token_ids, cut, 2)
        torch.testing.assert_close(rows[cut].latents, expected, atol=EXACT, rtol=EXACT)


@pytest.mark.slow
def test_stop_tokens_end_rows_where_generate_ends_them_and_the_limit_holds_there_too() -> None:
    policy, prompts, features = world()
    free = run(policy, prompts, features, max_new_tokens=20, num_soft_tokens=0)
    common = Counter(token for row in free for token in set(row.token_ids)).most_common(1)[0][0]
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(common)
    ending = replace(policy, tokenizer=tokenizer)
    rows = decode(ending, prompts, features, DecodeSettings(20), wants_refine=lambda _t: True)
    ends = {len(row.token_ids) for row in rows}
    assert len(ends) > 3, "rows must end at different places"
    for full, row in zip(free, rows, strict=True):
        stop = full.token_ids.index(common) + 1 if common in full.token_ids else 20
        assert row.token_ids == full.token_ids[:stop]
    limit = sorted(ends)[1] - 1
    cut = decode(ending, prompts, features, DecodeSettings(limit), wants_refine=lambda _t: True)
    assert [row.token_ids for row in cut] == [row.token_ids[:limit] for row in rows]
    stops = end_tokens(tokenizer)  # the new one beside those that every tokenizer has
    kept = [row.token_ids[:-1] if row.token_ids[-1] in stops else row.token_ids for row in rows]
    with torch.no_grad():
        expected = torch.stack(
            [naive_latents(policy, p, ids, i, 2) for i, (p, ids) in enumerate(zip(prompts, kept, strict=True))]
        )
    torch.testing.assert_close(torch.stack([r.latents[:2] for r in rows]), expected, atol=EXACT, rtol=EXACT)


@torch.no_grad()
def test_samples_of_one_prompt_share_its_reading_and_change_nothing() -> None:
    policy, prompts, features = world()
    order = [2, 0, 2, 2, 1, 0]
    widths: list[int] = []
    layer = policy.model.model.language_model.layers[0]
    hook = layer.mlp.register_forward_pre_hook(lambda _module, args: widths.append(len(args[0])))
    try:
        group = run(policy, [prompts[i] for i in order], [features[i] for i in order], max_new_tokens=5)
    finally:
        hook.remove()
    assert widths[:2] == [3, len(order)]
    singles = run(policy, prompts[:3], features[:3], max_new_tokens=5)
    for i, row in zip(order, group, strict=True):
        assert row.token_ids == singles[i].token_ids
        torch.testing.assert_close(row.latents, singles[i].latents, atol=EXACT, rtol=EXACT)


def test_only_rows_that_want_it_refine_and_they_are_asked_once_with_their_whole_text() -> None:
    policy, prompts, features = world()
    asked: list[str] = []

    def every_other(text: str) -> bool:
        asked.append(text)
        return len(asked) % 2 == 0

    rows = decode(policy, prompts[:8], features[:8], DecodeSettings(10), wants_refine=every_other)
    assert sorted(asked) == sorted(row.text for row in rows)
    assert sum(row.latents is not None for row in rows) == 4
    assert {row.num_latent_tokens for row in rows} == {0, 8}


def test_no_soft_tokens_asks_nobody() -> None:
    policy, prompts, features = world()
    rows = run(policy, prompts[:3], features[:3], max_new_tokens=4, num_soft_tokens=0)
    assert all(row.latents is None for row in rows)


def test_text_has_no_stop_token_but_keeps_a_written_refine() -> None:
    policy, prompts, features = world()
    rows = run(policy, prompts, features, refine=False, max_new_tokens=64)
    special = [policy.tokenizer.decode([i]) for i in STOPS]
    assert all(not any(word in row.text for word in special) for row in rows)
    for row in rows:
        assert row.text.count(REFINE_TOKEN) == row.token_ids.count(REFINE_ID) <= 1


def test_sampling_follows_its_generator_and_its_log_probs_are_those_of_the_model() -> None:
    policy, prompts, features = world()

    def sample(seed: int) -> list[Decoded]:
        generator = torch.Generator().manual_seed(seed)
        settings = DecodeSettings(8, temperature=1.0, num_soft_tokens=0)
        return decode(
            policy,
            prompts[:4],
            features[:4],
            settings,
            wants_refine=lambda _t: False,
            generator=generator,
        )

    first, again, other = sample(3), sample(3), sample(4)
    assert [r.token_ids for r in first] == [r.token_ids for r in again] != [r.token_ids for r in other]
    for prompt, feature, row in zip(prompts, features, first, strict=False):
        whole = extended(prompt, row.token_ids)
        hidden, _, _ = teacher_forced(policy.model, [whole], [feature], refining=[], pad_id=STOPS[1], num_soft_tokens=8)
        places = hidden[0, -len(row.token_ids) - 1 : -1]
        log_probs = policy.model.lm_head(places).log_softmax(-1)
        expected = log_probs.gather(-1, torch.tensor(row.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(row.log_probs), expected.detach(), atol=1e-4, rtol=1e-4)


# Training


@functools.cache
def answered(seed_hidden: str = "post_norm") -> tuple[LoadedPolicy, list[Prompt], list[VideoFeatures]]:
    """Prompts with answers; rows 0, 2 and 3 end with <REFINE>."""
    policy, prompts, features = world(seed_hidden)
    answers = [
        answer_text("a bar is shown.", False),
        answer_text("a ring grows.", True, 0.0, 1.5) + "<|im_end|>",
        answer_text("there is no ring in the video, a red bar moves left.", False),
        answer_text("no.", False),
    ]
    ids = [policy.tokenizer(a, add_special_tokens=False)["input_ids"] for a in answers]
    return policy, [extended(p, row) for p, row in zip(prompts, ids, strict=False)], features[:4]


def gradients(policy: LoadedPolicy, value: Tensor) -> dict[str, Tensor]:
    policy.model.zero_grad()
    value.backward()
    grads = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return grads


def naive_training_latents(policy: LoadedPolicy, prompts: list[Prompt], rows: list[int]) -> Tensor:
    weights = dict(policy.model.named_parameters())
    form = policy.model.soft_query.seed_hidden
    made = []
    for row in rows:
        video = random_video(row, policy.model.config)
        ids, patches = (tensor.to(policy.model.device) for tensor in (prompts[row].token_ids, video.patches))
        made.append(naive.latents(policy.model, weights, ids, patches, video.grid, 4, form))
    return torch.stack(made)


def probe(latents: Tensor) -> Tensor:
    """A scalar to which every latent contributes differently."""
    weights = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    return (latents * weights.to(latents.device)).sum()


@pytest.mark.parametrize("seed_hidden", ["post_norm", "pre_norm"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_latents_for_training_and_their_gradients_equal_n_full_passes(seed_hidden: str, checkpointing: bool) -> None:
    policy, prompts, _ = answered(seed_hidden)
    rows = [0, 2, 3]
    policy.model.train()
    expected = naive_training_latents(policy, prompts, rows)
    expected_grads = gradients(policy, probe(expected))
    if checkpointing:
        policy.model.activation_checkpointing_enable()
    try:
        videos = [random_video(row, policy.model.config) for row in range(4)]
        features = [encode_videos(policy.model.model, [video])[0] for video in videos]
        _, ours, _ = teacher_forced(policy.model, prompts, features, refining=rows, pad_id=STOPS[1], num_soft_tokens=4)
        grads = gradients(policy, probe(ours))
    finally:
        policy.model.activation_checkpointing_disable()
        policy.model.eval()
    torch.testing.assert_close(ours, expected, atol=EXACT, rtol=EXACT)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        scale = float(expected_grads[name].abs().max())
        assert float((grad - expected_grads[name]).abs().max()) <= 1e-4 * scale + 1e-6, name


@torch.no_grad()
def test_training_latents_come_in_the_order_asked_for() -> None:
    policy, prompts, features = answered()
    kwargs = {"pad_id": STOPS[1], "num_soft_tokens": 2}
    every = [prompts[i] for i in (0, 2, 3)]
    videos = [features[i] for i in (0, 2, 3)]
    _, straight, _ = teacher_forced(policy.model, every, videos, refining=[0, 1, 2], **kwargs)
    _, turned, _ = teacher_forced(policy.model, every, videos, refining=[2, 1, 0], **kwargs)
    torch.testing.assert_close(turned, straight.flip(0))


@torch.no_grad()
def test_training_and_inference_give_the_same_latents() -> None:
    policy, prompts, features = world()
    decoded = run(policy, prompts[:4], features[:4], max_new_tokens=9)
    whole = [extended(p, [*without_end(d.token_ids), REFINE_ID]) for p, d in zip(prompts, decoded, strict=False)]
    hidden, latents, batch = teacher_forced(
        policy.model, whole, features[:4], refining=[0, 1, 2, 3], pad_id=STOPS[1], num_soft_tokens=8
    )
    assert hidden.shape[:2] == batch.token_ids.shape
    expected = torch.stack([d.latents for d in decoded if d.latents is not None])
    torch.testing.assert_close(latents, expected, atol=EXACT, rtol=EXACT)
