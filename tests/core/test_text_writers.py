"""Text written elsewhere: the latents behind it are those of the loop, and vLLM is asked and understood rightly.

`FakeLLM` stands for vLLM: it expands the request's one placeholder from grid and time marks and splits the features
into levels as vLLM's Qwen3-VL does, and answers in the form of its RequestOutputs.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from tests.core import naive
from tests.core.qwen_tokenizer import qwen_tokenizer
from tests.core.test_decoding import EXACT, REFINE_ID, STOPS, naive_latents, run, without_end, world
from tests.core.test_episodes import QUERIES, searcher
from tests.core.tiny_models import prompts_with_videos, query_text, random_video, small_config, tiny_policy
from vsr1_core.models import decoding, vllm_writer
from vsr1_core.models.checkpoints import LoadedPolicy
from vsr1_core.models.decoding import (
    DecisionTokens,
    Decoded,
    DecodeSettings,
    InProcessWriter,
    decision_tokens,
    decode,
    teacher_forced,
)
from vsr1_core.models.inputs import VIDEO_PAD, Prompt, VideoLayout, build_prompts, extended
from vsr1_core.models.released import stored_shapes
from vsr1_core.models.vision import VideoFeatures
from vsr1_core.models.vllm_writer import VLLMWriter, export_for_vllm, is_soft_query, open_writer, request, sampling
from vsr1_core.reasoning.conversation import answer_text, build_messages
from vsr1_core.rows.files import read_json

N = 4
SETTINGS = DecodeSettings(max_new_tokens=12, num_soft_tokens=N)


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
        ids = (
            self.script
            or InProcessWriter(self.policy.model, self.policy.tokenizer)
            .write([prompt], [feature], settings)[0]
            .token_ids
        )
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


@pytest.fixture
def deciding(monkeypatch: pytest.MonkeyPatch) -> None:
    decide_after(common_token(), monkeypatch)


@pytest.mark.usefixtures("deciding")
@pytest.mark.parametrize("seed_hidden", ["post_norm", "pre_norm"])
@pytest.mark.parametrize("kind", ["in-process", "vllm"])
@pytest.mark.parametrize("ends_early", [False, True])
def test_rows_with_text_from_elsewhere_are_those_of_the_loop(kind: str, seed_hidden: str, ends_early: bool) -> None:
    policy, prompts, features = world(seed_hidden)
    tokenizer = copy.deepcopy(policy.tokenizer)
    if ends_early:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(common_token())
    policy = LoadedPolicy(policy.model, tokenizer)
    writer = InProcessWriter(policy.model, tokenizer) if kind == "in-process" else writer_of(policy)
    asked: list[str] = []

    def two_of_three(text: str) -> bool:
        asked.append(text)
        return zlib.crc32(text.encode()) % 3 != 0

    def rows(**kwargs: Any) -> list[Decoded]:
        return decode(policy.model, tokenizer, prompts, features, SETTINGS, wants_refine=two_of_three, **kwargs)

    fused = rows()
    assert {row.num_latent_tokens for row in fused} == {0, N}
    assert len({len(row.token_ids) for row in fused}) > (2 if ends_early else 0)
    assert ends_early or sum(row.matched_probability is not None for row in fused) > 3
    assert_same_rows(rows(writer=writer), fused)
    assert sorted(asked[: len(prompts)]) == sorted(asked[len(prompts) :]), "each text is asked about once"


@torch.no_grad()
def test_latents_behind_a_given_text_equal_n_full_passes() -> None:
    policy, prompts, features = world()
    text = policy.tokenizer(answer_text("a red bar moves left.", False), add_special_tokens=False)["input_ids"]
    writer = writer_of(policy)
    writer.llm.script = text
    rows = decode(
        policy.model, policy.tokenizer, prompts[:3], features[:3], SETTINGS, wants_refine=lambda _t: True, writer=writer
    )
    for seed, (prompt, row) in enumerate(zip(prompts, rows, strict=False)):
        assert row.text == answer_text("a red bar moves left.", False)
        expected = naive_latents(policy, prompt, without_end(text), seed, N)
        torch.testing.assert_close(row.latents, expected, atol=EXACT, rtol=EXACT)


@torch.no_grad()
def test_the_decision_is_read_off_the_answers_first_parting_token() -> None:
    policy, prompts, features = world()
    parting = decision_tokens(policy.tokenizer)
    text = policy.tokenizer(answer_text("no.", False), add_special_tokens=False)["input_ids"]
    place = text.index(parting.not_matched)
    writer = writer_of(policy)
    writer.llm.script = text
    row = writer.write(prompts[:1], features[:1], SETTINGS)[0]
    whole = extended(prompts[0], text[:place])
    hidden, _, _ = teacher_forced(policy.model, [whole], features[:1], refining=[], pad_id=STOPS[1], num_soft_tokens=0)
    pair = policy.model.lm_head(hidden[0, -1])[[parting.matched, parting.not_matched]].softmax(-1)
    assert row.matched_probability == pytest.approx(float(pair[0]), abs=EXACT)


def test_rows_without_a_video_and_no_rows_at_all_go_through() -> None:
    policy, prompts, features = world()
    conversation = [[{"role": "user", "content": "a red ring, where is it?"}]]
    bare = build_prompts(policy.tokenizer, policy.model.model, conversation, [None])
    kwargs = {"settings": SETTINGS, "wants_refine": lambda _text: True}
    one = policy.model, policy.tokenizer
    mixed = [[*bare, prompts[0]], [None, features[0]]]
    assert_same_rows(decode(*one, *mixed, **kwargs, writer=writer_of(policy)), decode(*one, *mixed, **kwargs))
    assert decode(*one, [], [], **kwargs, writer=writer_of(policy)) == []


@pytest.mark.parametrize("which", ["own", "qwen"])
def test_the_requests_placeholder_stands_for_exactly_the_prompts_video(which: str) -> None:
    policy, prompts, features = world()
    tokenizer = policy.tokenizer
    if which == "qwen":
        tokenizer = qwen_tokenizer()
        layouts = [f.layout for f in features]
        model = copy.copy(policy.model.model)
        model.config = copy.deepcopy(model.config)
        model.config.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_PAD)
        prompts = build_prompts(tokenizer, model, [build_messages(query_text(i)) for i in range(20)], layouts)
    rendered = tokenizer.apply_chat_template(build_messages(query_text(0)), tokenize=False, add_generation_prompt=True)
    for place, (prompt, feature) in enumerate(zip(prompts, features, strict=True)):
        asked = request(prompt, feature, tokenizer)
        video = asked["multi_modal_data"]["video"]
        assert expanded(asked["prompt_token_ids"], video, 2, tokenizer) == prompt.token_ids.tolist()
        if place == 0:
            assert asked["prompt_token_ids"] == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_rows_end_where_the_loop_ends_them_and_seeds_follow_the_generator() -> None:
    policy, prompts, features = world()
    writer = writer_of(policy)

    def seeds(generator: torch.Generator | None) -> list[int | None]:
        writer.write(prompts[:3], features[:3], SETTINGS, generator)
        return [params["seed"] for params in writer.llm.params]

    assert seeds(None) == [None] * 3
    first = seeds(torch.Generator().manual_seed(1))
    assert first == seeds(torch.Generator().manual_seed(1)) != seeds(torch.Generator().manual_seed(2))
    assert len(set(first)) == 3
    params = writer.llm.params[0]
    assert set(params["stop_token_ids"]) == {REFINE_ID, *STOPS}
    assert params["ignore_eos"], "the list is complete: no further token may end a row"
    assert sampling(DecodeSettings(7, 0.5), policy.tokenizer, 3)["temperature"] == 0.5


@pytest.mark.usefixtures("deciding")
@pytest.mark.parametrize("kind", ["in-process", "vllm"])
def test_a_text_that_the_limit_cuts_before_its_decision_has_none(kind: str) -> None:
    policy, prompts, features = world()
    whole = run(policy, prompts, features, max_new_tokens=SETTINGS.max_new_tokens, num_soft_tokens=0)
    row = next(i for i, r in enumerate(whole) if common_token() in r.token_ids[:-1])
    limit = whole[row].token_ids.index(common_token()) + 1
    writer = InProcessWriter(policy.model, policy.tokenizer) if kind == "in-process" else writer_of(policy)
    for more, decided in ((0, False), (1, True)):
        cut = writer.write([prompts[row]], [features[row]], DecodeSettings(limit + more, num_soft_tokens=0))[0]
        assert cut.token_ids == whole[row].token_ids[: limit + more]
        assert (cut.matched_probability is not None) == decided


def test_a_prompt_that_vllm_reads_otherwise_is_an_error() -> None:
    policy, prompts, features = world()
    writer = writer_of(policy)
    honest = writer.llm.generate

    def shifted(*args: Any, **kwargs: Any) -> list[Any]:
        outputs = honest(*args, **kwargs)
        outputs[0].prompt_token_ids[5] += 1
        return outputs

    writer.llm.generate = shifted
    with pytest.raises(RuntimeError, match="vLLM read a prompt"):
        writer.write(prompts[:2], features[:2], SETTINGS)


def test_the_export_is_the_published_form_and_answers_alike(tmp_path: Path) -> None:
    policy, prompts, features = world()
    export_for_vllm(policy, tmp_path / "plain")
    plain, info = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    stored = set(stored_shapes(tmp_path / "plain"))
    assert not {name for name in stored if is_soft_query(name)}
    own = {name for name, _ in policy.model.named_parameters() if not is_soft_query(name)}
    assert stored == own
    written = read_json(tmp_path / "plain" / "config.json")
    assert written["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert "soft_query" not in written
    video = random_video(0, policy.model.config)
    kwargs = {"max_new_tokens": 8, "eos_token_id": [*STOPS, REFINE_ID], "pad_token_id": STOPS[1]}
    theirs = naive.greedy_ids(plain.eval(), prompts[0].token_ids, video.patches, video.grid, **kwargs)
    assert theirs == run(policy, prompts[:1], features[:1], refine=False, max_new_tokens=8)[0].token_ids


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[vllm\]'"):
        open_writer(world()[0], tmp_path / "plain")
    assert not (tmp_path / "plain").exists(), "nothing is exported for a writer that cannot be"


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A module `vllm` whose LLM keeps what it was made with; the list names the engines that were shut down."""
    stopped: list[str] = []

    def llm(**kwargs: Any) -> SimpleNamespace:
        core = SimpleNamespace(shutdown=lambda: stopped.append(kwargs["model"]))
        return SimpleNamespace(**kwargs, llm_engine=SimpleNamespace(engine_core=core))

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm, SamplingParams=dict))
    monkeypatch.setattr(vllm_writer, "_running", [])
    return stopped


