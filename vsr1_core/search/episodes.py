"""The search loop: retrieve, verify, refine (by soft tokens or by words), and search again, for many queries at once.

What is retrieved and shown is a segment: a video, or a window of a long one; `video_id` names either
(`vsr1_core.segments`).

In every turn, all queries that are still open are one batch, sorted by prompt length and decoded in chunks. Sampling
(for GRPO) and greedy search use the same code. Metrics, tables and training are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vsr1_core.models.answer_tokens import decision_tokens
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.prompts import Prompt, extended
from vsr1_core.models.protocols import Decoded, DecodeSettings, Embedder, PolicyModel
from vsr1_core.models.query_vectors import QueryVectors, SoftTokens, embedded_queries
from vsr1_core.models.text_tokens import plain_ids
from vsr1_core.reasoning.conversation import MATCH_TO_SPAN, Answer, build_messages, parse_answer
from vsr1_core.recipes import Refine
from vsr1_core.search.decoding_batches import decode_in_batches
from vsr1_core.search.index import VideoIndex
from vsr1_core.search.turns import BestAnswer, Episode, EpisodeQuery, Turn, best_turn
from vsr1_core.segments import shown_span


@dataclass(frozen=True)
class EpisodeSettings:
    """How queries are searched for."""

    num_turns: int = 3
    """The largest number of videos that are verified for a query."""
    refine: Refine = "soft"
    """`none` never changes the query, `soft` adds soft tokens to it, `text` searches for what the policy rewrote."""
    exclude_rejected: bool = False
    """A video, or window, that was rejected is not shown again for the same query."""
    last_latents: bool = False
    """A query carries only the latents of its last turn, whatever the checkpoint says."""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    batch_size: int = 64
    """How many queries are decoded in one pass at most; long prompts leave room for fewer. It changes results only by
    rounding."""
    num_kept: int = 10
    """How many videos of each ranking are kept. It changes no result."""


@dataclass(frozen=True)
class Verification:
    """What the policy was asked about one video, and what it answered."""

    prompt: Prompt
    decoded: Decoded
    answer: Answer


MAX_SPAN_TOKENS = 32
"""Enough for two numbers and their tags, even if a tag is several tokens."""


@torch.no_grad()
def verify(
    policy: PolicyModel,
    features: FeatureStore,
    durations_s: Mapping[str, float],
    pairs: Sequence[tuple[str, str]],
    settings: DecodeSettings,
    batch_size: int,
    generator: torch.Generator | None = None,
) -> list[Verification]:
    """Ask the policy about each pair (query text, segment id). If `settings` ask for latents, they follow every answer
    that is not a match.

    Prompts of similar length are decoded together, in batches that fit into the budget of `features`, of at most
    `batch_size`. At most `features.max_bytes` of features are held at a time. `durations_s`: segment id -> seconds.
    Returns one verification per pair, in order.
    """
    asked: list[Verification] = []
    for part in features.parts([video_id for _, video_id in pairs]):
        some = [pairs[place] for place in part]
        videos = features.get([video_id for _, video_id in some])
        prompts = prompts_of(policy, [text for text, _ in some], [f.layout for f in videos])
        outputs = decode_in_batches(policy, prompts, videos, settings, batch_size, features.budget, generator)
        asked += (
            Verification(prompt, decoded, _answer(decoded.text, video_id, durations_s))
            for prompt, decoded, (_, video_id) in zip(prompts, outputs, some, strict=True)
        )
    return asked


def _answer(text: str, segment_id: str, durations_s: Mapping[str, float]) -> Answer:
    """The parsed answer, whose span lies in what the segment shows."""
    first_s, last_s = shown_span(segment_id, durations_s[segment_id])
    return parse_answer(text, last_s, first_s)


def prompts_of(policy: PolicyModel, queries: Sequence[str], layouts: Sequence[Any]) -> list[Prompt]:
    """The prompt of each query with the layout of its video, and with the system prompt of the checkpoint."""
    system = policy.model.soft_query.system_prompt
    conversations = [build_messages(q, system) for q in queries]
    return policy.prompts(conversations, layouts)


@dataclass
class Searcher:
    """Searches for queries with a policy, an embedder and an index.

    index: over vectors of `embedder`, of size D. features: of the videos in the index, by the encoder of the policy.
    durations_s: segment id -> seconds. plain: known vectors of plain queries by `embedder`; they are not used if the
    policy has a query head.

    Example:
        searcher = Searcher(policy, embedder, index, features, durations_s, EpisodeSettings(num_turns=3))
        [episode] = searcher.run([EpisodeQuery("q1", "a person opens a fridge")])
        episode.final_video_id, episode.is_matched
    """

    policy: PolicyModel
    embedder: Embedder
    index: VideoIndex
    features: FeatureStore
    durations_s: Mapping[str, float]
    settings: EpisodeSettings
    plain: QueryVectors | None = None

    def __post_init__(self) -> None:
        self.embedder = self.embedder.with_head(self.policy.model.query_head)
        known = self.plain if self.embedder.head is None else None
        self._plain = known or QueryVectors(self.embedder, budget=self.features.budget)

    @torch.no_grad()
    def run(
        self,
        queries: Sequence[EpisodeQuery],
        first_vectors: Tensor | None = None,
        generator: torch.Generator | None = None,
        told: Callable[[Episode], Any] = lambda episode: None,
    ) -> list[Episode]:
        """Search for all queries. Returns one episode per query, in order.

        `first_vectors` [Q, D]: the vectors of the plain queries, if they are known. `told` is called with each episode
        after each turn. An episode that has rejected the whole corpus (`exclude_rejected`) ends with its last ranking.
        """
        known = [None] * len(queries) if first_vectors is None else list(first_vectors)
        episodes = [Episode(query, plain_vector=vector) for query, vector in zip(queries, known, strict=True)]
        if not episodes:
            return episodes
        self._set_vectors(episodes)
        open_ones = episodes
        for _ in range(self.settings.num_turns):
            open_ones = self._rank(open_ones)
            if not open_ones:
                break
            self._verify(open_ones, generator)
            for episode in open_ones:
                told(episode)
            open_ones = [e for e in open_ones if not e.is_matched and not self._ends_unrefined(e)]
            refines = self.settings.refine != "none"
            if not open_ones or not (refines or self.settings.exclude_rejected):
                break
            if refines:
                self._set_vectors(open_ones)
        else:
            self._rank(open_ones)
        return episodes

    @torch.no_grad()
    def prefix_ranks(self, episodes: Sequence[Episode]) -> list[list[int | None] | None]:
        """For each episode, the rank of the right video in the last ranking if every turn had used only its first k
        soft tokens, for k = 0..N. Nothing is searched again. None for an episode without latents."""
        refined = [e for e in episodes if e.latents]
        num_tokens = self.settings.decode.num_soft_tokens
        exclude = [e.rejected for e in refined] if self.settings.exclude_rejected else None
        ranks: list[list[int | None]] = []
        for k in range(num_tokens if refined else 0):
            cut = [replace(e, latents=[z[:k] for z in e.latents] if k else []) for e in refined]
            vectors = self.embed(cut).float().cpu().numpy()
            ranks.append(self.index.ranks(vectors, [e.query.gt_video_id for e in refined], exclude=exclude))
        of_refined = iter([*at, e.final_rank] for *at, e in zip(*ranks, refined, strict=True))
        return [next(of_refined) if e.latents else None for e in episodes]

    @torch.no_grad()
    def best_answers(self, episodes: Sequence[Episode]) -> list[BestAnswer | None]:
        """The best answer of each episode: the matched video, or else the video of the highest match probability.

        A video that was not matched has no span yet: after the policy's own reasoning, the decision is replaced by a
        match, and the span is decoded greedily. None for an episode in which no turn has a decision.
        """
        tokens = decision_tokens(self.policy.tokenizer)
        best = [best_turn(episode) for episode in episodes]
        forced: dict[int, tuple[Turn, list[int]]] = {}
        for i, turn in enumerate(best):
            ids = None if turn is None or _has_span(turn) else tokens.as_match(turn.decoded.token_ids)
            if turn is not None and ids is not None:
                forced[i] = turn, ids
        spans = self._ground(forced)
        answers: list[BestAnswer | None] = []
        for i, (episode, turn) in enumerate(zip(episodes, best, strict=True)):
            if turn is None:
                answers.append(None)
                continue
            answer, num_tokens = spans.get(i, (turn.answer, 0))
            number = 1 + [t is turn for t in episode.turns].index(True)
            answers.append(BestAnswer(number, turn.video_id, answer.start_s, answer.end_s, num_tokens))
        return answers

    def _ground(self, forced: Mapping[int, tuple[Turn, list[int]]]) -> dict[int, tuple[Answer, int]]:
        """The answer that follows the prompt and the forced tokens of each turn, and how many tokens were decoded."""
        if not forced:
            return {}
        turns = [turn for turn, _ in forced.values()]
        prompts = [extended(turn.prompt, ids) for turn, ids in forced.values()]
        outputs: list[Decoded] = []
        for part in self.features.parts([turn.video_id for turn in turns]):
            outputs += decode_in_batches(
                self.policy,
                [prompts[place] for place in part],
                self.features.get([turns[place].video_id for place in part]),
                DecodeSettings(MAX_SPAN_TOKENS, 0.0, num_soft_tokens=0),
                self.settings.batch_size,
                self.features.budget,
            )
        return {
            i: (_answer(MATCH_TO_SPAN + d.text, turn.video_id, self.durations_s), d.num_text_tokens)
            for i, turn, d in zip(forced, turns, outputs, strict=True)
        }

    def _set_vectors(self, episodes: Sequence[Episode]) -> None:
        for episode, vector in zip(episodes, self.embed(episodes), strict=True):
            episode.final_vector = vector

    def embed(self, episodes: Sequence[Episode]) -> Tensor:
        """Query vectors [Q, D] of the episodes as they are now, from text and the latents collected so far.

        Differentiable if gradients are on and there are latents. Vectors of plain queries are cached.
        """
        is_known = [not e.latents and e.search_text == e.query.text for e in episodes]
        vectors = [e.plain_vector if known else None for e, known in zip(episodes, is_known, strict=True)]
        plain = [i for i, e in enumerate(episodes) if not e.latents and vectors[i] is None]
        if plain:
            for i, vector in zip(plain, self._plain.get([episodes[i].search_text for i in plain]), strict=True):
                vectors[i] = vector
        refined = [i for i, e in enumerate(episodes) if e.latents]
        refined.sort(key=lambda i: len(episodes[i].search_text))
        for i, vector in zip(refined, self._refined_vectors([episodes[i] for i in refined]), strict=True):
            vectors[i] = vector
        return torch.stack([vector for vector in vectors if vector is not None])

    def plain_vectors(self, texts: Sequence[str]) -> Tensor:
        """Vectors [Q, D] of plain queries, each of which is embedded by itself: padding changes rounding, so in batches
        a vector would depend on the queries beside it, and a resumed training has other queries beside it."""
        different = list(dict.fromkeys(texts))
        vectors = dict(zip(different, self._plain.get(different, batch_size=1), strict=True))
        return torch.stack([vectors[text] for text in texts])

    def _refined_vectors(self, episodes: Sequence[Episode]) -> Iterator[Tensor]:
        """The vectors [D] of the episodes, whose queries carry soft tokens."""
        carried = [self._carried(episode) for episode in episodes]
        soft = SoftTokens(
            [sum(map(len, latents)) for latents in carried],
            lambda i: self.policy.model.append_input(torch.cat(carried[i])),
            self.policy.model.soft_query.form.query_tokens,
        )
        texts, batch_size = [episode.search_text for episode in episodes], self.settings.batch_size
        return embedded_queries(self.embedder, texts, self.features.budget, batch_size, soft)

    def _carried(self, episode: Episode) -> list[Tensor]:
        """The latents that become the query's soft tokens A(z): of all turns so far, or only of the last one."""
        keeps = self.policy.model.soft_query.accumulate and not self.settings.last_latents
        return episode.latents if keeps else episode.latents[-1:]

    def _rank(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Rank all videos for each episode and record the first one. Returns the episodes that have a video to show."""
        if not episodes:
            return []
        queries = torch.stack([e.final_vector for e in episodes if e.final_vector is not None]).float().cpu().numpy()
        exclude = [e.rejected for e in episodes] if self.settings.exclude_rejected else None
        right = [e.query.gt_video_id for e in episodes]
        ids, scores, ranks = self.index.search_and_rank(queries, self.settings.num_kept, right, exclude)
        showing = []
        for episode, found, score, rank in zip(episodes, ids, scores, ranks, strict=True):
            if not found:
                continue
            episode.ranked = tuple(zip(found, score, strict=True))
            (episode.final_video_id, episode.final_score), episode.final_rank = episode.ranked[0], rank
            if not episode.turns:
                episode.first_rank, episode.first_vector = rank, episode.final_vector
            showing.append(episode)
        return showing

    def _verify(self, episodes: Sequence[Episode], generator: torch.Generator | None) -> None:
        """Ask the policy about the video that each episode found; append the turn and its latents."""
        soft_tokens = self.settings.decode.num_soft_tokens if self.settings.refine == "soft" else 0
        pairs = [(e.query.text, e.final_video_id) for e in episodes]
        settings = replace(self.settings.decode, num_soft_tokens=soft_tokens)
        size = self.settings.batch_size
        asked = verify(self.policy, self.features, self.durations_s, pairs, settings, size, generator)
        for episode, verification in zip(episodes, asked, strict=True):
            self._note(episode, verification)

    def _ends_unrefined(self, episode: Episode) -> bool:
        """Whether the episode ends because its last answer asked for no refinement, where the form of the policy forces
        none (compat)."""
        is_forced = self.settings.refine != "soft" or self.policy.model.soft_query.form.force_refine
        return not is_forced and episode.turns[-1].decoded.latents is None

    def _note(self, episode: Episode, asked: Verification) -> None:
        video_id, answer, decoded = episode.final_video_id, asked.answer, asked.decoded
        score, rank = episode.final_score, episode.final_rank
        turn = Turn(video_id, score, rank, asked.prompt, decoded, answer, ranked=episode.ranked)
        episode.turns.append(turn)
        if answer.decision == "matched":
            return
        episode.rejected.add(video_id)
        if decoded.latents is not None:
            episode.latents.append(decoded.latents)
        if self.settings.refine == "text" and answer.new_query is not None:
            episode.search_text = answer.new_query
            turn.num_query_tokens = len(plain_ids(self.policy.tokenizer, [answer.new_query])[0])


def _has_span(turn: Turn) -> bool:
    return turn.answer.decision == "matched" and turn.answer.start_s is not None
