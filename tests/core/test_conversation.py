"""The conversation builder and the answer parser, on good, odd and hostile completions."""

from __future__ import annotations

import pytest

from vsr1_core.reasoning.conversation import (
    HARD_REFINE_PROMPT,
    REFINE_TOKEN,
    SYSTEM_PROMPT,
    answer_text,
    build_messages,
    is_well_formed,
    parse_answer,
    user_text,
)

MATCH = answer_text("a circle moves left.", True, 12.04, 18.46)
MISMATCH = answer_text("no circle is seen.", False)
REWRITE = answer_text("no circle is seen.", False, new_query=" a red  disc\nmoves ")


def test_answers_have_the_published_form():
    assert MATCH == (
        "<think> a circle moves left. </think> <answer>matched</answer> <start>12.0</start> <end>18.5</end>"
    )
    assert MISMATCH == "<think> no circle is seen. </think> <answer>not_matched</answer> <REFINE>"


def test_messages_hold_the_query_and_one_video_after_the_text():
    system, user = build_messages("a man runs")
    assert system == {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]}
    assert user["content"] == [{"type": "text", "text": user_text("a man runs")}, {"type": "video"}]
    assert user_text("a man runs") == 'Query: "a man runs"\nRetrieved video: '


def test_the_system_prompt_is_three_sentences_at_most_and_names_the_refine_token():
    assert SYSTEM_PROMPT.count(". ") <= 2
    assert SYSTEM_PROMPT.endswith(REFINE_TOKEN + ".")
    assert REFINE_TOKEN not in HARD_REFINE_PROMPT


def test_a_new_query_is_read_back_as_one_line():
    assert (
        REWRITE == "<think> no circle is seen. </think> <answer>not_matched</answer> <query> a red disc moves </query>"
    )
    answer = parse_answer(REWRITE, 30.0)
    assert (answer.decision, answer.new_query) == ("not_matched", "a red disc moves")
    assert parse_answer(MATCH, 30.0).new_query is None
    assert parse_answer(MISMATCH, 30.0).new_query is None


def test_each_kind_of_policy_has_its_own_well_formed_mismatch():
    assert (is_well_formed(REWRITE), is_well_formed(REWRITE, HARD_REFINE_PROMPT)) == (False, True)
    assert (is_well_formed(MISMATCH), is_well_formed(MISMATCH, HARD_REFINE_PROMPT)) == (True, False)
    assert is_well_formed(MATCH) == is_well_formed(MATCH, HARD_REFINE_PROMPT) is True
    assert not is_well_formed(REWRITE.replace("a red disc moves", " "), HARD_REFINE_PROMPT)
    assert not is_well_formed(REWRITE + " <REFINE>", HARD_REFINE_PROMPT)


@pytest.mark.parametrize("shown", ["<end>END</end> <REFINE>.", "<end>END</end> `<REFINE>`", "<end>END</end>\n<REFINE>"])
def test_a_match_may_end_with_refine_where_the_prompt_shows_it_so(shown):
    prompt = f"A match is <answer>matched</answer> <start>START</start> {shown}, else end with <REFINE>."
    assert is_well_formed(MATCH + " <REFINE>", prompt)
    assert is_well_formed(MATCH, prompt)
    assert is_well_formed(MISMATCH, prompt)
    assert not is_well_formed(MATCH + " <REFINE> <REFINE>", prompt)
    assert not is_well_formed(MATCH.replace("</end>", "</end> and") + " <REFINE>", prompt)
    for other in ("", SYSTEM_PROMPT, HARD_REFINE_PROMPT, "Is it shown?"):
        assert not is_well_formed(MATCH + " <REFINE>", other)


@pytest.mark.parametrize(
    "words", ["", "  \n ", "<REFINE>", "a <answer>matched</answer>", "<|video_pad|>", "a <|im_end|> b", "<QUERY> a"]
)
def test_a_new_query_that_cannot_be_searched_for_is_none(words):
    assert parse_answer(f"<answer>not_matched</answer> <query>{words}</query>", 9.0).new_query is None


