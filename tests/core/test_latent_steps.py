"""Single steps for the latents in training, for models and precisions that `test_decoding` and `test_packed` have not:
adapters, biases, autocast, a GPU. What they are compared with are N full passes of the model of transformers."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, LoraModel
from torch import Tensor

from tests.core.recorded_graphs import RecordedGraphs
from tests.core.test_decoding import REFINE_ID, STOPS, gradients, naive_training_latents, probe
from tests.core.test_packed import num_layers
from tests.core.tiny_models import prompts_with_videos, random_video, small_config, tiny_policy
from vsr1_core.models.prompts import Prompt, extended
from vsr1_core.models.qwen3_vl import captures, latent_steps, step_layer
from vsr1_core.models.qwen3_vl.captures import Capture
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.reading import teacher_forced, teacher_forced_answers
from vsr1_core.models.qwen3_vl.vision import encode_videos
from vsr1_core.training import lora

ROWS = [0, 2, 3]
GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")],
)
IN_BOTH_WAYS = pytest.mark.parametrize("passes", ["launched", "captured"], indirect=True)
"""For a test that says what is peculiar to captures. Others run in both ways only where long tests do."""


@pytest.fixture(params=["launched", pytest.param("captured", marks=pytest.mark.long)], autouse=True)
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How steps are done: each kernel from Python, or captured. Returns how often each pass captured something."""
    found: list[int] = []

    def capture_on(device: torch.device) -> Capture:
        capture, number = captures.capture_on(device) or RecordedGraphs(), len(found)
        found.append(0)

        def counted(work: Callable[[], Any]) -> Callable[[], Any]:
            found[number] += 1
            return capture(work)

        return counted

    monkeypatch.setattr(latent_steps, "capture_on", capture_on if request.param == "captured" else lambda _device: None)
    return found


def refining_rows(policy: LoadedPolicy) -> list[Prompt]:
    prompts, _ = prompts_with_videos(policy, range(4))
    return [extended(prompt, [REFINE_ID]) for prompt in prompts]


def ours(policy: LoadedPolicy, rows: list[Prompt], num: int = 4) -> Tensor:
    """The latents of ROWS, with gradients that reach the vision tower."""
    device = policy.model.device
    videos = [random_video(row, policy.model.config) for row in range(len(rows))]
    on_device = [dataclasses.replace(video, patches=video.patches.to(device)) for video in videos]
    features = [encode_videos(policy.model.model, [video])[0] for video in on_device]
    return teacher_forced(policy.model, rows, features, refining=ROWS, pad_id=STOPS[1], num_soft_tokens=num)[1]


def assert_as_n_full_passes(policy: LoadedPolicy, close: float = 1e-5, of_gradients: float = 1e-4) -> None:
    """`policy` is moved to the CPU for the full passes."""
    rows = refining_rows(policy)
    made = ours(policy, rows)
    grads = gradients(policy, probe(made.cpu()))
    policy.model.to("cpu")
    expected = naive_training_latents(policy, rows, ROWS)
    expected_grads = gradients(policy, probe(expected))
    torch.testing.assert_close(made.cpu(), expected, atol=close, rtol=close)
    assert_as_near(grads, expected_grads, of_gradients)


def assert_as_near(grads: dict[str, Tensor], expected: dict[str, Tensor], close: float) -> None:
    """Gradients by name. close: in parts of the greatest expected of a name."""
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        scale = float(expected[name].abs().max())
        assert float((grad.cpu() - expected[name].cpu()).abs().max()) <= close * scale + 1e-6, name


def with_adapters(policy: LoadedPolicy) -> lora.Adapters:
    """Adapters that change what the policy writes: as attached, they change nothing."""
    adapters = lora.attach(policy.text_model, 3, seed=0)
    make_lively(policy)
    return adapters


def make_lively(policy: LoadedPolicy) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.text_model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


