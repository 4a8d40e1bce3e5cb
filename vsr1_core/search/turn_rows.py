"""Turns of an episode as plain values, for tables: `stages.turns` names the columns and says what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsr1_core.search.turns import Turn


def turn_row(number: int, turn: Turn) -> dict[str, Any]:
    """A turn as plain values, for a table. `number` is counted from 1; `text` is everything that the policy wrote."""
    return {
        "turn": number,
        "video_id": turn.video_id,
        "score": turn.score,
        "rank": turn.rank,
        "decision": turn.answer.decision,
        "matched_probability": turn.decoded.matched_probability,
        "reasoning": turn.answer.reasoning,
        "start_s": turn.answer.start_s,
        "end_s": turn.answer.end_s,
        "num_text_tokens": turn.decoded.num_text_tokens,
        "num_latent_tokens": turn.decoded.num_latent_tokens,
        "num_query_tokens": turn.num_query_tokens,
        "new_query": turn.answer.new_query,
        "text": turn.decoded.text,
    }


def ranked_turn_row(number: int, turn: Turn) -> dict[str, Any]:
    """`turn_row` with the first videos of the ranking that the turn's video came from."""
    return {
        **turn_row(number, turn),
        "top_video_ids": [video_id for video_id, _ in turn.ranked],
        "top_scores": [score for _, score in turn.ranked],
    }
