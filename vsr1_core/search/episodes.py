"""The search loop: retrieve, verify, refine (softly or by words), search again; many queries at once.

Every turn is one batch of the queries that are still open, sorted by prompt length and decoded in chunks. Sampling
(for GRPO) and greedy search are the same code. Metrics, tables and training are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vsr1_core.models.answer_tokens import decision_tokens
from vsr1_core.models.decoding import decode
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.prompts import Prompt, extended
from vsr1_core.models.protocols import Decoded, DecodeSettings, Embedder, PolicyModel, VideoFeatures
from vsr1_core.models.query_vectors import QueryVectors
from vsr1_core.reasoning.conversation import MATCH_TO_SPAN, Answer, build_messages, parse_answer
from vsr1_core.recipes import Refine
from vsr1_core.search.index import VideoIndex


@dataclass(frozen=True)
class EpisodeQuery:
    """A query to search for. `gt_video_id` is None where the answer is not known: ranks are None then."""

    query_id: str
    text: str
    gt_video_id: str | None = None


@dataclass(frozen=True)
class EpisodeSettings:
    """How queries are searched for.

    num_turns: verifications of a query at most. refine: `none` never changes the query (zero-shot, fine-tuned), `soft`
    adds soft tokens to it, `text` searches for what the policy wrote anew. exclude_rejected: a video that was rejected
    is not shown again for this query. batch_size: queries of one decoding pass; it changes no result but for rounding.
    """

    num_turns: int = 3
    refine: Refine = "soft"
    exclude_rejected: bool = False
    last_latents: bool = False
    """A query carries only the latents of its last turn, whatever the checkpoint says."""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    batch_size: int = 64


@dataclass
class Turn:
    """One verification: the video shown (first of the ranking), its score, the right video's rank, the answer."""

    video_id: str
    score: float
    rank: int | None
    prompt: Prompt
    decoded: Decoded
    answer: Answer
    num_query_tokens: int = 0
    """Of the decoded tokens, those of a new query's words."""


@dataclass
class Episode:
    """All turns of one query. `final_rank` is the right video's rank in the last ranking made: that of the matched
    turn, or the one after the last refinement; `final_video_id` and `final_score` are its first video. `final_vector`
    is the query's vector as it stands: that of this ranking. `search_text`: the words that are embedded, the query's
    own until the policy writes others; the policy is always asked about the query itself."""

    query: EpisodeQuery
    turns: list[Turn] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    rejected: set[str] = field(default_factory=set)
    first_rank: int | None = None
    final_rank: int | None = None
    final_video_id: str = ""
    final_score: float = 0.0
    final_vector: Tensor | None = None
    search_text: str = ""

    def __post_init__(self) -> None:
        self.search_text = self.search_text or self.query.text

    @property
    def is_matched(self) -> bool:
        """Whether the policy matched the video of the last turn."""
        return bool(self.turns) and self.turns[-1].answer.decision == "matched"


def turn_row(number: int, turn: Turn) -> dict[str, Any]:
    """A turn as plain values, for a table. `number` counts from 1; `text` is all that the policy wrote."""
    return {
        "turn": number,
        "video_id": turn.video_id,
        "score": turn.score,
        "rank": turn.rank,
        "decision": turn.answer.decision,
        "matched_probability": turn.decoded.matched_probability,
        "reasoning": turn.answer.reasoning,
        "start_s": turn.answer.start_s,
        "end_s": turn.answer.end_s,
        "num_text_tokens": turn.decoded.num_text_tokens,
        "num_latent_tokens": turn.decoded.num_latent_tokens,
        "num_query_tokens": turn.num_query_tokens,
        "new_query": turn.answer.new_query,
        "text": turn.decoded.text,
    }


MAX_SPAN_TOKENS = 32
"""Enough for two numbers and their tags where a tag is not one token."""


def best_turn(episode: Episode) -> Turn | None:
    """The turn that the answer policy `best` answers with: the match, else the highest match probability, the earlier
    one on a tie. None where no turn came to a decision."""
    if episode.is_matched:
        return episode.turns[-1]
    decided = [turn for turn in episode.turns if turn.decoded.matched_probability is not None]
    return max(decided, key=lambda turn: turn.decoded.matched_probability or 0.0, default=None)


