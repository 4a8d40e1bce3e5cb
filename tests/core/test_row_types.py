"""The row types are the columns of the tables, with their types."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import polars as pl
import pytest

from vsr1_core.evaluation.row_types import (
    MetricRow,
    MomentRow,
    PredictionRow,
    ProbeRow,
    RankedTurnRow,
    TurnRow,
    typed_rows,
)
from vsr1_core.stages.columns import dtypes
from vsr1_core.stages.corpus import Moments
from vsr1_core.stages.predictions import Predictions
from vsr1_core.stages.probes import VerificationProbe
from vsr1_core.stages.turns import RANKED_TURN, TURN

DTYPES = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean, list[int]: pl.List(pl.Int64)}
DTYPES |= {list[str]: pl.List(pl.String), list[float]: pl.List(pl.Float32), list[RankedTurnRow]: pl.List(RANKED_TURN)}


def columns_of(row_type: type) -> dict[str, Any]:
    """The polars type of each column; a missing value has no type of its own."""
    found = {}
    for name, hint in get_type_hints(row_type).items():
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
        found[name] = DTYPES[hint if hint in DTYPES else kinds[0]]
    return found


@pytest.mark.parametrize(
    ("row_type", "columns"),
    [
        (MomentRow, {"query_id": pl.String, **dtypes(Moments.columns)}),
        (PredictionRow, {"query_id": pl.String, **dtypes(Predictions.columns)}),
        (ProbeRow, {"probe_id": pl.String, **dtypes(VerificationProbe.columns)}),
        (TurnRow, TURN.to_schema()),
        (RankedTurnRow, RANKED_TURN.to_schema()),
    ],
)
def test_a_row_type_has_the_columns_of_its_table(row_type: type, columns: dict[str, Any]) -> None:
    assert columns_of(row_type) == dict(columns)


def test_rows_are_read_with_the_columns_of_their_type_alone() -> None:
    frame = pl.DataFrame({"metric": ["mrr"], "method": ["a"], "value": [0.5], "low": [None], "high": [None], "x": [1]})
    assert list(typed_rows(frame, MetricRow)) == [
        {"method": "a", "metric": "mrr", "value": 0.5, "low": None, "high": None}
    ]
    with pytest.raises(pl.exceptions.ColumnNotFoundError, match="value"):
        typed_rows(frame.drop("value"), MetricRow)
