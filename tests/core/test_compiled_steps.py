"""The steps of the latents in training, as a GPU compiles them, against the same steps launched kernel by kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core.test_decoding import REFINE_ID, STOPS, gradients, probe
from tests.core.tiny_models import prompts_with_videos, tiny_policy
from vsr1_core.models.prompts import extended
from vsr1_core.models.qwen3_vl import prefix
from vsr1_core.models.qwen3_vl.prefix import CompiledStep
from vsr1_core.models.qwen3_vl.reading import teacher_forced

ON_A_CPU = "aot_eager_decomp_partition"
"""Traces and divides the passes as inductor does, and needs no compiler."""
GPU = pytest.param(
    "cuda",
    "inductor",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")],
)


def latents(policy: Any, num_rows: int, refining: list[int], num: int = 6) -> Tensor:
    prompts, features = prompts_with_videos(policy, range(num_rows))
    rows = [extended(prompt, [REFINE_ID]) for prompt in prompts]
    return teacher_forced(policy.model, rows, features, refining=refining, pad_id=STOPS[1], num_soft_tokens=num)[1]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == prefix.__name__]


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize(("device", "backend"), [("cpu", ON_A_CPU), GPU])
def test_compiled_steps_give_the_same_latents_and_gradients(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str, backend: str
) -> None:
    policy, compiled = tiny_policy(), CompiledStep(backend)
    policy.model.to(device)
    for num_rows, refining in ((5, [0, 2, 4]), (5, [1]), (3, [0, 1]), (2, [1])):
        found = []
        for step in (prefix._step, compiled):
            monkeypatch.setattr(prefix, "step_on", lambda _device, step=step: step)
            made = latents(policy, num_rows, refining)
            found.append((made.detach(), gradients(policy, probe(made.cpu()))))
        (expected, expected_grads), (made, grads) = found
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
        assert grads.keys() == expected_grads.keys()
        for name, grad in grads.items():
            scale = float(expected_grads[name].abs().max())
            assert float((grad - expected_grads[name]).abs().max()) <= 1e-4 * scale + 1e-6, name
    assert warnings(caplog) == [], "all was compiled"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "one for a row, one for several"


@pytest.mark.slow
@pytest.mark.sweep
def test_a_compiled_step_keeps_no_weights_in_another_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    compiled = CompiledStep(ON_A_CPU)
    monkeypatch.setattr(prefix, "step_on", lambda _device: compiled)

    def kept_bytes(num_soft_tokens: int) -> int:
        kept: dict[int, Tensor] = {}

        def note(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with torch.autocast("cpu", torch.bfloat16), hooks:
            latents(policy, 1, [0], num_soft_tokens)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    kept_bytes(3)  # compiles
    layers = policy.model.model.language_model.layers
    assert (kept_bytes(8) - kept_bytes(2)) / 6 < sum(p.numel() for p in layers.parameters()) / 4


def test_where_nothing_can_be_compiled_each_kernel_is_launched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object) -> None:
        raise OSError("no C compiler")

    policy = tiny_policy()
    expected = latents(policy, 2, [0, 1])
    compiled = CompiledStep(no_compiler)
    monkeypatch.setattr(prefix, "step_on", lambda _device: compiled)
    torch.testing.assert_close(latents(policy, 2, [0, 1]), expected, atol=0, rtol=0)
    [said] = warnings(caplog)
    assert said.startswith("a step of the latents could not be compiled")
    assert "no C compiler" in said


def test_only_a_gpu_compiles_and_only_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    marker = object()
    monkeypatch.setattr(prefix, "_compiled_step", lambda: marker)
    assert prefix.step_on(torch.device("cpu")) is prefix._step
    assert prefix.step_on(torch.device("cuda")) is marker
    with torch.no_grad():
        assert prefix.step_on(torch.device("cuda")) is prefix._step