def _has_span(turn: Turn) -> bool:
    return turn.answer.decision == "matched" and turn.answer.start_s is not None


@dataclass(frozen=True)
class Verification:
    """What the policy was asked about one video, and what it answered."""

    prompt: Prompt
    decoded: Decoded
    answer: Answer


@dataclass(frozen=True)
class BestAnswer:
    """What the answer policy `best` says: the video, its span in seconds (None where none can be read), the
    turn it was shown in, and how many tokens were decoded for the span beyond the episode's own."""

    turn: int
    video_id: str
    start_s: float | None
    end_s: float | None
    num_text_tokens: int = 0


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
    """Ask the policy about each (query text, video id), in order; latents follow what is not matched, if any are set.

    Decoded in chunks of `batch_size` of about the same prompt length. `durations_s`: video id -> seconds.
    """
    if not pairs:
        return []
    videos = features.get([video_id for _, video_id in pairs])
    prompts = prompts_of(policy, [text for text, _ in pairs], [f.layout for f in videos])
    outputs = _decode_in_chunks(policy, prompts, videos, settings, batch_size, generator)
    return [
        Verification(prompt, decoded, parse_answer(decoded.text, durations_s[video_id]))
        for prompt, decoded, (_, video_id) in zip(prompts, outputs, pairs, strict=True)
    ]


def _decode_in_chunks(
    policy: PolicyModel,
    prompts: Sequence[Prompt],
    videos: Sequence[VideoFeatures],
    settings: DecodeSettings,
    batch_size: int,
    generator: torch.Generator | None = None,
) -> list[Decoded]:
    """One outcome a prompt, in order; decoded in chunks of about the same length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
    found: dict[int, Decoded] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        outputs = decode(
            policy,
            [prompts[i] for i in chunk],
            [videos[i] for i in chunk],
            settings,
            wants_refine=lambda text: parse_answer(text, 0.0).decision != "matched",
            generator=generator,
        )
        found |= zip(chunk, outputs, strict=True)
    return [found[i] for i in range(len(prompts))]


def prompts_of(policy: PolicyModel, queries: Sequence[str], layouts: Sequence[Any]) -> list[Prompt]:
    """The prompt of each (query, video), with the checkpoint's own system prompt."""
    system = policy.model.soft_query.system_prompt
    conversations = [build_messages(q, system) for q in queries]
    return policy.prompts(conversations, layouts)