@IN_BOTH_WAYS
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("grouped_heads", [True, False])
def test_latents_and_gradients_equal_n_full_passes_on_each_device(
    device: str, grouped_heads: bool, passes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    policy = tiny_policy(config=small_config(grouped_heads=grouped_heads))
    policy.model.to(device)
    assert_as_n_full_passes(policy, 1e-5 if device == "cpu" else 1e-4, 1e-4 if device == "cpu" else 1e-3)
    assert passes in ([], [2]), "a step, and its backward pass"
    assert caplog.messages == [], "nothing failed to be captured"


@IN_BOTH_WAYS
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("num_members", [1, 3])
def test_passes_at_once_and_again_give_what_each_gives_alone(device: str, num_members: int, passes: list[int]) -> None:
    """Two micro-batches, which go backward in turns and several times."""
    policy = tiny_policy()
    policy.model.to(device)
    rows = [refining_rows(policy), [extended(row, [11, REFINE_ID]) for row in refining_rows(policy)]]
    work = ours if num_members == 1 else partial(of_branches, num_members=num_members)

    def losses(each: list[Prompt]) -> list[Tensor]:
        made = work(policy, each, 6)
        return [probe(made), made[:, 3].square().sum(), probe(made[:, 1:])]

    alone = [[gradients_kept(policy, losses(each)[number]) for number in range(3)] for each in rows]
    at_once = [losses(each) for each in rows]
    for number in range(3):
        for expected, mine in zip(alone, at_once, strict=True):
            assert_as_near(gradients_kept(policy, mine[number]), expected[number], 1e-5 if device == "cpu" else 1e-3)
    assert passes in ([], [2] * 8)


@IN_BOTH_WAYS
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_passes_use_the_memory_of_earlier_graphs_again(passes: list[int]) -> None:
    policy = tiny_policy()
    policy.model.to("cuda")
    rows, reserved = refining_rows(policy), list[int]()
    for _ in range(12):
        policy.model.zero_grad()
        probe(ours(policy, rows, 6)).backward()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[3:] == reserved[3:4] * 9


def gradients_kept(policy: LoadedPolicy, loss: Tensor) -> dict[str, Tensor]:
    """The gradients of a loss that will go backward again."""
    policy.model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def of_branches(policy: LoadedPolicy, rows: list[Prompt], num: int, num_members: int) -> Tensor:
    """The latents of several answers to each of two prompts, which are steps of one group."""
    device = policy.model.device
    videos = [random_video(row, policy.model.config) for row in range(2)]
    on_device = [dataclasses.replace(video, patches=video.patches.to(device)) for video in videos]
    features = [encode_videos(policy.model.model, [video])[0] for video in on_device]
    prompts = [row for row in rows[:2] for _ in range(num_members)]
    of_each = [feature for feature in features for _ in range(num_members)]
    answers = [[7 + number] * (1 + number % 3) + [REFINE_ID] for number in range(len(prompts))]
    arguments = {"refining": range(len(prompts)), "pad_id": STOPS[1], "num_soft_tokens": num}
    return teacher_forced_answers(policy.model, prompts, of_each, answers, **arguments)[1]


@pytest.mark.parametrize("refused", [0, 1])
def test_a_step_that_cannot_be_captured_is_run_all_the_same(
    refused: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the step (0) nor its backward pass (1)."""
    policy = tiny_policy()
    rows = refining_rows(policy)
    expected = gradients(policy, probe(ours(policy, rows)))
    recorded, asked = RecordedGraphs(), list[int]()

    def capture(work: Callable[[], Any]) -> Callable[[], Any]:
        asked.append(len(asked))
        if asked[-1] == refused:
            raise RuntimeError("operation not permitted when stream is capturing")
        return recorded(work)

    monkeypatch.setattr(latent_steps, "capture_on", lambda _device: capture)
    for name, grad in gradients(policy, probe(ours(policy, rows))).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-6, rtol=1e-6)
    assert asked == [0, 1]
    what = ("a step of the latents", "a step of the latents' backward pass")[refused]
    why = "each kernel is launched by itself: operation not permitted when stream is capturing"
    assert caplog.messages == [f"{what} could not be captured, so {why}"]


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_latents_and_gradients_of_adapters_equal_n_full_passes(device: str) -> None:
    policy = tiny_policy()
    before = ours(policy, refining_rows(policy)).detach()
    with_adapters(policy)
    policy.model.to(device)
    changed = ours(policy, refining_rows(policy)).detach().cpu()
    assert float((changed - before).abs().max()) > 0.1, "a test at 1e-5 must be able to tell them apart"
    assert_as_n_full_passes(policy, 1e-5 if device == "cpu" else 1e-4, 1e-4 if device == "cpu" else 1e-3)


@torch.no_grad()
def test_adapters_that_are_off_or_merged_are_not_added_again() -> None:
    policy = tiny_policy()
    rows = refining_rows(policy)
    before = ours(policy, rows)
    adapters = with_adapters(policy)
    changed = ours(policy, rows)
    with adapters.disabled():
        torch.testing.assert_close(ours(policy, rows), before, atol=0, rtol=0)
    adapters.merge()
    torch.testing.assert_close(ours(policy, rows), changed, atol=1e-4, rtol=1e-4)


def test_biases_of_attention_are_part_of_the_steps() -> None:
    policy = tiny_policy(config=small_config(attention_bias=True))
    names = [name for name, _ in policy.model.model.language_model.named_parameters() if name.endswith("k_proj.bias")]
    assert names
    assert_as_n_full_passes(policy)


def test_an_activation_that_the_steps_do_not_know_is_named() -> None:
    policy = tiny_policy(config=small_config(hidden_act="gelu"))
    with pytest.raises(ValueError, match="hidden_act is 'gelu'; latents are trained through layers with silu only"):
        ours(policy, refining_rows(policy))


def distance(made: Tensor, exact: Tensor) -> float:
    return float((made - exact).norm() / exact.norm())


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("has_adapters", [False, True])
def test_products_in_bf16_are_as_near_as_those_of_full_passes(device: str, has_adapters: bool) -> None:
    """Under autocast, N full passes and our steps round differently: neither is farther from float32."""
    policy = tiny_policy()
    if has_adapters:
        with_adapters(policy)
    policy.model.to(device)
    rows = refining_rows(policy)
    exact = ours(policy, rows)
    exact_grads = gradients(policy, probe(exact.cpu()))
    errors = []
    for work in (ours, lambda policy, rows: naive_training_latents(policy, rows, ROWS)):
        with torch.autocast(device, torch.bfloat16):
            made = work(policy, rows)
        grads = gradients(policy, probe(made.cpu()))
        assert all(torch.isfinite(grad).all() for grad in grads.values())
        of_gradients = [distance(grads[name], grad) for name, grad in exact_grads.items() if grad.norm() > 0]
        errors.append((distance(made.detach(), exact.detach()), sum(of_gradients) / len(of_gradients)))
    for mine, theirs in zip(*errors, strict=True):
        assert 0 < mine <= 1.5 * theirs


def tensors() -> list[Tensor]:
    return [each for each in gc.get_objects() if isinstance(each, Tensor)]


def test_a_step_keeps_no_copy_of_the_prompts_keys_or_of_the_weights() -> None:
    policy = tiny_policy()
    prompts, features = prompts_with_videos(policy, [0])
    filler = policy.tokenizer("a red ring moves left. " * 200, add_special_tokens=False)["input_ids"]
    long = [extended(prompts[0], [*filler, REFINE_ID])]

    def kept_bytes(num_soft_tokens: int) -> int:
        """Of all tensors that a forward pass leaves, by Python's account and by that of autograd."""
        gc.collect()
        before = {tensor.untyped_storage().data_ptr() for tensor in tensors()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with torch.autocast("cpu", torch.bfloat16), hooks:
            kwargs = {"refining": [0], "pad_id": STOPS[1], "num_soft_tokens": num_soft_tokens}
            latents = teacher_forced(policy.model, long, features, **kwargs)[1]
        assert latents.requires_grad
        for tensor in tensors():
            note(tensor)
        return sum(num_bytes for pointer, num_bytes in kept.items() if pointer not in before)

    text = policy.model.config.text_config
    of_keys = 2 * len(long[0].token_ids) * text.num_key_value_heads * text.head_dim * text.num_hidden_layers
    of_weights = 2 * sum(p.numel() for p in policy.model.model.language_model.layers.parameters())
    one_step = (kept_bytes(8) - kept_bytes(2)) / 6
    assert 0 < one_step < min(of_keys, of_weights) / 2


def test_a_loss_that_has_gone_backward_keeps_no_keys_and_weights() -> None:
    """The trainer keeps losses of all micro-batches for the log of a step."""
    policy = tiny_policy()
    rows = refining_rows(policy)
    gc.collect()
    before = num_layers()
    loss = probe(ours(policy, rows))
    assert num_layers() == before + 3
    loss.backward(retain_graph=True)
    assert num_layers() == before + 3
    loss.backward()
    assert num_layers() == before
    assert loss.grad_fn is not None


def test_layers_go_one_after_the_other_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what they keep is gone before the backward pass of the prompts, which needs the most."""
    policy, left = tiny_policy(), list[int]()
    rows = refining_rows(policy)
    gc.collect()
    before, gradients_of = num_layers(), step_layer.StepLayer.gradients

    def noted(layer: step_layer.StepLayer) -> list[Tensor | None]:
        left.append(num_layers() - before)
        return gradients_of(layer)

    monkeypatch.setattr(step_layer.StepLayer, "gradients", noted)
    probe(ours(policy, rows)).backward()
    assert left == [3, 2, 1]


def test_a_second_backward_pass_over_steps_that_were_not_retained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, after = tiny_policy(), list[Tensor]()
    step = latent_steps.LatentSteps.step

    def noted(steps: latent_steps.LatentSteps, embeds: Tensor) -> Tensor:
        after.append(step(steps, embeds))
        return after[-1]

    monkeypatch.setattr(latent_steps.LatentSteps, "step", noted)
    ours(policy, refining_rows(policy), num=2).sum().backward()
    with pytest.raises(RuntimeError, match="the steps of the latents have gone backward already"):
        after[0].sum().backward()


def test_gradients_of_latents_alone_are_no_part_of_the_next_backward_pass() -> None:
    policy = tiny_policy()
    rows = refining_rows(policy)
    expected = gradients(policy, probe(ours(policy, rows)))
    made = ours(policy, rows)
    loss = probe(made)
    parts = torch.autograd.grad(loss, list(policy.model.refine_parameters)[:1], retain_graph=True)
    assert parts[0].abs().max() > 0
    for name, grad in gradients(policy, loss).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-6, rtol=1e-6)


def test_states_of_the_rows_that_continue_are_kept_once() -> None:
    policy = tiny_policy()
    policy.model.train()
    policy.model.activation_checkpointing_enable()
    rows = refining_rows(policy)
    made = ours(policy, rows)
    of_rows = (len(ROWS), max(len(row.token_ids) for row in rows), policy.model.config.text_config.hidden_size)
    assert made.requires_grad
    assert not [each for each in tensors() if each.shape == of_rows]


@pytest.mark.parametrize(
    "adapters",
    [
        {"target_modules": r".*layers\.1\..*(v_proj|gate_proj)"},
        {"target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"v_proj": 5}, "use_rslora": True},
    ],
)
def test_adapters_of_some_layers_and_of_several_ranks_equal_n_full_passes(adapters: dict[str, Any]) -> None:
    policy = tiny_policy()
    tuner = LoraModel(policy.text_model, {"default": LoraConfig(r=3, **adapters)}, "default")
    make_lively(policy)
    assert_as_n_full_passes(policy)
    tuner.peft_config["second"] = LoraConfig(r=2, target_modules=["q_proj", "k_proj"])
    tuner.inject_adapter(tuner.model, "second")
    make_lively(policy)
    for active in (["default", "second"], ["second"]):
        tuner.set_adapter(active)
        assert_as_n_full_passes(policy)


@pytest.mark.parametrize(
    "learning",
    ["layers.2.self_attn.v_proj", "layers.1.mlp", "k_norm", "language_model.norm", "nothing but the soft query"],
)
def test_gradients_where_little_learns_equal_n_full_passes(learning: str) -> None:
    policy = tiny_policy()
    for name, parameter in policy.model.model.named_parameters():
        parameter.requires_grad_(learning in name)
    assert_as_n_full_passes(policy)
