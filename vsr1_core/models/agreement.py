"""Whether two embedders make the same vectors, or an embedder makes vectors that are stored: by the cosine of a few
queries.

Names and checksums do not answer it: the same weights are saved under other names, in other files and in another
precision. Tokenizer, chat template and weights all show in a vector.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vsr1_core.models.checkpoints import load_embedder
from vsr1_core.models.protocols import Embedder
from vsr1_core.models.weights import stored_dtype

TOKENIZER = "tokenizer.json"
SAME_COSINE = 0.99
"""The lowest cosine of two vectors of one query by one embedder. Rounding to bf16 moves it by about 0.001."""
PROBES = (
    "a person opens a fridge and takes out a bottle",
    "two dogs run along a beach while the sun goes down",
    "a man in a red shirt tunes a guitar, then begins to play",
    "the camera pans over the roofs of a city at night",
)
"""Queries that both embedders are given where there are no stored vectors."""


def query_vectors(embedder: Embedder, queries: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors [len(queries), D] of `queries`."""
    with torch.no_grad():
        vectors: NDArray[np.float32] = embedder.embed_queries(list(queries)).float().cpu().numpy()
    return vectors


def lowest_cosine(some: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """The lowest cosine of two rows with the same number, both [n, D] of unit vectors; -1 where their sizes differ."""
    return float(np.min(np.sum(some * others, axis=1))) if some.shape == others.shape else -1.0


def embedders_cosine(folder: Path, other: Path, queries: Sequence[str] = PROBES) -> float:
    """The lowest cosine of the vectors that the embedders in two folders make of the same queries.

    They are loaded one after the other. A `folder` without a tokenizer is read with that of `other`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        whole = folder if (folder / TOKENIZER).is_file() else _joined(folder, other, Path(scratch))
        some, others = (query_vectors(load_embedder(p, dtype=stored_dtype(p)), queries) for p in (whole, other))
    return lowest_cosine(some, others)


def _joined(folder: Path, other: Path, target: Path) -> Path:
    """`target` with links to the weights and config of `folder`, and to the tokenizer and chat template of `other`."""
    for path in (*folder.iterdir(), *other.glob("*token*"), *other.glob("chat_template*")):
        if not (target / path.name).exists():
            (target / path.name).symlink_to(path.resolve())
    return target
