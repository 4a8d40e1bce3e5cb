"""Recipes: the values that decide the results, as one frozen dataclass per stage.

A value belongs here if changing it changes rows. Batch sizes of inference, devices and worker counts do not; they are
in `vsr1_core.stages.execution.Execution`. This module does not import torch, because plans are made without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, TypeVar

from vsr1_core.input_form import OURS, QUERY_INSTRUCTION, InputForm
from vsr1_core.limits import Count, Each, Keys, NotEmpty, Positive, Range, Share, Weight, Whole
from vsr1_core.reward_weights import RewardWeights
from vsr1_core.rows.versions import ADDED
from vsr1_core.segments import SegmentRecipe
from vsr1_core.toy_recipe import ToyRecipe

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"]
"""The course of the learning rate after the warmup; the names are those of the transformers library."""
Methods = Annotated[tuple[str, ...], Keys("vsr1_core.stages.methods", "ALL")]
Refine = Literal["none", "soft", "text"]
"""How a query changes after a video was rejected: `none` does not change it, `soft` adds soft tokens (SQR), and `text`
writes a new query (HQR)."""


@dataclass(frozen=True)
class FrameRecipe:
    """Frame sampling (docs/method.md, Data): how many frames a video gives, at which times, and in which size; and how
    they are kept on disk."""

    fps: Positive = 1.0
    max_frames: Annotated[int, Range(2)] = 64
    max_pixels: Count = 200_704
    size_multiple: Count = 32
    """Height and width of a frame in pixels are multiples of this: patch size times spatial merge."""
    backend: Literal["auto", "pyav", "torchcodec", "decord", "ffmpeg"] = "auto"
    rule: Literal["ours", "official", "paper"] = field(default="ours", metadata=ADDED)
    """How the number of frames is made even and how their size is rounded: `ours` (never enlarged), `official` (as
    Qwen3-VL's own code; its limit is max_pixels = 786_432), or `paper` (as the authors' code). See `media.sampling`."""
    store: Literal["auto", "npy", "jpeg"] = field(default="auto", metadata=ADDED)
    """How frames are kept: `npy` (as they were decoded) or `jpeg` (about a sixteenth of the bytes, at 41 dB). `auto`
    is `jpeg` for a dataset that was added so (`DatasetEntry.frame_store`), else `npy`."""
    jpeg_quality: Annotated[int, Range(1, 100)] = field(default=90, metadata=ADDED)
    """Quality of the JPEGs, on the scale of libjpeg."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the fields that have no effect with the other values of this recipe; no version depends on them.
        `npy` and `auto` are the same here: what a dataset was added with is filled in before."""
        return () if self.store == "jpeg" else ("store", "jpeg_quality")

    def stored_as(self, other: FrameRecipe) -> FrameRecipe:
        """These frames, kept on disk as those of `other`."""
        return replace(self, store=other.store, jpeg_quality=other.jpeg_quality)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, requirement) for each value that does not fit the other values."""
        if self.rule == "official" and self.max_pixels < 137_625:
            yield "max_pixels", "has to be at least 137625 with frames.rule = 'official', which enlarges small frames"
        if self.rule != "ours" and self.size_multiple != 32:
            yield "size_multiple", f"has to be 32 with frames.rule = {self.rule!r}"


@dataclass(frozen=True)
class MethodOptions:
    """How the soft query modules of a policy work. A policy is made with these options and stores them: training,
    search and evaluation read the options of the policy, never those of a recipe."""

    num_soft_tokens: Count = 8
    accumulate: bool = True
    """Whether the query keeps the latents of earlier turns."""
    seed_hidden: Literal["post_norm", "pre_norm"] = "post_norm"
    """Where h_1 is read: after the final norm (`post_norm`), or before it as the authors do (`pre_norm`)."""
    system_prompt: str = ""
    """The policy's system prompt; an empty text means `reasoning.conversation.SYSTEM_PROMPT`."""
    seed: Whole = 42
    """Seed of the initial weights of the soft query modules."""
    form: InputForm = field(default=OURS, metadata=ADDED)
    """How the policy is asked."""

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> MethodOptions:
        """The options in a row of a table of models."""
        return cls(**{**values, "form": InputForm.recorded(values.get("form"))})


