"""Single steps after rows that were read with gradients, for the latents in training. Inference uses `single_steps`.

A step through all layers is one step of autograd with its own backward pass: of single operations, each over a dozen
tokens, it takes three times what its products take on a CPU, and on a GPU most of the time goes into launching them.
So on a GPU a step is captured, and so is its backward pass: all steps have the same shapes, and attend to the columns
of all of them, of which those of later steps have no weight.

The gradients of weights, and those of a prompt's keys and values, are sums over all steps. Each step notes its factors
in its backward pass, and one product makes the sum at the end, in place of a gradient as large as all weights and all
keys for every step.

P, n, L, C, g: see `step_groups`; R: P * n, rows that are continued; S: steps; H: hidden size; h: heads of queries; k:
heads of keys; d: size of a head. Products have the precision of autocast, or that of the weights; all else is at least
float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vsr1_core.models.qwen3_vl.batching import Batch
from vsr1_core.models.qwen3_vl.captures import Capture, Repeated, SideBySide, capture_on
from vsr1_core.models.qwen3_vl.fused import unit, unit_backward
from vsr1_core.models.qwen3_vl.packed import Packed, Read, rotations_at
from vsr1_core.models.qwen3_vl.prefix import read_by
from vsr1_core.models.qwen3_vl.step_groups import Gathered, Groups, InPacked
from vsr1_core.models.qwen3_vl.step_layer import Kept, Place, StepLayer
from vsr1_core.models.qwen3_vl.step_weights import Noted, StepWeights


class _LastNorm:
    """The weight [H] of the last norm, as a constant, and the gradient of it that each step noted."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.noted = weight.detach(), list[Tensor]()

    def gradients(self) -> list[Tensor | None]:
        total = torch.stack(self.noted).sum(0)
        self.noted.clear()
        return [total]


_KeptOfAll = tuple[list[Kept], Tensor, Tensor]
"""What layers and the last norm keep of a step."""


@dataclass
class _Stack:
    """All layers and the last norm, on tensors alone: each step does the same to other values.

    bias: see `Groups.bias`; the columns of a step become `own_bias` when it runs.
    """

    layers: list[StepLayer]
    norm: _LastNorm
    bias: Tensor
    own_bias: Tensor
    first: int
    backward_pass: int = -1
    """The number of the backward pass that was here last."""

    def forward(self, hidden: Tensor, *at: Tensor) -> tuple[Tensor, _KeptOfAll]:
        """The states [R, H] after the last norm. at: the tensors of a `Place`."""
        place = Place(*at)
        self.bias[..., self.first :].index_copy_(-1, place.columns, self.own_bias)
        kept = []
        for layer in self.layers:
            hidden, of_layer = layer.forward(hidden, place)
            kept.append(of_layer)
        normed, factor = unit(hidden, self.layers[-1].epsilon)
        return normed * self.norm.weight, (kept, normed, factor)

    def backward(self, learns: bool, grad: Tensor, kept: _KeptOfAll, *at: Tensor) -> tuple[Any, ...]:
        """The gradient [R, H] before the first layer, and what the last norm and each layer note, if anything
        learns."""
        (of_layers, normed, factor), place = kept, Place(*at)
        noted: list[Any] = [(grad * normed).sum(0)]
        grad = unit_backward(grad * self.norm.weight, normed, factor)
        for layer, of_layer in zip(reversed(self.layers), reversed(of_layers), strict=True):
            grad, of_this = layer.backward(grad, place, of_layer)
            noted.append(of_this)
        return (grad, *noted) if learns else (grad,)

    def begin(self) -> None:
        """Begin a backward pass, if the one that runs is not here yet. An earlier one may have ended before it used its
        notes: by an error, or because only gradients of activations were asked for."""
        number = torch._C._current_graph_task_id()
        if number != self.backward_pass:
            self.backward_pass = number
            self.norm.noted.clear()
            for layer in self.layers:
                layer.begin()

    def note(self, of_norm: Tensor, *of_layers: Noted | SideBySide) -> None:
        """Keep what a step of the backward pass noted."""
        self.norm.noted.append(of_norm)
        for layer, noted in zip(reversed(self.layers), of_layers, strict=True):
            layer.noted.append(noted)


class _Steps:
    """The steps of a stack, and those of its backward pass. The stack does not know them, as nodes of autograd do."""

    def __init__(self, stack: _Stack, capture: Capture | None) -> None:
        self.stack = stack
        self.forward = Repeated(stack.forward, capture, "a step of the latents")
        self.backward = {
            learns: Repeated(partial(stack.backward, learns), capture, "a step of the latents' backward pass")
            for learns in (True, False)
        }


def _taken(ctx: Any) -> Any:
    """What a node of autograd holds. It lets go of that unless the graph is retained: autograd does so with saved
    tensors, but not with what else a node refers to, and a loss that is logged keeps all nodes that led to it."""
    if ctx.held is None:
        raise RuntimeError(
            "the steps of the latents have gone backward already and kept nothing; pass retain_graph=True to the first "
            "backward pass"
        )
    held = ctx.held
    if not torch._C._autograd._get_current_graph_task_keep_graph():
        ctx.held = None
    return held


