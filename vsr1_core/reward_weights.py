"""The weights of rewards, as a recipe holds them; `training.rewards` defines the rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping


class RewardWeights(Mapping[str, float]):
    """Immutable mapping from the name of a reward to its weight, as in `RewardWeights(format=0.2)`.

    `training.rewards` defines the rewards, and refuses a weight whose name is not a reward. A reward without a weight
    here is computed and logged, and adds nothing to the total.

    Raises:
        ValueError: If a weight is not a finite number.
    """

    __slots__ = ("_weights",)

    def __init__(self, **weights: float) -> None:
        found = {"format": 0.5, "verification": 1.0, "retrieval": 1.0, "grounding": 1.0, **weights}
        for name, weight in found.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"the weight of reward {name!r} has to be a finite number, not {weight!r}")
        self._weights = tuple(sorted(found.items()))

    def __getitem__(self, name: str) -> float:
        return dict(self._weights)[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __hash__(self) -> int:
        return hash(self._weights)

    def __repr__(self) -> str:
        return f"RewardWeights({', '.join(f'{name}={weight}' for name, weight in self._weights)})"