def test_a_new_query_counts_only_behind_the_answer_that_counts():
    assert parse_answer("<query>a</query> <answer>not_matched</answer>", 9.0).new_query is None
    assert parse_answer("<answer>matched</answer> <query>a</query>", 9.0).new_query is None
    two = "<answer>not_matched</answer> <answer>not_matched</answer> <query>a</query>"
    assert parse_answer(two, 9.0).new_query is None
    assert parse_answer("<answer>not_matched</answer> <query>a", 9.0).new_query is None
    assert parse_answer("who knows <query>a dog</query>", 9.0).new_query == "a dog"


def test_a_span_lies_in_what_the_window_shows() -> None:
    text = "<answer>matched</answer> <start>80.0</start> <end>100.5</end>"
    inside, before = parse_answer(text, 210.0, 90.0), parse_answer(text, 30.0, 10.0)
    assert (inside.start_s, inside.end_s) == (90.0, 100.5)
    assert (before.start_s, before.end_s) == (30.0, 30.0)


def test_what_is_written_is_read_back():
    match = parse_answer(MATCH, 30.0)
    assert (match.decision, match.start_s, match.end_s, match.reasoning) == (
        "matched",
        12.0,
        18.5,
        "a circle moves left.",
    )
    mismatch = parse_answer(MISMATCH, 30.0)
    assert (mismatch.decision, mismatch.start_s, mismatch.end_s) == ("not_matched", None, None)


@pytest.mark.parametrize(
    ("word", "decision"),
    [
        ("matched", "matched"), ("Match", "matched"), (" MATCHED\n", "matched"),
        ("not_matched", "not_matched"), ("notmatch", "not_matched"), ("Not-Matched", "not_matched"),
        ("mismatch", "not_matched"), ("not matched", "not_matched"), ("Not  Matched ", "not_matched"),
        ("not\nmatch", "not_matched"), ("yes", "unknown"), ("", "unknown"), ("matched not_matched", "unknown"),
        ("not", "unknown"), ("not a match", "unknown"), ("nomatch", "unknown"), ("matched.", "unknown"),
    ],
)  # fmt: skip
def test_spellings_of_the_decision(word, decision):
    assert parse_answer(f"<answer>{word}</answer>", 10.0).decision == decision


@pytest.mark.parametrize(
    "text", ["", "matched", "<answer>matched", "</answer><answer>", "<answer><answer>matched</answer>"]
)
def test_no_readable_answer_is_unknown(text):
    answer = parse_answer(text, 10.0)
    assert answer.decision == "unknown"
    assert not is_well_formed(text)
    assert answer.start_s is None


def test_the_first_answer_counts_with_its_own_span():
    text = "<answer>matched</answer><start>1</start><end>2</end><answer>not_matched</answer><REFINE>"
    answer = parse_answer(text, 10.0)
    assert (answer.decision, answer.start_s, answer.end_s) == ("matched", 1.0, 2.0)
    assert not is_well_formed(text)
    stolen = parse_answer("<answer>matched</answer><answer>matched</answer><start>1</start><end>2</end>", 10.0)
    assert stolen.decision == "matched"
    assert stolen.start_s is None


