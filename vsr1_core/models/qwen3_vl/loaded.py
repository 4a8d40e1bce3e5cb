"""A Qwen3-VL policy with its tokenizer, which implements `protocols.PolicyModel`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vsr1_core.models.prompts import Prompt
from vsr1_core.models.protocols import TextWriter
from vsr1_core.models.qwen3_vl.inputs import VideoLayout, build_prompts
from vsr1_core.models.qwen3_vl.policy import Policy
from vsr1_core.models.qwen3_vl.reading import PromptReading, answer_states, teacher_forced_answers
from vsr1_core.models.qwen3_vl.sizes import size_of
from vsr1_core.models.qwen3_vl.tokenizer import end_tokens
from vsr1_core.models.qwen3_vl.vision import VideoFeatures, VisionTower
from vsr1_core.models.sizes import ModelSize


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy with its tokenizer. writer: the engine that writes its text with the same weights, in place of the
    decoding loop."""

    model: Policy
    tokenizer: PreTrainedTokenizerBase
    writer: TextWriter | None = None

    @property
    def encoder(self) -> VisionTower:
        return VisionTower(self.model.model, self.model.soft_query.form)

    @property
    def vision_tower(self) -> nn.Module:
        return self.model.model.visual

    @property
    def size(self) -> ModelSize:
        return size_of(self.model.config, self.model)

    @property
    def text_model(self) -> nn.Module:
        return self.model.model.language_model

    @property
    def end_tokens(self) -> set[int]:
        return end_tokens(self.tokenizer)

    def prompts(
        self, conversations: Sequence[Sequence[dict[str, Any]]], layouts: Sequence[VideoLayout | None]
    ) -> list[Prompt]:
        wrapper = self.model.soft_query.form.video_wrapper
        return build_prompts(self.tokenizer, self.model.model, conversations, layouts, video_wrapper=wrapper)

    def reading(self, prompts: Sequence[Prompt], features: Sequence[VideoFeatures | None], room: int) -> PromptReading:
        return PromptReading(self.model, prompts, features, self.tokenizer.pad_token_id, room)

    def teacher_forced(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[VideoFeatures | None],
        *,
        last: Sequence[int],
        refining: Sequence[int],
        num_soft_tokens: int,
    ) -> tuple[list[Tensor], Tensor]:
        kwargs = {"refining": refining, "pad_id": self.tokenizer.pad_token_id, "num_soft_tokens": num_soft_tokens}
        return answer_states(self.model, prompts, features, last=last, **kwargs)

    def teacher_forced_answers(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[VideoFeatures | None],
        answers: Sequence[Sequence[int]],
        *,
        refining: Sequence[int],
        num_soft_tokens: int,
    ) -> tuple[list[Tensor], Tensor]:
        kwargs = {"refining": refining, "pad_id": self.tokenizer.pad_token_id, "num_soft_tokens": num_soft_tokens}
        return teacher_forced_answers(self.model, prompts, features, answers, **kwargs)

    def frozen_copy(self) -> LoadedPolicy:
        shared = {id(self.vision_tower): self.vision_tower}
        return replace(self, model=copy.deepcopy(self.model, shared).requires_grad_(False).eval())

    def with_writer(self, writer: TextWriter | None) -> LoadedPolicy:
        return replace(self, writer=writer)
