"""A pass over whole rows with gradients, in which the rows are one flat sequence of tokens: no padding, what all rows
begin with only once, and only the states that are asked for. For training on a CPU; `packs` says for which models.
Inference, and training elsewhere, run the model of transformers on padded batches (`batching`).

T: tokens of all rows, with the shared ones once; H: hidden size; h: heads; d: size of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel, Qwen3VLTextModel

from vsr1_core.models.prompts import Prompt
from vsr1_core.models.qwen3_vl.batching import check_placeholders
from vsr1_core.models.qwen3_vl.fused import gated, rms_norm, rotated_heads, signed
from vsr1_core.models.qwen3_vl.row_attention import Layout, attend, ends_of_rows, whole_rows
from vsr1_core.models.qwen3_vl.vision import VideoFeatures


def packs(model: Qwen3VLTextModel) -> bool:
    """Whether a pass over `model` that starts now may be packed: it is differentiated, runs on a CPU in float32, keeps
    its activations, and has plain layers (no adapters) in which each query head has keys of its own."""
    layer, config = model.layers[0], model.config
    return (
        torch.is_grad_enabled()
        and model.embed_tokens.weight.device.type == "cpu"
        and model.embed_tokens.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not (model.training and (getattr(layer, "gradient_checkpointing", False) or config.attention_dropout))
        and layer.self_attn.num_key_value_groups == 1
        and config.hidden_act == "silu"
        and all(map(_is_plain, model.layers))
    )


def _is_plain(layer: nn.Module) -> bool:
    """Whether all products of a layer are those of linear layers without adapters and biases."""
    attention, mlp = layer.self_attn, layer.mlp
    of_attention = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    linear = (*of_attention, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return all(type(part) is nn.Linear and part.bias is None for part in linear)


Value = TypeVar("Value")
MIN_SHARED = 8
"""Fewer shared tokens are read with each row: a pass over shared keys of their own costs about what they save."""


@dataclass(frozen=True)
class Packed:
    """Rows of tokens side by side, after the tokens that all of them begin with. They stand by their lengths, because
    rows of one length attend in one call."""

    embeds: Tensor
    """[T, H]."""
    positions: Tensor
    """[3, T]."""
    lengths: Sequence[int]
    """Tokens of each row after the shared ones; with these, they add up to T."""
    last: Sequence[int]
    """Of how many tokens at the end of each row the states are wanted: at least 1, at most all of its own."""
    video_at: Tensor
    """int [v]: the places of video tokens in the flat sequence."""
    deepstack: Sequence[Tensor] = ()
    """One [v, H] per level."""
    shared: int = 0
    """The number of tokens that all rows begin with."""

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where each row, without the shared tokens, begins and ends in the flat sequence."""
        order = standing(self.lengths)
        ends = accumulate((self.lengths[row] for row in order), initial=self.shared)
        return of_rows(order, pairwise(ends))


def standing(lengths: Sequence[int]) -> list[int]:
    """The rows, by their lengths, in the order in which they stand side by side."""
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def of_rows(order: Sequence[int], values: Iterable[Value]) -> list[Value]:
    """What rows that stand in this order have, in the order of the batch."""
    found = dict(zip(order, values, strict=True))
    return [found[row] for row in range(len(order))]


Rotations = tuple[Tensor, Tensor]
"""Cosines and sines [T, 1, d] for `fused.rotated_heads`."""


def rotations_at(model: Qwen3VLTextModel, embeds: Tensor, positions: Tensor) -> Rotations:
    """The rotations at positions [3, T], in the precision of `embeds`."""
    return signed(*(part[0] for part in model.rotary_emb(embeds, positions[:, None])))


