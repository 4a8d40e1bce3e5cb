"""A cache of vectors of plain queries by text, so that a frozen embedder makes each of them once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vsr1_core.models.batches import Budget
from vsr1_core.models.memory import Passes, weight_bytes
from vsr1_core.models.protocols import Embedder
from vsr1_core.models.tensor_folder import TensorFolder


def embedded_queries(
    embedder: Embedder, texts: Sequence[str], budget: Budget, max_rows: int
) -> Iterator[tuple[str, Tensor]]:
    """Each text with its unit vector [D], in order, in batches that fit into the budget."""
    lengths = dict(zip(texts, embedder.query_tokens(texts), strict=True)) if texts else {}
    passes = Passes(embedder.size, weight_bytes(embedder.model))
    bytes_of = lambda some: passes.text([lengths[text] for text in some])  # noqa: E731
    work = torch.no_grad()(embedder.embed_queries)
    return budget.map(texts, bytes_of, work, embedder.device, max_rows)


class QueryVectors:
    """Vectors of plain queries by text. Each text is embedded once, because the embedder is frozen.

    In memory the key is the text, because an instance belongs to one embedder; at most `max_queries` vectors are kept,
    and the least recently used are dropped first. With `disk` and `weights` (a digest of the embedder's weights and
    precision) vectors outlive the process. The key on disk is (weights, `Embedder.text_digest`, text): only new
    weights, another chat template or another tokenizer make new keys. Vectors that went through a head are never kept,
    because the head belongs to a policy that may be in training.
    """

    def __init__(
        self,
        embedder: Embedder,
        max_queries: int = 65_536,
        disk: TensorFolder | None = None,
        weights: str = "",
        budget: Budget | None = None,
    ) -> None:
        if (disk is None) != (not weights):
            raise ValueError("query vectors on disk need both `disk` and `weights`, or neither")
        self.embedder = embedder
        self.max_queries = max_queries
        self.disk = disk
        self.weights = weights
        self.budget = budget or Budget()
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def get(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Unit vectors [Q, D] in the order of `texts`; equal texts are embedded once, at most `batch_size` together."""
        if self.embedder.head is not None:
            made = embedded_queries(self.embedder, texts, self.budget, batch_size)
            return torch.stack([vector for _, vector in made])
        found: dict[str, Tensor] = {}
        missing = []
        for text in dict.fromkeys(texts):
            vector = self._recall(text)
            if vector is None:
                missing.append(text)
            else:
                found[text] = vector
        for text, vector in embedded_queries(self.embedder, missing, self.budget, batch_size):
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