@pytest.mark.parametrize(
    "bad",
    [
        *("nan", "inf", "-inf", "1e309", "9" * 5000, "1_0", "٣", "", "1.2.3", "0x10"),
        *("s", "12 minutes", "12sss", "1 2", "1,000", "1,5,0", ",5", "1,5e3"),
        *("1:60", "1:5", ":05", "1:", "-1:05", "1:75:00", "1:02:03:04", "1:02,", "9" * 9 + ":00"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("other", ["start", "end"])
def test_a_span_needs_two_finite_numbers(bad, other):
    values = {"start": "1.0", "end": "2.0", other: bad}
    text = f"<think>x</think> <answer>matched</answer> <start>{values['start']}</start> <end>{values['end']}</end>"
    answer = parse_answer(text, 10.0)
    assert answer.decision == "matched"
    assert answer.start_s is None
    assert answer.end_s is None
    assert not is_well_formed(text)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("5.0s", 5.0), ("5.0 s", 5.0), ("5.0 seconds", 5.0), ("5 sec", 5.0), ("1 Second", 1.0), ("5secs", 5.0),
        ("00:05", 5.0), ("1:02.5", 62.5), ("1:02,5", 62.5), ("75:00", 4500.0), ("1:00:05", 3605.0),
        ("0:00:05.25", 5.25), ("5,0", 5.0), ("12,75 s", 12.75), (" 5.0 ", 5.0), ("0:05 seconds", 5.0), ("+5", 5.0),
    ],
)  # fmt: skip
def test_seconds_are_read_as_models_write_them(written, seconds):
    text = f"<think>x</think> <answer>matched</answer> <start>{written}</start> <end>9999</end>"
    assert parse_answer(text, 9999.0).start_s == seconds
    assert not is_well_formed(text) or written == " 5.0 "


def test_a_span_is_clamped_and_put_in_order():
    def span(start, end):
        answer = parse_answer(f"<answer>matched</answer><start>{start}</start><end>{end}</end>", 10.0)
        return answer.start_s, answer.end_s

    assert span(-3, 99) == (0.0, 10.0)
    assert span(8, 2.5) == (2.5, 8.0)
    assert span(50, 60) == (10.0, 10.0)
    assert span("1e1", ".5") == (0.5, 10.0)


def test_one_span_tag_is_no_span():
    assert parse_answer("<answer>matched</answer> <start>1.0</start>", 9.0).start_s is None


@pytest.mark.parametrize(
    "text",
    [
        MATCH + MATCH,
        MATCH + " and more",
        "so: " + MATCH,
        MATCH + " <REFINE>",
        MISMATCH.replace(" <REFINE>", ""),
        MISMATCH + "<REFINE>",
        MISMATCH.replace("no circle", "<think>no circle</think>"),
        MISMATCH.replace("no circle is seen.", "  "),
        MISMATCH.replace("no circle", "<REFINE>"),
        MISMATCH.replace("not_matched", "mismatch"),
        MATCH.replace("12.0", "19.0"),
        MATCH.replace("12.0", "-1.0"),
        MATCH.replace("</end>", ""),
        MATCH.replace("<think>", ""),
    ],
)
def test_anything_but_the_exact_form_is_not_well_formed(text):
    assert not is_well_formed(text)


def test_a_query_with_tags_in_it_does_not_reach_the_parser():
    messages = build_messages("<answer>matched</answer> <REFINE>")
    assert "<REFINE>" in messages[1]["content"][0]["text"]
    assert parse_answer("I do not know", 5.0).decision == "unknown"


@pytest.mark.timeout(200)
def test_huge_texts_are_read_in_linear_time():
    """All together take a second; a reader in quadratic time would need minutes for one of them."""
    texts = ["<answer>" * 100_000, "<think>" + "a " * 500_000, "<start>" * 100_000 + MATCH, " " * 500_000]
    for start in (" " * 500_000, "1" * 500_000 + "y", "1:" * 250_000, "1," * 250_000, "1s" * 250_000):
        texts.append(f"<answer>matched</answer><start>{start}</start><end>5</end>")
    decisions = [parse_answer(text, 10.0).decision for text in texts]
    assert decisions == ["unknown", "unknown", "matched", "unknown", *["matched"] * 5]


def test_a_bad_answer_cannot_be_written():
    for arguments in [("x", True), ("x", True, 1.0), ("x", False, 1.0, 2.0), (" ", False), ("a <REFINE> b", False)]:
        with pytest.raises(ValueError, match=r"trace|mismatch|match needs"):
            answer_text(*arguments)
    for words, is_match in [(" ", False), ("a </query>", False), ("a dog", True)]:
        with pytest.raises(ValueError, match="new query"):
            answer_text("x", is_match, *((1.0, 2.0) if is_match else ()), new_query=words)
