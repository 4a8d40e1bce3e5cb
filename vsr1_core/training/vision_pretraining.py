"""Pre-trains the vision tower of the tiny base model: it predicts the words of an event's caption from the mean of the
event's vision tokens.

Matching whole captions with whole videos does not achieve this in a small budget: colours alone tell the videos of a
batch apart, and the gradient that reaches the vision tower through the text model says little about shape and motion.
The matrix of word embeddings is the classifier, so that the tower's tokens end up where the text model can read them.
Word classification as pre-training is from SuperClass (Huang et al., 2024).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from vsr1_core.models.family_protocols import TinyModel
from vsr1_core.models.protocols import VideoFeatures, VideoFrames
from vsr1_core.models.text_tokens import plain_ids
from vsr1_core.reasoning.tasks import EventNote
from vsr1_core.reasoning.teacher import own_captions
from vsr1_core.recipes import TinyRecipe
from vsr1_core.rows.progress import Progress
from vsr1_core.training.attention_backend import training_attention
from vsr1_core.training.optimizers import MuonAndAdamW
from vsr1_core.training.processes import local_share, shared_mean
from vsr1_core.training.runs import CurvePoint

LOGIT_SCALE = 4.0


def learn_to_see(
    embedder: TinyModel,
    recipe: TinyRecipe,
    events: Mapping[str, Sequence[EventNote]],
    load: Callable[[str], VideoFrames],
    rng: random.Random,
    batch_size: int,
    log: Callable[[str], None] = lambda line: None,
) -> list[CurvePoint]:
    """Train the vision tower and the word embeddings in place, for `recipe.vision_pretraining_steps` steps of
    `batch_size` videos. Returns the loss curve."""
    encoder, video_ids, curve = embedder.encoder, sorted(events), list[CurvePoint]()
    words = word_targets(embedder.tokenizer, events)
    table = embedder.word_embeddings
    vision = embedder.vision_tower.named_parameters()
    named = [*((f"visual.{name}", p) for name, p in vision), ("embed_tokens", table)]
    optimizer = MuonAndAdamW(named, recipe.contrastive_lr, recipe.vision_pretraining_steps)
    progress = Progress(log, "vision pretraining", recipe.vision_pretraining_steps, "steps")
    for step in range(recipe.vision_pretraining_steps):
        chosen = local_share(rng.sample(video_ids, batch_size))
        with training_attention("cpu"):
            features = encoder.encode([encoder.prepare(load(v)) for v in chosen])
            pairs = [
                (seen, target)
                for video_id, feature in zip(chosen, features, strict=True)
                for event, target in zip(events[video_id], words[video_id], strict=True)
                if (seen := mean_within(feature, event)) is not None
            ]
            loss = table.sum() * 0.0
            if pairs:
                seen, targets = (torch.stack(column) for column in zip(*pairs, strict=True))
                loss = F.cross_entropy(LOGIT_SCALE * seen @ table.T, targets, reduction="sum")
            loss = shared_mean(loss, len(pairs))
        optimizer.step(loss)
        curve.append(CurvePoint(step, "vision_pretraining_loss", loss.item()))
        progress.note(step + 1, {"vision_pretraining_loss": loss.item()})
    return curve


def word_targets(
    tokenizer: PreTrainedTokenizerBase, events: Mapping[str, Sequence[EventNote]]
) -> dict[str, list[Tensor]]:
    """Video id -> for each event, a distribution [V] over the tokens of its caption. Rare tokens have more weight, and
    tokens that all captions share have none."""
    bags = {
        video_id: [set(ids) for ids in plain_ids(tokenizer, [f" {text}" for text in own_captions(some)])]
        for video_id, some in events.items()
    }
    uses = Counter(token for some in bags.values() for bag in some for token in bag)
    total = sum(len(some) for some in bags.values())
    return {v: [_spread(bag, uses, total, len(tokenizer)) for bag in some] for v, some in bags.items()}


def _spread(bag: set[int], uses: Mapping[int, int], total: int, size: int) -> Tensor:
    weights = torch.zeros(size)
    for token in bag:
        weights[token] = math.log(total / uses[token])
    return weights / weights.sum() if weights.any() else weights


def mean_within(features: VideoFeatures, event: EventNote) -> Tensor | None:
    """Mean [H] of the vision tokens whose time mark is within the event; None if there are none."""
    inside = [i for i, mark in enumerate(features.layout.marks_s) if event.start_s <= mark < event.end_s]
    if not inside:
        return None
    return features.tokens.view(len(features.layout.marks_s), -1, features.tokens.shape[-1])[inside].mean((0, 1))
