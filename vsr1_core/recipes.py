"""What decides a result: one frozen recipe per stage.

A value belongs here when changing it changes a row. Batch sizes, devices and worker counts do not
(see `vsr1_core.stages.base.Execution`). No torch here: plans are made without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, TypeVar

from vsr1_core.limits import Ascending, Count, Each, Keys, NotEmpty, Positive, Range, Share, Weight, Whole

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"]
"""How the learning rate goes on after the warmup, by the names of transformers."""
Methods = Annotated[tuple[str, ...], Keys("vsr1_core.stages.methods", "ALL")]
Refine = Literal["none", "soft", "text"]
"""How a query changes after a video was rejected: not at all, by soft tokens (SQR), or written anew (HQR)."""


@dataclass(frozen=True)
class ToyRecipe:
    """The rendered corpus (drawn by `vsr1_core.datasets.toy`)."""

    num_train: Whole = 1500
    num_val: Whole = 150
    num_test: Whole = 300
    size: Annotated[int, Range(16)] = 64
    """Width and height of a frame in pixels."""
    source_fps: Count = 4
    seconds_per_event: Annotated[tuple[int, int], Ascending()] = (3, 5)
    num_events: Annotated[tuple[int, int], Ascending()] = (2, 2)
    moments_per_train_video: Count = 2
    moments_per_eval_video: Count = 1
    near_duplicate_share: Share = 0.1
    """Share of videos that are another video with one attribute of one event changed."""
    synonym_probability: Share = 0.5
    seed: Whole = 42


@dataclass(frozen=True)
class FrameRecipe:
    """Frame sampling (docs/method.md, Data): min(max_frames, max(1, floor(duration * fps))) frames, an even count,
    aspect kept."""

    fps: Positive = 1.0
    max_frames: Annotated[int, Range(2)] = 64
    max_pixels: Count = 200_704
    size_multiple: Count = 32
    """Height and width are multiples of this: patch size times spatial merge."""
    backend: Literal["auto", "pyav", "torchcodec", "decord", "ffmpeg"] = "auto"


@dataclass(frozen=True)
class MethodOptions:
    """How the soft query modules of a policy work. A policy is made with them and carries them from then on: training,
    search and evaluation read the policy's, never a recipe's."""

    num_soft_tokens: Count = 8
    accumulate: bool = True
    """Keep the latents of earlier turns in the query."""
    seed_hidden: Literal["post_norm", "pre_norm"] = "post_norm"
    """Where h_1 is read: `post_norm`, or the authors' `pre_norm`."""
    system_prompt: str = ""
    """What the policy is told; empty means `reasoning.conversation.SYSTEM_PROMPT`."""
    seed: Whole = 42
    """Of the starting weights of the soft query modules."""


@dataclass(frozen=True)
class TinyRecipe:
    """How the tiny models are trained from scratch; no part of a build with published models."""

    hidden_size: Count = 128
    num_layers: Count = 4
    num_heads: Count = 4
    vision_hidden_size: Count = 96
    vision_depth: Count = 2
    patch_size: Count = 16
    vocab_size: Count = 1024
    vision_pretraining_steps: Whole = 150
    """Of the vision tower alone, which learns the captions' words before anything else."""
    contrastive_steps: Whole = 400
    contrastive_batch: Annotated[int, Range(2)] = 64
    contrastive_lr: Positive = 1e-3
    contrastive_temperature: Positive = 0.07
    caption_weight: Weight = 1.0
    """Weight of writing captions (from the video, and again from the text), beside matching them."""
    seed: Whole = 42

    def problems(self) -> Iterator[tuple[str, str]]:
        """What does not fit together: a field, and what it has to be."""
        if self.hidden_size % (2 * self.num_heads):
            multiple = 2 * self.num_heads
            yield "hidden_size", f"has to be a multiple of {multiple}, twice num_heads, as each head has an even width"


@dataclass(frozen=True)
class ModelRecipe:
    """Which models there are, the options that the policy is made with, and how the tiny models are trained."""

    policy: str = "tiny"
    """`tiny` (trained from scratch on the toy corpus), a hub id, or a local folder."""
    embedder: str = "tiny"
    options: MethodOptions = MethodOptions()
    tiny: TinyRecipe = TinyRecipe()

    def __post_init__(self) -> None:
        if (self.policy == "tiny") != (self.embedder == "tiny"):
            raise ValueError(
                f"the policy {self.policy!r} and the embedder {self.embedder!r} cannot be used together: the tiny "
                "models are trained as a pair, so set both to 'tiny', or both to published models"
            )

    @property
    def is_tiny(self) -> bool:
        return self.policy == "tiny"


