"""The methods that are compared, and the checkpoints that are trained for them: one entry for each.

Stages, assets, plots, the report, the forecast and the doctor iterate over these entries. A new ablation is a new
entry in _ABLATIONS, and in _TRAININGS as well where it needs a checkpoint that is trained differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vsr1_core.input_form import InputForm
from vsr1_core.reasoning.conversation import HARD_REFINE_PROMPT
from vsr1_core.recipes import Configuration, EvalRecipe, GRPORecipe, Refine, SFTRecipe

if TYPE_CHECKING:
    from vsr1_core.models.soft_query import SoftQueryConfig
    from vsr1_core.search.episodes import EpisodeSettings

POLICY = ("base_models", "policy")
"""Asset and row of the base policy, which every training starts from, directly or through its parent."""


@dataclass(frozen=True)
class Trained:
    """A checkpoint that is trained: the asset `name`, with one row of the same id.

    says: one sentence for people. recipe: configuration -> its recipe. examples: the asset of its training rows.
    parent: asset and row of the policy that training starts from. version: raised by hand, in the commit that changes
    what is learned. searches: whether it is trained on search episodes (GRPO) or on written answers (SFT). prompt: the
    system prompt that it is trained with where the policy has none of its own. always: whether every configuration
    makes it; if not, a configuration makes it only if it reports a method that searches with it.
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
        "The fine-tuned baseline: trained on the rows of stage 1, without refinement; made only where it is reported.",
        lambda config: config.fine_tuned,
        "sft_examples",
        version=2,
    ),
    Trained(
        "hard_refine_checkpoint",
        "Hard query refinement: trained to write a new query in words; made only where it is reported.",
        lambda config: config.hard_refine,
        "hard_refine_examples",
        version=2,
        prompt=HARD_REFINE_PROMPT,
    ),
    Trained(
        "sft_checkpoint",
        "The checkpoint of stage 1: supervised fine-tuning with the retrieval loss on the soft tokens.",
        lambda config: config.sft,
        "sft_examples",
        version=4,
        always=True,
    ),
    Trained(
        "drop_above_positive_checkpoint",
        "Stage 1 without the negatives that rank above the right video for the original query, an ablation; made only "
        "where it is reported.",
        lambda config: replace(config.sft, drop_above_positive=True, drop_above_positive_when_refined=False),
        "sft_examples",
        version=4,
    ),
    Trained(
        "grpo_checkpoint",
        "The checkpoint of stage 2: GRPO over whole search episodes.",
        lambda config: config.grpo,
        "grpo_prompts",
        parent=("sft_checkpoint", "sft_checkpoint"),
        version=5,
        searches=True,
        always=True,
    ),
)
TRAINED: dict[str, Trained] = {trained.name: trained for trained in _TRAININGS}
"""The trained checkpoints by the name of their asset."""


@dataclass(frozen=True)
class Method:
    """A row of the report: which model searches, and how.

    label: the name in plots and tables. says: one sentence for people. model: the asset of its checkpoint. refine: how
    a query changes after a rejection. order: the place in tables. colour: the colour in every plot. published: the name
    in the paper's table; empty where it is not in it. options: how it differs from the method whose name stands before
    the `+`: `exclude_rejected` (a rejected video is not shown again), `last_latents` (a query carries the soft tokens
    of its last turn only).
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
        """Id of the row of `model` that is the method's policy."""
        return self.model if self.is_trained else "policy"

    @property
    def is_trained(self) -> bool:
        """Whether it searches with a checkpoint of `TRAINED`, and not with the base policy."""
        return self.model in TRAINED

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
        "The base policy searches without refinement.",
        "base_models",
        "none",
        0,
        "#7f8c9a",
        "Qwen3-VL-2B ZS",
    ),
    Method(
        "fine_tuned",
        "fine-tuned",
        "The fine-tuned policy searches without refinement.",
        "fine_tuned_checkpoint",
        "none",
        1,
        "#e69f00",
        "Qwen3-VL-2B FT",
    ),
    Method(
        "hard_refine",
        "hard refinement",
        "The policy rewrites a rejected query in words.",
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
"""The methods that are not ablations, by name."""
PROBED = {name: method for name, method in BASIC.items() if method.is_trained}
"""The methods whose verification is probed, by name."""

_SAYS_OF_OPTION = {
    "exclude_rejected": ("rejected videos excluded", "A rejected video is not shown again."),
    "last_latents": ("last latents only", "A query carries the soft tokens of its last turn only."),
}


def _ablation(method: Method, name: str, label: str, says: str, **changes: Any) -> Method:
    """The method `<method>+<name>`, with `changes` of its fields."""
    return replace(
        method,
        name=f"{method.name}+{name}",
        label=f"{method.label}, {label}",
        says=f"{method.says} {says}",
        colour="",
        published="",
        **changes,
    )


def _searching_otherwise(method: Method, option: str) -> Method:
    return _ablation(method, option, *_SAYS_OF_OPTION[option], options=method.options | {option})


_ABLATIONS = (
    *(_searching_otherwise(method, "exclude_rejected") for method in _BASIC),
    *(_searching_otherwise(BASIC[name], "last_latents") for name in ("sqr_sft", "videosearch_r1")),
    _ablation(
        BASIC["sqr_sft"],
        "drop_above_positive",
        "no negatives above the right video",
        "Trained without the negatives that rank above the right video.",
        model="drop_above_positive_checkpoint",
    ),
)
ALL: dict[str, Method] = {method.name: method for method in (*_BASIC, *_ABLATIONS)}
"""Every method by name, in the order of the report."""


def methods_of(config: Configuration) -> tuple[str, ...]:
    """The methods that `config` reports. ValueError for a method that does not exist lists those that do."""
    unknown = sorted(set(config.evaluation.methods) - set(ALL))
    if unknown:
        raise ValueError(f"configuration {config.name!r}: no method {unknown[0]!r}; there are: {', '.join(ALL)}")
    return config.evaluation.methods


def is_used(config: Configuration, asset: str) -> bool:
    """Whether a method that `config` reports searches with the checkpoint of `asset`."""
    return any(ALL[name].model == asset for name in methods_of(config))


def is_made(config: Configuration, trained: Trained) -> bool:
    """Whether this configuration makes the checkpoint."""
    return trained.always or is_used(config, trained.name)


def num_turns_of(method: Method, recipe: EvalRecipe) -> int:
    """Most turns that `method` takes: without refinement and exclusion a second turn would repeat the first."""
    return recipe.num_turns if method.refine != "none" or method.exclude_rejected else 1


def asked_as(form: InputForm, recipe: EvalRecipe) -> EvalRecipe:
    """`recipe` with the limits of turns and text that the form of a policy names."""
    turns, tokens = form.num_turns or recipe.num_turns, form.max_new_tokens or recipe.max_new_tokens
    return replace(recipe, num_turns=turns, max_new_tokens=tokens)


def settings_of(method: Method, recipe: EvalRecipe, soft_query: SoftQueryConfig, batch_size: int) -> EpisodeSettings:
    """How `method` searches with a policy that was made with the options `soft_query`."""
    from vsr1_core.models.protocols import DecodeSettings
    from vsr1_core.search.episodes import EpisodeSettings

    recipe = asked_as(soft_query.form, recipe)
    return EpisodeSettings(
        num_turns=num_turns_of(method, recipe),
        refine=method.refine,
        exclude_rejected=method.exclude_rejected,
        last_latents=method.last_latents,
        decode=DecodeSettings(recipe.max_new_tokens, 0.0, soft_query.num_soft_tokens),
        batch_size=batch_size,
    )
