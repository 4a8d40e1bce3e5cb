"""Training of the tiny base model: captions against videos, and telling both apart in words. Only for toy models.

The vision tower first learns to see (`training.seeing`). Then one model serves twice: frozen as the embedder, and as
the weights that the policy starts from. So it learns both what a published pair of models brings along: vectors in
which a caption finds its video (symmetrical InfoNCE), and saying what a video shows and when, and what is asked
(next-token cross-entropy). The caption asked about is another video's: were it the video's own, saying either would do
for both, and the policy would never learn which is which.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.models.batching import language_model_kwargs, left_padded
from vsr1_core.models.embedder import Embedder
from vsr1_core.models.inputs import VideoPatches, build_prompts, extended
from vsr1_core.models.tiny import tiny_config
from vsr1_core.models.tokenizer import train_tokenizer
from vsr1_core.models.vision import VideoFeatures, batch_vision_attention, encode_videos
from vsr1_core.reasoning.conversation import build_messages
from vsr1_core.reasoning.tasks import EventNote
from vsr1_core.reasoning.teacher import observation
from vsr1_core.recipes import TinyRecipe
from vsr1_core.rows.progress import Progress
from vsr1_core.training.attention_backend import training_attention
from vsr1_core.training.optimizers import MuonAndAdamW
from vsr1_core.training.processes import mine, share_of, shared_mean, with_others
from vsr1_core.training.runs import CurvePoint
from vsr1_core.training.vision_pretraining import learn_to_see

NUM_TOLD = 32
"""How many of a batch's videos are also told in words."""


def base_batch(recipe: TinyRecipe, num_videos: int) -> int:
    """How many videos a step takes."""
    return min(recipe.contrastive_batch, num_videos)


def info_nce(queries: Tensor, videos: Tensor, temperature: float) -> Tensor:
    """Mean of both directions' cross-entropy over the batch; row i of `queries` belongs to row i of `videos`."""
    logits = queries @ videos.T / temperature
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_base(
    recipe: TinyRecipe,
    system_prompt: str,
    events: Mapping[str, Sequence[EventNote]],
    load: Callable[[str, Qwen3VLConfig], VideoPatches],
    vocabulary_texts: Sequence[str],
    log: Callable[[str], None] = lambda line: None,
) -> tuple[Embedder, list[CurvePoint]]:
    """A tiny model from scratch. `events`: video id -> its captioned events in time order; a batch has distinct videos
    with one caption each. `system_prompt`: what the policy will be told. `vocabulary_texts`: what the tokenizer learns
    to spell. The same recipe and data give the same weights, also in several processes but for rounding. ValueError
    where these cannot share a batch evenly."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    tokenizer = train_tokenizer(vocabulary_texts, recipe.vocab_size)
    embedder = Embedder(batch_vision_attention(Qwen3VLModel(tiny_config(recipe, tokenizer))), tokenizer)
    model, video_ids, curve = embedder.model.train(), sorted(events), list[CurvePoint]()
    batch_size = base_batch(recipe, len(video_ids))
    processes = batch_size // share_of(batch_size, "videos")
    curve += learn_to_see(embedder, recipe, events, load, rng, batch_size, log)
    optimizer = MuonAndAdamW(model.named_parameters(), recipe.contrastive_lr, recipe.contrastive_steps)
    progress = Progress(log, "base model", recipe.contrastive_steps, "steps")
    for step in range(recipe.contrastive_steps):
        chosen = rng.sample(video_ids, batch_size)
        captions = [rng.choice(list(events[v])).caption for v in chosen]
        told = [*captions[1:], captions[0]][:NUM_TOLD]
        chosen, captions, told = mine(chosen), mine(captions), mine(told)
        with training_attention("cpu"):
            queries = embedder.embed_queries(captions)
            features = encode_videos(embedder.model, [load(v, model.config) for v in chosen])
            videos = embedder.embed_videos(features)
            texts = [f"<think> {observation(o, events[v])}" for o, v in zip(told, chosen, strict=False)]
            caption_loss = _told(embedder, system_prompt, told, features[: len(told)], texts)
        contrastive_loss = info_nce(with_others(queries), with_others(videos), recipe.contrastive_temperature)
        optimizer.step(processes * contrastive_loss + recipe.caption_weight * caption_loss)
        losses = {"contrastive_loss": contrastive_loss.item(), "caption_loss": caption_loss.item()}
        curve += [CurvePoint(step, name, value) for name, value in losses.items()]
        progress.note(step + 1, losses)
    model.eval()
    return embedder, curve


def _told(
    embedder: Embedder,
    system_prompt: str,
    asked: Sequence[str],
    features: Sequence[VideoFeatures],
    texts: Sequence[str],
) -> Tensor:
    """Mean cross-entropy of `texts` after the policy's prompts with `asked` and the videos, over all processes."""
    conversations = [build_messages(query, system_prompt) for query in asked]
    layouts = [f.layout for f in features]
    prompts = build_prompts(embedder.tokenizer, embedder.model, conversations, layouts)
    ends = [embedder.tokenizer.eos_token_id]
    answers = [ids + ends for ids in embedder.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    rows = [extended(prompt, ids) for prompt, ids in zip(prompts, answers, strict=True)]
    batch = left_padded(embedder.model, rows, features, embedder.tokenizer.pad_token_id)
    hidden = embedder.model.language_model(**language_model_kwargs(batch), use_cache=False).last_hidden_state
    states = torch.cat([hidden[row, -len(ids) - 1 : -1] for row, ids in enumerate(answers)])
    targets = torch.tensor([token for ids in answers for token in ids], device=hidden.device)
    logits = (states @ embedder.model.language_model.embed_tokens.weight.T).float()
    return shared_mean(F.cross_entropy(logits, targets, reduction="sum"), len(targets))
