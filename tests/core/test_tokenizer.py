"""The tiny models' tokenizer: spells anything, keeps what matters whole, and is the same each time it is trained."""

from __future__ import annotations

import pytest

from tests.core.tiny_models import TEXTS, tiny_tokenizer
from vsr1_core.models.qwen3_vl.tokenizer import SPECIAL_TOKENS, train_tokenizer
from vsr1_core.reasoning.conversation import answer_text, build_messages

TOKENIZER = tiny_tokenizer()


@pytest.mark.parametrize(
    "text", [*TEXTS, "日本語, ünï — 🎬", "  two  spaces\n\nand\tbreaks ", "", "<answer> broken <ans"]
)
def test_any_text_comes_back_as_it_was(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_are_one_token_each_and_are_read_inside_text() -> None:
    for token in SPECIAL_TOKENS:
        assert TOKENIZER(f"a{token}b")["input_ids"].count(TOKENIZER.convert_tokens_to_ids(token)) == 1


def test_tags_and_decisions_are_whole() -> None:
    tokens = TOKENIZER.tokenize(answer_text("a ring grows.", True, 12.5, 40.0))
    assert "<answer>" in tokens
    assert tokens[tokens.index("<answer>") + 1] == "matched"
    assert "".join(tokens[tokens.index("<start>") : tokens.index("</start>")]) == "<start>12.5"
    assert "not_matched" in TOKENIZER.tokenize(answer_text("no.", False))


def test_a_time_is_one_token_in_a_mark_and_in_a_span_and_other_numbers_are_spelled() -> None:
    tokenizer = train_tokenizer(["12.5 0.0"] * 50, 400)
    tokens = tokenizer.tokenize("<12.5 seconds><start>12.5</start> 12.55 125")
    assert tokens.count("12.5") == 2
    assert tokenizer.tokenize("0.0-12.5:")[:3] == ["0.0", "-", "12.5"]
    assert tokens[-3:] == ["1", "2", "5"]


def test_the_chat_form_is_qwens() -> None:
    text = TOKENIZER.apply_chat_template(build_messages("a bar", "Look."), tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\n"
        'Query: "a bar"\nRetrieved video: <|vision_start|><|video_pad|><|vision_end|><|im_end|>\n'
        "<|im_start|>assistant\n"
    )


def test_training_twice_gives_the_same_tokenizer() -> None:
    again = train_tokenizer(TEXTS * 4, 700)
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert again(TEXTS[3])["input_ids"] == TOKENIZER(TEXTS[3])["input_ids"]


def test_the_vocabulary_keeps_its_bound() -> None:
    assert len(train_tokenizer(TEXTS, 300)) <= 300
