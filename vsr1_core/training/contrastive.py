"""Training of the tiny embedder: captions against videos, symmetrical InfoNCE. Only the toy models are made here."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.models.embedder import Embedder
from vsr1_core.models.inputs import VideoPatches
from vsr1_core.models.tiny import tiny_config
from vsr1_core.models.tokenizer import train_tokenizer
from vsr1_core.models.vision import batch_vision_attention, encode_videos
from vsr1_core.recipes import ModelRecipe


@dataclass(frozen=True)
class CurvePoint:
    """One logged value of a training run."""

    step: int
    name: str
    value: float


def info_nce(queries: Tensor, videos: Tensor, temperature: float) -> Tensor:
    """Mean of both directions' cross-entropy over the batch; row i of `queries` belongs to row i of `videos`."""
    logits = queries @ videos.T / temperature
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_embedder(
    recipe: ModelRecipe,
    captions: Mapping[str, Sequence[str]],
    load: Callable[[str, Qwen3VLConfig], VideoPatches],
    vocabulary_texts: Sequence[str],
    log: Callable[[str], None] = lambda line: None,
) -> tuple[Embedder, list[CurvePoint]]:
    """A tiny embedder from scratch. `captions`: video id -> its captions; a batch has distinct videos, one caption
    each. `vocabulary_texts`: what the tokenizer learns to spell. The same recipe and data give the same weights."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    tokenizer = train_tokenizer(vocabulary_texts, recipe.vocab_size)
    embedder = Embedder(batch_vision_attention(Qwen3VLModel(tiny_config(recipe, tokenizer))), tokenizer)
    embedder.model.train()
    optimizer = torch.optim.AdamW(embedder.model.parameters(), lr=recipe.contrastive_lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.contrastive_lr, total_steps=recipe.contrastive_steps + 1, pct_start=0.25
    )
    video_ids, curve, started = sorted(captions), [], time.monotonic()
    for step in range(recipe.contrastive_steps):
        chosen = rng.sample(video_ids, min(recipe.contrastive_batch, len(video_ids)))
        texts = [rng.choice(list(captions[v])) for v in chosen]
        videos = [load(v, embedder.model.config) for v in chosen]
        loss = _contrastive_loss(embedder, texts, videos, recipe.contrastive_temperature)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(embedder.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        curve.append(CurvePoint(step, "contrastive_loss", loss.item()))
        if step % 20 == 19:
            seconds = (time.monotonic() - started) / (step + 1)
            left = (recipe.contrastive_steps - step - 1) * seconds
            log(f"embedder: step {step + 1} of {recipe.contrastive_steps}, loss {loss.item():.3f}, {left:.0f} s left")
    embedder.model.eval()
    return embedder, curve


def _contrastive_loss(
    embedder: Embedder, texts: list[str], videos: list[VideoPatches], temperature: float
) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        video_vectors = embedder.embed_videos(encode_videos(embedder.model, videos))
        query_vectors = embedder.embed_queries(texts)
    return info_nce(query_vectors, video_vectors, temperature)
