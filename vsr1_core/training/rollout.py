"""Whole episodes as training rows: the queries, the sampled episodes, their rewards, and their differentiable replay.
No optimiser and no trainer here; rewards are in `training.rewards`, and the search is in `search.episodes`.

The actions of an episode are the tokens that the policy drew in all turns, including stop tokens and each <REFINE> that
it wrote itself. A <REFINE> that the loop forced is not an action, and neither are latents. If a text reached the token
limit, its kept tokens are the actions: the draw beyond the limit is never kept, so nothing depends on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from vsr1_core.models.answer_tokens import before_latents
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.memory import MAX_LOGITS
from vsr1_core.models.protocols import PolicyModel
from vsr1_core.recipes import GRPORecipe
from vsr1_core.search.episodes import Searcher
from vsr1_core.search.turns import Episode, EpisodeQuery, Turn
from vsr1_core.segments import clipped, is_right
from vsr1_core.training.examples import choose_negatives
from vsr1_core.training.losses import group_advantages, retrieval_losses
from vsr1_core.training.rewards import EpisodeRecord, RewardBreakdown, TurnRecord, check_weights, score_episode


@dataclass(frozen=True)
class GRPOPrompt:
    """One row of grpo_prompts: a query, its moment in seconds, its hard negatives, and whether the first search finds
    the right video. vector: the stored unit vector [D] of the query, by which `first_ranking` ranks; a query without
    one is embedded. positive_id: the segment that the refined query is drawn to; empty for the right video itself."""

    query_id: str
    query: str
    gt_video_id: str
    start_s: float
    end_s: float
    duration_s: float
    negative_ids: tuple[str, ...] = ()
    is_matched: bool = False
    vector: Tensor | None = field(default=None, compare=False)
    positive_id: str = ""

    @property
    def right_segment_id(self) -> str:
        return self.positive_id or self.gt_video_id


@dataclass(frozen=True)
class Rollout:
    """One sampled episode. negatives: [K, D], the same for all samples of a group, so that their rewards can be
    compared."""

    prompt: GRPOPrompt
    episode: Episode
    negatives: Tensor
    reward: RewardBreakdown
    advantage: float

    @property
    def is_refined(self) -> bool:
        """Whether any of its turns wrote soft tokens."""
        return bool(self.episode.latents)

    @property
    def num_sampled_tokens(self) -> int:
        """The number of actions: the sampled tokens of all turns."""
        return sum(turn.decoded.num_text_tokens for turn in self.episode.turns)


@dataclass
class RolloutSampler:
    """Samples and scores episodes. vectors: video id -> its unit vector [D]; never: query id -> videos that must not be
    its negatives."""

    searcher: Searcher
    recipe: GRPORecipe
    vectors: Mapping[str, Tensor]
    never: Mapping[str, frozenset[str]]
    generator: torch.Generator
    rng: random.Random

    def __post_init__(self) -> None:
        check_weights(self.recipe.rewards)  # fail now, and not after hours of sampling
        self.corpus_ids = sorted(self.vectors)

    @torch.no_grad()
    def sample(self, prompts: Sequence[GRPOPrompt]) -> list[Rollout]:
        """Sample one episode per prompt, all in one batch. `prompts` holds each query group_size times in a row."""
        queries = [EpisodeQuery(p.query_id, p.query, p.gt_video_id) for p in prompts]
        episodes = self.searcher.run(queries, self._first_vectors(prompts), self.generator)
        by_query = {p.query_id: self._negatives(p) for p in prompts[:: self.recipe.group_size]}
        negatives = [by_query[p.query_id] for p in prompts]
        rewards = self._rewards(prompts, episodes, negatives)
        advantages = group_advantages(torch.tensor([r.total for r in rewards]), self.recipe.group_size)
        return [Rollout(*row) for row in zip(prompts, episodes, negatives, rewards, advantages.tolist(), strict=True)]

    def _first_vectors(self, prompts: Sequence[GRPOPrompt]) -> Tensor:
        """Vectors [B, D] of the plain queries: the stored ones, as in evaluation, so that the first turn has the stored
        ranking. A query head would have to be applied to them, so a policy that has one embeds queries anew."""
        stored = [p.vector for p in prompts if p.vector is not None]
        if self.searcher.embedder.head is not None or len(stored) < len(prompts):
            return self.searcher.plain_vectors([p.query for p in prompts])
        return torch.stack(stored).to(self.searcher.embedder.device)

    def retrieval_losses(
        self, prompts: Sequence[GRPOPrompt], query_vectors: Tensor, negatives: Sequence[Tensor]
    ) -> Tensor:
        """L_ret [B] of the query vectors [B, D], to which gradients flow. `negatives[b]` is [K_b, D]."""
        padded = pad_sequence(list(negatives), batch_first=True)
        mask = pad_sequence([torch.ones(len(n), dtype=torch.bool) for n in negatives], batch_first=True)
        device = query_vectors.device
        positives = torch.stack([self.vectors[p.right_segment_id] for p in prompts])
        return retrieval_losses(
            query_vectors,
            positives.to(device),
            padded.to(device),
            mask.to(device),
            temperature=self.recipe.retrieval_temperature,
        )

    def refined_losses(self, rollouts: Sequence[Rollout], latents: Sequence[Sequence[Tensor]]) -> Tensor:
        """L_ret [B] of the last refined query of each episode, which is made from `latents[b]`, one [N, D] per turn.
        Gradients flow through the frozen embedder to the latents."""
        refined = [Episode(r.episode.query, latents=list(soft)) for r, soft in zip(rollouts, latents, strict=True)]
        vectors = self.searcher.embed(refined)
        return self.retrieval_losses([r.prompt for r in rollouts], vectors, [r.negatives for r in rollouts])

    def _rewards(
        self, prompts: Sequence[GRPOPrompt], episodes: Sequence[Episode], negatives: Sequence[Tensor]
    ) -> list[RewardBreakdown]:
        last_vectors = torch.stack([e.final_vector for e in episodes if e.final_vector is not None])
        losses = self.retrieval_losses(prompts, last_vectors, negatives).tolist()
        asked = self.searcher.policy.model.soft_query.system_prompt
        return [
            score_episode(episode_record(*row, system_prompt=asked), self.recipe.rewards)
            for row in zip(prompts, episodes, losses, strict=True)
        ]

    def _negatives(self, prompt: GRPOPrompt) -> Tensor:
        """Vectors [K, D] of the negatives, chosen as in stage 1: a wrong video that ranks first comes first in
        `negative_ids`."""
        never = self.never.get(prompt.query_id, frozenset()) | {prompt.right_segment_id}
        ids = choose_negatives(prompt.negative_ids, self.corpus_ids, never, self.recipe.num_negatives, self.rng)
        size = len(self.vectors[prompt.right_segment_id])
        return torch.stack([self.vectors[video_id] for video_id in ids]) if ids else torch.zeros(0, size)


def episode_record(
    prompt: GRPOPrompt, episode: Episode, retrieval_loss: float, system_prompt: str = ""
) -> EpisodeRecord:
    """The facts about an episode that rewards read. `system_prompt` is the policy's own. The right span is cut to what
    the last turn shows, where that is a right window."""
    moment = (prompt.gt_video_id, prompt.start_s, prompt.end_s)
    span, last_id = moment[1:], episode.turns[-1].video_id if episode.turns else ""
    if is_right(last_id, *moment):
        span = clipped(last_id, *span)
    turns = [
        TurnRecord(
            text=turn.decoded.text,
            decision=turn.answer.decision,
            shown_is_right=is_right(turn.video_id, *moment),
            start_s=turn.answer.start_s,
            end_s=turn.answer.end_s,
        )
        for turn in episode.turns
    ]
    return EpisodeRecord(turns, *span, retrieval_loss, system_prompt)


@dataclass(frozen=True)
class Replay:
    """Rollouts that were run again with gradients. A row is an episode; its columns are the sampled tokens of all
    turns. An episode whose text was not replayed has its recorded log-probabilities, and NaN as entropy.

    log_probs, entropy: [B, L]; mask: [B, L], False in padding; latents[b]: one [N, D] per turn that refined.
    """

    log_probs: Tensor
    entropy: Tensor
    mask: Tensor
    latents: list[list[Tensor]]


def replay(
    policy: PolicyModel,
    rollouts: Sequence[Rollout],
    features: FeatureStore,
    temperature: float,
    with_latents: bool = True,
    has_text: Sequence[bool] | None = None,
) -> Replay:
    """Compute log-probabilities of the sampled tokens under `policy` at `temperature`, and the latents that follow.
    Turns with the same prompt and video share one reading of it.

    Args:
        policy: The policy, or the reference model.
        rollouts: The episodes.
        features: Vision features of the videos that were shown.
        temperature: The temperature at which the tokens were sampled.
        with_latents: False computes no latents: a reference model is needed for log-probabilities only.
        has_text: Whether the text of each episode has to be replayed; None for all. Of the other episodes, only the
            turns that refined are replayed, for their latents.
    """
    wanted = [True] * len(rollouts) if has_text is None else has_text
    refines = lambda turn: with_latents and turn.decoded.latents is not None  # noqa: E731
    turns = [(turn, is_wanted) for r, is_wanted in zip(rollouts, wanted, strict=True) for turn in r.episode.turns]
    played = [(turn, is_wanted) for turn, is_wanted in turns if is_wanted or refines(turn)]
    states, latents = _answered(policy, [turn for turn, _ in played], features, refines)
    texts = [
        (turn, at[: turn.decoded.num_text_tokens]) for (turn, text), at in zip(played, states, strict=True) if text
    ]
    of_played = iter(_token_log_probs(policy, texts, temperature))
    by_turn = iter(latents)
    rows = [next(of_played) if is_wanted else _as_recorded(turn) for turn, is_wanted in turns]
    lengths = [rollout.num_sampled_tokens for rollout in rollouts]
    log_probs, entropy = (torch.cat([row[part].to(rows[0][0]) for row in rows]) for part in (0, 1))
    return Replay(
        log_probs=_rows(log_probs, lengths),
        entropy=_rows(entropy, lengths),
        mask=_rows(torch.ones_like(log_probs, dtype=torch.bool), lengths),
        latents=[[next(by_turn) for turn in r.episode.turns if refines(turn)] for r in rollouts],
    )


def _answered(
    policy: PolicyModel, turns: Sequence[Turn], features: FeatureStore, refines: Callable[[Turn], bool]
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The states of each turn, from the end of its prompt on, and the latents of those that refine."""
    if not turns:
        return [], []
    return policy.teacher_forced_answers(
        [turn.prompt for turn in turns],
        features.get([turn.video_id for turn in turns]),
        [fed_tokens(turn, policy) for turn in turns],
        refining=[i for i, turn in enumerate(turns) if refines(turn)],
        num_soft_tokens=policy.model.soft_query.num_soft_tokens,
    )


