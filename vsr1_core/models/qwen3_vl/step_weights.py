"""What a layer multiplies by in single steps, in the precision of the products, and the gradients of these products.

Under autocast each product would convert its weights again, and autograd would keep a gradient as large as all weights
for every step. Here weights are converted once for all steps, and each step notes its factors, of which one product
makes the sum over all steps at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def precision_of(weight: Tensor) -> torch.dtype:
    """In which precision a product by `weight` is computed now."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


Noted = dict[str, tuple[Tensor, Tensor]]
"""What a step notes of a layer: for each product and norm that learns, its inputs and the gradient of its result."""


class Product(NamedTuple):
    """Linear layers that read the same inputs, by the names of their tensors in `StepWeights`.

    parts: matrices [outputs_i, inputs], whose results stand side by side. bias: [outputs]. inner, outer: of adapters of
    rank r, [r, inputs] and [outputs, r], scaled.
    """

    parts: tuple[str, ...]
    bias: str | None
    inner: str | None
    outer: str | None


@dataclass
class StepWeights:
    """The weights of a layer.

    tensors: by name; beside those of products the norms, at least float32: `before` the layer [H], of the `heads` of
    queries and keys [h + k, d], and `between` attention and MLP [H]. products: `queries_keys_values`, `output`,
    `gate_and_up`, `down`.
    """

    tensors: dict[str, Tensor]
    products: dict[str, Product]
    learn: Sequence[str] = ()
    """Of constants: the tensors that learn, outside of here."""
    note: frozenset[str] = frozenset()
    """Of constants: the products and norms of which something learns."""

    @classmethod
    def of(cls, layer: nn.Module, joint: dict[str, Tensor] | None = None) -> StepWeights:
        """The weights of a layer of the text model. Differentiable. joint: matrices of products that are there."""
        attention, mlp = layer.self_attn, layer.mlp
        linear = {
            "queries_keys_values": (attention.q_proj, attention.k_proj, attention.v_proj),
            "output": (attention.o_proj,),
            "gate_and_up": (mlp.gate_proj, mlp.up_proj),
            "down": (mlp.down_proj,),
        }
        precision = precision_of(weight_of(attention.q_proj))
        exact = torch.promote_types(precision, torch.float32)
        heads = [
            norm.weight.expand(len(weight_of(part)) // attention.head_dim, -1)
            for norm, part in ((attention.q_norm, attention.q_proj), (attention.k_norm, attention.k_proj))
        ]
        norms = (layer.input_layernorm.weight, torch.cat(heads), layer.post_attention_layernorm.weight)
        weights = cls({n: t.to(exact) for n, t in zip(("before", "heads", "between"), norms, strict=True)}, {})
        for name, parts in linear.items():
            weights._add(name, parts, precision, (joint or {}).get(name))
        return weights

    def _add(self, name: str, linear: Sequence[nn.Module], precision: torch.dtype, joint: Tensor | None) -> None:
        matrices = [weight_of(part) for part in linear]
        if joint is not None:
            matrices = [joint]
        elif any(matrix.dtype != precision for matrix in matrices):
            converted = [matrix.to(precision) for matrix in matrices]
            matrices = [torch.cat(converted)] if len(converted) > 1 else converted
        parts = tuple(f"{name}.{number}" for number in range(len(matrices)))
        self.tensors |= dict(zip(parts, matrices, strict=True))
        beside = {"bias": _bias(linear), **dict(zip(("inner", "outer"), _adapters(linear), strict=True))}
        self.tensors |= {f"{name}.{kind}": t.to(precision) for kind, t in beside.items() if t is not None}
        self.products[name] = Product(parts, *(f"{name}.{k}" if t is not None else None for k, t in beside.items()))

    @property
    def learning(self) -> list[Tensor]:
        """The tensors that learn."""
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]

    def constants(self) -> StepWeights:
        """The same weights outside of autograd, which know what of them learns."""
        learn = [name for name, tensor in self.tensors.items() if tensor.requires_grad]
        note = frozenset(name.partition(".")[0] for name in learn)
        return StepWeights({name: t.detach() for name, t in self.tensors.items()}, self.products, learn, note)

    def product(self, name: str, inputs: Tensor) -> Tensor:
        """The product `name` of inputs [R, n]."""
        t, of = self.tensors, self.products[name]
        made = [F.linear(inputs, t[part]) for part in of.parts]
        result = torch.cat(made, dim=-1) if len(made) > 1 else made[0]
        if of.bias:
            result = result + t[of.bias]
        return torch.addmm(result, self._inner(of, inputs), t[of.outer].T) if of.outer else result

    def added(self, hidden: Tensor, name: str, inputs: Tensor) -> Tensor:
        """`hidden` and the product `name` of inputs."""
        of = self.products[name]
        if hidden.dtype == inputs.dtype and len(of.parts) == 1 and not (of.bias or of.outer):
            return torch.addmm(hidden, inputs, self.tensors[of.parts[0]].T)
        return hidden + self.product(name, inputs)

    def scaled(self, name: str, normed: Tensor, precision: torch.dtype) -> Tensor:
        """`normed` times a norm's weight."""
        return (normed * self.tensors[name]).to(precision)

    def product_backward(self, name: str, inputs: Tensor, grad: Tensor, noted: Noted) -> Tensor:
        """The gradient of the inputs of a product from that of its result, which is noted if weights learn."""
        if name in self.note:
            noted[name] = inputs, grad
        t, of = self.tensors, self.products[name]
        grads = self._by_part(of, grad)
        of_inputs = grads[0] @ t[of.parts[0]]
        for of_part, part in zip(grads[1:], of.parts[1:], strict=True):
            of_inputs = of_inputs.addmm_(of_part, t[part])
        return of_inputs.addmm_(grad @ t[of.outer], t[of.inner]) if of.inner and of.outer else of_inputs

    def scaled_backward(self, name: str, normed: Tensor, grad: Tensor, noted: Noted) -> Tensor:
        """The gradient of `normed` from that of what `scaled` made of it, which is noted if the weight
        learns. A new tensor."""
        grad = grad.to(normed.dtype)
        if name in self.note:
            noted[name] = normed, grad
        return grad * self.tensors[name]

    def gradients(self, noted: Noted) -> list[Tensor | None]:
        """Of each of `learning`, its gradient by all steps. noted: the rows of all of them."""
        found: dict[str, Tensor] = {}
        for name, factors in noted.items():
            found |= self._gradients(name, *factors)
        return [found.get(name) for name in self.learn]

    def _gradients(self, name: str, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
        """The gradients of the tensors of a product or norm that learn, from all its factors."""
        of = self.products.get(name)
        if not of:
            return {name: (grads * inputs).sum(0)}
        by_part = zip(of.parts, self._by_part(of, grads), strict=True)
        found = {part: of_part.mT @ inputs for part, of_part in by_part if part in self.learn}
        if of.bias and of.bias in self.learn:
            found[of.bias] = grads.sum(0)
        if of.inner and of.outer and of.inner in self.learn:
            found[of.inner] = (grads @ self.tensors[of.outer]).mT @ inputs
            found[of.outer] = grads.mT @ self._inner(of, inputs)
        return found

    def _inner(self, of: Product, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.tensors[of.inner or ""])

    def _by_part(self, of: Product, grads: Tensor) -> Sequence[Tensor]:
        """Gradients of the result of a product, by its matrices."""
        return grads.split([len(self.tensors[part]) for part in of.parts], dim=-1) if len(of.parts) > 1 else [grads]


def weight_of(linear: nn.Module) -> Tensor:
    """The weight [outputs, inputs] of a linear layer, without that of an adapter."""
    weight: Tensor = getattr(linear, "base_layer", linear).weight  # type: ignore[assignment]
    return weight


def _bias(linear: Sequence[nn.Module]) -> Tensor | None:
    """The biases side by side; None where there is none."""
    biases = [getattr(part, "base_layer", part).bias for part in linear]
    if all(bias is None for bias in biases):
        return None
    rows = [weight_of(part).new_zeros(len(weight_of(part))) for part in linear]
    return torch.cat([none if bias is None else bias for bias, none in zip(biases, rows, strict=True)])


def _adapters(linear: Sequence[nn.Module]) -> tuple[Tensor | None, Tensor | None]:
    """The adapters in use, joined: [r, inputs] and [outputs, r]; None where there is none."""
    inner, outer = zip(*map(_adapter, linear), strict=True)
    return (torch.cat(inner), torch.block_diag(*outer)) if any(map(len, inner)) else (None, None)


def _adapter(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """The adapters of a layer that are in use, as [r, inputs] and [outputs, r]; r is 0 where there is none. Of plain
    LoRA, without dropout, as `training.lora` attaches it."""
    weight = weight_of(linear)
    names = [name for name in getattr(linear, "active_adapters", ()) if name in linear.lora_A]
    if not names or linear.disable_adapters or linear.merged:
        return weight.new_zeros(0, weight.shape[1]), weight.new_zeros(len(weight), 0)
    inner = torch.cat([linear.lora_A[name].weight for name in names])
    outer = torch.cat([linear.lora_B[name].weight * linear.scaling[name] for name in names], dim=1)
    return inner, outer
