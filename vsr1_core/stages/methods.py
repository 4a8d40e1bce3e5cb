"""The methods that are compared, and the checkpoints that are trained for them: one entry each, and nothing restated.

Stages, assets, plots, the report, the forecast and the doctor go over these entries. A new ablation is a new entry
here: of ABLATIONS where it only searches otherwise, of TRAININGS and ABLATIONS where it is trained otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vsr1_core.reasoning.conversation import HARD_REFINE_PROMPT
from vsr1_core.recipes import Configuration, EvalRecipe, GRPORecipe, Refine, SFTRecipe

if TYPE_CHECKING:
    from vsr1_core.search.episodes import EpisodeSettings

POLICY = ("base_models", "policy")
"""Asset and row of the policy that every training starts from, at first or at last."""


@dataclass(frozen=True)
class Trained:
    """A checkpoint that is trained: the asset `name`, with one row of the same id.

    recipe: what of a configuration decides it. examples: the asset of its training rows. parent: asset and row of the
    policy that it starts from. version: bumped by hand, in the commit that changes what is learned. searches: whether
    it is trained on search episodes (GRPO), or on given answers. prompt: the system prompt that it is trained with,
    where the policy has none of its own. always: made in every configuration; otherwise only where a method that is
    reported searches with it.
    """

    name: str
    says: str
    recipe: Callable[[Configuration], SFTRecipe | GRPORecipe]
    examples: str
    parent: tuple[str, str] = POLICY
    version: int = 1
    searches: bool = False
    prompt: str = ""
    always: bool = False


_TRAININGS = (
    Trained(
        "fine_tuned_checkpoint",
        "The baseline: fine-tuned on the rows of stage 1, without refinement. Only where it is reported.",
        lambda config: config.fine_tuned,
        "sft_examples",
        version=2,
    ),
    Trained(
        "hard_refine_checkpoint",
        "Hard query refinement: trained as stage 1, but to write a new query in words. Only where it is reported.",
        lambda config: config.hard_refine,
        "hard_refine_examples",
        version=2,
        prompt=HARD_REFINE_PROMPT,
    ),
    Trained(
        "sft_checkpoint",
        "Stage 1: supervised fine-tuning with the retrieval loss on the soft tokens.",
        lambda config: config.sft,
        "sft_examples",
        version=3,
        always=True,
    ),
    Trained(
        "drop_above_positive_checkpoint",
        "An ablation of stage 1: no negatives that rank above the right video. Only where it is reported.",
        lambda config: replace(config.sft, drop_above_positive=True),
        "sft_examples",
        version=3,
    ),
    Trained(
        "grpo_checkpoint",
        "Stage 2: GRPO over whole search episodes.",
        lambda config: config.grpo,
        "grpo_prompts",
        parent=("sft_checkpoint", "sft_checkpoint"),
        version=4,
        searches=True,
        always=True,
    ),
)
TRAINED: dict[str, Trained] = {trained.name: trained for trained in _TRAININGS}
"""By the asset's name."""


@dataclass(frozen=True)
class Method:
    """A row of the report: which model searches, and how.

    label: its name in plots and tables. says: one sentence. model: the asset of its checkpoint. refine: how a query
    changes after a rejection. order: its place in tables, and colour: its own in every plot. published: its name in the
    paper's table, where it stands there. options: what differs from the method of the same name before a `+`:
    `exclude_rejected` (a rejected video is not shown again), `last_latents` (a query carries the soft tokens of its
    last turn only).
    """

    name: str
    label: str
    says: str
    model: str
    refine: Refine
    order: int
    colour: str = ""
    published: str = ""
    options: frozenset[str] = field(default_factory=frozenset)

    @property
    def row_id(self) -> str:
        """The row of `model` that is its policy."""
        return "policy" if self.model == "base_models" else self.model

    @property
    def exclude_rejected(self) -> bool:
        return "exclude_rejected" in self.options

    @property
    def last_latents(self) -> bool:
        return "last_latents" in self.options


