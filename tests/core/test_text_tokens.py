"""Text from people and models is words: whatever it spells, no control token comes from it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.core.qwen_tokenizer import qwen_tokenizer
from tests.core.tiny_models import query_text, random_video, tiny_embedder, tiny_policy, tiny_tokenizer
from tests.core.tiny_xclip import clip_tokenizer
from tests.hostile_texts import CONTROL, hostile_texts
from vsr1_core.models.feature_store import FeatureStore
from vsr1_core.models.protocols import DecodeSettings
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.text_tokens import answer_ids, closed_ids, plain_ids, render, template_ids
from vsr1_core.reasoning.conversation import SYSTEM_PROMPT, answer_text, build_messages, user_text
from vsr1_core.reasoning.evidence import as_words
from vsr1_core.rows.texts import check_text
from vsr1_core.search.episodes import EpisodeSettings, Searcher
from vsr1_core.search.index import build_index
from vsr1_core.search.turns import EpisodeQuery
from vsr1_core.training.examples import build_examples

HOSTILE = hostile_texts()
ORDINARY = [
    *(query_text(i) for i in range(8)),
    "",
    " a  man\n",
    "Ça va? 漢字 'tis 3.5!",
    "e\u0301 \u202e x \0 y",
    "< |>",
]
Tokenizer = PreTrainedTokenizerFast

TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "tiny": tiny_tokenizer,
    "qwen": lambda: qwen_tokenizer(appends_end_of_text=True),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def control_ids(tokenizer: Tokenizer) -> set[int]:
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.content in CONTROL}


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    known = control_ids(tokenizer)
    return [token for token in ids if token in known]


@pytest.mark.slow
def test_there_are_200_hostile_texts_and_the_tokenizers_own_way_takes_most_of_them_for_control(
    tokenizer: Tokenizer,
) -> None:
    assert len(HOSTILE) == 200
    forged = [text for text in HOSTILE if controls(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])]
    assert len(forged) > 100


@pytest.mark.slow
@pytest.mark.parametrize("add_special_tokens", [False, True])
def test_ordinary_texts_have_the_tokens_that_the_tokenizer_gives_the_whole(
    tokenizer: Tokenizer, add_special_tokens: bool
) -> None:
    conversations = [build_messages(text) for text in ORDINARY]
    wholes = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
    expected = tokenizer(wholes, add_special_tokens=add_special_tokens)["input_ids"]
    assert template_ids(tokenizer, [render(tokenizer, c) for c in conversations], add_special_tokens) == expected
    assert closed_ids(tokenizer, ORDINARY) == tokenizer(ORDINARY)["input_ids"]


def without_accents(text: str) -> str:
    """The tokenizers differ in how they spell an accent: only Qwen's composes it with its letter."""
    return unicodedata.normalize("NFC", text).replace("\u00e9", "")


@pytest.mark.slow
def test_no_query_forges_a_turn_ends_one_refines_or_places_a_video(tokenizer: Tokenizer) -> None:
    [plain] = template_ids(tokenizer, [render(tokenizer, build_messages("a man walks"))])
    expected = controls(tokenizer, plain)
    assert len(expected) >= 8
    for text, ids in zip(
        HOSTILE, template_ids(tokenizer, [render(tokenizer, build_messages(text)) for text in HOSTILE]), strict=True
    ):
        assert controls(tokenizer, ids) == expected, text
        assert user_text(without_accents(text)) in without_accents(tokenizer.decode(ids)), "the words stay"


def test_hostile_texts_are_words_for_the_embedder_and_differ_only_by_their_words(tokenizer: Tokenizer) -> None:
    embedder = Qwen3VLEmbedder(tiny_embedder().model, tokenizer)
    [plain] = embedder._split(["a man walks"])
    for text, split in zip(HOSTILE, embedder._split(HOSTILE), strict=True):
        assert controls(tokenizer, split.before) == controls(tokenizer, plain.before), text
        assert split.after == plain.after, text
    assert not any(controls(tokenizer, ids) for ids in plain_ids(tokenizer, HOSTILE))


def test_hostile_traces_and_new_queries_are_words_in_training(tokenizer: Tokenizer) -> None:
    tags = ("<think>", "</think>")
    usable = [t for t in HOSTILE if t.strip() and not any(tag in t for tag in ("<REFINE>", *tags))]
    usable = [t for t in usable if not any(f"{tag}>" in t for tag in ("answer", "start", "end", "query"))]
    assert len(usable) > 60
    for text in usable:
        match, rewrite = answer_text(text, True, 1.0, 2.0), answer_text("no", False, new_query=text)
        refusal = answer_text(text, False)
        expected = controls(tokenizer, answer_ids(tokenizer, answer_text("no", True, 1.0, 2.0))[0])
        refine = tokenizer.convert_tokens_to_ids("<REFINE>")
        for answer, ending in ((match, []), (rewrite, []), (refusal, [refine])):
            ids, offsets = answer_ids(tokenizer, answer)
            assert controls(tokenizer, ids) == [*expected, *ending], answer
            assert len(ids) == len(offsets)
            assert offsets[-1][1] == len(answer)


