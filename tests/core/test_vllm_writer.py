"""vLLM as a writer of text: it is asked and understood rightly, and gets the weights that it can load."""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.core import naive
from tests.core.fake_vllm import (
    SETTINGS,
    InProcessWriter,
    World,
    common_token,
    decide_after,
    expanded,
    log_probs_of,
    writer_of,
)
from tests.core.qwen_tokenizer import qwen_tokenizer
from tests.core.test_decoding import REFINE_ID, STOPS, run, world
from tests.core.tiny_models import prompts_with_videos, query_text, random_video, small_config, tiny_policy
from vsr1_core.models.answer_tokens import decision_tokens
from vsr1_core.models.protocols import Decoded, DecodeSettings
from vsr1_core.models.qwen3_vl import vllm_writer
from vsr1_core.models.qwen3_vl.inputs import VIDEO_PAD, build_prompts
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.vision import VideoFeatures
from vsr1_core.models.qwen3_vl.vllm_writer import export_for_vllm, open_writer, request, sampling
from vsr1_core.models.soft_query import is_soft_query
from vsr1_core.models.weights import stored_shapes
from vsr1_core.reasoning.conversation import build_messages
from vsr1_core.rows.files import read_json


@pytest.mark.slow
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
    assert (
        sampling(DecodeSettings(7, 0.5), policy.tokenizer, decision_tokens(policy.tokenizer), 3)["temperature"] == 0.5
    )


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


def config_of_vllm() -> Qwen3VLConfig:
    """A small config with heads of 32: vLLM's attention in float32 takes no smaller ones."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    return small_config(head_dim=32, rope_parameters=rope)


def world_of_vllm() -> World:
    """Like `world`, with a policy that vLLM reads."""
    policy = tiny_policy(config=config_of_vllm())
    return policy, *prompts_with_videos(policy, range(20))


def device_of_vllm(monkeypatch: pytest.MonkeyPatch) -> str:
    """The device that the installed vLLM is built for; skips the test where it finds none."""
    from vllm.platforms import current_platform

    device: str = current_platform.device_type
    if device not in ("cuda", "cpu"):
        pytest.skip("this build of vLLM finds no device")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    return device


def on_device(policy: LoadedPolicy, device: str) -> LoadedPolicy:
    return LoadedPolicy(policy.model.to(device), policy.tokenizer)


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM, for a GPU or its CPU build")
def test_vllm_writes_what_the_loop_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32. Greedy texts may part where two tokens are all but equally likely, so log-probabilities up to there
    are compared, and most texts have to be equal to the end."""
    device = device_of_vllm(monkeypatch)
    decide_after(common_token(world_of_vllm), monkeypatch)
    policy, prompts, features = world_of_vllm()
    policy = on_device(policy, device)
    features = [
        VideoFeatures(f.tokens.to(device), tuple(d.to(device) for d in f.deepstack), f.layout) for f in features
    ]
    bare = build_prompts(
        policy.tokenizer, policy.model.model, [[{"role": "user", "content": "a red ring, where is it?"}]], [None]
    )
    rows = [*bare, *prompts], [None, *features]
    writer = open_writer(policy, tmp_path / "plain", max_model_len=1024, gpu_memory_utilization=0.3)
    assert_close_rows(writer.write(*rows, SETTINGS), InProcessWriter(policy).write(*rows, SETTINGS))

    ending = copy.deepcopy(policy.tokenizer)
    ending.eos_token = ending.convert_ids_to_tokens(common_token(world_of_vllm))
    early = replace(writer, tokenizer=ending).write(*rows, SETTINGS)
    assert len({len(row.token_ids) for row in early}) > 2
    assert_close_rows(early, InProcessWriter(replace(policy, tokenizer=ending)).write(*rows, SETTINGS))

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