_BASIC = (
    Method(
        "zero_shot",
        "zero-shot",
        "The base policy, no refinement.",
        "base_models",
        "none",
        0,
        "#7f8c9a",
        "Qwen3-VL-2B ZS",
    ),
    Method(
        "fine_tuned",
        "fine-tuned",
        "The fine-tuned policy, no refinement.",
        "fine_tuned_checkpoint",
        "none",
        1,
        "#e69f00",
        "Qwen3-VL-2B FT",
    ),
    Method(
        "hard_refine",
        "hard refinement",
        "The policy rewrites the query as text.",
        "hard_refine_checkpoint",
        "text",
        2,
        "#b5651d",
    ),
    Method("sqr_sft", "SQR, stage 1", "Soft query refinement after stage 1.", "sft_checkpoint", "soft", 3, "#0072b2"),
    Method(
        "videosearch_r1",
        "SQR, stage 2",
        "Soft query refinement after stage 2.",
        "grpo_checkpoint",
        "soft",
        4,
        "#009e73",
        "VideoSearch-R1",
    ),
)
BASIC: dict[str, Method] = {method.name: method for method in _BASIC}
"""The methods that are no ablation, by name."""

_SAYS_OF_OPTION = {
    "exclude_rejected": ("rejected videos excluded", "A rejected video is not shown again."),
    "last_latents": ("last latents only", "A query carries the soft tokens of its last turn only."),
}


def _searching_otherwise(method: Method, option: str) -> Method:
    label, says = _SAYS_OF_OPTION[option]
    return replace(
        method,
        name=f"{method.name}+{option}",
        label=f"{method.label}, {label}",
        says=f"{method.says} {says}",
        colour="",
        published="",
        options=method.options | {option},
    )


def _trained_otherwise(method: Method, option: str, model: str, label: str, says: str) -> Method:
    return replace(
        method,
        name=f"{method.name}+{option}",
        label=f"{method.label}, {label}",
        says=f"{method.says} {says}",
        model=model,
        colour="",
        published="",
    )


_ABLATIONS = (
    *(_searching_otherwise(method, "exclude_rejected") for method in _BASIC),
    *(_searching_otherwise(BASIC[name], "last_latents") for name in ("sqr_sft", "videosearch_r1")),
    _trained_otherwise(
        BASIC["sqr_sft"],
        "drop_above_positive",
        "drop_above_positive_checkpoint",
        "no negatives above the right video",
        "Trained without the negatives that rank above the right video.",
    ),
)
ALL: dict[str, Method] = {method.name: method for method in (*_BASIC, *_ABLATIONS)}
"""Every method by name, in the order of the report."""


def methods_of(config: Configuration) -> tuple[str, ...]:
    """The methods that `config` reports. ValueError names one that does not exist, and those that do."""
    unknown = sorted(set(config.evaluation.methods) - set(ALL))
    if unknown:
        raise ValueError(f"configuration {config.name!r}: no method {unknown[0]!r}; there are: {', '.join(ALL)}")
    return config.evaluation.methods


def is_used(config: Configuration, asset: str) -> bool:
    """Whether a reported method searches with this asset's checkpoint."""
    return any(ALL[name].model == asset for name in methods_of(config))


def is_made(config: Configuration, trained: Trained) -> bool:
    """Whether this configuration trains that checkpoint."""
    return trained.always or is_used(config, trained.name)


def num_turns_of(method: Method, recipe: EvalRecipe) -> int:
    """How many turns `method` takes at most: without refinement and exclusion a second one would repeat the first."""
    return recipe.num_turns if method.refine != "none" or method.exclude_rejected else 1


def settings_of(method: Method, recipe: EvalRecipe, num_soft_tokens: int, batch_size: int) -> EpisodeSettings:
    """How `method` searches with a policy that was made for so many soft tokens."""
    from vsr1_core.models.protocols import DecodeSettings
    from vsr1_core.search.episodes import EpisodeSettings

    return EpisodeSettings(
        num_turns=num_turns_of(method, recipe),
        refine=method.refine,
        exclude_rejected=method.exclude_rejected,
        last_latents=method.last_latents,
        decode=DecodeSettings(recipe.max_new_tokens, 0.0, num_soft_tokens),
        batch_size=batch_size,
    )