def _token_log_probs(
    policy: PolicyModel, texts: Sequence[tuple[Turn, Tensor]], temperature: float
) -> list[tuple[Tensor, Tensor]]:
    """Log-probabilities and entropies [n] of the tokens of each turn, from the states [n, H] that predict them. More
    than MAX_LOGITS logits are computed in parts, and again in the backward pass."""
    if not texts:
        return []
    states = torch.cat([at for _, at in texts])
    targets = torch.tensor([t for turn, _ in texts for t in turn.decoded.token_ids], device=states.device)
    head = policy.model.lm_head
    size = max(1, MAX_LOGITS // head.weight.shape[0])
    if len(targets) <= size:
        parts = [_chosen(head, temperature, states, targets)]
    else:
        of_part = partial(checkpoint, partial(_chosen, head, temperature), use_reentrant=False)
        parts = [of_part(*part) for part in zip(states.split(size), targets.split(size), strict=True)]
    lengths = [turn.decoded.num_text_tokens for turn, _ in texts]
    chosen, entropy = (torch.cat(values).split(lengths) for values in zip(*parts, strict=True))
    return list(zip(chosen, entropy, strict=True))


def _chosen(head: nn.Module, temperature: float, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n] of `targets` at `temperature`, and entropies [n] without gradients."""
    log_probs = (head(states).float() / temperature).log_softmax(-1)
    entropy = -(log_probs.detach().exp() * log_probs.detach()).sum(-1)
    return log_probs.gather(-1, targets[:, None])[:, 0], entropy


def _as_recorded(turn: Turn) -> tuple[Tensor, Tensor]:
    recorded = torch.tensor(turn.decoded.log_probs)
    return recorded, torch.full_like(recorded, torch.nan)


def recorded_log_probs(rollouts: Sequence[Rollout]) -> Tensor:
    """The log-probabilities at temperature 1 that the decoding loop recorded for the same tokens, [B, L]; padding is
    0."""
    flat = [value for r in rollouts for turn in r.episode.turns for value in turn.decoded.log_probs]
    return _rows(torch.tensor(flat), [r.num_sampled_tokens for r in rollouts])


def fed_tokens(turn: Turn, policy: PolicyModel) -> list[int]:
    """The tokens that the policy read after the prompt: all sampled tokens but the last, which it only predicted. In a
    turn that refined, it read its text and <REFINE>, which replaces a stop token."""
    sampled = turn.decoded.token_ids
    if turn.decoded.latents is None:
        return sampled[:-1]
    return before_latents(policy.tokenizer, sampled, policy.end_tokens)


def _rows(flat: Tensor, lengths: list[int]) -> Tensor:
    return pad_sequence(list(flat.split(lengths)), batch_first=True)