@dataclass(frozen=True)
class RetrievalRecipe:
    index: Literal["flat", "ivf", "hnsw"] = "flat"
    """`flat` (exact), `ivf` or `hnsw`."""
    top_k: Count = 100
    num_hard_negatives: Whole = 30


@dataclass(frozen=True)
class PoolRecipe:
    """The top-1 pool (docs/method.md, Data): train queries whose first video is right, and as many whose first is
    wrong."""

    num_matched: Whole = 1000
    num_not_matched: Whole = 1000
    fill_matched: bool = False
    """Where too few are ranked first, show the right video of other queries. Not in the paper; for weak embedders."""
    random_share: Share = 0.0
    """Share of the not-matched rows that are shown any wrong video instead of the first. Not in the paper; for small
    models, which learn to read what is asked off a shown video that is nearly right."""
    seed: Whole = 42


@dataclass(frozen=True)
class TeacherRecipe:
    kind: Literal["template", "endpoint"] = "template"
    """`template` writes the trace from the shown video's own annotation; `endpoint` (EndpointRecipe) asks a model."""


@dataclass(frozen=True)
class EndpointRecipe(TeacherRecipe):
    """What a model is asked for a trace. A recipe of its own: a template's rows do not change with these values."""

    kind: Literal["endpoint"] = "endpoint"
    model: str = ""
    temperature: Weight = 0.4
    prompt_version: Annotated[int, Keys("vsr1_core.reasoning.evidence", "PROMPTS")] = 1
    """Which of `vsr1_core.reasoning.evidence.PROMPTS`."""
    max_tokens: Count = 4096
    """Of a whole reply, a thinking model's thoughts included."""
    frames_as: Literal["images", "video"] = "images"
    """`images` (one JPEG a frame) or `video` (one mp4 of the same frames at their true times)."""
    num_frames: Count = 32
    """At most so many of the stored frames, evenly spread."""


@dataclass(frozen=True)
class SFTRecipe:
    """Stage 1: supervised fine-tuning (docs/method.md)."""

    refine: Refine = "soft"
    """`none` trains the fine-tuned baseline: the same rows, no retrieval loss, no soft tokens. `text` trains hard query
    refinement: the pool's pairs again, with a new query after a mismatch, and no soft tokens."""
    steps: Whole = 0
    """Optimiser steps; 0 means one epoch over the rows."""
    batch_size: Count = 1
    gradient_accumulation: Count = 1
    lr: Positive = 2e-5
    refine_lr: Weight = 5e-5
    schedule: Schedule = "linear"
    warmup_ratio: Share = 0.0
    weight_decay: Weight = 0.0
    max_grad_norm: Weight = 1.0
    retrieval_weight: Weight = 0.3
    retrieval_warmup_ratio: Share = 0.0
    """Over this share of the steps the weight of L_ret rises from 0. Not in the paper; for models that first have to
    learn to write, and learn neither well when both losses pull from the start."""
    temperature: Positive = 0.1
    num_negatives: Whole = 24
    in_batch_positives: bool = False
    drop_above_positive: bool = False
    lora_rank: Whole = 0
    """Rank of adapters on the text model's linear layers, which then learn in its place; merged at the end. 0: none."""
    train_vision: bool = False
    gradient_checkpointing: bool = False
    bf16: bool = True
    early_stop_patience: Whole = 0
    """Stop after so many validations without a lower loss, with the best weights. 0 trains on all rows, to the end."""
    validation_steps: Count = 50
    validation_share: Share = 0.1
    """Share of the train videos whose rows validate and do not train, where early stopping is asked for."""
    seed: Whole = 42

    @property
    def unused(self) -> tuple[str, ...]:
        """The fields that change nothing here, so that no version depends on them."""
        no_search = () if self.refine == "soft" else OF_SOFT_REFINEMENT
        return (*no_search, *(() if self.early_stop_patience else ("validation_steps", "validation_share")))


OF_SOFT_REFINEMENT = (
    *("refine_lr", "retrieval_weight", "retrieval_warmup_ratio", "temperature", "num_negatives"),
    *("in_batch_positives", "drop_above_positive"),
)
"""Fields of SFTRecipe that only a training with soft tokens and their retrieval loss reads."""


