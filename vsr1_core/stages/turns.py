"""One turn of an episode, as predictions and the sampled episodes of training hold it."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from vsr1_core.stages import columns as c
from vsr1_core.stages.columns import Column, dtypes

TURN_COLUMNS: Mapping[str, Column] = {
    "turn": c.integer("Number of the turn, from 1."),
    "video_id": c.text("The video shown in this turn."),
    "score": c.number("Cosine of query and video."),
    "rank": c.integer("Rank of the right video in this turn's ranking; null where it is not indexed."),
    "decision": c.DECISION,
    "matched_probability": c.MATCHED_PROBABILITY,
    "reasoning": c.text("What the policy wrote before its answer."),
    "start_s": c.START_S,
    "end_s": c.END_S,
    "num_text_tokens": c.NUM_TEXT_TOKENS,
    "num_latent_tokens": c.NUM_LATENT_TOKENS,
    "num_query_tokens": c.NUM_QUERY_TOKENS,
    "new_query": c.text("The query that the policy wrote anew."),
    "text": c.text("All that the policy wrote."),
}
TURN = pl.Struct(dtypes(TURN_COLUMNS))
"""What `search.episodes.turn_row` gives."""
