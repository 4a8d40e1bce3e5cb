"""Corpora of video files behind a server: real tables, index, search loop and player; what models would say is known.

A witness stands in place of an embedder and a policy. It knows what the videos of its corpus show.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from tests.core.fake_corpus import Given
from tests.films import Events, colours_of, vector_of_frames, vector_of_text
from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.home.search import SearchRequest, Told, search_together
from vsr1_core.home.search_result import Found
from vsr1_core.models.prompts import Prompt
from vsr1_core.models.protocols import Decoded
from vsr1_core.reasoning.conversation import answer_text, parse_answer
from vsr1_core.search.episodes import EpisodeSettings, Searcher, Verification
from vsr1_core.search.turns import Episode, EpisodeQuery
from vsr1_core.segments import shown_span, video_of
from vsr1_core.serve.engine import Engine, Limits
from vsr1_core.serve.library import Library
from vsr1_core.serve.media import Conversions
from vsr1_core.serve.state import ServerState
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, open_view
from vsr1_core.stages.loading import frames_of
from vsr1_core.stages.methods import ALL, Method
from vsr1_core.stages.opened import OpenedModels
from vsr1_core.stages.predictions import prediction_row

Vector = np.ndarray
METHODS = ("sqr_sft", "videosearch_r1")
REAL = ("annotation_files", "raw_videos", "videos", "moments", "frame_tensors")
"""What is built from the files before anything asks a model."""
NUM_SOFT_TOKENS = 8


class Witness(ABC):
    """What an embedder and a policy say of a corpus. Vectors are unit vectors of one size."""

    @abstractmethod
    def right(self, text: str) -> Vector:
        """The vector of what the text asks for."""

    @abstractmethod
    def decoy(self, text: str) -> Vector:
        """The vector of something else, which is found before the text's own words are refined."""

    @abstractmethod
    def segment_vector(self, row: Mapping[str, Any]) -> Vector:
        """The vector of a row of `frame_tensors`."""

    @abstractmethod
    def span(self, text: str, row: Mapping[str, Any]) -> tuple[float, float] | None:
        """Where the segment shows what the text asks for, in seconds of the source; None where it does not."""

    def query_vector(self, text: str, num_refined: int) -> Vector:
        """The text's own words are nearer to the decoy; one refinement turns to what they ask for."""
        return self.right(text) if num_refined else 0.6 * self.right(text) + 0.8 * self.decoy(text)

    def answer(self, text: str, row: Mapping[str, Any], method: str) -> str:
        """What the policy of the method writes about a segment."""
        span = self.span(text, row)
        trace = f"I looked at {row['video_id']}."
        return answer_text(trace, False) if span is None else answer_text(trace, True, *span)


class ColourWitness(Witness):
    """Sees the colours of made films (`tests.films`): a text asks for the colour that it names. colours: those that the
    films show."""

    def __init__(self, colours: Sequence[str]) -> None:
        self.colours = colours

    def right(self, text: str) -> Vector:
        return vector_of_text(text)

    def decoy(self, text: str) -> Vector:
        following = self.colours.index(self.colour(text)) + 1
        return vector_of_text(self.colours[following % len(self.colours)])

    def colour(self, text: str) -> str:
        return next(name for name in self.colours if name in text)

    def segment_vector(self, row: Mapping[str, Any]) -> Vector:
        return vector_of_frames(frames_of(dict(row)).pixels)

    def span(self, text: str, row: Mapping[str, Any]) -> tuple[float, float] | None:
        frames = frames_of(dict(row))
        shown = zip(frames.timestamps_s, colours_of(frames.pixels), strict=True)
        times = [time_s for time_s, colour in shown if colour == self.colour(text)]
        return (times[0], times[-1]) if times else None


class CaptionWitness(Witness):
    """Knows which video each caption is of. captions: text -> video id. With the method `sqr_sft`, query number n goes
    wrong in the way `WRONG[n % 6]`."""

    WRONG = ("", "at once", "span", "accepts", "rejects", "stays")

    def __init__(self, captions: Mapping[str, str]) -> None:
        self.captions, self.videos = captions, sorted(captions.values())

    def way(self, text: str, method: str) -> str:
        return self.WRONG[list(self.captions).index(text) % len(self.WRONG)] if method == "sqr_sft" else ""

    def _one_hot(self, place: int) -> Vector:
        return np.eye(len(self.videos), dtype=np.float32)[place % len(self.videos)]

    def right(self, text: str) -> Vector:
        return self._one_hot(self.videos.index(self.captions[text]))

    def decoy(self, text: str) -> Vector:
        return self._one_hot(self.videos.index(self.captions[text]) + 1)

    def segment_vector(self, row: Mapping[str, Any]) -> Vector:
        return self._one_hot(self.videos.index(video_of(row["video_id"])))

    def span(self, text: str, row: Mapping[str, Any]) -> tuple[float, float] | None:
        first_s, last_s = shown_span(row["video_id"], row["duration_s"])
        length_s = last_s - first_s
        is_right = self.captions[text] == video_of(row["video_id"])
        return (first_s + 0.1 * length_s, last_s - 0.1 * length_s) if is_right else None

    def answer(self, text: str, row: Mapping[str, Any], method: str) -> str:
        match self.way(text, method):
            case "accepts":
                return answer_text("All of them fit.", True, 0.0, 1.0)
            case "rejects":
                return answer_text("None of them fits.", False)
            case "span" if self.span(text, row):
                return answer_text("It is at the begin.", True, 0.0, 0.1 * row["duration_s"])
        return super().answer(text, row, method)


