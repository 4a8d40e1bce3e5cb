"""What assets show: tables that cannot be broken by their values, pictures that are pictures."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from assets._factory import code_version, outcome_metadata, summary_line
from assets._keys import asset_key
from assets._metadata import (
    cell,
    contact_sheet,
    drawn,
    failure_table,
    fitting,
    markdown_table,
    picture,
    sample_table,
    with_pictures,
)
from assets.evaluation import each_query, metrics_table
from tests.fakes import Numbers, fake_stages, write_numbers
from vsr1_core.home.running import RunningServer
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view


@pytest.fixture
def view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> View:
    write_numbers(tmp_path, "toy", {"a": 1, "b": -2})
    return open_view(tmp_path, "toy", fake_stages())


def test_a_cell_cannot_break_out_of_its_table() -> None:
    assert markdown_table(["x"], [["a|b\nc<script>"]]).splitlines()[2] == "| a&#124;b c&#60;script&#62; |"


def test_long_values_are_cut_and_floats_rounded() -> None:
    assert len(cell("x" * 200)) == 60
    assert cell(0.123456) == "0.1235"
    assert cell([0.5] * 2048) == "[0.5, 0.5, 0.5, ... 2048 in all]"
    assert cell(None) == ""


def test_a_cut_path_keeps_its_end() -> None:
    assert cell("/lake/" + "x" * 100 + "/report.md").endswith("/report.md")


def test_a_report_carries_its_pictures(tmp_path: Path) -> None:
    """The UI serves no files: a link to a file beside the report shows nothing there."""
    Image.new("RGB", (1300, 650)).save(tmp_path / "recall.png")
    shown = with_pictures(Lake(tmp_path / "lake"), "![Recall.](recall.png) and ![gone](gone.png)", tmp_path).value
    assert "![Recall.](data:image/png;base64," in shown
    assert "](gone.png)" in shown


def test_a_picture_is_drawn_once_for_the_same_values(tmp_path: Path) -> None:
    lake, asked = Lake(tmp_path), []

    def draw() -> bytes:
        asked.append(1)
        return b"png %d" % len(asked)

    shown = [drawn(lake, ["loss", values], draw) for values in ([1.0], [1.0], [2.0], [1.0])]
    assert shown == [b"png 1", b"png 1", b"png 2", b"png 1"]


def test_a_wide_picture_is_made_to_fit() -> None:
    wide = io.BytesIO()
    Image.new("RGB", (1300, 650)).save(wide, format="PNG")
    assert Image.open(io.BytesIO(fitting(wide.getvalue()))).size == (1000, 500)


def test_a_contact_sheet_has_a_line_a_video(tmp_path: Path) -> None:
    for name, num_frames in (("a", 16), ("b", 1)):
        np.save(tmp_path / f"{name}.npy", np.full((num_frames, 32, 64, 3), 200, np.uint8))
    png = contact_sheet([str(tmp_path / "a.npy"), str(tmp_path / "b.npy")], num_columns=4, cell_pixels=32)
    image = Image.open(io.BytesIO(png))
    assert image.size == (128, 64)
    assert image.getpixel((1, 1)) == (200, 200, 200)
    assert image.getpixel((40, 33)) == (255, 255, 255)


def test_a_picture_is_a_data_uri() -> None:
    text = str(picture(b"\x89PNG", "alt").value)
    assert base64.b64decode(text.split("base64,")[1].rstrip(")")) == b"\x89PNG"


def test_failures_and_samples_leave_bookkeeping_out(view: View) -> None:
    for stage in fake_stages().values():
        stage.build(view, Execution())
    table = view.table("squares")
    assert "-2 is negative" in failure_table(table)
    assert "row_version" not in sample_table(table)
    assert sample_table(table).splitlines()[2] == "| a | 1 |"
    assert failure_table(view.table("numbers")) == ""


def test_a_wide_table_is_turned(tmp_path: Path) -> None:
    columns = dict.fromkeys("pqrst", pl.Int64) | {"u": pl.List(pl.String)}
    table = Lake(tmp_path).table("wide", "toy", "id", columns)
    rows = [{"id": i, "status": "ok", **dict.fromkeys("pqrs", k), "u": [i, "x"]} for k, i in enumerate("abc")]
    table.commit(table.frame(rows), {})
    lines = sample_table(table).splitlines()
    assert lines[0] == "| column | a | b |"
    scalars = [f"| {name} | 0 | 1 |" for name in "pqrs"]
    assert lines[2:] == [*scalars, "| u | [a, x] | [b, x] |"], "a column without values is left out"


def test_metadata_counts_are_those_of_the_plan(view: View) -> None:
    stage = Numbers()
    outcome = stage.build(view, Execution())
    metadata = outcome_metadata(view.table("numbers"), view.files("numbers"), outcome)
    assert (metadata["rows/new"], metadata["rows/processed"], metadata["rows/unchanged"]) == (2, 2, 0)
    assert "2 | new row" in metadata["why"].value
    assert metadata["size_mib"] == round(view.table("numbers").rows_path.stat().st_size / 2**20, 3)
    assert summary_line("numbers", outcome).startswith("numbers: 2 rows processed, 2 in all")


def test_code_versions_follow_the_stage_version(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_version(Numbers())
    monkeypatch.setattr(Numbers, "version", 2)
    assert code_version(Numbers()) != before


def test_prediction_keys_have_no_plus() -> None:
    assert asset_key("predictions.sqr_sft+exclude_rejected").path == ["predictions", "sqr_sft_exclude_rejected"]


def test_metrics_have_a_column_a_method() -> None:
    rows = [("a", "mrr", 0.5, 0.4, 0.6), ("b", "mrr", 0.25, None, None)]
    frame = pl.DataFrame(rows, schema=["method", "metric", "value", "low", "high"], orient="row")
    assert metrics_table(frame).splitlines()[-1] == "| mrr | 0.5 [0.4, 0.6] | 0.25 |"


def test_predictions_say_where_each_query_is_shown(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "run `vsr1 serve`, and open `/#/queries?d=toy&m=sqr_sft%2Bexclude_rejected` there"
    assert each_query(view, "sqr_sft+exclude_rejected").value == asked
    server = RunningServer("http://127.0.0.1:8321", "", "word")
    monkeypatch.setattr("assets.evaluation.running_server", lambda home: server if home == view.home else None)
    view.home = Path("/a/home")
    assert each_query(view, "sqr_sft").value == "http://127.0.0.1:8321/#/queries?d=toy&m=sqr_sft"
