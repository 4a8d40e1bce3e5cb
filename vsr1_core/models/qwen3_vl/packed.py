"""A pass over whole rows with gradients, in which the rows are one flat sequence of tokens: no padding, and only the
states that are asked for. For training on a CPU; `packs` says for which models. Inference, and training elsewhere, run
the model of transformers on padded batches (`batching`).

T: tokens of all rows; H: hidden size; h: heads; d: size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel, Qwen3VLTextModel

from vsr1_core.models.prompts import Prompt
from vsr1_core.models.qwen3_vl.batching import check_placeholders
from vsr1_core.models.qwen3_vl.fused import Span, attend, gated, rms_norm, rotated_heads, signed
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


@dataclass(frozen=True)
class Packed:
    """Rows of tokens side by side."""

    embeds: Tensor
    """[T, H]."""
    positions: Tensor
    """[3, T]."""
    lengths: Sequence[int]
    """Tokens of each row; they add up to T."""
    video_at: Tensor
    """int [v]: the places of video tokens in the flat sequence."""
    deepstack: Sequence[Tensor] = ()
    """One [v, H] per level."""


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


def pack(model: Qwen3VLModel, prompts: Sequence[Prompt], features: Sequence[VideoFeatures | None]) -> Packed:
    """Put `prompts` side by side; `features[b]` fill the video placeholders of row b in order.

    Raises ValueError if the number of placeholders in a row differs from the number of tokens of its video.
    """
    for prompt, feature in zip(prompts, features, strict=True):
        check_placeholders(prompt, feature)
    embeds = model.language_model.embed_tokens(torch.cat([p.token_ids for p in prompts]))
    video_at = torch.cat([p.video_mask for p in prompts]).nonzero()[:, 0]
    present = [f for f in features if f is not None]
    deepstack: list[Tensor] = []
    if present:
        embeds = embeds.index_copy(0, video_at, torch.cat([f.tokens for f in present]).to(embeds))
        deepstack = [torch.cat(level).to(embeds) for level in zip(*(f.deepstack for f in present), strict=True)]
    positions = torch.cat([p.positions for p in prompts], dim=1)
    return Packed(embeds, positions, [len(p.token_ids) for p in prompts], video_at, deepstack)


def pack_texts(rows: Sequence[Tensor]) -> Packed:
    """Input embeddings [n_b, H] of texts side by side, at the positions 0, 1, ..."""
    positions = torch.cat([torch.arange(len(row)) for row in rows]).expand(3, -1)
    return Packed(torch.cat(list(rows)), positions, [len(row) for row in rows], positions.new_zeros(0))


def read(model: Qwen3VLTextModel, packed: Packed, last: Sequence[int]) -> Read:
    """Run `model` over `packed`, and return the states of the last `last[b]` tokens of each row (at least 1, at most
    all). The last layer computes no others."""
    spans, at = _spans(packed.lengths, last)
    every = [Span(span.start, span.end, span.start, span.end) for span in spans]
    layers = [JointLayer(layer) for layer in model.layers]
    rotations = rotations_at(model, packed.embeds, packed.positions)
    hidden, result = packed.embeds, Read([], [], layers)
    for number, layer in enumerate(layers):
        is_last = number == len(layers) - 1
        hidden, keys, values = _run_layer(
            layer, hidden, rotations, spans if is_last else every, at if is_last else None
        )
        result.keys.append(keys)
        result.values.append(values)
        if number < len(packed.deepstack):
            hidden = _with_level(hidden, packed, number, at if is_last else None)
    result.before_norm += hidden.split(list(last))
    result.states += rms_norm(hidden, model.norm).split(list(last))
    return result


def _spans(lengths: Sequence[int], last: Sequence[int]) -> tuple[list[Span], Tensor]:
    """Where each row, and its last tokens, begin and end; and the places int [Q] of these tokens among all."""
    spans, places, start, query_start = [], [], 0, 0
    for length, count in zip(lengths, last, strict=True):
        end, query_end = start + length, query_start + count
        spans.append(Span(start, end, query_start, query_end))
        places.append(torch.arange(end - count, end))
        start, query_start = end, query_end
    return spans, torch.cat(places)


def _with_level(hidden: Tensor, packed: Packed, level: int, at: Tensor | None) -> Tensor:
    """`hidden` with a level of deepstack added at video tokens. at: the tokens that are left; None for all."""
    if at is None:
        return hidden.index_add(0, packed.video_at, packed.deepstack[level])
    added = torch.zeros_like(packed.embeds).index_add(0, packed.video_at, packed.deepstack[level])
    return hidden + added[at]


def _run_layer(
    layer: JointLayer, hidden: Tensor, rotations: Rotations, spans: Sequence[Span], at: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The next hidden states of the tokens `at` (None: of all), and the keys and values [T, h, d] of all tokens."""
    normed = rms_norm(hidden, layer.module.input_layernorm)
    if at is None:
        queries, keys, values = layer.queries_keys_values(normed, rotations)
    else:
        queries = layer.queries(normed[at], (rotations[0][at], rotations[1][at]))
        keys, values = layer.keys_values(normed, rotations)
        hidden = hidden[at]
    mixed = attend(queries, keys, values, spans, layer.attention.scaling)
    return layer.finish(hidden, mixed), keys, values
