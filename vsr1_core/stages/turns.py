"""The columns of one turn of an episode; predictions and the sampled episodes of a training store turns."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from vsr1_core.stages import columns as c
from vsr1_core.stages.columns import Column, dtypes

TURN_COLUMNS: Mapping[str, Column] = {
    "turn": c.integer("Number of the turn in its episode, counted from 1."),
    "video_id": c.text("Id of the video, or window, that the policy was shown in this turn."),
    "score": c.number("Cosine of the query, as it stood in this turn, and the shown video."),
    "rank": c.integer("Rank of the right video in this turn's ranking; null where it is not indexed."),
    "decision": c.DECISION,
    "matched_probability": c.MATCHED_PROBABILITY,
    "reasoning": c.text("Reasoning that the policy wrote before its answer."),
    "start_s": c.START_S,
    "end_s": c.END_S,
    "num_text_tokens": c.NUM_TEXT_TOKENS,
    "num_latent_tokens": c.NUM_LATENT_TOKENS,
    "num_query_tokens": c.NUM_QUERY_TOKENS,
    "new_query": c.text("Query that the policy rewrote in words after this turn; null where it did not."),
    "text": c.text("Everything that the policy wrote in this turn."),
}
TURN = pl.Struct(dtypes(TURN_COLUMNS))
"""Polars type of one turn, which `search.turn_rows.turn_row` returns as a dict."""

RANKED_TURN_COLUMNS: Mapping[str, Column] = {**TURN_COLUMNS, **c.TOP}
"""Columns of one turn of a prediction. Sampled episodes, of which there are many more, keep no rankings."""
RANKED_TURN = pl.Struct(dtypes(RANKED_TURN_COLUMNS))
"""Polars type of one turn of a prediction, which `search.turn_rows.ranked_turn_row` returns as a dict."""

KEPT_OF_TURNS = (
    *("turn", "video_id", "rank", "decision", "matched_probability", "reasoning", "start_s", "end_s"),
    *("num_latent_tokens", "new_query", "top_video_ids"),
)
"""The columns that are kept of each turn of a prediction as each build left it; `text` would repeat the reasoning."""
