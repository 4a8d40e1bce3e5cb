"""A cache of vectors of plain queries by text, so that a frozen embedder makes each of them once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from vsr1_core.models.protocols import Embedder
from vsr1_core.models.tensor_folder import TensorFolder


class QueryVectors:
    """Vectors of plain queries by text. Each text is embedded once, because the embedder is frozen.

    In memory the key is the text, because an instance belongs to one embedder; at most `max_queries` vectors are kept,
    and the least recently used are dropped first. With `disk` and `weights` (a digest of the embedder's weights and
    precision) vectors outlive the process. The key on disk is (weights, `Embedder.text_digest`, text): only new
    weights, another chat template or another tokenizer make new keys. Vectors that went through a head are never kept,
    because the head belongs to a policy that may be in training.
    """

    def __init__(
        self, embedder: Embedder, max_queries: int = 65_536, disk: TensorFolder | None = None, weights: str = ""
    ) -> None:
        if (disk is None) != (not weights):
            raise ValueError("query vectors on disk need both `disk` and `weights`, or neither")
        self.embedder = embedder
        self.max_queries = max_queries
        self.disk = disk
        self.weights = weights
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def get(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Unit vectors [Q, D] in the order of `texts`; equal texts are embedded once, `batch_size` at a time."""
        if self.embedder.head is not None:
            return torch.cat(
                [self.embedder.embed_queries(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
            )
        found: dict[str, Tensor] = {}
        missing = []
        for text in dict.fromkeys(texts):
            vector = self._recall(text)
            if vector is None:
                missing.append(text)
            else:
                found[text] = vector
        for start in range(0, len(missing), batch_size):
            some = missing[start : start + batch_size]
            for text, vector in zip(some, self.embedder.embed_queries(some), strict=True):
                found[text] = self._keep(text, vector.clone())
                if self.disk is not None:
                    self.disk.put(self._key(text), {"vector": vector}, {})
        return torch.stack([found[text] for text in texts])

    def _recall(self, text: str) -> Tensor | None:
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        entry = None if self.disk is None else self.disk.get(self._key(text))
        if entry is None:
            return None
        return self._keep(text, entry[0]["vector"].to(self.embedder.device))

    def _keep(self, text: str, vector: Tensor) -> Tensor:
        self._kept[text] = vector
        while len(self._kept) > self.max_queries:
            self._kept.popitem(last=False)
        return vector

    def _key(self, text: str) -> str:
        return f"query/{self.weights}/{self.embedder.text_digest}/{text}"