@dataclass
class Searcher:
    """Everything an episode needs: who verifies, who embeds, what is searched and what is shown.

    index: over vectors of `embedder` with size D. features: those of the index' videos by the policy's encoder.
    durations_s: video id -> seconds. plain: plain queries' vectors by `embedder` that are known already (not used where
    the policy has a query head).

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
        self._plain = known or QueryVectors(self.embedder)

    @torch.no_grad()
    def run(
        self,
        queries: Sequence[EpisodeQuery],
        first_vectors: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Episode]:
        """One episode a query, in order. `first_vectors` [Q, D] saves embedding the plain queries again.

        An episode that has rejected the whole corpus (`exclude_rejected`) ends with the ranking it made last.
        """
        episodes = [Episode(query) for query in queries]
        if not episodes:
            return episodes
        self._set_vectors(episodes, first_vectors)
        open_ones = episodes
        for _ in range(self.settings.num_turns):
            open_ones = self._rank(open_ones)
            if not open_ones:
                break
            self._verify(open_ones, generator)
            open_ones = [e for e in open_ones if not e.is_matched]
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
        """The right video's rank in each last ranking if every turn had brought only its first k soft tokens,
        k = 0..N: what more tokens bring, without searching again. None for an episode without latents."""
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
        """The answer policy `best`: the video of the match, else that of the highest match probability, grounded.

        A video that was not matched has no span yet: the policy is made to match it, behind its own trace, and the
        span is decoded greedily. None where no turn came to a decision.
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
        """The answer that follows each turn's prompt and forced tokens, and how many tokens that took."""
        if not forced:
            return {}
        turns = [turn for turn, _ in forced.values()]
        outputs = _decode_in_chunks(
            self.policy,
            [extended(turn.prompt, ids) for turn, ids in forced.values()],
            self.features.get([turn.video_id for turn in turns]),
            DecodeSettings(MAX_SPAN_TOKENS, 0.0, num_soft_tokens=0),
            self.settings.batch_size,
        )
        return {
            i: (parse_answer(MATCH_TO_SPAN + d.text, self.durations_s[turn.video_id]), d.num_text_tokens)
            for i, turn, d in zip(forced, turns, outputs, strict=True)
        }

    def _set_vectors(self, episodes: Sequence[Episode], vectors: Tensor | None = None) -> None:
        for episode, vector in zip(episodes, self.embed(episodes) if vectors is None else vectors, strict=True):
            episode.final_vector = vector

    def embed(self, episodes: Sequence[Episode]) -> Tensor:
        """Query vectors [Q, D] of the episodes as they stand: text and the latents collected so far.

        Differentiable where gradients are on and there are latents; the vectors of plain queries are kept.
        """
        vectors: list[Tensor | None] = [None] * len(episodes)
        plain = [i for i, e in enumerate(episodes) if not e.latents]
        if plain:
            for i, vector in zip(plain, self._plain.get([episodes[i].search_text for i in plain]), strict=True):
                vectors[i] = vector
        refined = [i for i, e in enumerate(episodes) if e.latents]
        refined.sort(key=lambda i: len(episodes[i].search_text))
        for start in range(0, len(refined), self.settings.batch_size):
            some = refined[start : start + self.settings.batch_size]
            soft = [self._soft_tokens(episodes[i]) for i in some]
            made = self.embedder.embed_queries([episodes[i].search_text for i in some], soft)
            for i, vector in zip(some, made, strict=True):
                vectors[i] = vector
        return torch.stack([vector for vector in vectors if vector is not None])

    def _soft_tokens(self, episode: Episode) -> Tensor:
        """A(z) of all turns so far, or of the last one, [n, E]."""
        policy = self.policy.model
        keeps = policy.soft_query.accumulate and not self.settings.last_latents
        return policy.append_input(torch.cat(episode.latents if keeps else episode.latents[-1:]))

    def _rank(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Rank all videos by the episodes' vectors and note what comes first. Returns those with a video to show."""
        if not episodes:
            return []
        queries = torch.stack([e.final_vector for e in episodes if e.final_vector is not None]).float().cpu().numpy()
        exclude = [e.rejected for e in episodes] if self.settings.exclude_rejected else None
        ids, scores = self.index.search(queries, 1, exclude=exclude)
        ranks = self.index.ranks(queries, [e.query.gt_video_id for e in episodes], exclude=exclude)
        showing = []
        for episode, found, score, rank in zip(episodes, ids, scores, ranks, strict=True):
            if not found:
                continue
            episode.final_video_id, episode.final_score, episode.final_rank = found[0], float(score[0]), rank
            if not episode.turns:
                episode.first_rank = rank
            showing.append(episode)
        return showing

    def _verify(self, episodes: Sequence[Episode], generator: torch.Generator | None) -> None:
        """Ask the policy about the video each episode found; append the turn and its latents."""
        soft_tokens = self.settings.decode.num_soft_tokens if self.settings.refine == "soft" else 0
        pairs = [(e.query.text, e.final_video_id) for e in episodes]
        settings = replace(self.settings.decode, num_soft_tokens=soft_tokens)
        size = self.settings.batch_size
        asked = verify(self.policy, self.features, self.durations_s, pairs, settings, size, generator)
        for episode, verification in zip(episodes, asked, strict=True):
            self._note(episode, verification)

    def _note(self, episode: Episode, asked: Verification) -> None:
        video_id, answer, decoded = episode.final_video_id, asked.answer, asked.decoded
        turn = Turn(video_id, episode.final_score, episode.final_rank, asked.prompt, decoded, answer)
        episode.turns.append(turn)
        if answer.decision == "matched":
            return
        episode.rejected.add(video_id)
        if decoded.latents is not None:
            episode.latents.append(decoded.latents)
        if self.settings.refine == "text" and answer.new_query is not None:
            episode.search_text = answer.new_query
            ids = self.policy.tokenizer(answer.new_query, add_special_tokens=False)["input_ids"]
            turn.num_query_tokens = len(ids)
