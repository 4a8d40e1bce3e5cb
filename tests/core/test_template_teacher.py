"""What the template teacher writes of a shown video, and what it cannot write."""

from __future__ import annotations

from vsr1_core.reasoning.tasks import EventNote, TeacherReply, TeacherTask
from vsr1_core.reasoning.teacher import TemplateTeacher, judge_words, observation, refusal

RED = EventNote(0.0, 5.0, "a red circle moves left on a black background")
BLUE = EventNote(5.0, 9.0, "a blue square grows on a black background")
GREEN = EventNote(9.0, 14.0, "a green bar moves up on a black background")
NEAR = EventNote(0.0, 5.0, "a red circle moves right on a black background")


def trace(label, moment, *events):
    task = TeacherTask("q", "a crimson disc slides leftwards", label, "v", moment, events)
    (reply,) = TemplateTeacher().write([task])
    return reply


def test_the_template_for_a_match_describes_the_video_and_finds_every_word():
    reply = trace("matched", BLUE, RED, BLUE, GREEN)
    assert reply.text == (
        "0.0-5.0: a red circle moves left on a black background. "
        "5.0-9.0: a blue square grows on a black background. "
        "9.0-14.0: a green bar moves up on a black background. "
        "Asked: a blue square grows on a black background. "
        "Closest 5.0-9.0: blue yes square yes grows yes black yes background yes."
    )
    assert reply.verdict == "matched"


def test_of_several_events_each_is_told_without_its_neighbours():
    first = EventNote(0.0, 3.0, "a red bar grows before a blue bar")
    second = EventNote(3.0, 7.0, "a blue bar shrinks after a red bar")
    assert (
        observation("a dog", [first, second]) == "0.0-3.0: a red bar grows. 3.0-7.0: a blue bar shrinks. Asked: a dog."
    )
    assert observation("a dog", [second]) == "3.0-7.0: a blue bar shrinks after a red bar. Asked: a dog."


def test_the_template_for_a_mismatch_says_which_words_the_closest_event_lacks():
    reply = trace("not_matched", RED, BLUE, NEAR)
    assert reply.text.endswith("Closest 0.0-5.0: red yes circle yes moves yes left no black yes background yes.")
    assert reply.verdict == "not_matched"


def test_traces_are_short():
    assert max(trace(x, RED, RED, BLUE, GREEN).num_tokens for x in ("matched", "not_matched")) <= 60


def test_what_the_teacher_cannot_write_is_refused():
    assert "nothing to describe" in refusal(trace("matched", RED), "matched")
    assert "does not have the query's moment" in refusal(trace("matched", RED, BLUE), "matched")
    assert "contradicts" in refusal(trace("not_matched", RED, RED), "not_matched")
    assert "tags" in refusal(TeacherReply("q", "it is <answer>matched</answer>"), "matched")
    assert "'content_filter'" in refusal(TeacherReply("q", "x", "content_filter"), "matched")
    assert refusal(TeacherReply("q", "a dog barks"), "matched") is None


def test_words_are_judged_in_their_order_and_articles_and_punctuation_do_not_count():
    judged = judge_words("a red circle before a blue square", "a red square before a blue circle")
    assert judged == [("red", True), ("circle", False), ("before", True), ("blue", True), ("square", False)]
    assert judge_words("The dog barks.", "a dog, barks") == [("dog", True), ("barks", True)]
