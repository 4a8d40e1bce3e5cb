"""Embeds queries in batches that fit, and keeps the vectors of plain ones, so that each of them is made once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vsr1_core.models.batches import Budget
from vsr1_core.models.memory import Passes, weight_bytes
from vsr1_core.models.protocols import Embedder
from vsr1_core.models.tensor_folder import TensorFolder


@dataclass(frozen=True)
class SoftTokens:
    """What some queries carry besides their texts.

    counts: how many soft tokens each query has. made: place of a query -> its soft tokens [n, E], called when its batch
    is embedded. max_tokens: see `InputForm.query_tokens`.
    """

    counts: Sequence[int]
    made: Callable[[int], Tensor]
    max_tokens: int = 0


def embedded_queries(
    embedder: Embedder, texts: Sequence[str], budget: Budget, max_rows: int, soft: SoftTokens | None = None
) -> Iterator[Tensor]:
    """The unit vector [D] of each text, in order, in batches that fit into the budget; with soft tokens differentiable
    if gradients are on."""
    if not texts:
        return
    counts = [0] * len(texts) if soft is None else soft.counts
    lengths = [n + count for n, count in zip(embedder.query_tokens(texts), counts, strict=True)]
    passes = Passes(embedder.size, weight_bytes(embedder.model))

    def embedded(places: Sequence[int]) -> Tensor:
        some = [texts[i] for i in places]
        if soft is not None:
            return embedder.embed_queries(some, [soft.made(i) for i in places], soft.max_tokens)
        with torch.no_grad():
            return embedder.embed_queries(some)

    bytes_of = lambda places: passes.text([lengths[i] for i in places])  # noqa: E731
    for _, vector in budget.map(range(len(texts)), bytes_of, embedded, embedder.device, max_rows):
        yield vector


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
            return torch.stack(list(embedded_queries(self.embedder, texts, self.budget, batch_size)))
        found: dict[str, Tensor] = {}
        missing = []
        for text in dict.fromkeys(texts):
            vector = self._recall(text)
            if vector is None:
                missing.append(text)
            else:
                found[text] = vector
        made = embedded_queries(self.embedder, missing, self.budget, batch_size)
        for text, vector in zip(missing, made, strict=True):
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