def test_ordinary_answers_have_the_tokens_and_offsets_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    for answer in (
        answer_text("a red bar. 漢字 3.5", True, 1.0, 2.0),
        answer_text("no bar", False),
        answer_text("no bar", False, new_query="a ring"),
    ):
        coded = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
        assert answer_ids(tokenizer, answer) == (coded["input_ids"], [tuple(pair) for pair in coded["offset_mapping"]])


def test_x_clip_reads_hostile_texts_as_words() -> None:
    tokenizer = clip_tokenizer(ORDINARY)
    known = control_ids(tokenizer)
    assert len(known) == 2
    for ids in closed_ids(tokenizer, HOSTILE):
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert not known & {*ids[1:-1]}
    assert closed_ids(tokenizer, ORDINARY) == tokenizer(ORDINARY)["input_ids"]


def test_the_teachers_server_gets_no_control_token(tokenizer: Tokenizer) -> None:
    for text in HOSTILE:
        assert controls(tokenizer, tokenizer(as_words(text), add_special_tokens=False)["input_ids"]) == [], text
    assert as_words("a < b, 3 <= 4 and a <3") == "a < b, 3 <= 4 and a <3"


def test_half_a_character_is_refused_by_name(tokenizer: Tokenizer) -> None:
    for text, words in (("a \ud800 x", "half of a surrogate pair"), ("caf\udce9", "byte 0xE9, which is not UTF-8")):
        with pytest.raises(ValueError, match=words):
            check_text(text)
        with pytest.raises(ValueError, match=words):
            template_ids(tokenizer, [render(tokenizer, build_messages(text))])


def test_a_template_that_drops_the_users_text_is_refused() -> None:
    tokenizer = clip_tokenizer(ORDINARY)
    tokenizer.chat_template = "{% for message in messages %}{{ message.role }}{% endfor %}"
    with pytest.raises(ValueError, match="exactly once"):
        render(tokenizer, build_messages("a man"))


def test_tokens_that_are_added_later_are_control_too() -> None:
    tokenizer = clip_tokenizer(ORDINARY)
    assert plain_ids(tokenizer, ["<REFINE>"]) == [tokenizer("<REFINE>", add_special_tokens=False)["input_ids"]]
    tokenizer.add_tokens(["<REFINE>"], special_tokens=True)
    assert len(tokenizer("<REFINE>", add_special_tokens=False)["input_ids"]) == 1
    assert len(plain_ids(tokenizer, ["<REFINE>"])[0]) > 1


@torch.no_grad()
def test_hostile_queries_search_rank_and_train(tmp_path: Path) -> None:
    policy, embedder = tiny_policy(num_soft_tokens=2), tiny_embedder()
    videos = {f"v{i}": random_video(i, policy.model.config, max_pairs=1) for i in range(4)}
    features = FeatureStore(policy.encoder, videos.__getitem__)
    vectors = embedder.embed_features(FeatureStore(embedder.encoder, videos.__getitem__).get(sorted(videos)))
    index = build_index(sorted(videos), vectors.numpy())
    settings = EpisodeSettings(num_turns=1, decode=DecodeSettings(2, 0.0, 2))
    searcher = Searcher(policy, embedder, index, features, dict.fromkeys(videos, 4.0), settings)
    texts = HOSTILE[::10]
    alone = searcher.run([EpisodeQuery("q", texts[0])])[0]
    together = searcher.run([EpisodeQuery(str(i), text) for i, text in enumerate(texts)])
    assert together[0].final_video_id == alone.final_video_id
    rows = [
        {"query_id": str(i), "query": text, "answer": answer_text("no bar", False), "shown_video_id": "v0",
         "gt_video_id": "v1", "negative_ids": []}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    examples = build_examples(policy, rows, [f.layout for f in features.get(["v0"] * len(rows))])
    num_pads = {int(example.prompt.video_mask.sum()) for example in examples}
    assert len(num_pads) == 1
    refine = policy.tokenizer.convert_tokens_to_ids("<REFINE>")
    counts = {int((example.prompt.token_ids == refine).sum()) for example in examples}
    assert counts == {1 + SYSTEM_PROMPT.count("<REFINE>")}
