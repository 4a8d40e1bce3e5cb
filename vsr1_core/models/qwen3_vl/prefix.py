"""Single steps after a prompt, which all share the keys and values of the prompt. Differentiable, for the latents in
training.

The cache of transformers concatenates the key of a step to all keys before it, so autograd would keep a copy of the
prompt's keys and values for every step: 5 GB per row of the 2B model for 7 steps after 6,700 tokens. Here the keys and
values of the prompt are kept once, and a step attends to them and to those of the steps as two parts of one softmax.
Inference uses `kv_cache`, and packed passes `packed_steps`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, apply_rotary_pos_emb

from vsr1_core.models.qwen3_vl.batching import Batch

_log = logging.getLogger(__name__)
KeysAndValues = tuple[Tensor, Tensor]
"""Both [R, heads, n, head_dim]."""


@contextlib.contextmanager
def layer_inputs(model: Qwen3VLTextModel) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that a pass over `model` fills: number of a layer -> the hidden states [B, L, H] that it reads."""
    inputs: dict[int, Tensor] = {}

    def keep(layer: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.setdefault(layer.self_attn.layer_idx, args[0])

    hooks = [layer.register_forward_pre_hook(keep) for layer in model.layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


class SharedPrefix:
    """Rows that `model` has read, which are continued by one input per row at a time, at most `num_steps` times.

    layers: of each layer, keys and values [R, heads, L, head_dim] of the prompts. next_positions: [R], of the next
    input. is_padding: bool [R, L], True at columns that are no token of a row.
    """

    def __init__(
        self,
        model: Qwen3VLTextModel,
        layers: Sequence[KeysAndValues],
        next_positions: Tensor,
        is_padding: Tensor,
        num_steps: int,
    ) -> None:
        self.model, self.layers, self.next_positions = model, layers, next_positions
        self.bias = torch.zeros_like(is_padding, dtype=torch.float32).masked_fill(is_padding, -torch.inf)[:, None, None]
        self._columns = torch.arange(num_steps, device=is_padding.device)
        self.of_steps: list[KeysAndValues] = [(self._empty(keys), self._empty(values)) for keys, values in layers]
        self._num_done = 0

    def _empty(self, of_prompt: Tensor) -> Tensor:
        """Room for all steps. To `CompiledStep`, the first step is one like all others: of the same shapes, with
        gradients, and without two names for one tensor."""
        rows, heads, _, size = of_prompt.shape
        return of_prompt.new_zeros(rows, heads, len(self._columns), size, requires_grad=of_prompt.requires_grad)

    def step(self, embeds: Tensor) -> Tensor:
        """Feed one input embedding per row, embeds [R, H]. Returns the hidden states [R, H] after the final norm."""
        hidden = torch.stack([embeds], dim=1)  # no view, which would be compiled for itself
        cosines = self.model.rotary_emb(hidden, self.next_positions[None, :, None].expand(3, -1, -1))
        is_now = (self._columns == self._num_done)[:, None]
        is_later = self._columns > self._num_done
        bias = torch.cat([self.bias, self.bias.new_zeros(len(hidden), 1, 1, 1).where(~is_later, -torch.inf)], dim=-1)
        self.next_positions, self._num_done = self.next_positions + 1, self._num_done + 1
        run = step_on(hidden.device)
        for i, layer in enumerate(self.model.layers):
            hidden, *own = run(layer, hidden, self.layers[i], self.of_steps[i], is_now, bias, *cosines)
            self.of_steps[i] = own[0], own[1]
        return self.model.norm(hidden)[:, 0]


def _step(
    layer: torch.nn.Module,
    hidden: Tensor,
    of_prompt: KeysAndValues,
    of_steps: KeysAndValues,
    is_now: Tensor,
    bias: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The step of one layer: hidden states [R, 1, H], and the keys and values [R, heads, N, head_dim] of the steps.
    is_now: [N, 1], True at this step. bias: [R, 1, 1, L + N]."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    key, value = keys_and_values(attention, normed, cos, sin)
    query = attention.q_norm(heads_of(attention.q_proj(normed), attention.head_dim)).transpose(1, 2)
    query = apply_rotary_pos_emb(query, key, cos, sin)[0]
    # Group the heads that share a key: [R, query heads, 1, d] -> [R, key heads, heads per key, d].
    grouped = query.reshape(len(query), key.shape[1], -1, attention.head_dim)
    keys, values = of_prompt
    own_keys, own_values = torch.where(is_now, key, of_steps[0]), torch.where(is_now, value, of_steps[1])
    scores = torch.cat([grouped @ keys.mT, grouped @ own_keys.mT], dim=-1).float() * attention.scaling
    weights = (scores + bias).softmax(-1).to(value)
    length = keys.shape[2]
    mixed = weights[..., :length] @ values + weights[..., length:] @ own_values
    hidden = hidden + attention.o_proj(mixed.reshape(len(query), 1, -1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), own_keys, own_values


class CompiledStep:
    """`_step`, compiled when it is first called: once for one row and once for several, whatever the lengths."""

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        # Each step would keep the weights in the precision of autocast, 15 GB more for the 2B model in bf16. So nothing
        # is kept but what a step reads.
        lean = functools.partial(checkpoint, _step, use_reentrant=False, preserve_rng_state=False)
        self._run = torch.compile(lean, dynamic=True, backend=backend)

    def __call__(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        try:
            return self._run(*args)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # a second of imports, but for who compiles

            if not isinstance(error, TorchDynamoException):
                raise
            _log.warning("a step of the latents could not be compiled, so each kernel is launched by itself: %s", error)
            self._run = _step
            return _step(*args)


@functools.cache
def _compiled_step() -> CompiledStep:
    return CompiledStep()


def step_on(device: torch.device) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """How a layer steps on a device. On a GPU, launching the kernels of a step and of its backward pass from Python
    takes longer than running them, and compiling makes few of many."""
    return _compiled_step() if device.type == "cuda" and torch.is_grad_enabled() else _step


def after_batch(
    model: Qwen3VLTextModel, inputs: dict[int, Tensor], batch: Batch, rows: Sequence[int], num_steps: int
) -> SharedPrefix:
    """The prefix of the rows `rows` of a batch, which `num_steps` steps continue.

    The keys and values of the prompts are computed again from what each layer read (`layer_inputs`), with two products
    per layer and for these rows only. So the large pass may be checkpointed, and rows that do not continue keep none.
    """
    at = torch.tensor(list(rows), device=batch.mask.device)
    cosines = model.rotary_emb(inputs[0], batch.positions[:, at])
    layers = [
        checkpoint(read_by, layer, inputs[i][at], *cosines, use_reentrant=False) for i, layer in enumerate(model.layers)
    ]
    next_positions = batch.positions[:, at].amax(dim=(0, 2)) + 1  # padding has position 0
    return SharedPrefix(model, layers, next_positions, batch.mask[at] == 0, num_steps)


def read_by(layer: torch.nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> KeysAndValues:
    """Keys and values of what `layer` read, `hidden` [R, L, H]."""
    keys, values = keys_and_values(layer.self_attn, layer.input_layernorm(hidden), cos, sin)
    # If they were not contiguous, the product of every step would copy them.
    return keys.contiguous(), values.contiguous()


def keys_and_values(attention: torch.nn.Module, normed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (rotated) and values [R, heads, L, head_dim] of normed [R, L, H]."""
    keys = attention.k_norm(heads_of(attention.k_proj(normed), attention.head_dim)).transpose(1, 2)
    values = heads_of(attention.v_proj(normed), attention.head_dim).transpose(1, 2)
    return apply_rotary_pos_emb(keys, keys, cos, sin)[1], values


def heads_of(projected: Tensor, head_dim: int) -> Tensor:
    """A projection [R, L, heads * head_dim] as [R, L, heads, head_dim]."""
    return projected.unflatten(-1, (-1, head_dim))
