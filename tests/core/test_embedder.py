"""Where latents enter a query, with the own and the real Qwen tokenizer, and what a query's vector depends on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tests.core import naive
from tests.core.qwen_tokenizer import qwen_tokenizer
from tests.core.tiny_models import query_text, random_video, tiny_embedder, tiny_policy, tiny_tokenizer
from vsr1_core.input_form import EmbedderForm, VideoWrapper
from vsr1_core.models.answer_tokens import decision_tokens
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.inputs import VideoLayout, build_prompts
from vsr1_core.models.qwen3_vl.vision import encode_videos
from vsr1_core.reasoning.conversation import MATCH_TO_SPAN, answer_text

QUERIES = [query_text(seed) for seed in range(6)]


def latents_for(queries: list[str], size: int = 48) -> list[Tensor | None]:
    """None, then latents of 1, 8 and more tokens (several turns)."""
    generator = torch.Generator().manual_seed(2)
    lengths = [0, 1, 8, 16, 24, 3]
    rows = [torch.randn(n, size, generator=generator) for n in lengths[: len(queries)]]
    return [row if len(row) else None for row in rows]


def with_end_of_text(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that appends <|endoftext|> to every text."""
    appending = copy.deepcopy(tokenizer)
    end = ("<|endoftext|>", appending.convert_tokens_to_ids("<|endoftext|>"))
    appending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[end]
    )
    return appending