class JointLayer:
    """A layer whose products with one input are one product. The weights are joined once for a pass, so that all of the
    pass adds to one gradient of the joint weight."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.attention, mlp = module, module.self_attn, module.mlp
        parts = (self.attention.q_proj, self.attention.k_proj, self.attention.v_proj)
        self.sizes = [len(part.weight) for part in parts]
        self.weight = torch.cat([part.weight for part in parts])
        self.gate_and_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])

    def queries_keys_values(self, normed: Tensor, rotations: Rotations) -> tuple[Tensor, Tensor, Tensor]:
        """Each [T, h, d], of normed [T, H]."""
        queries, keys, values = self._heads(normed, self.weight, self.sizes)
        return self._queries(queries, rotations), self._keys(keys, rotations), values

    def queries(self, normed: Tensor, rotations: Rotations) -> Tensor:
        [queries] = self._heads(normed, self.weight[: self.sizes[0]], self.sizes[:1])
        return self._queries(queries, rotations)

    def keys_values(self, normed: Tensor, rotations: Rotations) -> tuple[Tensor, Tensor]:
        keys, values = self._heads(normed, self.weight[self.sizes[0] :], self.sizes[1:])
        return self._keys(keys, rotations), values

    def _heads(self, normed: Tensor, weight: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        head_dim = self.attention.head_dim
        return [part.unflatten(-1, (-1, head_dim)) for part in F.linear(normed, weight).split(list(sizes), dim=-1)]

    def _queries(self, projected: Tensor, rotations: Rotations) -> Tensor:
        return rotated_heads(projected, self.attention.q_norm, rotations)

    def _keys(self, projected: Tensor, rotations: Rotations) -> Tensor:
        return rotated_heads(projected, self.attention.k_norm, rotations)

    def finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The next hidden states [T, H] from the states before the layer, and what attention gave, [T, h * d]."""
        hidden = torch.addmm(hidden, mixed, self.attention.o_proj.weight.T)
        normed = rms_norm(hidden, self.module.post_attention_layernorm)
        active = gated(F.linear(normed, self.gate_and_up))
        return torch.addmm(hidden, active, self.module.mlp.down_proj.weight.T)


@dataclass
class Read:
    """What a pass over packed rows gives, and the layers that gave it.

    states: one [n_b, H] per row, after the final norm, of its last n_b tokens. before_norm: the same before that norm.
    keys, values: of each layer, [T, h, d], of all tokens.
    """

    states: list[Tensor]
    before_norm: list[Tensor]
    layers: list[JointLayer]
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def pack(
    model: Qwen3VLModel,
    prompts: Sequence[Prompt],
    features: Sequence[VideoFeatures | None],
    last: Sequence[int],
) -> Packed:
    """Put `prompts` side by side; `features[b]` fill the video placeholders of row b in order. `last`: see `Packed`.

    Raises ValueError if the number of placeholders in a row differs from the number of tokens of its video.
    """
    for prompt, feature in zip(prompts, features, strict=True):
        check_placeholders(prompt, feature)
    starts = [p.token_ids.masked_fill(p.video_mask, -1 - row) for row, p in enumerate(prompts)]
    shared = num_shared([torch.cat([ids[None], p.positions]) for ids, p in zip(starts, prompts, strict=True)], last)
    lengths = [len(p.token_ids) - shared for p in prompts]
    order = standing(lengths)
    side_by_side = [prompts[row] for row in order]
    own = [prompts[0].token_ids[:shared], *(p.token_ids[shared:] for p in side_by_side)]
    embeds = model.language_model.embed_tokens(torch.cat(own))
    is_video = [prompts[0].video_mask[:shared], *(p.video_mask[shared:] for p in side_by_side)]
    video_at = torch.cat(is_video).nonzero()[:, 0]
    present = [f for row in order if (f := features[row]) is not None]
    deepstack: list[Tensor] = []
    if present:
        embeds = embeds.index_copy(0, video_at, torch.cat([f.tokens for f in present]).to(embeds))
        deepstack = [torch.cat(level).to(embeds) for level in zip(*(f.deepstack for f in present), strict=True)]
    positions = torch.cat([prompts[0].positions[:, :shared], *(p.positions[:, shared:] for p in side_by_side)], dim=1)
    return Packed(embeds, positions, lengths, last, video_at, deepstack, shared)


