"""The size of a model, for forecasts. Each family computes it for its own models from shapes; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """The number of parameters, and the shapes on which memory depends."""

    text: int
    """Parameters of the text model."""
    vision: int
    """Parameters of the vision tower."""
    hidden_size: int
    num_layers: int
    intermediate_size: int
    cache_size: int
    """How many numbers the keys and values of one token are, in all layers."""
    attention_size: int
    """Width of all queries of a token: number of heads times their size."""
    vocab_size: int
    num_levels: int
    """How many features a video token has: its own, and those of the deepstack."""
    vision_hidden_size: int
    vision_intermediate_size: int
    patch_values: int
    """How many numbers the input of a patch is."""
    patches_per_token: int
    """How many patches become one token of the text model."""
