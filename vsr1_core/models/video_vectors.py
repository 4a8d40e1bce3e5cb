"""Unit vectors of videos by the frozen embedder, in batches that fit into a budget. `query_vectors` is for queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vsr1_core.models.batches import Budget
from vsr1_core.models.memory import Passes, weight_bytes
from vsr1_core.models.protocols import Embedder, VideoFrames

Measured = tuple[str, VideoFrames, tuple[int, int]]
"""Id of a video, its frames, and its number of patches and of tokens."""


@torch.no_grad()
def _vectors(embedder: Embedder, videos: Sequence[Measured], pass_bytes: float) -> Tensor:
    return embedder.embed_videos([frames for _, frames, _ in videos], pass_bytes)


def embedded_videos(
    embedder: Embedder, videos: Iterable[tuple[str, VideoFrames]], budget: Budget, max_rows: int
) -> Iterator[tuple[str, Tensor]]:
    """Each video id with the unit vector [D] of its frames, in order. Frames are taken as they are needed, and the
    vision tower reads a video above the budget in parts, so memory depends on the budget and not on the number of
    videos; of the longest video, its frames, its features and its pass of the text model are held as a whole."""
    passes = Passes(embedder.size, weight_bytes(embedder.model))
    measured = ((video_id, frames, embedder.video_size(frames)) for video_id, frames in videos)

    def bytes_of(some: Sequence[Measured]) -> float:
        pixels = sum(frames.pixels.nbytes for _, frames, _ in some)
        return pixels + passes.video_embedding([size[0] for *_, size in some], [size[1] for *_, size in some])

    work = lambda some: _vectors(embedder, some, budget.bytes_on(embedder.device))  # noqa: E731
    made = budget.map(measured, bytes_of, work, embedder.device, max_rows)
    return ((video_id, vector) for (video_id, *_), vector in made)
