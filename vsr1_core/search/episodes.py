"""The loop of METHOD 2: retrieve, verify, refine, search again; many queries at once, turn by turn.

Every turn is one batch of the queries that are still open, sorted by prompt length and decoded in chunks. Sampling
(for GRPO) and greedy search are the same code. Metrics, tables and training are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vsr1_core.models.checkpoints import LoadedPolicy
from vsr1_core.models.decoding import Decoded, DecodeSettings, decode
from vsr1_core.models.embedder import Embedder
from vsr1_core.models.inputs import Prompt, build_prompts
from vsr1_core.models.vision import FeatureStore
from vsr1_core.reasoning.conversation import Answer, build_messages, parse_answer
from vsr1_core.search.index import VideoIndex


@dataclass(frozen=True)
class EpisodeQuery:
    """A query to search for. `right_video_id` is None where the answer is not known: ranks are None then."""

    query_id: str
    text: str
    right_video_id: str | None = None


@dataclass(frozen=True)
class EpisodeSettings:
    """refine False asks the policy once a turn and never changes the query (zero-shot, fine-tuned)."""

    num_turns: int = 3
    refine: bool = True
    exclude_rejected: bool = False
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


@dataclass
class Episode:
    """All turns of one query. `final_rank` is the right video's rank in the last ranking made: that of the matched
    turn, or the one after the last refinement. `final_vector` is the query vector of that ranking."""

    query: EpisodeQuery
    turns: list[Turn] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    rejected: set[str] = field(default_factory=set)
    first_rank: int | None = None
    final_rank: int | None = None
    final_video_id: str = ""
    final_vector: Tensor | None = None

    @property
    def is_matched(self) -> bool:
        return bool(self.turns) and self.turns[-1].answer.decision == "matched"


@dataclass
class Searcher:
    """Everything an episode needs. `durations_s`: video id -> seconds."""

    policy: LoadedPolicy
    embedder: Embedder
    index: VideoIndex
    features: FeatureStore
    durations_s: Mapping[str, float]
    settings: EpisodeSettings

    @torch.no_grad()
    def run(
        self,
        queries: Sequence[EpisodeQuery],
        first_vectors: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Episode]:
        """One episode a query, in order. `first_vectors` [Q, D] saves embedding the plain queries again."""
        episodes = [Episode(query) for query in queries]
        if not episodes:
            return episodes
        vectors = first_vectors if first_vectors is not None else self.embed(episodes)
        open_rows = list(range(len(episodes)))
        for _ in range(self.settings.num_turns):
            shown = self._rank([episodes[i] for i in open_rows], vectors)
            self._verify([episodes[i] for i in open_rows], shown, generator)
            open_rows = [i for i in open_rows if not episodes[i].is_matched]
            if not open_rows or not (self.settings.refine or self.settings.exclude_rejected):
                break
            vectors = self.embed([episodes[i] for i in open_rows])
        else:
            self._rank([episodes[i] for i in open_rows], vectors)
        return episodes

    def embed(self, episodes: Sequence[Episode]) -> Tensor:
        """Query vectors [Q, D] of the episodes as they stand: text and the latents collected so far."""
        keep_all = self.policy.model.soft_query.accumulate
        rows = []
        for start in range(0, len(episodes), self.settings.batch_size):
            some = episodes[start : start + self.settings.batch_size]
            soft = [
                self.policy.model.append_input(torch.cat(e.latents if keep_all else e.latents[-1:]))
                if e.latents
                else None
                for e in some
            ]
            rows.append(self.embedder.embed_queries([e.query.text for e in some], soft))
        return torch.cat(rows)

    def _rank(self, episodes: Sequence[Episode], vectors: Tensor) -> list[tuple[str, float]]:
        """Rank all videos; note rank and first video in each episode; return (video id, score) to show."""
        queries = vectors.float().cpu().numpy()
        exclude = [e.rejected for e in episodes] if self.settings.exclude_rejected else None
        ids, scores = self.index.search(queries, 1, exclude=exclude)
        ranks = self.index.ranks(queries, [e.query.right_video_id for e in episodes], exclude=exclude)
        shown = []
        for row, episode in enumerate(episodes):
            episode.final_rank = ranks[row]
            episode.final_vector = vectors[row]
            episode.final_video_id = ids[row][0]
            if not episode.turns:
                episode.first_rank = ranks[row]
            shown.append((ids[row][0], float(scores[row][0])))
        return shown

    def _verify(
        self,
        episodes: Sequence[Episode],
        shown: Sequence[tuple[str, float]],
        generator: torch.Generator | None,
    ) -> None:
        """Ask the policy about the shown video of each episode; append the turn and its latents."""
        videos = self.features.get([video_id for video_id, _ in shown])
        prompts = self.prompts([e.query.text for e in episodes], [f.layout for f in videos])
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
        soft_tokens = self.settings.decode.num_soft_tokens if self.settings.refine else 0
        settings = DecodeSettings(self.settings.decode.max_new_tokens, self.settings.decode.temperature, soft_tokens)
        for start in range(0, len(order), self.settings.batch_size):
            chunk = order[start : start + self.settings.batch_size]
            outputs = decode(
                self.policy.model,
                self.policy.tokenizer,
                [prompts[i] for i in chunk],
                [videos[i] for i in chunk],
                settings,
                wants_refine=lambda text: parse_answer(text, 0.0).decision != "matched",
                generator=generator,
            )
            for i, decoded in zip(chunk, outputs, strict=True):
                self._note(episodes[i], shown[i], prompts[i], decoded)

    def prompts(self, queries: Sequence[str], layouts: Sequence[object]) -> list[Prompt]:
        """The prompt of each (query, video), with the checkpoint's own system prompt."""
        system = self.policy.model.soft_query.system_prompt
        conversations = [build_messages(q, system) if system else build_messages(q) for q in queries]
        return build_prompts(self.policy.tokenizer, self.policy.model.model, conversations, layouts)

    def _note(self, episode: Episode, shown: tuple[str, float], prompt: Prompt, decoded: Decoded) -> None:
        video_id, score = shown
        answer = parse_answer(decoded.text, self.durations_s[video_id])
        episode.turns.append(Turn(video_id, score, episode.final_rank, prompt, decoded, answer))
        if answer.decision != "matched":
            episode.rejected.add(video_id)
            if decoded.latents is not None:
                episode.latents.append(decoded.latents)
