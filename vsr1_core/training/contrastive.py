"""Trains the tiny base model: to match captions with videos, and to describe both in words. Only for toy models.

The vision tower is pre-trained first (`training.vision_pretraining`). The trained model is used twice: frozen as the
embedder, and as the weights from which the policy starts. So it learns what a published pair of models can do already:
vectors with which a caption finds its video (symmetrical InfoNCE), and describing in words what a video shows, when it
shows it, and what the query asks for (next-token cross-entropy). The query is the caption of another video: if it were
the video's own, the same words would describe both, and the policy would never learn to tell query and video apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vsr1_core.input_form import QUERY_INSTRUCTION
from vsr1_core.models.family_protocols import TinyModel
from vsr1_core.models.protocols import VideoFeatures, VideoFrames
from vsr1_core.models.registry import tiny_family
from vsr1_core.models.text_tokens import answer_ids
from vsr1_core.reasoning.conversation import build_messages
from vsr1_core.reasoning.tasks import EventNote
from vsr1_core.reasoning.teacher import observation
from vsr1_core.recipes import TinyRecipe
from vsr1_core.rows.progress import Progress
from vsr1_core.training.attention_backend import training_attention
from vsr1_core.training.optimizers import MuonAndAdamW
from vsr1_core.training.processes import all_gather_rows, local_share, share_of, shared_mean
from vsr1_core.training.runs import CurvePoint, add_noise
from vsr1_core.training.vision_pretraining import learn_to_see

NUM_TOLD = 32
"""How many videos of a batch are also described in words."""


def base_batch(recipe: TinyRecipe, num_videos: int) -> int:
    """How many videos one step uses."""
    return min(recipe.contrastive_batch, num_videos)


def info_nce(queries: Tensor, videos: Tensor, temperature: float) -> Tensor:
    """The mean of the cross-entropies in both directions over the batch, a scalar. `queries` and `videos` are [B, D],
    and row i of one belongs to row i of the other."""
    logits = queries @ videos.T / temperature
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_base(
    recipe: TinyRecipe,
    system_prompt: str,
    events: Mapping[str, Sequence[EventNote]],
    load: Callable[[str], VideoFrames],
    vocabulary_texts: Sequence[str],
    log: Callable[[str], None] = lambda line: None,
    instruction: str = QUERY_INSTRUCTION,
) -> tuple[TinyModel, list[CurvePoint]]:
    """Train a tiny model from scratch. The same recipe and data give the same weights, with several processes up to
    rounding.

    Args:
        recipe: Sizes, steps and seed.
        system_prompt: The system prompt of the policy that will start from this model.
        events: Video id -> its captioned events in time order. A batch has distinct videos with one caption each.
        load: Video id -> its stored frames.
        vocabulary_texts: The texts on which the tokenizer is trained.
        log: Receives lines about the progress.
        instruction: What the embedder is told with every query.

    Returns:
        The model, and its loss curve.

    Raises:
        ValueError: The processes cannot share a batch evenly.
    """
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    embedder = tiny_family().new_tiny(recipe, vocabulary_texts, instruction)
    add_noise(embedder.model.parameters(), recipe.noise)
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
        chosen, captions, told = local_share(chosen), local_share(captions), local_share(told)
        with training_attention("cpu"):
            queries = embedder.embed_queries(captions)
            features = embedder.encoder.encode([embedder.encoder.prepare(load(v)) for v in chosen])
            videos = embedder.embed_features(features)
            texts = [f"<think> {observation(o, events[v])}" for o, v in zip(told, chosen, strict=False)]
            caption_loss = _told(embedder, system_prompt, told, features[: len(told)], texts)
        contrastive_loss = info_nce(all_gather_rows(queries), all_gather_rows(videos), recipe.contrastive_temperature)
        optimizer.step(processes * contrastive_loss + recipe.caption_weight * caption_loss)
        losses = {"contrastive_loss": contrastive_loss.item(), "caption_loss": caption_loss.item()}
        curve += [CurvePoint(step, name, value) for name, value in losses.items()]
        progress.note(step + 1, losses)
    model.eval()
    return embedder, curve


def _told(
    embedder: TinyModel,
    system_prompt: str,
    asked: Sequence[str],
    features: Sequence[VideoFeatures],
    texts: Sequence[str],
) -> Tensor:
    """Mean cross-entropy, over all processes, of `texts` after the policy's prompts with the queries `asked` and the
    videos."""
    conversations = [build_messages(query, system_prompt) for query in asked]
    ends = [embedder.tokenizer.eos_token_id]
    answers = [answer_ids(embedder.tokenizer, text)[0] + ends for text in texts]
    logits = embedder.answer_logits(conversations, features, answers)
    targets = torch.tensor([token for ids in answers for token in ids], device=logits.device)
    return shared_mean(F.cross_entropy(logits, targets, reduction="sum"), len(targets))
