"""Answers that branch off from prompts, with gradients: a prompt that several answers follow is read once.

A group of stage 2 is many answers to few prompts. All answers are one flat sequence of tokens in every layer but in
attention, which runs prompt by prompt: the tokens of an answer attend to the keys and values of its prompt and to those
of the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, apply_rotary_pos_emb

from vsr1_core.models.qwen3_vl.batching import Batch
from vsr1_core.models.qwen3_vl.latent_steps import LatentSteps, OfLayer
from vsr1_core.models.qwen3_vl.prefix import heads_of, keys_and_values, read_by
from vsr1_core.models.qwen3_vl.step_groups import Gathered, Groups
from vsr1_core.models.qwen3_vl.step_weights import StepWeights

_OF_PROMPT = -1
"""The owner of a prompt's columns, which all its answers see."""
_OF_NONE = -2
"""The owner of columns that only make up the length."""
_Span = tuple[int, int, int]
"""A prompt and its tokens [start, end) in the flat sequence."""


class Branches:
    """The answers to prompts that `model` has read: they are read once, by `read`, and may then be continued.

    inputs: what each layer read (`prefix.layer_inputs`). batch: the prompts. prompt_of[b]: the prompt of answer b.
    """

    def __init__(self, model: Qwen3VLTextModel, inputs: dict[int, Tensor], batch: Batch, prompt_of: Sequence[int]):
        self.model, self.prompt_of = model, list(prompt_of)
        self.order = sorted(range(len(self.prompt_of)), key=self.prompt_of.__getitem__)
        lengths = batch.mask.sum(1).tolist()
        after = (batch.positions.amax(dim=(0, 2)) + 1).tolist()  # padding has position 0
        self.next_positions = [after[prompt] for prompt in self.prompt_of]
        self.owners = [torch.full((n,), _OF_PROMPT, device=batch.mask.device) for n in lengths]
        cosines = model.rotary_emb(inputs[0], batch.positions)
        self.kept: list[list[list[tuple[Tensor, Tensor]]]] = []
        """Layer -> prompt -> keys and values [1, heads, n, head_dim] of the prompt, and of its answers once these are
        read."""
        for i, layer in enumerate(model.layers):
            keys, values = checkpoint(read_by, layer, inputs[i], slice(None), *cosines, use_reentrant=False)
            rows = zip(keys.split(1), values.split(1), lengths, strict=True)
            self.kept.append([[(k[:, :, -n:], v[:, :, -n:])] for k, v, n in rows])

    def read(self, embeds: Sequence[Tensor]) -> list[Tensor]:
        """Read the inputs embeds[b] [n_b, H] of all answers in one pass; n_b may be 0.

        Returns the hidden states [n_b, H] of each answer before the final norm.
        """
        counts = [len(embeds[row]) for row in self.order]
        if not sum(counts):
            return list(embeds)
        hidden = torch.cat([embeds[row] for row in self.order])[None]
        spans, masks = self._spans(counts), self._masks(counts)
        cosines = self.model.rotary_emb(hidden, self._positions(counts, hidden.device))
        saves_memory = self.model.training and getattr(self.model.layers[0], "gradient_checkpointing", False)
        run = partial(checkpoint, use_reentrant=False) if saves_memory else lambda layer, *args: layer(*args)
        for layer, kept in zip(self.model.layers, self.kept, strict=True):
            before = [kept[prompt][0] for prompt, _, _ in spans]
            hidden, keys, values = run(partial(_run_layer, layer), hidden, *cosines, before, spans, masks)
            for prompt, start, end in spans:
                kept[prompt].append((keys[:, :, start:end], values[:, :, start:end]))
        parts = dict(zip(self.order, hidden[0].split(counts), strict=True))
        return [parts[row] for row in range(len(embeds))]

    def steps(self, rows: Sequence[int], num_steps: int) -> tuple[LatentSteps, list[int], list[int]]:
        """Single steps after the answers `rows`, of which each occurs once.

        The answers to a prompt are members of one group, and all groups have as many: some are there only to make up
        the number. Returns the steps; for each of their rows its place in `rows`; and the places of `rows` in them.
        """
        members: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            members.setdefault(self.prompt_of[row], []).append(place)
        most = max(map(len, members.values()))
        filled = [place for group in members.values() for place in [*group, *group[:1] * (most - len(group))]]
        device = self.owners[0].device
        length = max(len(self.owners[prompt]) for prompt in members)
        owners = [F.pad(self.owners[p], (0, length - len(self.owners[p])), value=_OF_NONE) for p in members]
        columns = torch.stack(owners)[:, None]
        answer = torch.tensor([rows[place] for place in filled], device=device).view(len(members), most, 1)
        groups = Groups(Gathered(), (columns != _OF_PROMPT) & (columns != answer), most)
        next_positions = torch.tensor([self.next_positions[rows[place]] for place in filled], device=device)

        def layers() -> Iterator[OfLayer]:
            for layer, kept in zip(self.model.layers, self.kept, strict=True):
                yield StepWeights.of(layer), *_beside([kept[prompt] for prompt in members], length)

        steps = LatentSteps(self.model, groups, next_positions, num_steps, layers())
        first = {place: number for number, place in reversed(list(enumerate(filled)))}
        return steps, filled, [first[place] for place in range(len(rows))]

    def _spans(self, counts: Sequence[int]) -> list[_Span]:
        """The prompts whose answers grow, and their places in the flat sequence."""
        ends: dict[int, list[int]] = {}
        place = 0
        for row, count in zip(self.order, counts, strict=True):
            span = ends.setdefault(self.prompt_of[row], [place, place])
            place += count
            span[1] = place
        return [(prompt, start, end) for prompt, (start, end) in ends.items() if end > start]

    def _masks(self, counts: Sequence[int]) -> list[Tensor]:
        """For each span, which columns its tokens see, bool [n, columns of the prompt + n]: those of the prompt, and
        those of the same answer up to the token itself. The owners of all columns are kept."""
        new: dict[int, list[Tensor]] = {}
        for row, count in zip(self.order, counts, strict=True):
            owner = torch.full((count,), row, device=self.owners[0].device)
            new.setdefault(self.prompt_of[row], []).append(owner)
        masks = []
        for prompt, parts in new.items():
            tokens = torch.cat(parts)
            if not len(tokens):
                continue
            columns = torch.cat([self.owners[prompt], tokens])
            place = torch.arange(len(columns), device=columns.device)
            is_earlier = place <= place[-len(tokens) :, None]
            masks.append((columns == _OF_PROMPT) | ((columns == tokens[:, None]) & is_earlier))
            self.owners[prompt] = columns
        return masks

    def _positions(self, counts: Sequence[int], device: torch.device) -> Tensor:
        """Rotary positions [3, 1, T] of the next inputs; each answer counts on from its prompt."""
        places = []
        for row, count in zip(self.order, counts, strict=True):
            start = self.next_positions[row]
            places.append(torch.arange(start, start + count))
            self.next_positions[row] = start + count
        return torch.cat(places).to(device).expand(3, 1, -1)