def fig_queries(folder: Path, wanted: int) -> list[str]:
    files = sorted((folder / "verified_fig").glob("*.jsonl"))
    rows = [json.loads(line)["fig_desc"] for file in files for line in file.open(encoding="utf-8")]
    return rows[:: max(1, len(rows) // wanted)][:wanted]


def assert_latents_follow_the_query(tokenizer: PreTrainedTokenizerBase, queries: list[str], closing: list[str]) -> None:
    """The tokens before the place spell the template's beginning and the query; those after it close the template."""
    embedder = Qwen3VLEmbedder(tiny_embedder().model, tokenizer)
    for query in queries:
        split = embedder.split_query(query)
        ids, place = naive.insertion_point(tokenizer, query)
        assert [*split.before, *split.after] == ids
        assert len(split.before) == place
        assert tokenizer.decode(split.before).endswith(f"user\n{query}")
        assert tokenizer.convert_ids_to_tokens(split.after) == closing


@pytest.mark.parametrize("appends", [False, True])
def test_latents_follow_the_query_in_the_own_template(appends: bool) -> None:
    tokenizer = with_end_of_text(tiny_tokenizer()) if appends else tiny_tokenizer()
    embedder = Qwen3VLEmbedder(tiny_embedder().model, tokenizer)
    for query in [*QUERIES, "", "a", "ends with a space ", "line\nbreak", "<|im_end|> in the text", "日本語 ünï"]:
        split = embedder.split_query(query)
        closing = "<|im_end|>\n<|im_start|>assistant\n" + ("<|endoftext|>" if appends else "")
        assert tokenizer.decode(split.before).endswith(f"user\n{query}")
        assert tokenizer.decode(split.after) == closing


@pytest.mark.slow
@pytest.mark.parametrize("number", [200, pytest.param(1_000, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("appends", [False, True])
def test_latents_follow_the_query_in_real_queries_with_the_real_tokenizer(
    appends: bool, number: int, shared_data: Path
) -> None:
    queries = fig_queries(shared_data, number)
    assert len(set(queries)) > 0.9 * number
    closing = ["<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ", *(["<|endoftext|>"] if appends else [])]
    assert_latents_follow_the_query(qwen_tokenizer(appends), queries, closing)


@pytest.mark.slow
def test_the_real_tokenizer_is_the_published_one() -> None:
    tokenizer = qwen_tokenizer()
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert tokenizer(apart)["input_ids"] == tokenizer(composed)["input_ids"], "texts are normalised to NFC"
    assert tokenizer.decode(tokenizer("a<|file_sep|><|box_end|>")["input_ids"], skip_special_tokens=True) == (
        "a<|file_sep|>"
    )
    assert len(tokenizer) == 151_670
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 151_645
    assert tokenizer.convert_tokens_to_ids("<|video_pad|>") == 151_656
    assert tokenizer("Hello world, 你好 it's 2024!")["input_ids"] == (
        [9707, 1879, 11, 220, 108386, 432, 594, 220, 17, 15, 17, 19, 0]
    )


PUBLISHED_IDS = [
    *(
        151644,
        8948,
        198,
        65743,
        279,
        1196,
        594,
        1946,
        13,
        151645,
        198,
    ),  # <|im_start|>system, \n, Represent ..., \n
    *(151644, 872, 198),  # <|im_start|>user\n
    *(27, 15, 13, 20, 6486, 29, 151652, 151656, 151656, 151653),  # <0.5 seconds><|vision_start|>, pads, <|vision_end|>
    *(27, 17, 13, 20, 6486, 29, 151652, 151656, 151656, 151653),  # <2.5 seconds>
    *(151645, 198, 151644, 77091, 198, 151643),  # <|im_end|>\n<|im_start|>assistant\n<|endoftext|>
]
"""Two pairs of frames of two tokens each, as Qwen3-VL-Embedding was trained to read them."""
WRAPPED = [151652, *PUBLISHED_IDS[14:34], 151653]
"""The same between the template's own vision tokens, as transformers has written it since 5.10."""


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["published", "template"])
def test_the_token_ids_of_a_video_are_the_published_ones(wrapper: VideoWrapper) -> None:
    tokenizer = qwen_tokenizer(appends_end_of_text=True)
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": "Represent the user's input."}]},
        {"role": "user", "content": [{"type": "video"}]},
    ]
    model = tiny_embedder().model
    model.config.video_token_id = 151_656
    layout = VideoLayout((2, 2, 4), (0.5, 2.5))
    prompts = build_prompts(tokenizer, model, [conversation], [layout], add_special_tokens=True, video_wrapper=wrapper)
    expected = PUBLISHED_IDS if wrapper == "published" else [*PUBLISHED_IDS[:14], *WRAPPED, *PUBLISHED_IDS[34:]]
    assert prompts[0].token_ids.tolist() == expected


@pytest.mark.slow
def test_the_token_ids_of_a_query_are_the_published_ones() -> None:
    split = Qwen3VLEmbedder(tiny_embedder().model, qwen_tokenizer(appends_end_of_text=True)).split_query("a red bar")
    assert split.before == [*PUBLISHED_IDS[:14], 64, 2518, 3619]
    assert split.after == PUBLISHED_IDS[-6:]


@torch.no_grad()
def test_a_long_refined_query_is_cut_as_the_authors_cut_it() -> None:
    tokenizer = qwen_tokenizer(appends_end_of_text=True)
    embedder = Qwen3VLEmbedder(tiny_embedder().model, tokenizer)
    words = " ".join(["bar"] * 200)
    cut = embedder._cut(words, embedder.split_query(words), 128)
    # 14 tokens open the query; of its 200 tokens 113 are left; the tokenizer closes with <|endoftext|> alone. The
    # authors put the latents before the last six of these 128 tokens.
    bar = tokenizer(" bar", add_special_tokens=False)["input_ids"]
    first = tokenizer("bar", add_special_tokens=False)["input_ids"]
    assert cut.before == [*PUBLISHED_IDS[:14], *first, *bar * 107]
    assert cut.after == [*bar * 5, 151_643]
    short = embedder.split_query("a red bar")
    assert embedder._cut("a red bar", short, 128) == short
    small = tiny_embedder()
    latents = [torch.ones(2, small.hidden_size)]
    uncut, limited = (small.embed_queries([query_text(5) * 4], latents, limit) for limit in (0, 40))
    assert float((uncut - limited).abs().max()) > 1e-4
    assert torch.equal(small.embed_queries(["a bar"], latents, 40), small.embed_queries(["a bar"], latents))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["own", "real"])
@pytest.mark.parametrize("before", ["</think> ", "</think>\n", "</think>", ""])
@pytest.mark.parametrize("matched", [True, False])
def test_the_decision_is_read_where_the_answer_begins(which: str, before: str, matched: bool) -> None:
    tokenizer = tiny_tokenizer() if which == "own" else qwen_tokenizer()
    tokens = decision_tokens(tokenizer)
    answer = answer_text("a ring grows.", matched, *((0.0, 1.5) if matched else ()))
    text = answer.replace("</think> ", before)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    places = [i for i in range(len(ids)) if tokens.is_decision_next(ids[:i])]
    assert len(places) == 1
    assert ids[places[0]] == (tokens.matched if matched else tokens.not_matched)
    assert tokenizer.decode(ids[: places[0]]).endswith("<answer>")
    forced = tokens.as_match(ids)
    assert forced is not None
    assert tokenizer.decode(forced) == text.partition("<answer>")[0] + MATCH_TO_SPAN
    if matched:
        assert ids[: len(forced)] == forced  # spelled as the policy writes it
    assert tokens.as_match(ids[: places[0] - 1]) is None


def test_a_template_without_the_query_is_refused() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "{{ 'always the same' }}"
    with pytest.raises(ValueError, match="exactly once"):
        Qwen3VLEmbedder(tiny_embedder().model, tokenizer).split_query("a red bar")


def test_a_template_that_merges_with_the_query_is_refused() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "{{ messages[1].content[0].text }}s"
    with pytest.raises(ValueError, match="latents cannot be inserted"):
        Qwen3VLEmbedder(tiny_embedder().model, tokenizer).split_query("it move")


@pytest.mark.parametrize("appends", [False, True])
@torch.no_grad()
def test_vectors_equal_the_naive_ones_row_by_row(appends: bool) -> None:
    tokenizer = with_end_of_text(tiny_tokenizer()) if appends else tiny_tokenizer()
    embedder, policy = Qwen3VLEmbedder(tiny_embedder().model, tokenizer), tiny_policy()
    weights = dict(policy.model.named_parameters())
    latents = latents_for(QUERIES)
    appended = [None if z is None else policy.model.append_input(z) for z in latents]
    ours = embedder.embed_queries(QUERIES, appended)
    for query, z, vector in zip(QUERIES, latents, ours, strict=True):
        expected = naive.query_vector(embedder.model, tokenizer, weights, query, z)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_query_is_the_same_alone_and_in_a_batch() -> None:
    embedder, latents = tiny_embedder(), latents_for(QUERIES)
    together = embedder.embed_queries(QUERIES, latents)
    alone = torch.cat([embedder.embed_queries([q], [z]) for q, z in zip(QUERIES, latents, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(len(QUERIES)))


@torch.no_grad()
def test_every_latent_of_every_turn_moves_the_vector() -> None:
    embedder, z = tiny_embedder(), latents_for(QUERIES)[3]
    assert z is not None
    whole = embedder.embed_queries(QUERIES[:1], [z])
    for k in range(len(z)):
        changed = z.clone()
        changed[k] += 1
        assert float((embedder.embed_queries(QUERIES[:1], [changed]) - whole).abs().max()) > 1e-6


def test_gradients_reach_the_latents_and_nothing_else() -> None:
    embedder = tiny_embedder()
    latents = [z.requires_grad_() for z in latents_for(QUERIES) if z is not None]
    vectors = embedder.embed_queries(QUERIES[:5], latents)
    vectors[:, 0].sum().backward()
    assert all(bool((z.grad.abs().amax(dim=-1) > 0).all()) for z in latents if z.grad is not None)
    assert all(z.grad is not None for z in latents)
    assert all(p.grad is None for p in embedder.model.parameters())


def test_gradients_of_a_batch_equal_those_of_single_rows() -> None:
    embedder = tiny_embedder()
    target = torch.randn(48, generator=torch.Generator().manual_seed(1))
    grads = []
    for batched in (True, False):
        rows = [z.clone().requires_grad_() for z in latents_for(QUERIES) if z is not None]
        if batched:
            (embedder.embed_queries(QUERIES[:5], rows) @ target).sum().backward()
        else:
            for query, z in zip(QUERIES, rows, strict=False):
                (embedder.embed_queries([query], [z]) @ target).sum().backward()
        grads.append([z.grad for z in rows])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_a_head_brings_every_query_to_the_corpus_size_and_no_video() -> None:
    policy = tiny_policy(embedding_size=24, embedder_size=48)
    plain = tiny_embedder()
    embedder = plain.with_head(policy.model.query_head)
    z = torch.randn(8, 24, generator=torch.Generator().manual_seed(3))
    ours = embedder.embed_queries(QUERIES[:2], [None, policy.model.append_input(z)])
    weights = dict(policy.model.named_parameters())
    for query, soft, vector in zip(QUERIES, [None, z], ours, strict=False):
        expected = naive.query_vector(plain.model, plain.tokenizer, weights, query, soft)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-5)
    feature = encode_videos(plain.model, [random_video(1, plain.model.config)])
    assert torch.equal(embedder.embed_features(feature), plain.embed_features(feature))
    assert embedder.with_head(policy.model.query_head) is embedder
    assert isinstance(policy.model.query_head, nn.Linear)


@pytest.mark.parametrize("wrapper", ["published", "template"])
@pytest.mark.parametrize("appends", [False, True])
@torch.no_grad()
def test_a_videos_vector_is_the_state_of_the_last_token_that_the_tokenizer_writes(
    appends: bool, wrapper: VideoWrapper
) -> None:
    """One pass of the plain model over text and pixels; an appended end-of-text token is where it is read."""
    tokenizer = with_end_of_text(tiny_tokenizer()) if appends else tiny_tokenizer()
    embedder = Qwen3VLEmbedder(tiny_embedder().model, tokenizer, EmbedderForm(wrapper))
    videos = [random_video(seed, embedder.model.config) for seed in range(3)]
    ours = embedder.embed_features([encode_videos(embedder.model, [v])[0] for v in videos])
    for video, vector in zip(videos, ours, strict=True):
        marks = "".join(
            f"<{m:.1f} seconds><|vision_start|>{'<|video_pad|>' * (video.grid[1] * video.grid[2] // 4)}<|vision_end|>"
            for m in video.marks_s
        )
        whole = marks if wrapper == "published" else f"<|vision_start|>{marks}<|vision_end|>"
        text = naive.rendered_query(tokenizer, whole)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        types = (ids == embedder.model.config.video_token_id).int() * 2
        grid = torch.tensor([video.grid])
        embedder.model.rope_deltas = None
        hidden = embedder.model(
            input_ids=ids, pixel_values_videos=video.patches, video_grid_thw=grid, mm_token_type_ids=types
        ).last_hidden_state[0, -1]
        torch.testing.assert_close(vector, hidden / hidden.norm(), atol=1e-5, rtol=1e-5)
