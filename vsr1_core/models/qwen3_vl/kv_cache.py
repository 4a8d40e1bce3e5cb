"""A key-value cache for inference that is written in place: memory is allocated once, and rows leave the batch without
a copy of the rest.

The DynamicCache of transformers concatenates at every step, so a batch of 16 rows with 1,200 tokens copies all its keys
and values for each new token. This cache is not differentiable; training uses `prefix`. Prompts are put into it by the
model itself (`InPlaceLayer.update`), and single steps by `single_steps`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class InPlaceLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, heads, room, head_dim]; `keys` and `values` are views of what was filled at the
    last `update`."""

    is_sliding = False

    def __init__(self, room: int = 64) -> None:
        super().__init__()
        self.room = room
        self.length = 0
        self.num_rows = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.device, kind = key_states.device, key_states.device.type
        # Autocast would convert all that is kept at each step.
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else key_states.dtype
        self.num_rows = len(key_states)
        self.buffers = [t.new_empty(*t.shape[:2], 0, t.shape[3], dtype=self.dtype) for t in (key_states, value_states)]
        self.is_initialized = True

    @property
    def capacity(self) -> int:
        """How many positions of a row the buffers have room for."""
        return self.buffers[0].shape[2] if self.is_initialized else 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append states [B, heads, n, head_dim]; returns views of all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[2]
        self.take_room(end)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: self.num_rows, :, start:end] = states
        self.length = end
        self.keys, self.values = (b[: self.num_rows, :, :end] for b in self.buffers)
        return self.keys, self.values

    def put(self, at: Tensor, key_states: Tensor, value_states: Tensor) -> None:
        """Write states [b, heads, 1, head_dim] of the first b rows at the position that `at` [1] names, without a word
        to the host: a CUDA graph can do it. `length` stays as it is."""
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: len(states)].index_copy_(2, at, states.to(buffer.dtype))

    def advance(self) -> None:
        """One position more is filled."""
        self.length += 1

    def take_room(self, length: int) -> None:
        """If `length` positions do not fit, grow the buffers to them and `room` more; `room` doubles each time. What is
        not filled is 0: a step of fixed shape multiplies it by a weight of 0, and must not meet a NaN."""
        if length <= self.capacity:
            return
        for place, old in enumerate(self.buffers):
            new = old.new_zeros(self.num_rows, old.shape[1], length + self.room, old.shape[3])
            new[:, :, : self.length] = old[: self.num_rows, :, : self.length]
            self.buffers[place] = new
        self.room *= 2

    def move_rows(self, to: Sequence[int], of: Sequence[int], num_rows: int) -> None:
        """Put rows `of` in the places `to`, then keep the first `num_rows`. Only the moved rows are copied."""
        self.num_rows = num_rows
        for buffer in self.buffers:
            for target, source in zip(to, of, strict=True):
                buffer[target, :, : self.length] = buffer[source, :, : self.length]

    def repeat_rows(self, rows: Tensor) -> None:
        """Replace the batch by its rows `rows[0]`, `rows[1]`, ..., so that a prompt is read once for all samples."""
        self.num_rows = len(rows)
        self.buffers = [b[rows] for b in self.buffers]

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

    @property
    def dtype(self) -> torch.dtype:
        """Of the keys and values."""
        return self.layers[0].dtype

    @property
    def length(self) -> int:
        """How many positions of each row are filled."""
        return self.layers[0].length

    @property
    def capacity(self) -> int:
        return self.layers[0].capacity

    @property
    def rows_with_room(self) -> int:
        """How many rows the buffers have, of which the first ones are in use."""
        return len(self.layers[0].buffers[0])

    def take_room(self) -> None:
        """Room for one position more in all layers; see `InPlaceLayer.take_room`."""
        for layer in self.layers:
            layer.take_room(self.length + 1)

    def advance(self) -> None:
        """One position more was filled in all layers (`InPlaceLayer.put`)."""
        for layer in self.layers:
            layer.advance()


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