class KnowingSearcher(Searcher):
    """The real search loop over a real index, with a witness in place of both models. rows: those of frame_tensors."""

    def __init__(self, models: KnowingModels, split: str, method: str) -> None:
        self.index, self.durations_s = models.index(split), models.durations_s
        self.settings = EpisodeSettings(num_turns=3)
        self.witness, self.method = models.witness, method
        self.rows = {row["video_id"]: row for row in models.view.rows("frame_tensors").to_dicts()}

    def _set_vectors(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            text, num_refined = episode.query.text, len(episode.latents)
            if isinstance(self.witness, CaptionWitness):
                way = self.witness.way(text, self.method)
                num_refined = {"at once": 1, "span": 1, "rejects": 1, "stays": 0}.get(way, num_refined)
            episode.final_vector = torch.from_numpy(self.witness.query_vector(text, num_refined))

    def _verify(self, episodes: Sequence[Episode], generator: torch.Generator | None) -> None:
        for episode in episodes:
            shown = episode.final_video_id
            text = self.witness.answer(episode.query.text, self.rows[shown], self.method)
            first_s, last_s = shown_span(shown, self.durations_s[shown])
            answer = parse_answer(text, last_s, first_s)
            is_match = answer.decision == "matched"
            latents = None if is_match else torch.zeros(NUM_SOFT_TOKENS, 1)
            decoded = Decoded([0] * 9, [0.0] * 9, text, latents, 0.9 if is_match else 0.1)
            self._note(episode, Verification(cast(Prompt, None), decoded, answer))

    def _ends_unrefined(self, episode: Episode) -> bool:
        return False


class KnowingModels(OpenedModels):
    """The opened models of a corpus that a witness knows."""

    def __init__(self, view: View, witness: Witness) -> None:
        super().__init__(view, Execution())
        self.witness = witness

    @property
    def plain(self) -> Any:
        return self

    def get(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.witness.query_vector(text, 0) for text in texts]))

    def unrelated_scores(self, split: str) -> None:
        """A witness says nothing of other texts."""

    def searcher(self, split: str, method: Method) -> KnowingSearcher:
        return KnowingSearcher(self, split, method.name)


def build(home: Path, entry: DatasetEntry, witness: Witness) -> KnowingModels:
    """Register a folder of videos and build its tables: the real ones where no model is asked."""
    save_entry(home, entry)
    view, execution = open_view(home, entry.name), Execution(workers=1)
    for name in REAL:
        assert view.stages[name].build(view, execution).num_failed == 0, name
    frames = view.rows("frame_tensors").to_dicts()
    vectors = [
        {"video_id": row["video_id"], "splits": row["splits"], "vector": witness.segment_vector(row).tolist()}
        for row in frames
    ]
    _give(view, "base_models", [{"model_id": "embedder", "path": "/nowhere", "digest": "e0"}])
    _give(view, "video_embeddings", vectors)
    view.stages["video_index"].build(view, execution)
    for name in METHODS:
        model = ALL[name]
        key = view.stages[model.model].key
        _give(view, model.model, [{key: model.row_id, "path": "/nowhere", "digest": f"of {name}"}])
    models = KnowingModels(open_view(home, entry.name), witness)
    for name in METHODS:
        _give(models.view, f"predictions.{name}", _predictions(models, name))
    return KnowingModels(open_view(home, entry.name), witness)


def _give(view: View, asset: str, rows: list[dict[str, Any]]) -> None:
    given: Stage = Given(all_stages()[asset], rows)
    given.build(view, Execution())


def _predictions(models: KnowingModels, method: str) -> list[dict[str, Any]]:
    moments = models.view.rows("moments").to_dicts()
    queries = [EpisodeQuery(m["query_id"], m["query"], m["video_id"]) for m in moments]
    episodes = KnowingSearcher(models, "test", method).run(queries)
    answered = zip(moments, episodes, strict=True)
    return [dict(prediction_row(cast(Any, m), e, None, [2, 1], f"of {method}")) for m, e in answered]


def state_of(home: Path, corpora: Mapping[str, KnowingModels]) -> ServerState:
    """A server over all corpora of the home."""

    def run(dataset: str, requests: Sequence[SearchRequest], told: Told) -> list[Found]:
        return search_together(corpora[dataset], requests, told)

    return ServerState(Library(home), Engine(run), Conversions(home / "converted", 1 << 30, 300), Limits())


def write_events(path: Path, films: Iterable[tuple[str, Events]]) -> Path:
    """The events of films as a CSV of annotations."""
    rows = [
        f"{name},{start_s},{end_s},a {colour} picture" for name, e in films for colour, (start_s, end_s) in e.items()
    ]
    path.write_text("\n".join(["video,start,end,query", *rows]) + "\n")
    return path
