"""The input form: what a model is shown, and in which spelling, besides the query and the frames themselves.

A form belongs to a checkpoint. Whoever makes or imports the checkpoint sets it, it is recorded with the weights, and
everything that asks the model reads it from there (docs/method.md, The input form). No torch, no tokenizer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from vsr1_core.limits import Whole

VideoWrapper = Literal["as_trained", "published", "template"]
TimeMarks = Literal["seconds", "frame_count"]
ShownFrames = Literal["stored", "official", "paper"]

QUERY_INSTRUCTION = "Represent the user's input."
"""The instruction of the paper, which is also the default of Qwen's embedding models."""


@dataclass(frozen=True)
class InputForm:
    """How a policy is asked. The defaults are those of this project; `AUTHORS` is the form of the released checkpoints.
    A recorded form names its wrapper and never says `as_trained`."""

    video_wrapper: VideoWrapper = "as_trained"
    """What stands around the time marks and blocks of a video. `published`: nothing, because the vision tokens of the
    chat template are replaced together with the placeholder, as transformers did up to 5.9 when Qwen3-VL was trained.
    `template`: the vision tokens of the template, as transformers has kept them since 5.10 and as the tiny models are
    trained. `as_trained`: `template` for tiny models, `published` for published ones."""
    time_marks: TimeMarks = "seconds"
    """What the time marks count: the true seconds of the source, or the sampled frames (0.5, 2.5, ... for pairs)."""
    shown_frames: ShownFrames = "stored"
    """In which size frames are shown: as they are `stored`, or resized from there by a rule of `media.sampling`."""
    force_refine: bool = True
    """Whether soft tokens follow a rejection that was written without <REFINE>. If not, the search ends there."""
    num_turns: Whole = 0
    """The largest number of turns of a search in evaluation; 0: as the evaluation recipe says."""
    max_new_tokens: Whole = 0
    """The largest number of text tokens of an answer in evaluation; 0: as the evaluation recipe says."""
    query_tokens: Whole = 0
    """A refined query is cut to this number of tokens, closing tokens included and soft tokens not counted; 0: never.
    """
    sft_prompt: str = ""
    """The system prompt in stage 1, if it differs from the one with which the policy searches; empty: the same."""

    @classmethod
    def recorded(cls, values: Mapping[str, Any] | None) -> InputForm:
        """The form that a checkpoint records. Checkpoints that record none are older than forms: they were all trained
        with the vision tokens of the template."""
        known = {f.name for f in fields(cls)}
        found = {name: value for name, value in (values or {}).items() if name in known and value is not None}
        return cls(**found).resolved("template")

    def resolved(self, trained_with: VideoWrapper) -> InputForm:
        """The form with `trained_with` in place of `as_trained`."""
        return self if self.video_wrapper != "as_trained" else replace(self, video_wrapper=trained_with)


OURS = InputForm()
"""The form with the defaults of this project."""
TEMPLATE = InputForm(video_wrapper="template")
"""The form of the tiny models, and of checkpoints that are older than forms."""
AUTHORS = InputForm(
    video_wrapper="published",
    time_marks="frame_count",
    shown_frames="paper",
    force_refine=False,
    num_turns=2,
    max_new_tokens=1024,
    query_tokens=128,
)
"""The form of the released VideoSearch-R1 checkpoints, as their inference script asks them."""


@dataclass(frozen=True)
class EmbedderForm:
    """How an embedder is asked. `instruction` is the system turn of queries; videos always have QUERY_INSTRUCTION.
    `video_wrapper` is as in InputForm, and never `as_trained`."""

    video_wrapper: VideoWrapper = "published"
    instruction: str = QUERY_INSTRUCTION

    @property
    def system_turn(self) -> str:
        """The instruction as Qwen's own code spells it: with a full stop where it ends without punctuation, and the
        default where it is blank."""
        text = self.instruction.strip()
        is_open = text and not unicodedata.category(text[-1]).startswith("P")
        return f"{text}." if is_open else text or QUERY_INSTRUCTION


PUBLISHED = EmbedderForm()
"""The form of a published embedder."""