@pytest.mark.usefixtures("stopped")
def test_vllm_is_opened_with_what_the_policy_can_read_and_where_it_is(tmp_path: Path) -> None:
    policy = world()[0]
    longest = policy.model.config.text_config.max_position_embeddings
    opened = [open_writer(policy, tmp_path / "plain", max_model_len=n).llm for n in (longest - 1, longest + 1)]
    assert [llm.max_model_len for llm in opened] == [longest - 1, longest], "vLLM refuses more than the model's own"
    assert opened[0].enforce_eager, "compiled on a GPU alone"
    assert opened[0].dtype == "float32"
    assert (Path(opened[0].model) / "config.json").exists()


def test_a_writer_stops_the_one_before_it(tmp_path: Path, stopped: list[str]) -> None:
    open_writer(world()[0], tmp_path / "first")
    assert not stopped
    open_writer(world()[0], tmp_path / "second")
    assert stopped == [str(tmp_path / "first")], "or the second finds no memory"


def test_a_search_with_a_writer_is_the_search_without() -> None:
    found = [searcher(num_turns=2).run(QUERIES)]
    search = searcher(num_turns=2)
    writer = writer_of(search.policy)
    search.policy = replace(search.policy, writer=writer)
    found.append(search.run(QUERIES))
    assert len(writer.llm.requests) > 0
    for one, other in zip(*found, strict=True):
        assert [t.video_id for t in one.turns] == [t.video_id for t in other.turns]
        assert_same_rows([t.decoded for t in one.turns], [t.decoded for t in other.turns])
        torch.testing.assert_close(one.final_vector, other.final_vector, atol=EXACT, rtol=EXACT)


