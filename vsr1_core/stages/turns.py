"""The struct of one turn of an episode, as predictions and sampled episodes of training hold it."""

from __future__ import annotations

import polars as pl

TURN = pl.Struct(
    {
        "turn": pl.Int64,
        "video_id": pl.String,
        "score": pl.Float64,
        "rank": pl.Int64,
        "decision": pl.String,
        "matched_probability": pl.Float64,
        "reasoning": pl.String,
        "start_s": pl.Float64,
        "end_s": pl.Float64,
        "num_text_tokens": pl.Int64,
        "num_latent_tokens": pl.Int64,
        "num_query_tokens": pl.Int64,
        "new_query": pl.String,
        "text": pl.String,
    }
)
"""What `search.episodes.turn_row` gives."""