class RewardWeights(Mapping[str, float]):
    """The weight of each reward by its name, as in `RewardWeights(format=0.2)`. It cannot be changed.

    Which rewards there are is in `training.rewards`, which refuses a weight without a reward. A reward that has no
    weight here is judged and logged, and adds nothing to the total.

    Raises:
        ValueError: Where a weight is no finite number.
    """

    __slots__ = ("_weights",)

    def __init__(self, **weights: float) -> None:
        found = {"format": 0.5, "verification": 1.0, "retrieval": 1.0, "grounding": 1.0, **weights}
        for name, weight in found.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"the weight of reward {name!r} has to be a finite number, not {weight!r}")
        self._weights = tuple(sorted(found.items()))

    def __getitem__(self, name: str) -> float:
        return dict(self._weights)[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __hash__(self) -> int:
        return hash(self._weights)

    def __repr__(self) -> str:
        return f"RewardWeights({', '.join(f'{name}={weight}' for name, weight in self._weights)})"


@dataclass(frozen=True)
class GRPORecipe:
    """Stage 2: GRPO over search episodes (docs/method.md)."""

    steps: Whole = 0
    """Optimiser steps; 0 means one epoch over the prompts."""
    queries_per_step: Count = 2
    matched_share: Share = 0.0
    """Share of a step's queries that find their video first; 0 takes queries as they come. Not in the paper; where few
    do, a policy is rewarded for refusing whatever it is shown."""
    group_size: Annotated[int, Range(2)] = 8
    num_turns: Count = 3
    temperature: Positive = 1.0
    max_new_tokens: Count = 256
    lr: Positive = 5e-7
    refine_lr: Weight = 5e-5
    warmup_steps: Whole = 10
    weight_decay: Weight = 0.01
    max_grad_norm: Weight = 1.0
    clip: Weight = 0.2
    beta: Weight = 0.01
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "grpo"
    retrieval_weight: Weight = 0.3
    retrieval_temperature: Positive = 0.1
    num_negatives: Whole = 24
    rewards: Annotated[RewardWeights, Each(Keys("vsr1_core.training.rewards", "REWARDS"), float)] = field(
        default_factory=RewardWeights
    )
    gradient_checkpointing: bool = False
    bf16: bool = True
    seed: Whole = 42

    @property
    def unused(self) -> tuple[str, ...]:
        """The fields that change nothing here, so that no version depends on them: at another temperature than 1 the
        ratio that is clipped is exactly 1, and a step of one query has no share of queries."""
        no_clip = () if self.temperature == 1 else ("clip",)
        return (*no_clip, *(() if self.queries_per_step > 1 else ("matched_share",)))


TrainingRecipe = TypeVar("TrainingRecipe", SFTRecipe, GRPORecipe)


def effective(recipe: TrainingRecipe) -> TrainingRecipe:
    """`recipe` with the fields that change nothing at their defaults: what versions are made of."""
    defaults: dict[str, Any] = {f.name: f.default for f in fields(recipe) if f.name in recipe.unused}
    return replace(recipe, **defaults)


@dataclass(frozen=True)
class EvalRecipe:
    """The search loop and what is reported of it."""

    methods: Methods = ("zero_shot", "fine_tuned", "sqr_sft", "videosearch_r1")
    """Names in `stages.methods.ALL`. Only these are searched with, and baselines trained only for these."""
    splits: Annotated[tuple[str, ...], NotEmpty()] = ("test",)
    num_turns: Count = 3
    max_new_tokens: Count = 256
    num_resamples: Count = 1000
    seed: Whole = 42


@dataclass(frozen=True)
class Configuration:
    """All recipes of one way to build a dataset.

    retrain: whether automation may train. It decides when, never what, so no row depends on it.
    """

    name: str
    retrain: Literal["auto", "manual"] = "manual"
    toy: ToyRecipe = ToyRecipe()
    frames: FrameRecipe = FrameRecipe()
    models: ModelRecipe = ModelRecipe()
    retrieval: RetrievalRecipe = RetrievalRecipe()
    pool: PoolRecipe = PoolRecipe()
    teacher: TeacherRecipe = TeacherRecipe()
    sft: SFTRecipe = SFTRecipe()
    fine_tuned: SFTRecipe = SFTRecipe(refine="none")
    hard_refine: SFTRecipe = SFTRecipe(refine="text")
    grpo: GRPORecipe = GRPORecipe()
    evaluation: EvalRecipe = EvalRecipe()

    def problems(self) -> Iterator[tuple[str, str]]:
        """What makes a method another one than its name says: a dotted field, and what it has to be."""
        for stage, refine in (("sft", "soft"), ("fine_tuned", "none"), ("hard_refine", "text")):
            if getattr(self, stage).refine != refine:
                yield f"{stage}.refine", f"has to be {refine!r}, which is what makes its method another one"
