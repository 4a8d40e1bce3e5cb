"""Steps of fixed shape, as a CUDA graph repeats them, against steps of the model itself on a growing cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.core.recorded_graphs import RecordedGraphs
from tests.core.tiny_models import prompts_with_videos, tiny_policy
from vsr1_core.models.decoding import decode
from vsr1_core.models.protocols import Decoded, DecodeSettings
from vsr1_core.models.qwen3_vl import reading
from vsr1_core.models.qwen3_vl.captures import capture_on
from vsr1_core.models.qwen3_vl.kv_cache import InPlaceCache
from vsr1_core.models.qwen3_vl.single_steps import SingleSteps, States

EXACT = 1e-5
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def decoded(max_new_tokens: int = 12, rows: int = 7, device: str = "cpu") -> list[Decoded]:
    """Rows of which some refine, some do not, and which end at different steps."""
    policy = tiny_policy()
    policy.model.to(device)
    prompts, features = prompts_with_videos(policy, range(rows))
    return decode(
        policy,
        prompts,
        features,
        DecodeSettings(max_new_tokens, num_soft_tokens=4),
        wants_refine=lambda text: len(text) % 3 > 0,
    )


def assert_equal(some: list[Decoded], others: list[Decoded]) -> None:
    assert [row.token_ids for row in some] == [row.token_ids for row in others]
    assert {row.latents is None for row in some} == {True, False}, "rows end at different steps"
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=EXACT, rtol=EXACT)
        if one.latents is not None:
            torch.testing.assert_close(one.latents.cpu(), other.latents.cpu(), atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("max_new_tokens", [12, 90])
def test_steps_of_fixed_shape_decode_what_growing_ones_do(monkeypatch: pytest.MonkeyPatch, max_new_tokens: int) -> None:
    """With 90 tokens the buffers of the cache are replaced on the way: half of them were expected."""
    expected = decoded(max_new_tokens)
    recorded = RecordedGraphs()
    monkeypatch.setattr(reading, "capture_on", lambda _device: recorded)
    assert_equal(decoded(max_new_tokens), expected)
    sizes = [len(graph.result[0]) for graph in recorded.graphs]
    assert sizes[0] == 7, "never more rows than there are"
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= 5, "a row that leaves does not make a new graph"


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_step_is_that_of_the_model(fixed: bool, autocast: bool) -> None:
    policy = tiny_policy()
    model = policy.model.model.language_model
    embeds = torch.randn(3, 9, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)

    def read(cache: Any) -> Tensor:
        arguments = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
        return model(**arguments, past_key_values=cache).last_hidden_state[:, -1]

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        theirs, ours = DynamicCache(config=model.config), InPlaceCache(model.config.num_hidden_layers, room=2)
        hidden = read(theirs)
        torch.testing.assert_close(read(ours), hidden)
        steps = SingleSteps(model, ours, mask, positions[0, :, -1] + 1, RecordedGraphs() if fixed else None)
        for number in range(6):
            grown = torch.cat([mask, mask.new_ones(3, number + 1)], dim=1)
            at = (positions[0, :, -1] + 1 + number)[None, :, None].expand(3, -1, -1)
            arguments = {"inputs_embeds": hidden[:, None], "attention_mask": grown, "position_ids": at}
            wanted = model(**arguments, past_key_values=theirs).last_hidden_state[:, -1]
            made = steps.step(hidden)[1].clone()
            tolerance = 0.05 if autocast else EXACT
            torch.testing.assert_close(made, wanted, atol=tolerance, rtol=tolerance)
            hidden = wanted
    assert steps.num_captured == (2 if fixed else 0), "once, and again where the buffers were replaced"


def test_a_step_that_cannot_be_captured_is_run_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_step: Callable[[], States]) -> Callable[[], States]:
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = decoded()
    monkeypatch.setattr(reading, "capture_on", lambda _device: refuse)
    assert_equal(decoded(), expected)
    [said] = caplog.messages
    assert said.endswith("each kernel is launched by itself: operation not permitted when stream is capturing")


def test_only_a_gpu_captures() -> None:
    assert capture_on(torch.device("cpu")) is None


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("max_new_tokens", [12, 90])
def test_cuda_graphs_decode_what_single_kernels_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, max_new_tokens: int
) -> None:
    graphs = decoded(max_new_tokens, device="cuda")
    assert caplog.messages == [], "all steps were captured"
    monkeypatch.setattr(reading, "capture_on", lambda _device: None)
    assert_equal(graphs, decoded(max_new_tokens, device="cuda"))
