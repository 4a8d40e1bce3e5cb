"""A key-value cache for inference that is written in place: memory is allocated once, and rows leave the batch without
a copy of the rest.

The DynamicCache of transformers concatenates at every step, so a batch of 16 rows with 1,200 tokens copies all its keys
and values for each new token. This cache is not differentiable; training uses `prefix`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class InPlaceLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, heads, room, head_dim]; `keys` and `values` are views of the filled part."""

    is_sliding = False

    def __init__(self, room: int = 64) -> None:
        super().__init__()
        self.room = room
        self.length = 0
        self.num_rows = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.num_rows = len(key_states)
        self._buffers = [t.new_empty(0) for t in (key_states, value_states)]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append states [B, heads, n, head_dim]; returns views of all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self._take_room(key_states)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self.num_rows, :, start : self.length] = states
        self.keys, self.values = (b[: self.num_rows, :, : self.length] for b in self._buffers)
        return self.keys, self.values

    def _take_room(self, states: Tensor) -> None:
        """If the next states do not fit, grow the buffers by `room` positions; `room` doubles each time."""
        have = self._buffers[0].shape[2] if self._buffers[0].numel() else 0
        if self.length <= have:
            return
        rows, heads, _, size = states.shape
        filled = self.length - states.shape[2]
        for place, old in enumerate(self._buffers):
            new = old.new_empty(rows, heads, self.length + self.room, size)
            if filled:
                new[:, :, :filled] = old[:rows, :, :filled]
            self._buffers[place] = new
        self.room *= 2

    def move_rows(self, to: Sequence[int], of: Sequence[int], num_rows: int) -> None:
        """Put rows `of` in the places `to`, then keep the first `num_rows`. Only the moved rows are copied."""
        self.num_rows = num_rows
        for buffer in self._buffers:
            for target, source in zip(to, of, strict=True):
                buffer[target, :, : self.length] = buffer[source, :, : self.length]
        self.keys, self.values = (b[:num_rows, :, : self.length] for b in self._buffers)

    def repeat_rows(self, rows: Tensor) -> None:
        """Replace the batch by its rows `rows[0]`, `rows[1]`, ..., so that a prompt is read once for all samples."""
        self.num_rows = len(rows)
        self._buffers = [b[rows] for b in self._buffers]
        self.keys, self.values = (b[:, :, : self.length] for b in self._buffers)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class InPlaceCache(Cache):
    """A cache with one InPlaceLayer per layer. `room`: how many positions are expected after the prompt."""

    def __init__(self, num_layers: int, room: int) -> None:
        super().__init__(layers=[InPlaceLayer(max(1, room)) for _ in range(num_layers)])

    def move_rows(self, to: Sequence[int], of: Sequence[int], num_rows: int) -> None:
        for layer in self.layers:
            layer.move_rows(to, of, num_rows)

    def repeat_rows(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.repeat_rows(rows)


def rows_that_fill_holes(kept: Sequence[int]) -> tuple[list[int], list[int]]:
    """Moves (to, of) after which the rows `kept` (ascending) come first; rows that are already in front stay there."""
    stays = {row for row in kept if row < len(kept)}
    holes = [place for place in range(len(kept)) if place not in stays]
    return holes, [row for row in kept if row >= len(kept)]


def same_prompts(keys: Sequence[object]) -> tuple[list[int], Tensor]:
    """The rows whose key occurs for the first time, and for every row the index of the one of these that it equals."""
    first: dict[object, int] = {}
    places = [first.setdefault(key, len(first)) for key in keys]
    rows = [places.index(place) for place in range(len(first))]
    return rows, torch.tensor(places)
