"""Single steps of the language model after what an `InPlaceCache` holds: one input per row, without gradients.

On a GPU a step is captured (`captures`), and then has fixed shapes and addresses: it attends to the whole buffers of
the cache, in which positions that are not filled yet have no weight, and it runs over a fixed number of rows, of which
the last ones may have left the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, apply_rotary_pos_emb

from vsr1_core.models.qwen3_vl.captures import Capture, captured
from vsr1_core.models.qwen3_vl.kv_cache import InPlaceCache, InPlaceLayer
from vsr1_core.models.qwen3_vl.prefix import heads_of, keys_and_values

States = tuple[Tensor, Tensor]
"""Hidden states [B, H] before and after the final norm."""


class SingleSteps:
    """The steps of the rows that `model` has read into `cache`.

    Attributes:
        num_captured: How many steps were captured so far.
    """

    def __init__(
        self,
        model: Qwen3VLTextModel,
        cache: InPlaceCache,
        mask: Tensor,
        positions: Tensor,
        capture: Capture | None = None,
    ) -> None:
        """mask: [B, L], 1 for tokens and 0 for padding. positions: [B], of the next input on all rotary axes.
        capture: None runs each step from Python."""
        self.model, self.cache, self._capture = model, cache, capture
        self._positions = positions.clone()
        self._at = torch.tensor([mask.shape[1]], device=mask.device)
        self._bias = torch.zeros(mask.shape, dtype=cache.dtype, device=mask.device).masked_fill(mask == 0, -torch.inf)
        self._inputs = model.embed_tokens.weight.new_zeros(len(mask), model.config.hidden_size)
        self._again: dict[int, Callable[[], States]] = {}
        self._seen: set[int] = set()
        self.num_captured = 0

    @torch.no_grad()
    def step(self, embeds: Tensor) -> States:
        """Feed one input per row, embeds [B, H], and append its keys and values to the cache."""
        self._take_room()
        rows = len(embeds)
        self._inputs[:rows] = embeds
        before, after = self._run(rows)
        self.cache.advance()
        return before[:rows], after[:rows]

    def move_rows(self, to: Sequence[int], of: Sequence[int], num_rows: int) -> None:
        """As `InPlaceCache.move_rows`."""
        self.cache.move_rows(to, of, num_rows)
        if to:
            for tensor in (self._positions, self._bias):
                tensor[list(to)] = tensor[list(of)]

    def _run(self, rows: int) -> States:
        """A step of at least `rows` rows. It runs from Python where it is the only one of its size so far: that
        prepares the libraries' kernels, and many sizes occur but once."""
        if self._capture is None:
            return self._pass(rows, self.cache.length + 1)
        size = min(1 << (rows - 1).bit_length(), len(self._inputs))
        if size not in self._seen:
            self._seen.add(size)
            return self._pass(size, self.cache.capacity)
        if size not in self._again:
            again = captured(self._capture, lambda: self._pass(size, self.cache.capacity), "a decoding step")
            if again is None:
                self._capture = None
                return self._run(rows)
            self._again = {size: again}
            self.num_captured += 1
        return self._again[size]()

    def _take_room(self) -> None:
        """Room for one position more. Where the buffers are replaced, what was captured is void."""
        self.cache.take_room()
        missing = self.cache.capacity - self._bias.shape[1]
        if missing <= 0:
            return
        rows = self.cache.rows_with_room
        self._again, self._seen = {}, set()
        self._bias = F.pad(self._bias[:rows], (0, missing), value=-torch.inf)
        self._positions, self._inputs = self._positions[:rows].clone(), self._inputs[:rows].clone()

    def _pass(self, rows: int, length: int) -> States:
        """The step of the first `rows` rows, which attend to the first `length` positions of the cache."""
        self._bias[:rows].index_fill_(1, self._at, 0)
        hidden, bias = self._inputs[:rows, None], self._bias[:rows, None, None, :length]
        cosines = self.model.rotary_emb(hidden, self._positions[None, :rows, None].expand(3, -1, -1))
        for layer, kept in zip(self.model.layers, self.cache.layers, strict=True):
            hidden = hidden + self._attend(layer, kept, hidden, bias, *cosines)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        self._positions[:rows] += 1
        self._at += 1
        return hidden[:, 0], self.model.norm(hidden)[:, 0]

    def _attend(
        self, layer: torch.nn.Module, kept: InPlaceLayer, hidden: Tensor, bias: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        key, value = keys_and_values(attention, normed, cos, sin)
        kept.put(self._at, key, value)
        query = attention.q_norm(heads_of(attention.q_proj(normed), attention.head_dim)).transpose(1, 2)
        query = apply_rotary_pos_emb(query, key, cos, sin)[0]
        # The heads that share a key are queries of one head: no kernel has to repeat the keys.
        grouped = query.reshape(len(query), key.shape[1], -1, attention.head_dim)
        keys, values = (b[: len(query), :, : bias.shape[-1]] for b in kept.buffers)
        mixed = F.scaled_dot_product_attention(grouped.to(keys), keys, values, bias, scale=attention.scaling)
        return attention.o_proj(mixed.reshape(len(query), 1, -1))