@dataclass(frozen=True)
class TinyRecipe:
    """How the tiny models are trained from scratch. Builds with published models do not use this recipe."""

    hidden_size: Count = 128
    num_layers: Count = 4
    num_heads: Count = 4
    vision_hidden_size: Count = 96
    vision_depth: Count = 2
    patch_size: Count = 16
    vocab_size: Count = 1024
    vision_pretraining_steps: Whole = 150
    """Steps of vision pretraining, which trains the vision tower alone to recognise the words of the captions, before
    anything else is trained."""
    contrastive_steps: Whole = 400
    contrastive_batch: Annotated[int, Range(2)] = 64
    contrastive_lr: Positive = 1e-3
    contrastive_temperature: Positive = 0.07
    caption_weight: Weight = 1.0
    """Weight of the captioning loss (captions written from the video, and again from the text) relative to the
    contrastive loss."""
    seed: Whole = 42
    noise: Whole = 0
    """Draws a relative noise of 1e-6 on the first weights, which stands for the rounding of another processor: a result
    that depends on it does not hold. 0 adds none."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, requirement) for each value that does not fit the other values."""
        if self.hidden_size % (2 * self.num_heads):
            multiple = 2 * self.num_heads
            yield "hidden_size", f"has to be a multiple of {multiple} (twice num_heads): each head needs an even width"


@dataclass(frozen=True)
class ModelRecipe:
    """Which models are used, which options the policy is made with, and how the tiny models are trained.

    Raises:
        ValueError: If only one of the two models is `tiny`.
    """

    policy: str = "tiny"
    """`tiny` (trained from scratch on the toy corpus), a hub id (ORG/NAME, or ORG/NAME@REVISION), or a local folder."""
    embedder: str = "tiny"
    """As `policy`: `tiny`, a hub id, or a local folder."""
    options: MethodOptions = MethodOptions()
    tiny: TinyRecipe = TinyRecipe()
    query_instruction: str = field(default=QUERY_INSTRUCTION, metadata=ADDED)
    """The instruction that the embedder gets with every query. An embedder whose folder records one keeps its own."""

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
    """The index over the videos, and how many results are kept per query."""

    index: Literal["flat", "ivf", "hnsw"] = "flat"
    """Kind of index: `flat` searches exactly, `ivf` and `hnsw` approximately."""
    top_k: Count = 100
    """Number of videos that are ranked per query."""
    num_hard_negatives: Whole = 30


@dataclass(frozen=True)
class PoolRecipe:
    """The top-1 pool (docs/method.md, Data): train queries whose first-ranked video is right, and as many whose
    first-ranked video is wrong."""

    num_matched: Whole = 1000
    num_not_matched: Whole = 1000
    fill_matched: bool = False
    """If too few queries rank their right video first, the pool is filled with other queries, which are shown their
    right video. The paper does not do this; it is for weak embedders."""
    random_share: Share = 0.0
    """Share of the not-matched rows that show a random wrong video instead of the first-ranked one. The paper does not
    do this; it is for small models, which otherwise learn to copy the query's content from a video that is nearly
    right."""
    seed: Whole = 42


@dataclass(frozen=True)
class TeacherRecipe:
    """Which teacher writes the reasoning traces."""

    kind: Literal["template", "endpoint"] = "template"
    """`template` writes a trace from the annotations of the shown video; `endpoint` (EndpointRecipe) asks a model."""

    @property
    def asks_a_model(self) -> bool:
        """Whether a model reads the frames of the shown video; other teachers read its annotations."""
        return self.kind == "endpoint"


@dataclass(frozen=True)
class EndpointRecipe(TeacherRecipe):
    """How a model is asked for a trace. This is a separate recipe, so that these values do not change the rows of the
    template teacher."""

    kind: Literal["endpoint"] = "endpoint"
    model: str = ""
    temperature: Weight = 0.4
    prompt_version: Annotated[int, Keys("vsr1_core.reasoning.evidence", "PROMPTS")] = 1
    """Key of the prompt in `vsr1_core.reasoning.evidence.PROMPTS`."""
    max_tokens: Count = 4096
    """Maximum number of tokens of a whole reply, including the thoughts of a thinking model."""
    frames_as: Literal["images", "video"] = "images"
    """How frames are sent: as `images` (one JPEG per frame) or as `video` (one mp4 with the same frames at their true
    times)."""
    num_frames: Count = 32
    """Maximum number of frames that are sent; they are evenly spread over the stored frames."""


