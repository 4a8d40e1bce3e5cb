"""Stand-ins for who writes text: `FakeLLM` for vLLM, and `InProcessWriter`, the decoding loop as a writer.

`FakeLLM` expands the request's one placeholder from grid and time marks and splits the features into levels as vLLM's
Qwen3-VL does, and answers in the form of its RequestOutputs.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.core.test_decoding import EXACT, STOPS, run, world
from vsr1_core.models import decoding
from vsr1_core.models.answer_tokens import DecisionTokens
from vsr1_core.models.decoding import decode
from vsr1_core.models.prompts import Prompt, extended
from vsr1_core.models.protocols import Decoded, DecodeSettings
from vsr1_core.models.qwen3_vl import vllm_writer
from vsr1_core.models.qwen3_vl.inputs import VIDEO_PAD, VideoLayout
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.reading import teacher_forced
from vsr1_core.models.qwen3_vl.vision import VideoFeatures
from vsr1_core.models.qwen3_vl.vllm_writer import VLLMWriter
from vsr1_core.models.soft_query import is_soft_query

N = 4
SETTINGS = DecodeSettings(max_new_tokens=12, num_soft_tokens=N)


@dataclass(frozen=True)
class InProcessWriter:
    """Text by the decoding loop itself, behind the interface for text from elsewhere."""

    policy: LoadedPolicy

    def write(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[VideoFeatures | None],
        settings: DecodeSettings,
        generator: torch.Generator | None = None,
    ) -> list[Decoded]:
        text_only, loop = replace(settings, num_soft_tokens=0), self.policy.with_writer(None)
        return decode(loop, prompts, features, text_only, wants_refine=lambda _text: False, generator=generator)

    def take_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """It writes with the policy's own weights."""

    def close(self) -> None:
        """It holds nothing."""


class FakeLLM:
    """What `vllm.LLM` does with what VLLMWriter asks, by the in-process loop. `requests` are those it got."""

    def __init__(self, policy: LoadedPolicy) -> None:
        self.policy = policy
        self.requests: list[dict[str, Any]] = []
        self.params: list[dict[str, Any]] = []
        self.script: list[int] | None = None
        """Tokens that every row writes instead of the policy's own."""

    def generate(self, requests: Any, params: Any, use_tqdm: bool) -> list[Any]:
        self.requests, self.params = list(requests), list(params)
        return [self._answer(*row) for row in zip(requests, params, strict=True)]

    def _answer(self, asked: dict[str, Any], params: dict[str, Any]) -> Any:
        prompt, feature = self._understood(asked)
        settings = DecodeSettings(params["max_tokens"], params["temperature"], 0)
        seed = params["seed"]
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        ids = self.script or InProcessWriter(self.policy).write([prompt], [feature], settings, generator)[0].token_ids
        at = log_probs_of(self.policy, prompt, feature, ids)
        wanted = params["logprob_token_ids"]
        steps = [
            {token: SimpleNamespace(logprob=float(row[token])) for token in (ids[place], *wanted)}
            for place, row in enumerate(at)
        ]
        return SimpleNamespace(
            prompt_token_ids=prompt.token_ids.tolist(), outputs=[SimpleNamespace(token_ids=tuple(ids), logprobs=steps)]
        )

    def _understood(self, asked: dict[str, Any]) -> tuple[Prompt, VideoFeatures | None]:
        tokenizer, model = self.policy.tokenizer, self.policy.model.model
        data = asked.get("multi_modal_data")
        feature, ids = None, list(asked["prompt_token_ids"])
        if data is not None:
            video = data["video"]
            ids = expanded(ids, video, model.config.vision_config.spatial_merge_size, tokenizer)
            size = model.config.text_config.hidden_size
            tokens, *levels = video["video_embeds"].split(size, dim=-1)
            layout = VideoLayout(tuple(video["video_grid_thw"][0].tolist()), tuple(video["timestamps"][0]))
            feature = VideoFeatures(tokens, tuple(levels), layout)
        types = (torch.tensor([ids]) == model.config.video_token_id).int() * 2
        grid = None if feature is None else torch.tensor([feature.layout.grid])
        positions, _ = model.get_rope_index(torch.tensor([ids]), mm_token_type_ids=types, video_grid_thw=grid)
        return Prompt(torch.tensor(ids), positions[:, 0], types[0].bool()), feature


