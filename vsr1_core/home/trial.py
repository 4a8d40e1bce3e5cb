"""Tries the configured models on this machine: loads them, embeds a video, runs an episode, and takes a training step.

The video is noise of the most frames and pixels that the configuration allows, so that seconds and memory are those of
the longest video. `vsr1 doctor --try` prints them beside the forecast. Nothing is written into a home.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsr1_core.home.capacity import Device
from vsr1_core.models.batches import Budget
from vsr1_core.models.checkpoints import load_embedder, open_policy
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.memory import Learning, Passes, weight_bytes
from vsr1_core.models.peak_memory import PeakMemory
from vsr1_core.models.protocols import DecodeSettings, Embedder, PolicyModel, VideoFrames
from vsr1_core.models.sizes import ModelSize
from vsr1_core.models.video_vectors import embedded_videos
from vsr1_core.reasoning.conversation import answer_text
from vsr1_core.recipes import Configuration, FrameRecipe, SFTRecipe
from vsr1_core.search.episodes import EpisodeSettings, Searcher
from vsr1_core.search.index import build_index
from vsr1_core.search.turns import EpisodeQuery

QUERY = "a person opens a fridge"
NUM_TURNS, NUM_TOKENS = 2, 16
"""Turns of the episode, and text tokens per turn."""
KEPT_LAYERS, LORA_RANK = 2, 16
"""Layers of the text model that the training step keeps, and the rank of its adapters."""


@dataclass(frozen=True)
class Tried:
    """One step of a trial. seconds and peak_bytes are measured: bytes are those that came on top of what was held, of
    the GPU, or of anonymous memory on a CPU. The forecasts are None where there is none. found: what came out."""

    name: str
    seconds: float
    peak_bytes: float
    forecast_s: float | None
    forecast_bytes: float | None
    found: str


def try_models(
    config: Configuration, embedder: Path, policy: Path | None, device: Device, place: str, dtype: torch.dtype
) -> Iterator[Tried]:
    """Try the models in these folders on the torch device `place`, one step at a time. device: as the forecast sees it.

    Raises what the step raises: ValueError for a folder that is no such model, MemoryError where memory is short.
    """
    trial = _Trial(config, device, place, dtype)
    yield trial.load_embedder(embedder)
    yield trial.embed_video()
    if policy is not None:
        yield trial.load_policy(policy, embedder)
        yield trial.run_episode()
        yield trial.train_step()


@dataclass
class _Trial:
    config: Configuration
    device: Device
    place: str
    dtype: torch.dtype
    embedder: Embedder = field(init=False)
    policy: PolicyModel = field(init=False)
    vector: torch.Tensor = field(init=False)

    @property
    def video(self) -> VideoFrames:
        return longest_video(self.config.frames)

    def load_embedder(self, folder: Path) -> Tried:
        self.embedder, seconds, peak = _measured(self.place, lambda: load_embedder(folder, self.place, self.dtype))
        return Tried("load the embedder", seconds, peak, None, self._weights(self.embedder.size), str(folder))

    def embed_video(self) -> Tried:
        video, budget = self.video, Budget()
        embed = lambda: dict(embedded_videos(self.embedder, [("video", video)], budget, 1))["video"]  # noqa: E731
        self.vector, seconds, peak = _measured(self.place, embed)
        size, (patches, tokens) = self.embedder.size, self.embedder.video_size(video)
        forecast_s = self.device.seconds(2 * (size.text * tokens + size.vision * patches))
        most = budget.bytes_on(torch.device(self.place))
        needed = Passes(size, weight_bytes(self.embedder.model)).video_embedding([patches], [tokens], most)
        found = f"{len(video.pixels)} frames, {patches:,} patches, {tokens:,} tokens"
        return Tried("embed a video", seconds, peak, forecast_s, needed + video.pixels.nbytes, found)

    def load_policy(self, folder: Path, embedder: Path) -> Tried:
        options = self.config.models.options
        opened = lambda: open_policy(folder, embedder, options, self.place, self.dtype)  # noqa: E731
        self.policy, seconds, peak = _measured(self.place, opened)
        return Tried("load the policy", seconds, peak, None, self._weights(self.policy.size), str(folder))

    def run_episode(self) -> Tried:
        searcher, size = self._searcher(), self.policy.size
        [episode], seconds, peak = _measured(self.place, lambda: searcher.run([EpisodeQuery("trial", QUERY)]))
        tokens = len(episode.turns[0].prompt.token_ids)
        layout = searcher.features.get(["video"])[0].layout
        patches = self.policy.encoder.num_patches(layout)
        num_new = sum(t.decoded.num_text_tokens + t.decoded.num_latent_tokens for t in episode.turns)
        reading = 2 * size.text * tokens * len(episode.turns) + 2 * size.vision * patches
        passes = Passes(size, weight_bytes(self.policy.text_model))
        most = Budget().bytes_on(torch.device(self.place))
        needed = max(passes.vision_in_parts(patches, most), passes.decoding([tokens], NUM_TOKENS))
        needed += passes.features(patches / size.patches_per_token)
        latents = sum(t.decoded.num_latent_tokens for t in episode.turns)
        found = f"{len(episode.turns)} turns of {tokens:,} tokens, {num_new - latents} text and {latents} latent tokens"
        forecast_s = self.device.seconds(reading) + num_new * self.device.step_seconds(size)
        return Tried("run an episode", seconds, peak, forecast_s, needed, found)

    def train_step(self) -> Tried:
        """A step of stage 1 with adapters, after all but the first layers of the text model were cut off."""
        from vsr1_core.training.examples import build_examples
        from vsr1_core.training.runs import TrainingRun
        from vsr1_core.training.sft import SFTData, train_sft

        store = self._store()
        layout = store.get(["video"])[0].layout
        cut_layers(self.policy, KEPT_LAYERS)
        [example] = build_examples(self.policy, [_ROW], [layout])
        data = SFTData([example], store, self._vectors, {})
        recipe = SFTRecipe(steps=1, lora_rank=LORA_RANK, gradient_checkpointing=True, num_negatives=1)
        for parameter in self.policy.model.refine_parameters:
            parameter.data = parameter.data.float()

        def train() -> None:
            with tempfile.TemporaryDirectory() as folder:
                train_sft(self.policy, self.embedder, data, recipe, TrainingRun(Path(folder)))

        _, seconds, peak = _measured(self.place, train)
        size, length, num_answer = self.policy.size, len(example.prompt.token_ids), len(example.parts)
        learning = Learning(size, LORA_RANK, is_checkpointed=True, on_cpu=self.device.is_cpu)
        held_before = weight_bytes(self.policy.text_model) * size.text
        query = Passes(self.embedder.size, weight_bytes(self.embedder.model)).text([64])
        needed = learning.peak([length], num_answer, query) - held_before
        forecast_s = self.device.seconds(8 * size.text * length, is_training=True)
        found = f"{KEPT_LAYERS} layers, {length:,} tokens, adapters of rank {LORA_RANK}"
        return Tried("take a LoRA step", seconds, peak, forecast_s, needed, found)

    @property
    def _vectors(self) -> dict[str, torch.Tensor]:
        """The vector of the video, and that of another one that is right for the query."""
        vector = self.vector.float().cpu()
        return {"video": vector, "right": vector.flip(0)}

    def _searcher(self) -> Searcher:
        settings = EpisodeSettings(
            num_turns=NUM_TURNS,
            decode=DecodeSettings(NUM_TOKENS, 0.0, self.config.models.options.num_soft_tokens),
        )
        vectors = self._vectors
        durations = dict.fromkeys(vectors, float(self.config.frames.max_frames))
        index = build_index(list(vectors), torch.stack(list(vectors.values())).numpy())
        return Searcher(self.policy, self.embedder, index, self._store(), durations, settings)

    def _store(self) -> FeatureStore:
        encoder = self.policy.encoder
        return FeatureStore(encoder, lambda _video_id: encoder.prepare(self.video))

    def _weights(self, size: ModelSize) -> float:
        """What loaded weights take: on a CPU none, where they are mapped from a file that has their type."""
        in_bf16 = self.dtype == torch.bfloat16
        return 0.0 if self.device.is_cpu and in_bf16 else (size.text + size.vision) * (2 if in_bf16 else 4)


_ROW = {
    "query_id": "trial",
    "query": QUERY,
    "gt_video_id": "right",
    "shown_video_id": "video",
    "answer": answer_text("noise is shown, not a fridge.", False),
    "negative_ids": ["video"],
}


def longest_video(recipe: FrameRecipe) -> VideoFrames:
    """Noise of the most frames, each a square of the most pixels, that a recipe samples."""
    side = int(recipe.max_pixels**0.5) // recipe.size_multiple * recipe.size_multiple
    pixels = np.random.default_rng(0).integers(0, 256, (recipe.max_frames, side, side, 3), dtype=np.uint8)
    return VideoFrames(pixels, [i / recipe.fps for i in range(recipe.max_frames)])


def cut_layers(policy: PolicyModel, num_layers: int) -> None:
    """Keep the first layers of the text model only."""
    text_model: Any = policy.text_model
    del text_model.layers[num_layers:]
    text_model.config.num_hidden_layers = len(text_model.layers)


def _measured(place: str, work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `work` returns, its seconds, and the most memory that it held beyond what was held before."""
    with PeakMemory(place) as peak:
        started = time.perf_counter()
        made = work()
        if torch.device(place).type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return made, seconds, peak.grown_bytes
