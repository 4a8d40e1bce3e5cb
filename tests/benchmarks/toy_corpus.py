"""The toy dataset's own test split, drawn and sampled as the tiny configuration has it, with the tokenizer that it
trains. No model here."""

from __future__ import annotations

import functools

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig

from tests.benchmarks.corpora import Corpus
from vsr1_core.configurations import TINY
from vsr1_core.datasets import toy
from vsr1_core.media.sampling import num_frames, sample_times
from vsr1_core.models.qwen3_vl.inputs import VideoPatches, video_patches
from vsr1_core.models.qwen3_vl.tokenizer import train_tokenizer
from vsr1_core.search.turns import EpisodeQuery
from vsr1_core.stages.base_models import _vocabulary


@functools.cache
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny configuration's: it learns to spell from the toy annotations."""
    rows = [row for split in toy.annotations(TINY.toy).values() for row in split]
    columns = {"query_id": "desc_id", "plain_query": "cog_desc", "query": "fig_desc", "duration_s": "duration"}
    moments = pl.DataFrame({name: [row[key] for row in rows] for name, key in columns.items()})
    return train_tokenizer(_vocabulary(moments, TINY.models.query_instruction), TINY.models.tiny.vocab_size)


def toy_test_split(config: Qwen3VLConfig) -> Corpus:
    """300 queries over 300 videos. The pixels are those that are drawn, not what a codec makes of them."""
    videos, durations_s = {}, {}
    for scene in toy.scenes(TINY.toy):
        if scene.split == "test":
            videos[scene.video_id] = sampled(scene, config)
            durations_s[scene.video_id] = scene.duration_s
    rows = toy.annotations(TINY.toy)["test"]
    queries = [EpisodeQuery(str(row["desc_id"]), row["fig_desc"], row["video"]) for row in rows]
    return Corpus("toy test split", videos, durations_s, queries)


def sampled(scene: toy.Scene, config: Qwen3VLConfig) -> VideoPatches:
    """The frames that the tiny configuration samples, each the last one shown at its time."""
    pixels, fps = toy.draw(scene, TINY.toy), TINY.toy.source_fps
    times = sample_times((len(pixels) - 1) / fps, num_frames(scene.duration_s, TINY.frames))
    numbers = np.floor(times * fps + 1e-6).astype(int)
    return video_patches(pixels[numbers], (numbers / fps).tolist(), config)