class LearningFakeLLM(FakeLLM):
    """A FakeLLM with weights of its own, which change only as `vllm.LLM` lets them. As with vLLM's prefix cache, the
    answer to a prompt stays what it was until that cache is dropped; as with its cache of read videos, new weights
    empty it in the worker and not in the scheduler; as on a CPU, the output layer has to be derived anew."""

    def __init__(self, policy: LoadedPolicy) -> None:
        super().__init__(replace(policy, model=copy.deepcopy(policy.model).eval(), writer=None))
        self.taken: list[str] = []
        self._cached: dict[Any, Any] = {}
        self._caches_differ = self._head_is_old = False

    def _answer(self, asked: dict[str, Any], params: dict[str, Any]) -> Any:
        assert not self._caches_differ, "Encoder cache miss: the scheduler believes that videos are read already"
        assert not self._head_is_old, "logits are made with the words' vectors of before"
        video = asked.get("multi_modal_data", {}).get("video", {}).get("video_embeds", torch.zeros(0))
        key = (*asked["prompt_token_ids"], params["temperature"], params["seed"], video.numpy().tobytes())
        if key not in self._cached:
            self._cached[key] = super()._answer(asked, params)
        return self._cached[key]

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[Any]:
        return [getattr(self, method)(**kwargs)]

    @torch.no_grad()
    def reload_weights(self, weights_iterator: Iterable[tuple[str, torch.Tensor]]) -> None:
        own = {name: p for name, p in self.policy.model.named_parameters() if not is_soft_query(name)}
        self.taken = []
        for name, tensor in weights_iterator:
            own[name].copy_(tensor)
            self.taken.append(name)
        assert set(self.taken) == set(own), "of a matrix that is given in part, vLLM leaves the rest undefined"
        self._caches_differ = self._head_is_old = True

    def apply_model(self, function: Callable[[Any], Any]) -> list[Any]:
        return [function(self)]

    def get_language_model(self) -> Any:
        return SimpleNamespace(lm_head=SimpleNamespace(quant_method=self))

    def process_weights_after_loading(self, head: Any) -> None:
        self._head_is_old = False

    @property
    def llm_engine(self) -> Any:
        return self

    def reset_encoder_cache(self) -> None:
        self._caches_differ = False

    def reset_prefix_cache(self) -> None:
        self._cached.clear()


@torch.no_grad()
def log_probs_of(policy: LoadedPolicy, prompt: Prompt, feature: VideoFeatures | None, ids: list[int]) -> torch.Tensor:
    """Of all tokens at each of the places of `ids` behind the prompt, [len(ids), V], by one pass over both."""
    whole = extended(prompt, ids)
    hidden, _, _ = teacher_forced(policy.model, [whole], [feature], refining=[], pad_id=STOPS[1], num_soft_tokens=0)
    return policy.model.lm_head(hidden[0, -len(ids) - 1 : -1]).log_softmax(-1)


def expanded(ids: list[int], video: dict[str, Any], merge_size: int, tokenizer: Any) -> list[int]:
    """vLLM's expansion: each frame's mark, tokenized by itself, and its placeholders between start and end."""
    start, end, pad = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>", VIDEO_PAD])
    (frames, height, width), marks = video["video_grid_thw"][0].tolist(), video["timestamps"][0]
    assert len(marks) == frames
    pads = [pad] * (height * width // merge_size**2)
    made = [
        token
        for mark in marks
        for token in (*tokenizer.encode(f"<{mark:.1f} seconds>", add_special_tokens=False), start, *pads, end)
    ]
    assert ids.count(pad) == 1
    place = ids.index(pad)
    return [*ids[:place], *made, *ids[place + 1 :]]


def writer_of(policy: LoadedPolicy) -> VLLMWriter:
    return VLLMWriter(FakeLLM(policy), dict, policy.tokenizer)


def assert_same_rows(ours: list[Decoded], theirs: list[Decoded]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-4, rtol=1e-4)
        assert one.matched_probability == pytest.approx(other.matched_probability, abs=EXACT)
        assert (one.latents is None) == (other.latents is None)
        if one.latents is not None:
            torch.testing.assert_close(one.latents, other.latents, atol=EXACT, rtol=EXACT)


World = tuple[LoadedPolicy, list[Prompt], list[VideoFeatures]]


@functools.cache
def common_token(of: Callable[[], World] = world) -> int:
    """A token that most rows write, but not first."""
    policy, prompts, features = of()
    rows = run(policy, prompts, features, max_new_tokens=SETTINGS.max_new_tokens, num_soft_tokens=0)
    return Counter(token for row in rows for token in {*row.token_ids} - {row.token_ids[0]}).most_common(1)[0][0]


def decide_after(token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights write no answers, so what follows a token that they do write is taken for the decision."""
    parting = DecisionTokens(((token,),), matched=11, not_matched=12, match_to_span=())
    monkeypatch.setattr(decoding, "decision_tokens", lambda _tokenizer: parting)
    monkeypatch.setattr(vllm_writer, "decision_tokens", lambda _tokenizer: parting)