def pack_texts(start: Tensor, rows: Sequence[Tensor]) -> Packed:
    """Texts side by side, at the positions 0, 1, ..., from input embeddings: `start` [s, H], with which all begin, and
    what follows it in each, rows[b] [n_b, H]. The state of the last token of each is wanted."""
    shared, lengths = len(start), [len(row) for row in rows]
    order = standing(lengths)
    own = [torch.arange(shared, shared + lengths[row]) for row in order]
    positions, nowhere = torch.cat([torch.arange(shared), *own]).expand(3, -1), torch.zeros(0, dtype=torch.long)
    embeds = torch.cat([start, *(rows[row] for row in order)])
    return Packed(embeds, positions, lengths, [1] * len(rows), nowhere, shared=shared)


def num_shared(rows: Sequence[Tensor], kept: Sequence[int]) -> int:
    """How many tokens at the start are the same in all rows [n, L_b], each given by n numbers, without the last kept[b]
    of each row. 0 where these are too few to be read apart."""
    length = min(row.shape[1] - count for row, count in zip(rows, kept, strict=True))
    if len(rows) == 1 or length < MIN_SHARED:
        return 0
    starts = torch.stack([row[:, :length] for row in rows])
    same = (starts == starts[0]).all(0).all(0)
    shared = int(same.long().cumprod(0).sum())
    return shared if shared >= MIN_SHARED else 0


def read(model: Qwen3VLTextModel, packed: Packed) -> Read:
    """Run `model` over `packed`. The last layer computes no states but the wanted ones."""
    layers, spans, order = [JointLayer(layer) for layer in model.layers], packed.spans, standing(packed.lengths)
    lengths, last = [packed.lengths[row] for row in order], [packed.last[row] for row in order]
    at = torch.cat([torch.arange(spans[row][1] - packed.last[row], spans[row][1]) for row in order])
    rotations = rotations_at(model, packed.embeds, packed.positions)
    every, ends = whole_rows(lengths, packed.shared), ends_of_rows(lengths, last, packed.shared)
    hidden, result = packed.embeds, Read([], [], layers)
    for number, layer in enumerate(layers):
        is_last = number == len(layers) - 1
        hidden, keys, values = _run_layer(layer, hidden, rotations, ends if is_last else every, at if is_last else None)
        result.keys.append(keys)
        result.values.append(values)
        if number < len(packed.deepstack):
            hidden = _with_level(hidden, packed, number, at if is_last else None)
    result.before_norm += of_rows(order, hidden.split(last))
    result.states += of_rows(order, rms_norm(hidden, model.norm).split(last))
    return result


def _with_level(hidden: Tensor, packed: Packed, level: int, at: Tensor | None) -> Tensor:
    """`hidden` with a level of deepstack added at video tokens. at: the tokens that are left; None for all."""
    if at is None:
        return hidden.index_add(0, packed.video_at, packed.deepstack[level])
    added = torch.zeros_like(packed.embeds).index_add(0, packed.video_at, packed.deepstack[level])
    return hidden + added.index_select(0, at)


def _run_layer(
    layer: JointLayer, hidden: Tensor, rotations: Rotations, layout: Layout, at: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The next hidden states of the tokens `at` (None: of all), and the keys and values [T, h, d] of all tokens."""
    normed = rms_norm(hidden, layer.module.input_layernorm)
    if at is None:
        queries, keys, values = layer.queries_keys_values(normed, rotations)
    else:
        queries = layer.queries(normed.index_select(0, at), (rotations[0][at], rotations[1][at]))
        keys, values = layer.keys_values(normed, rotations)
        hidden = hidden.index_select(0, at)
    mixed = attend(queries, keys, values, layout, layer.attention.scaling)
    return layer.finish(hidden, mixed), keys, values