@dataclass(frozen=True)
class SFTRecipe:
    """Stage 1: supervised fine-tuning (docs/method.md)."""

    refine: Refine = "soft"
    """`soft` trains soft query refinement. `none` trains the fine-tuned baseline on the same rows, without retrieval
    loss and soft tokens. `text` trains hard query refinement on the same pairs of the pool, where a mismatch ends with
    a new query, without soft tokens."""
    steps: Whole = 0
    """Number of optimiser steps; 0 means one epoch over the rows."""
    batch_size: Count = 1
    gradient_accumulation: Count = 1
    lr: Positive = 2e-5
    refine_lr: Weight = 5e-5
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw` steps everything; `muon` steps the matrices of layers with Muon at twice the learning rates, and the rest
    with AdamW. The paper has AdamW; with Muon, tiny models learn to search in half of the steps."""
    schedule: Schedule = "linear"
    warmup_ratio: Share = 0.0
    weight_decay: Weight = 0.0
    max_grad_norm: Weight = 1.0
    retrieval_weight: Weight = 0.3
    retrieval_warmup_ratio: Share = 0.0
    """Share of the steps over which the weight of L_ret rises from 0. The paper does not do this; it is for models that
    first have to learn to write, and that learn neither task well when both losses act from the start."""
    temperature: Positive = 0.1
    num_negatives: Whole = 24
    in_batch_positives: bool = False
    all_negatives: bool = False
    """Whether every other video of the train split is a negative of L_ret, in place of `num_negatives` chosen ones. A
    loss over few negatives can be lowered by a query that says nothing; one over all videos cannot. The paper does not
    do this."""
    first_latents: Literal["zero", "words"] = "zero"
    """Where the soft tokens of an untrained policy start: at `zero`, as the authors have it, or with the mean and scale
    of the `words` that policy and embedder read. At zero, each of the N layer normalisations multiplies the gradient by
    316: it is 1e8 in the first step of the tiny models, and clipping leaves nothing of the text's in that step."""
    drop_above_positive: bool = False
    """Drop the negatives that are as near to the original query as the right video, less 0.0005, as the authors do."""
    drop_above_positive_when_refined: bool = False
    """As `drop_above_positive`, but judged by the refined query, which changes with every step."""
    lora_rank: Whole = 0
    """Rank of the adapters on the linear layers of the text model. Only the adapters are trained then, and they are
    merged into the layers at the end. 0 trains the layers themselves."""
    train_vision: bool = False
    gradient_checkpointing: bool = False
    bf16: bool = True
    early_stop_patience: Whole = 0
    """Stop after this many validations without a lower loss, and keep the best weights. 0 means no validation: training
    uses all rows and all steps."""
    validation_steps: Count = 50
    validation_share: Share = 0.1
    """Share of the train videos whose rows are used for validation and not for training; only with early stopping."""
    seed: Whole = 42
    noise: Whole = 0
    """As `TinyRecipe.noise`, on the first weights of what this training changes."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, requirement) for each value that does not fit the other values."""
        if self.drop_above_positive and self.drop_above_positive_when_refined:
            yield "drop_above_positive_when_refined", "has to be false where drop_above_positive is true: choose one"

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the fields that have no effect with the other values of this recipe; no version depends on them."""
        no_search = () if self.refine == "soft" else OF_SOFT_REFINEMENT
        chosen = ("num_negatives", "in_batch_positives") if self.all_negatives and not no_search else ()
        return (*no_search, *chosen, *(() if self.early_stop_patience else ("validation_steps", "validation_share")))


OF_SOFT_REFINEMENT = (
    *("refine_lr", "retrieval_weight", "retrieval_warmup_ratio", "temperature", "num_negatives"),
    *("in_batch_positives", "all_negatives", "first_latents"),
    *("drop_above_positive", "drop_above_positive_when_refined"),
)
"""Fields of SFTRecipe that are read only when training with soft tokens and their retrieval loss."""


@dataclass(frozen=True)
class GRPORecipe:
    """Stage 2: GRPO over search episodes (docs/method.md)."""

    steps: Whole = 0
    """Number of optimiser steps; 0 means one epoch over the prompts."""
    queries_per_step: Count = 2
    matched_share: Share = 0.0
    """Share of the queries of a step that rank their right video first; 0 takes queries in random order. The paper does
    not do this; if only few queries rank it first, a policy is rewarded for rejecting every video."""
    group_size: Annotated[int, Range(2)] = 8
    num_turns: Count = 3
    temperature: Positive = 1.0
    max_new_tokens: Count = 256
    lr: Positive = 5e-7
    refine_lr: Weight = 5e-5
    warmup_steps: Whole = 10
    weight_decay: Weight = 0.01
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` keeps AdamW's moments in 8 bits (bitsandbytes, the extra `eight-bit`), which saves 6 bytes per
    parameter that learns."""
    max_grad_norm: Weight = 1.0
    clip: Weight = 0.2
    beta: Weight = 0.01
    """Weight of the KL penalty towards the starting policy. With 0 there is no reference model, and groups of equal
    rewards are not replayed, except for their soft tokens."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "grpo"
    retrieval_weight: Weight = 0.3
    retrieval_temperature: Positive = 0.1
    num_negatives: Whole = 24
    rewards: Annotated[RewardWeights, Each(Keys("vsr1_core.training.rewards", "REWARDS"), float)] = field(
        default_factory=RewardWeights
    )
    lora_rank: Whole = 0
    """As in stage 1. The policy without its adapters is the reference model then."""
    gradient_checkpointing: bool = False
    bf16: bool = True
    seed: Whole = 42

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the fields that have no effect with the other values of this recipe; no version depends on them.

        `clip` has no effect at a temperature other than 1, where the clipped ratio is exactly 1. `matched_share` has no
        effect when a step has only one query.
        """
        no_clip = () if self.temperature == 1 else ("clip",)
        return (*no_clip, *(() if self.queries_per_step > 1 else ("matched_share",)))


WithUnused = TypeVar("WithUnused", FrameRecipe, SFTRecipe, GRPORecipe)


def effective(recipe: WithUnused) -> WithUnused:
    """Set the fields that have no effect (`recipe.unused`) to their defaults. Versions are computed from the result."""
    defaults: dict[str, Any] = {f.name: f.default for f in fields(recipe) if f.name in recipe.unused}
    return replace(recipe, **defaults)


@dataclass(frozen=True)
class EvalRecipe:
    """How queries are searched in evaluation, and what is reported."""

    methods: Methods = ("zero_shot", "fine_tuned", "sqr_sft", "videosearch_r1")
    """Names in `stages.methods.ALL`. Queries are searched with these methods only, and only the baselines that they
    need are trained."""
    splits: Annotated[tuple[str, ...], NotEmpty()] = ("test",)
    num_turns: Count = 3
    max_new_tokens: Count = 256
    num_resamples: Count = 1000
    seed: Whole = 42


TRAININGS = ("sft", "fine_tuned", "hard_refine", "grpo")
"""The recipes of a configuration that say how a checkpoint is trained."""


@dataclass(frozen=True)
class Configuration:
    """All recipes for building a dataset.

    retrain: whether automation may train models. It decides when they are trained and not how, so that no row depends
    on it.
    """

    name: str
    retrain: Literal["auto", "manual"] = "manual"
    toy: ToyRecipe = field(default=ToyRecipe())
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
    segments: SegmentRecipe = field(default=SegmentRecipe(), metadata=ADDED)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (dotted field, requirement) for each value that would make a method differ from what its name says."""
        for stage, refine in (("sft", "soft"), ("fine_tuned", "none"), ("hard_refine", "text")):
            if getattr(self, stage).refine != refine:
                yield f"{stage}.refine", f"has to be {refine!r}: another value would make it a different method"
