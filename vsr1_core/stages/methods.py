"""The methods that are compared: which checkpoint searches, and how it refines. No stage is defined here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vsr1_core.recipes import Configuration, EvalRecipe, Refine

if TYPE_CHECKING:
    from vsr1_core.search.episodes import EpisodeSettings


EXCLUDE = "+exclude_rejected"


@dataclass(frozen=True)
class Method:
    """A row of the report (METHOD 9): which checkpoint searches, how it refines, whether a rejected video may be shown
    again, and whether a query carries the soft tokens of its last turn only."""

    asset: str
    row_id: str
    refine: Refine
    exclude_rejected: bool = False
    last_latents: bool = False


BASIC_METHODS: dict[str, Method] = {
    "zero_shot": Method("base_models", "policy", "none"),
    "fine_tuned": Method("fine_tuned_checkpoint", "fine_tuned_checkpoint", "none"),
    "hard_refine": Method("hard_refine_checkpoint", "hard_refine_checkpoint", "text"),
    "sqr_sft": Method("sft_checkpoint", "sft_checkpoint", "soft"),
    "videosearch_r1": Method("grpo_checkpoint", "grpo_checkpoint", "soft"),
}
METHODS: dict[str, Method] = {
    **BASIC_METHODS,
    **{name + EXCLUDE: replace(method, exclude_rejected=True) for name, method in BASIC_METHODS.items()},
    **{
        f"{name}+last_latents": replace(BASIC_METHODS[name], last_latents=True)
        for name in ("sqr_sft", "videosearch_r1")
    },
    "sqr_sft+drop_above_positive": Method("drop_above_positive_checkpoint", "drop_above_positive_checkpoint", "soft"),
}
"""Behind a `+` the one thing that differs: with the name before it, an ablation."""


def methods_of(config: Configuration) -> tuple[str, ...]:
    """The methods that `config` reports. ValueError names one that does not exist, and those that do."""
    unknown = sorted(set(config.evaluation.methods) - set(METHODS))
    if unknown:
        raise ValueError(f"configuration {config.name!r}: no method {unknown[0]!r}; there are: {', '.join(METHODS)}")
    return config.evaluation.methods


def is_used(config: Configuration, asset: str) -> bool:
    """Whether a reported method searches with this asset's checkpoint."""
    return any(METHODS[name].asset == asset for name in methods_of(config))


def num_turns_of(method: str, recipe: EvalRecipe) -> int:
    """How many turns `method` takes at most: without refinement and exclusion a second one would repeat the first."""
    how = METHODS[method]
    return recipe.num_turns if how.refine != "none" or how.exclude_rejected else 1


def settings_of(method: str, recipe: EvalRecipe, num_soft_tokens: int, batch_size: int) -> EpisodeSettings:
    """How `method` searches with a policy that was made for so many soft tokens."""
    from vsr1_core.models.decoding import DecodeSettings
    from vsr1_core.search.episodes import EpisodeSettings

    how = METHODS[method]
    return EpisodeSettings(
        num_turns=num_turns_of(method, recipe),
        refine=how.refine,
        exclude_rejected=how.exclude_rejected,
        last_latents=how.last_latents,
        decode=DecodeSettings(recipe.max_new_tokens, 0.0, num_soft_tokens),
        batch_size=batch_size,
    )