def world_of_vllm() -> World:
    """Like `world`, with heads of 32: vLLM's attention in float32 takes no smaller ones."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    policy = tiny_policy(config=small_config(head_dim=32, rope_parameters=rope))
    return policy, *prompts_with_videos(policy, range(20))


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM, for a GPU or its CPU build")
def test_vllm_writes_what_the_loop_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32. Greedy texts may part where two tokens are all but equally likely, so log-probabilities up to there
    are compared, and most texts have to be equal to the end."""
    from vllm.platforms import current_platform

    device = current_platform.device_type
    if device not in ("cuda", "cpu"):
        pytest.skip("this build of vLLM finds no device")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    decide_after(common_token(world_of_vllm), monkeypatch)
    policy, prompts, features = world_of_vllm()
    policy = LoadedPolicy(policy.model.to(device), policy.tokenizer)
    features = [
        VideoFeatures(f.tokens.to(device), tuple(d.to(device) for d in f.deepstack), f.layout) for f in features
    ]
    bare = build_prompts(
        policy.tokenizer, policy.model.model, [[{"role": "user", "content": "a red ring, where is it?"}]], [None]
    )
    rows = [*bare, *prompts], [None, *features]
    writer = open_writer(policy, tmp_path / "plain", max_model_len=1024, gpu_memory_utilization=0.3)
    assert_close_rows(
        writer.write(*rows, SETTINGS), InProcessWriter(policy.model, policy.tokenizer).write(*rows, SETTINGS)
    )

    ending = copy.deepcopy(policy.tokenizer)
    ending.eos_token = ending.convert_ids_to_tokens(common_token(world_of_vllm))
    early = replace(writer, tokenizer=ending).write(*rows, SETTINGS)
    assert len({len(row.token_ids) for row in early}) > 2
    assert_close_rows(early, InProcessWriter(policy.model, ending).write(*rows, SETTINGS))

    def sampled(seed: int) -> list[Decoded]:
        return writer.write(*rows, replace(SETTINGS, temperature=0.7), torch.Generator().manual_seed(seed))

    first, again, other = sampled(1), sampled(1), sampled(2)
    assert [row.token_ids for row in first] == [row.token_ids for row in again]
    assert sum(one.token_ids != two.token_ids for one, two in zip(first, other, strict=True)) > 0.8 * len(first)
    for prompt, feature, row in zip(*rows, first, strict=True):
        at = log_probs_of(policy, prompt, feature, row.token_ids)
        expected = [float(at[place, token]) for place, token in enumerate(row.token_ids)]
        torch.testing.assert_close(row.log_probs, expected, atol=1e-3, rtol=0)


def assert_close_rows(rows: list[Decoded], loop: list[Decoded]) -> None:
    same = 0
    for one, other in zip(rows, loop, strict=True):
        length = next(
            (i for i, pair in enumerate(zip(one.token_ids, other.token_ids, strict=False)) if len({*pair}) > 1),
            len(one.token_ids),
        )
        torch.testing.assert_close(one.log_probs[:length], other.log_probs[:length], atol=1e-3, rtol=0)
        if one.token_ids == other.token_ids:
            same += 1
            assert one.text == other.text
            assert one.matched_probability == pytest.approx(other.matched_probability, abs=1e-3)
    assert same >= 0.8 * len(rows)
