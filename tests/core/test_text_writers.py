"""Text written elsewhere: the latents behind it are those of the loop, and so is the search."""

from __future__ import annotations

import copy
import zlib

import pytest
import torch

from tests.core.fake_vllm import (
    SETTINGS,
    InProcessWriter,
    N,
    assert_same_rows,
    common_token,
    decide_after,
    writer_of,
)
from tests.core.test_decoding import EXACT, STOPS, naive_latents, run, without_end, world
from tests.core.test_episodes import QUERIES, searcher
from vsr1_core.models.answer_tokens import decision_tokens
from vsr1_core.models.decoding import decode
from vsr1_core.models.prompts import extended
from vsr1_core.models.protocols import Decoded, DecodeSettings
from vsr1_core.models.qwen3_vl.inputs import build_prompts
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.reading import teacher_forced
from vsr1_core.reasoning.conversation import answer_text


@pytest.fixture
def deciding(monkeypatch: pytest.MonkeyPatch) -> None:
    decide_after(common_token(), monkeypatch)


@pytest.mark.slow
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
    writer = InProcessWriter(policy) if kind == "in-process" else writer_of(policy)
    asked: list[str] = []

    def two_of_three(text: str) -> bool:
        asked.append(text)
        return zlib.crc32(text.encode()) % 3 != 0

    def rows(policy: LoadedPolicy) -> list[Decoded]:
        return decode(policy, prompts, features, SETTINGS, wants_refine=two_of_three)

    fused = rows(policy)
    assert {row.num_latent_tokens for row in fused} == {0, N}
    assert len({len(row.token_ids) for row in fused}) > (2 if ends_early else 0)
    assert ends_early or sum(row.matched_probability is not None for row in fused) > 3
    assert_same_rows(rows(policy.with_writer(writer)), fused)
    assert sorted(asked[: len(prompts)]) == sorted(asked[len(prompts) :]), "each text is asked about once"


@torch.no_grad()
def test_latents_behind_a_given_text_equal_n_full_passes() -> None:
    policy, prompts, features = world()
    text = policy.tokenizer(answer_text("a red bar moves left.", False), add_special_tokens=False)["input_ids"]
    writer = writer_of(policy)
    writer.llm.script = text
    rows = decode(policy.with_writer(writer), prompts[:3], features[:3], SETTINGS, wants_refine=lambda _t: True)
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
    written = policy.with_writer(writer_of(policy))
    mixed = [[*bare, prompts[0]], [None, features[0]]]
    assert_same_rows(decode(written, *mixed, **kwargs), decode(policy, *mixed, **kwargs))
    assert decode(written, [], [], **kwargs) == []


@pytest.mark.usefixtures("deciding")
@pytest.mark.parametrize("kind", ["in-process", "vllm"])
def test_a_text_that_the_limit_cuts_before_its_decision_has_none(kind: str) -> None:
    policy, prompts, features = world()
    whole = run(policy, prompts, features, max_new_tokens=SETTINGS.max_new_tokens, num_soft_tokens=0)
    row = next(i for i, r in enumerate(whole) if common_token() in r.token_ids[:-1])
    limit = whole[row].token_ids.index(common_token()) + 1
    writer = InProcessWriter(policy) if kind == "in-process" else writer_of(policy)
    for more, decided in ((0, False), (1, True)):
        cut = writer.write([prompts[row]], [features[row]], DecodeSettings(limit + more, num_soft_tokens=0))[0]
        assert cut.token_ids == whole[row].token_ids[: limit + more]
        assert (cut.matched_probability is not None) == decided


@pytest.mark.slow
def test_a_search_with_a_writer_is_the_search_without() -> None:
    found = [searcher(num_turns=2).run(QUERIES)]
    search = searcher(num_turns=2)
    writer = writer_of(search.policy)
    search.policy = search.policy.with_writer(writer)
    found.append(search.run(QUERIES))
    assert len(writer.llm.requests) > 0
    for one, other in zip(*found, strict=True):
        assert [t.video_id for t in one.turns] == [t.video_id for t in other.turns]
        assert_same_rows([t.decoded for t in one.turns], [t.decoded for t in other.turns])
        torch.testing.assert_close(one.final_vector, other.final_vector, atol=EXACT, rtol=EXACT)
