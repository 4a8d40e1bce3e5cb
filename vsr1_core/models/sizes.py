"""How large a model is, for forecasts. Each family counts its own models, from shapes; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """Parameters of text and vision, and the shapes that memory depends on."""

    text: int
    vision: int
    hidden_size: int
    num_layers: int
    intermediate_size: int
    cache_size: int
    """Keys and values of one token in all layers, in numbers."""
    vocab_size: int
    num_levels: int
    """Features a video token has: its own and those of the deepstack."""
