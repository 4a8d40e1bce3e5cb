"""The retrieval loss of stage 1 on the vectors of refined queries, and what the logs say about these queries.

The losses themselves are in `training.losses`; here the videos of each row are chosen. R: the refined rows of a batch;
V: the videos of the train split; D: the size of a vector.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vsr1_core.models.protocols import Embedder
from vsr1_core.models.query_vectors import QueryVectors
from vsr1_core.recipes import SFTRecipe
from vsr1_core.training.examples import SFTExample, choose_negatives
from vsr1_core.training.losses import retrieval_losses


@dataclass(frozen=True)
class RefinedSearch:
    """What a search with refined queries costs and finds."""

    losses: Tensor
    """L_ret [R], with gradients."""
    facts: Mapping[str, Tensor]
    """For logs, scalars without gradients: how similar plain and refined queries are to their right videos, and the
    share of the refined queries whose right video ranks better (worse) in the train split than by the plain query."""


class SearchLoss:
    """L_ret of refined queries among the videos of the train split."""

    def __init__(
        self,
        embedder: Embedder,
        vectors: Mapping[str, Tensor],
        never: Mapping[str, frozenset[str]],
        recipe: SFTRecipe,
        query_tokens: int = 0,
    ) -> None:
        """query_tokens: the policy's limit of a query's tokens; 0 for none."""
        self.embedder, self.never, self.recipe, self.query_tokens = embedder, never, recipe, query_tokens
        self.ids = sorted(vectors)
        self.row_of = {video_id: row for row, video_id in enumerate(self.ids)}
        self.corpus = torch.stack([vectors[video_id] for video_id in self.ids]).float().to(embedder.device)
        self.plain = QueryVectors(embedder)

    def __call__(
        self, examples: Sequence[SFTExample], soft: Tensor, draw: str, right_ids: Sequence[str]
    ) -> RefinedSearch:
        """Search with the soft tokens `soft` [R, N, E] of the rows. The embedder is frozen; gradients reach `soft`.

        `draw` is part of the seed of random negatives, which each row has for itself, so that they do not depend on
        which process has the row. `right_ids`: the right videos of the whole batch, as further negatives.
        """
        queries = self.embedder.embed_queries([e.query for e in examples], list(soft), self.query_tokens)
        right = self._rows([e.gt_video_id for e in examples])
        negatives, mask = self._negatives(examples, draw)
        in_batch = in_batch_mask = None
        if self.recipe.in_batch_positives and not self.recipe.all_negatives:
            in_batch = self.corpus[self._rows(right_ids)]
            in_batch_mask = torch.tensor([[v not in self._never(row) for v in right_ids] for row in examples])
        plain = self.plain.get([e.query for e in examples])
        losses = retrieval_losses(
            queries,
            self.corpus[right],
            negatives,
            mask,
            temperature=self.recipe.temperature,
            in_batch=in_batch,
            in_batch_mask=in_batch_mask,
            judged_by=self._judges(plain, queries),
        )
        return RefinedSearch(losses, self._facts(plain, queries, right))

    def _judges(self, plain: Tensor, refined: Tensor) -> Tensor | None:
        """The query vectors [R, D] by which negatives above the right video are dropped; None if all of them stay."""
        if self.recipe.drop_above_positive:
            return plain.to(refined)
        return refined if self.recipe.drop_above_positive_when_refined else None

    def _rows(self, video_ids: Sequence[str]) -> Tensor:
        return torch.tensor([self.row_of[v] for v in video_ids], dtype=torch.long, device=self.corpus.device)

    def _never(self, example: SFTExample) -> frozenset[str]:
        return self.never.get(example.query_id, frozenset()) | {example.gt_video_id}

    def _negatives(self, examples: Sequence[SFTExample], draw: str) -> tuple[Tensor, Tensor]:
        """Vectors of the negatives, [R, K, D] or, for all rows alike, [V, D]; and a mask [R, K] or [R, V] that is False
        where a row must not use one, or has fewer."""
        if self.recipe.all_negatives:
            mask = torch.ones(len(examples), len(self.ids), dtype=torch.bool, device=self.corpus.device)
            for row, example in enumerate(examples):
                mask[row, self._rows([v for v in self._never(example) if v in self.row_of])] = False
            return self.corpus, mask
        chosen = [self._chosen(example, draw) for example in examples]
        index = torch.zeros(len(examples), self.recipe.num_negatives, dtype=torch.long, device=self.corpus.device)
        mask = torch.zeros_like(index, dtype=torch.bool)
        for row, ids in enumerate(chosen):
            index[row, : len(ids)] = self._rows(ids)
            mask[row, : len(ids)] = True
        return self.corpus[index], mask

    def _chosen(self, example: SFTExample, draw: str) -> list[str]:
        nearest = [example.shown_video_id, *example.negative_ids]
        rng = random.Random(f"{self.recipe.seed}/{draw}/{example.query_id}")
        return choose_negatives(nearest, self.ids, self._never(example), self.recipe.num_negatives, rng)

    @torch.no_grad()
    def _facts(self, plain: Tensor, refined: Tensor, right: Tensor) -> dict[str, Tensor]:
        scores = {"plain": plain.float() @ self.corpus.T, "refined": refined.float() @ self.corpus.T}
        of_right = {name: s.gather(1, right[:, None]) for name, s in scores.items()}
        ranks = {name: (s > of_right[name]).sum(1) for name, s in scores.items()}
        return {
            "plain_similarity": of_right["plain"].mean(),
            "refined_similarity": of_right["refined"].mean(),
            "risen_share": (ranks["refined"] < ranks["plain"]).float().mean(),
            "fallen_share": (ranks["refined"] > ranks["plain"]).float().mean(),
        }