def _run_layer(
    layer: torch.nn.Module,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    before: Sequence[tuple[Tensor, Tensor]],
    spans: Sequence[_Span],
    masks: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The next hidden states [1, T, H], and the keys and values [1, heads, T, head_dim] of these tokens. `before`: for
    each span, the keys and values of its prompt."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    query = attention.q_norm(heads_of(attention.q_proj(normed), attention.head_dim)).transpose(1, 2)
    keys, values = keys_and_values(attention, normed, cos, sin)
    query = apply_rotary_pos_emb(query, query, cos, sin)[0]
    mixed = []
    for seen, (_, start, end), mask in zip(before, spans, masks, strict=True):
        own = keys[:, :, start:end], values[:, :, start:end]
        all_keys, all_values = (torch.cat(parts, dim=2) for parts in zip(seen, own, strict=True))
        mixed.append(_attend(query[:, :, start:end], all_keys, all_values, mask, attention.scaling))
    hidden = hidden + attention.o_proj(torch.cat(mixed, dim=2).transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), keys, values


def _beside(kept: Sequence[Sequence[tuple[Tensor, Tensor]]], length: int) -> tuple[Tensor, Tensor]:
    """The keys and values of prompts and their answers, each [prompts, heads, length, head_dim]."""
    joint = [[torch.cat(parts, dim=2) for parts in zip(*of_prompt, strict=True)] for of_prompt in kept]
    keys, values = zip(*joint, strict=True)
    full = lambda parts: torch.cat([F.pad(part, (0, 0, 0, length - part.shape[2])) for part in parts])  # noqa: E731
    return full(keys), full(values)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of queries [1, heads, n, d] to keys [1, key heads, L, d] where `mask` [n, L] is on."""
    shared = query.shape[1] // keys.shape[1]
    if shared > 1:  # fused kernels with a mask do not group heads themselves
        keys, values = (t.repeat_interleave(shared, dim=1) for t in (keys, values))
    return F.scaled_dot_product_attention(query, keys.to(query), values.to(query), attn_mask=mask, scale=scale)
