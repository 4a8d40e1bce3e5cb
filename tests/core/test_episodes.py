"""The search loop with scripted answers and with real ones: what is shown, what is refined, what the ranks mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.core import naive
from tests.core.tiny_models import query_text, random_video, tiny_embedder, tiny_policy
from vsr1_core.models.answer_tokens import decision_tokens
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.protocols import Decoded, DecodeSettings
from vsr1_core.models.qwen3_vl.tokenizer import end_tokens
from vsr1_core.models.qwen3_vl.vision import encode_videos
from vsr1_core.reasoning.conversation import answer_text, parse_answer
from vsr1_core.recipes import Refine
from vsr1_core.search import decoding_batches, episodes
from vsr1_core.search.episodes import EpisodeSettings, Searcher, prompts_of, verify
from vsr1_core.search.index import build_index
from vsr1_core.search.turn_rows import ranked_turn_row, turn_row
from vsr1_core.search.turns import BestAnswer, Episode, EpisodeQuery, Turn

IDS = [f"v{i}" for i in range(6)]
YES, NO = answer_text("a ring.", True, 0.0, 1.0), answer_text("no ring.", False)
QUERIES = [EpisodeQuery(f"q{i}", query_text(i), IDS[i % len(IDS)]) for i in range(8)]


def searcher(num_videos: int = 6, policy: Any = None, **settings: Any) -> Searcher:
    policy, embedder = policy or tiny_policy(), tiny_embedder()
    ids = IDS[:num_videos]
    with torch.no_grad():
        vectors = embedder.embed_features(
            [encode_videos(embedder.model, [random_video(i, embedder.model.config)])[0] for i in range(num_videos)]
        )
    return Searcher(
        policy=policy,
        embedder=embedder,
        index=build_index(ids, vectors.numpy()),
        features=FeatureStore(policy.encoder, lambda v: random_video(int(v[1:]), policy.model.config)),
        durations_s=dict.fromkeys(ids, 10.0),
        settings=EpisodeSettings(**{"decode": DecodeSettings(max_new_tokens=3), **settings}),
    )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], list[list[str]]]:
    """Answers for each turn in place of the policy's; the returned list gets each turn's batch of asked queries."""

    def install(answers: Sequence[str]) -> list[list[str]]:
        asked: list[list[str]] = []

        def decode(policy: Any, prompts: Any, features: Any, settings: DecodeSettings, **rest: Any) -> list[Decoded]:
            asked.append([policy.tokenizer.decode(p.token_ids) for p in prompts])
            text = answers[min(len(asked), len(answers)) - 1]
            refined = settings.num_soft_tokens and rest["wants_refine"](text)
            size = policy.model.soft_query.embedding_size
            generator = torch.Generator().manual_seed(len(asked))
            return [
                Decoded(
                    [1],
                    [0.0],
                    text,
                    torch.randn(settings.num_soft_tokens, size, generator=generator) if refined else None,
                )
                for _ in prompts
            ]

        monkeypatch.setattr(decoding_batches, "decode", decode)
        return asked

    return install


def shown(episode: Episode) -> list[str]:
    return [turn.video_id for turn in episode.turns]


def vector_rank(search: Searcher, vector: Tensor, video_id: str, without: Sequence[str] = ()) -> int:
    """The rank by sorting, over the videos that are not excluded."""
    scores = search.index.vectors @ vector.numpy()
    own = scores[IDS.index(video_id)]
    return 1 + sum(s > own + 1e-6 for v, s in zip(search.index.ids, scores, strict=True) if v not in without)


def test_a_match_ends_the_search_at_once(script: Any) -> None:
    asked = script([YES])
    for episode in searcher().run(QUERIES):
        assert episode.is_matched
        assert len(episode.turns) == 1
        assert episode.latents == []
        assert episode.final_rank == episode.first_rank == episode.turns[0].rank
        assert episode.final_video_id == episode.turns[0].video_id
        assert (episode.turns[0].answer.start_s, episode.turns[0].answer.end_s) == (0.0, 1.0)
    assert len(asked) == 1


@torch.no_grad()
def test_a_query_that_is_never_matched_gets_a_final_ranking_by_its_last_refinement(script: Any) -> None:
    asked = script([NO])
    search = searcher(num_turns=3)
    for episode in search.run(QUERIES):
        assert not episode.is_matched
        assert len(episode.turns) == len(episode.latents) == 3
        vector = search.embed([episode])[0]
        torch.testing.assert_close(episode.final_vector, vector, atol=1e-5, rtol=1e-5)
        assert episode.final_rank == vector_rank(search, vector, str(episode.query.gt_video_id))
        best = IDS[int(np.argmax(search.index.vectors @ vector.numpy()))]
        assert episode.final_video_id == best
    assert len(asked) == 3


@torch.no_grad()
def test_a_turn_shows_the_first_video_of_its_own_ranking(script: Any) -> None:
    script([NO, NO, YES])
    search = searcher(num_turns=3)
    for episode in search.run(QUERIES):
        for turn, used in zip(episode.turns, range(3), strict=True):
            so_far = Episode(episode.query, latents=episode.latents[:used])
            scores = search.index.vectors @ search.embed([so_far])[0].numpy()
            assert turn.video_id == IDS[int(np.argmax(scores))]
            assert turn.score == pytest.approx(float(scores.max()), abs=1e-5)
        assert episode.final_rank == episode.turns[-1].rank


@torch.no_grad()
def test_each_turn_keeps_the_first_videos_of_its_ranking_and_is_told_when_it_ends(script: Any) -> None:
    script([NO, YES])
    told = list[tuple[str, int]]()
    search = searcher(num_turns=3, num_kept=4)
    for episode in search.run(QUERIES, told=lambda e: told.append((e.query.query_id, len(e.turns)))):
        for turn, used in zip(episode.turns, range(3), strict=False):
            so_far = Episode(episode.query, latents=episode.latents[:used])
            scores = search.index.vectors @ search.embed([so_far])[0].numpy()
            row = ranked_turn_row(used + 1, turn)
            assert row["top_video_ids"] == [IDS[i] for i in np.argsort(-scores)[:4]]
            assert row["top_scores"] == pytest.approx(np.sort(scores)[::-1][:4].tolist(), abs=1e-5)
            assert row["top_video_ids"][0] == turn.video_id
        assert episode.ranked == episode.turns[-1].ranked
        first = search.index.vectors @ episode.first_vector.numpy()
        assert episode.turns[0].video_id == IDS[int(np.argmax(first))]
    assert told == [(query.query_id, turn) for turn in (1, 2) for query in QUERIES]


def test_an_unknown_answer_refines_like_a_rejection(script: Any) -> None:
    script(["<think> hm </think> perhaps", YES])
    for episode in searcher(num_turns=2).run(QUERIES):
        assert episode.turns[0].answer.decision == "unknown"
        assert len(episode.latents) == 1
        assert episode.turns[0].video_id in episode.rejected


@torch.no_grad()
def test_a_query_written_anew_is_searched_for_and_the_policy_is_still_asked_about_the_old_one(script: Any) -> None:
    words = "a golden bar moves left"
    asked = script([answer_text("no ring.", False, new_query=words), "<answer>not_matched</answer>", NO])
    search = searcher(num_turns=3, refine="text")
    before = search.embedder.embed_queries([words])[0]
    for episode in search.run(QUERIES):
        assert episode.latents == []
        assert episode.search_text == words  # later turns wrote nothing that could be searched for
        torch.testing.assert_close(episode.final_vector, before, atol=1e-5, rtol=1e-5)
        assert [turn.video_id for turn in episode.turns[1:]] == [
            IDS[int(np.argmax(search.index.vectors @ before.numpy()))]
        ] * 2
        tokens = search.policy.tokenizer(words, add_special_tokens=False)["input_ids"]
        assert [turn.num_query_tokens for turn in episode.turns] == [len(tokens), 0, 0]
        assert [turn_row(1, turn)["new_query"] for turn in episode.turns] == [words, None, None]
    assert all(words not in prompt for turn in asked for prompt in turn if words not in [q.text for q in QUERIES])


def test_without_refinement_the_policy_is_asked_once_and_the_ranking_stays(script: Any) -> None:
    asked = script([NO])
    for episode in searcher(refine="none").run(QUERIES):
        assert len(episode.turns) == 1
        assert episode.latents == []
        assert episode.final_rank == episode.first_rank
    assert len(asked) == 1


@pytest.mark.parametrize("refine", ["soft", "none"])
def test_a_rejected_video_is_never_shown_again(script: Any, refine: Refine) -> None:
    script([NO])
    for episode in searcher(num_turns=5, refine=refine, exclude_rejected=True).run(QUERIES):
        assert len(set(shown(episode))) == 5
        assert episode.final_video_id not in shown(episode)


def test_without_that_option_it_may_be_shown_again(script: Any) -> None:
    script([NO])
    assert any(len(set(shown(e))) < 5 for e in searcher(num_turns=5).run(QUERIES))


def test_ranks_leave_out_what_was_rejected_and_are_none_for_a_rejected_right_video(script: Any) -> None:
    script([NO])
    search = searcher(num_turns=3, exclude_rejected=True, refine="none")
    found = search.run(QUERIES)
    assert any(str(e.query.gt_video_id) in e.rejected for e in found)
    for episode in found:
        right = str(episode.query.gt_video_id)
        assert episode.final_vector is not None
        expected = vector_rank(search, episode.final_vector, right, sorted(episode.rejected))
        assert episode.final_rank == (None if right in episode.rejected else expected)


def test_an_episode_that_has_rejected_the_whole_corpus_ends_with_its_last_ranking(script: Any) -> None:
    script([NO])
    for episode in searcher(num_videos=2, num_turns=4, exclude_rejected=True).run(QUERIES[:3]):
        assert sorted(shown(episode)) == IDS[:2]
        assert episode.final_video_id == shown(episode)[-1]


def test_queries_whose_answer_is_not_known_have_no_ranks(script: Any) -> None:
    script([NO, YES])
    episode = searcher().run([EpisodeQuery("q", "a red bar")])[0]
    assert (episode.first_rank, episode.final_rank) == (None, None)
    assert episode.final_video_id in IDS


def test_no_queries_are_no_work(script: Any) -> None:
    assert script([NO]) == []
    assert searcher().run([]) == []


@pytest.mark.parametrize("accumulate", [True, False])
def test_a_query_carries_the_latents_of_all_its_turns_or_of_the_last_one(script: Any, accumulate: bool) -> None:
    script([NO])
    policy = tiny_policy(accumulate=accumulate)
    search = searcher(policy=policy, num_turns=2)
    episode = search.run(QUERIES[:1])[0]
    soft = torch.cat(episode.latents if accumulate else episode.latents[-1:])
    weights = dict(policy.model.named_parameters())
    with torch.no_grad():
        expected = naive.query_vector(
            search.embedder.model, search.embedder.tokenizer, weights, episode.query.text, soft
        )
    torch.testing.assert_close(episode.final_vector, expected, atol=1e-5, rtol=1e-5)


def test_a_search_may_carry_the_last_latents_only_whatever_the_checkpoint_says(script: Any) -> None:
    def final_vector(search: Searcher) -> Tensor:
        script([NO])  # anew, for the latents differ from turn to turn
        vector = search.run(QUERIES[:1])[0].final_vector
        assert vector is not None
        return vector

    all_turns = final_vector(searcher(num_turns=2))
    last = final_vector(searcher(num_turns=2, last_latents=True))
    torch.testing.assert_close(last, final_vector(searcher(policy=tiny_policy(accumulate=False), num_turns=2)))
    assert not torch.allclose(last, all_turns)


@torch.no_grad()
@pytest.mark.parametrize("exclude", [False, True])
def test_ranks_with_fewer_soft_tokens_are_those_of_queries_that_carry_fewer(script: Any, exclude: bool) -> None:
    script([NO, NO, YES])
    search = searcher(num_turns=3, exclude_rejected=exclude, decode=DecodeSettings(3, 0.0, num_soft_tokens=4))
    for episode in (found := search.run(QUERIES)):
        assert len(episode.latents) == 2
    for episode, ranks in zip(found, search.prefix_ranks(found), strict=True):
        right, without = str(episode.query.gt_video_id), sorted(episode.rejected) if exclude else []
        texts, plain = [episode.query.text], search.embedder.embed_queries([episode.query.text])[0]
        vectors = [plain]
        for k in range(1, 5):
            soft = search.policy.model.append_input(torch.cat([z[:k] for z in episode.latents]))
            vectors.append(search.embedder.embed_queries(texts, [soft])[0])
        expected = [None if right in without else vector_rank(search, v, right, without) for v in vectors]
        assert ranks == expected
        assert expected[-1] == episode.final_rank
        if not exclude:
            assert expected[0] == episode.first_rank


def test_without_latents_there_are_no_ranks_by_soft_tokens(script: Any) -> None:
    script([YES])
    search = searcher()
    assert search.prefix_ranks(search.run(QUERIES[:2])) == [None, None]


@pytest.mark.slow
def test_many_queries_in_chunks_are_what_each_is_alone() -> None:
    together = searcher(batch_size=3).run(QUERIES)
    search = searcher()
    for query, episode in zip(QUERIES, together, strict=True):
        alone = search.run([query])[0]
        assert shown(episode) == shown(alone)
        assert [t.decoded.text for t in episode.turns] == [t.decoded.text for t in alone.turns]
        assert (episode.first_rank, episode.final_rank) == (alone.first_rank, alone.final_rank)
        torch.testing.assert_close(episode.final_vector, alone.final_vector, atol=1e-4, rtol=1e-4)


def test_vectors_given_for_the_first_turn_are_used() -> None:
    search = searcher(refine="none")
    vectors = torch.from_numpy(search.index.vectors[:2])
    found = search.run(QUERIES[:2], first_vectors=vectors)
    assert [e.turns[0].video_id for e in found] == IDS[:2]
    assert [e.first_rank for e in found] == [1, 1]


def test_a_policy_with_a_query_head_searches_a_corpus_of_another_size(script: Any) -> None:
    script([NO])
    policy = tiny_policy(embedding_size=24, embedder_size=48)
    vectors = torch.nn.functional.normalize(torch.randn(6, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    search = Searcher(
        policy=policy,
        embedder=tiny_embedder(),
        index=build_index(IDS, vectors.numpy()),
        features=FeatureStore(policy.encoder, lambda v: random_video(int(v[1:]), policy.model.config)),
        durations_s=dict.fromkeys(IDS, 10.0),
        settings=EpisodeSettings(num_turns=2),
    )
    episode = search.run(QUERIES[:1])[0]
    assert episode.final_vector is not None
    weights = dict(policy.model.named_parameters())
    embedder = search.embedder
    with torch.no_grad():
        expected = naive.query_vector(
            embedder.model, embedder.tokenizer, weights, episode.query.text, torch.cat(episode.latents)
        )
    torch.testing.assert_close(episode.final_vector, expected, atol=1e-5, rtol=1e-5)
    assert episode.final_rank == vector_rank(search, expected, str(episode.query.gt_video_id))


def test_a_verification_without_search_answers_as_the_first_turn_about_the_same_video() -> None:
    search = searcher(refine="none", decode=DecodeSettings(max_new_tokens=12))
    found = search.run(QUERIES)
    pairs = [(e.query.text, e.turns[0].video_id) for e in found]
    asked = verify(search.policy, search.features, search.durations_s, pairs, DecodeSettings(12, num_soft_tokens=0), 3)
    assert [a.decoded.token_ids for a in asked] == [e.turns[0].decoded.token_ids for e in found]
    assert [a.answer for a in asked] == [e.turns[0].answer for e in found]
    assert all(a.decoded.latents is None for a in asked)
    assert verify(search.policy, search.features, search.durations_s, [], DecodeSettings(12), 3) == []


def decided(search: Searcher, episode: Episode, answers: Sequence[tuple[str, str, float | None]]) -> Episode:
    """`episode` with these turns: what was shown, what was written, and how probable a match was."""
    for video_id, text, probability in answers:
        ids = search.policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        features = search.features.get([video_id])[0]
        prompt = prompts_of(search.policy, [episode.query.text], [features.layout])[0]
        made = Decoded(ids, [0.0] * len(ids), text, matched_probability=probability)
        episode.turns.append(Turn(video_id, 0.5, 1, prompt, made, parse_answer(text, 10.0)))
    return episode


def test_the_best_answer_is_the_surest_turn_grounded_behind_its_own_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    search = searcher()
    no_span = YES.partition("<start>")[0]
    cases = {
        "matched": [("v0", NO, 0.4), ("v1", YES, 0.9)],
        "surest": [("v0", NO, 0.1), ("v1", NO, 0.4), ("v2", NO, 0.4), ("v3", "hm", None)],
        "matched without a span": [("v2", no_span, 0.8)],
        "undecided": [("v0", "hm", None)],
    }
    made = [decided(search, Episode(EpisodeQuery(name, "a red bar")), turns) for name, turns in cases.items()]
    asked: list[str] = []

    def decode(policy: Any, prompts: Any, features: Any, settings: Any, **_: Any) -> list[Decoded]:
        assert (settings.temperature, settings.num_soft_tokens) == (0.0, 0)
        asked.extend(policy.tokenizer.decode(p.token_ids) for p in prompts)
        return [Decoded([1, 2, 3], [0.0] * 3, "2.5</start> <end>99.0</end>") for _ in prompts]

    monkeypatch.setattr(decoding_batches, "decode", decode)
    found = dict(zip(cases, search.best_answers(made), strict=True))
    assert found == {
        "matched": BestAnswer(2, "v1", 0.0, 1.0),
        "surest": BestAnswer(2, "v1", 2.5, 10.0, num_text_tokens=3),
        "matched without a span": BestAnswer(1, "v2", 2.5, 10.0, num_text_tokens=3),
        "undecided": None,
    }
    endings = [text.partition("assistant\n")[2].partition("<think>")[2] for text in asked]
    forced = " </think> <answer>matched</answer> <start>"
    assert sorted(endings) == [f" a ring.{forced}", f" no ring.{forced}"]


def test_a_forced_span_is_what_the_policy_writes_after_that_text() -> None:
    search = searcher()
    episode = decided(search, Episode(QUERIES[0]), [("v0", NO, 0.3)])
    turn, policy = episode.turns[0], search.policy
    ids = decision_tokens(policy.tokenizer).as_match(turn.decoded.token_ids)
    assert ids is not None
    video = random_video(0, policy.model.config)
    expected = naive.greedy_ids(
        policy.model, torch.cat([turn.prompt.token_ids, torch.tensor(ids)]), video.patches, video.grid,
        max_new_tokens=episodes.MAX_SPAN_TOKENS, eos_token_id=sorted(end_tokens(policy.tokenizer)),
    )  # fmt: skip
    [best] = search.best_answers([episode])
    assert best is not None
    assert best.num_text_tokens == len(expected)