class _Recall(torch.autograd.Function):
    """A scalar that stands for the tensors of a layer: steps that depend on it add to their gradients. A node for each
    layer, so that the gradients of its weights are added to the others before those of the next layer are made."""

    @staticmethod
    def forward(ctx: Any, noted: StepLayer | _LastNorm, *tensors: Tensor) -> Tensor:
        ctx.held = noted
        return tensors[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return None, *_taken(ctx).gradients()


class _Step(torch.autograd.Function):
    """One token of each row through all layers and the last norm: [R, H] -> [R, H], at least float32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, _stand_in: Tensor, steps: _Steps, place: Place) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            after, kept = steps.forward(hidden, *place)
        ctx.held = steps, place, kept
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        learns = ctx.needs_input_grad[1]
        steps, place, kept = _taken(ctx)
        steps.stack.begin()
        with torch.autocast(grad.device.type, enabled=False):
            grad, *noted = steps.backward[learns](grad, kept, *place)
        if learns:
            steps.stack.note(*noted)
        return grad, grad.new_zeros((), dtype=torch.float32), None, None


OfLayer = tuple[StepWeights, Tensor, Tensor]
"""The weights of a layer, and the keys and values that a pass has left."""


class LatentSteps:
    """Rows that `model` has read, which are continued by one input per row at a time, `num_steps` times.

    next_positions: [R], of the next input on all rotary axes. layers: each is made only when the one before is in its
    place, so that backward passes end one layer after the other. Raises ValueError for activations other than silu.
    """

    def __init__(
        self,
        model: Qwen3VLTextModel,
        groups: Groups,
        next_positions: Tensor,
        num_steps: int,
        layers: Iterable[OfLayer],
    ) -> None:
        if model.config.hidden_act != "silu":
            raise ValueError(
                f"the text model's hidden_act is {model.config.hidden_act!r}; latents are trained through layers with "
                "silu only, as all published Qwen3-VL models have"
            )
        self.exact, self.step_number = torch.promote_types(model.norm.weight.dtype, torch.float32), 0
        (bias, own_bias), weight = groups.bias(model, num_steps), model.norm.weight.to(self.exact)
        self.places = _places(model, weight, groups, next_positions, num_steps)
        stack = _Stack([], _LastNorm(weight), bias, own_bias, groups.first)
        stand_ins: list[Tensor] = [_Recall.apply(stack.norm, weight)]  # type: ignore[no-untyped-call]
        for module, (weights, keys, values) in zip(model.layers, layers, strict=True):
            layer = StepLayer(module, weights, keys, values, groups, bias)
            stack.layers.append(layer)
            stand_ins.append(_Recall.apply(layer, keys, values, *weights.learning))  # type: ignore[no-untyped-call]
        self.stand_in = torch.stack(stand_ins).sum()
        self.steps = _Steps(stack, capture_on(weight.device) if num_steps > 1 else None)

    def step(self, embeds: Tensor) -> Tensor:
        """Feed one input embedding per row, embeds [R, H]. Returns the hidden states [R, H] after the final norm. Where
        gradients are wanted, `embeds` must come of what the step before returned: the backward pass goes that way."""
        place = self.places[self.step_number]
        after: Tensor = _Step.apply(embeds.to(self.exact), self.stand_in, self.steps, place)  # type: ignore[no-untyped-call]
        self.step_number += 1
        if self.step_number == len(self.places):
            self.steps.forward.release()
        return after.to(embeds.dtype)


def _places(
    model: Qwen3VLTextModel, like: Tensor, groups: Groups, next_positions: Tensor, num_steps: int
) -> list[Place]:
    """Where each step is. Rotations are in the precision of `like`."""
    columns = groups.columns(num_steps)
    positions = next_positions + torch.arange(num_steps, device=next_positions.device)[:, None]
    rotations = rotations_at(model, like, positions.flatten().expand(3, -1))
    by_step = (part.unflatten(0, positions.shape) for part in rotations)
    return [Place(*place) for place in zip(columns, *by_step, strict=True)]


def after_packed(
    model: Qwen3VLTextModel, packed: Packed, read: Read, rows: Sequence[int], num_steps: int
) -> LatentSteps:
    """Steps after the rows `rows` of a packed pass."""
    of_all = packed.spans
    spans = [of_all[row] for row in rows]
    next_positions = torch.stack([packed.positions[:, start:end].max() for start, end in spans]) + 1
    lengths = torch.tensor([packed.shared + end - start for start, end in spans])
    is_padding = torch.arange(int(lengths.max())) >= lengths[:, None]

    def layers() -> Iterator[OfLayer]:
        for layer, keys, values in zip(read.layers, read.keys, read.values, strict=True):
            joint = {"queries_keys_values": layer.weight, "gate_and_up": layer.gate_and_up}
            yield StepWeights.of(layer.module, joint), keys, values

    groups = Groups(InPacked(spans, packed.shared), is_padding[:, None])
    return LatentSteps(model, groups, next_positions, num_steps, layers())


def after_batch(
    model: Qwen3VLTextModel, inputs: dict[int, Tensor], batch: Batch, rows: Sequence[int], num_steps: int
) -> LatentSteps:
    """Steps after the rows `rows` of a batch.

    The keys and values of the prompts are computed again from what each layer read (`prefix.layer_inputs`), with two
    products per layer and for these rows only. So the large pass may be checkpointed, and rows that do not continue
    keep none.
    """
    at = torch.tensor(list(rows), device=batch.mask.device)
    cosines = model.rotary_emb(inputs[0], batch.positions[:, at])
    next_positions = batch.positions[:, at].amax(dim=(0, 2)) + 1  # padding has position 0

    def layers() -> Iterator[OfLayer]:
        for number, layer in enumerate(model.layers):
            weights = StepWeights.of(layer)
            yield weights, *checkpoint(read_by, layer, inputs[number], at, *cosines, use_reentrant=False)

    groups = Groups(Gathered(), (batch.mask[at] == 0)[:, None])
    return LatentSteps(model, groups, next_positions, num_steps, layers())
