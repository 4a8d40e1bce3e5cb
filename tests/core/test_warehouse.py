"""The DuckDB views: right columns before anything is built, what is committed afterwards, and no waiting."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from fake_results import (
    MOMENT_COLUMNS,
    STRENGTHS,
    commit_results,
    commit_rows,
    fake_moments,
    fake_stages,
    moments_frame,
)

from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.evaluation.episodes import load_episodes, outcomes
from vsr1_core.evaluation.metrics import score
from vsr1_core.evaluation.scores import values
from vsr1_core.home import warehouse
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.unreadable import UnreadableRows
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.methods import TRAINED
from vsr1_core.stages.trained import GRPOCheckpoint

DESIGNED = {
    "predictions": "dataset method query_id split query gt_video_id gt_start_s gt_end_s video_id rank first_rank "
    "decision start_s end_s iou num_turns num_text_tokens num_latent_tokens status error checkpoint",
    "verification_probes": "dataset method query_id split label shown_video_id decision matched_probability start_s "
    "end_s iou num_text_tokens status error",
    "turns": "dataset method query_id turn video_id score rank decision reasoning start_s end_s",
    "metrics": "dataset method metric value low high num_queries seed",
    "outcomes": "dataset method query_id split query outcome gt_video_id video_id is_right_video",
    "verifications": "dataset method query_id turn video_id is_right_video decision matched_probability is_correct",
    "metrics_history": "dataset built_at data_version method metric value low high num_queries seed split",
    "builds": "dataset run_id started_at ended_at seconds num_processed num_dropped num_failed assets",
    "recipes": "dataset recipe key value",
    "failures": "dataset asset row_id error",
    "moments": "dataset query_id split query",
    "videos": "dataset video_id",
}


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("empty")
    warehouse.refresh(home, fake_stages())
    return home


@pytest.fixture
def home(empty_home: Path, tmp_path: Path) -> Path:
    """A home with nothing built, in a folder whose name needs quoting everywhere."""
    return shutil.copytree(empty_home, tmp_path / "it's [a] home=1")


@pytest.mark.parametrize("view", DESIGNED)
def test_a_view_has_its_columns_before_anything_is_built(home: Path, view: str) -> None:
    frame = warehouse.query(home, f"select * from {view}")
    assert frame.is_empty()
    expected = DESIGNED[view].split()
    assert frame.columns[: len(expected)] == expected


def test_rows_show_as_soon_as_they_are_committed_without_a_refresh(home: Path) -> None:
    commit_results(home / "lake", "toy", num_queries=12, num_failed=2)
    counts = dict(warehouse.query(home, "select method, count(*) from predictions group by 1").iter_rows())
    assert counts == dict.fromkeys(STRENGTHS, 12)
    assert warehouse.query(home, "select count(*) from moments where dataset = 'toy'").item() == 12


def test_a_table_that_became_empty_shows_no_row(home: Path) -> None:
    commit_rows(Lake(home / "lake"), "moments", "toy", "query_id", MOMENT_COLUMNS, fake_moments(3))
    assert warehouse.query(home, "select count(*) from moments").item() == 3
    commit_rows(Lake(home / "lake"), "moments", "toy", "query_id", MOMENT_COLUMNS, [])
    assert warehouse.query(home, "select count(*) from moments").item() == 0


def test_failures_of_all_assets_are_in_one_view(home: Path) -> None:
    commit_results(home / "lake", "toy", num_queries=12, num_failed=2)
    found = warehouse.query(home, "select asset, count(*), any_value(error) from failures group by 1 order by 1").rows()
    assert found == [(f"predictions.{method}", 2, "frames of v_0 are missing") for method in sorted(STRENGTHS)]


def test_turns_are_one_row_each_with_their_method(home: Path) -> None:
    commit_results(home / "lake", "toy", num_queries=12, num_failed=2)
    asked = "select sum(num_turns), (select count(*) from turns) from predictions where status = 'ok'"
    promised, found = warehouse.query(home, asked).row(0)
    assert promised == found > 0
    longest = "select max(turn), count(distinct method) from turns where dataset = 'toy'"
    assert warehouse.query(home, longest).row(0) == (3, 4)


def test_episodes_and_curves_of_a_training_are_those_of_the_dataset_that_ran_it(home: Path) -> None:
    stage = GRPOCheckpoint(TRAINED["grpo_checkpoint"])
    warehouse.refresh(home, {**fake_stages(), stage.name: stage})
    assert warehouse.query(home, "select * from grpo_turns").is_empty()
    turns = [{"turn": n, "video_id": f"v{n}", "text": "<think>"} for n in (1, 2)]
    episode = {"step": 5, "sample": 1, "query_id": "q", "reward_total": 0.5, "turns": turns}
    curve = [{"step": 5, "name": "loss", "value": 2.0}]
    row = {"checkpoint": stage.name, "path": "x", "curve": curve, "episodes": [episode]}
    for dataset, source in (("toy", None), ("mine", "borrowed from toy")):
        commit_rows(Lake(home / "lake"), stage.name, dataset, stage.key, stage.dtypes, [{**row, "source": source}])
    found = warehouse.query(home, "select dataset, step, sample, query_id, turn, video_id, text from grpo_turns")
    assert found.rows() == [("toy", 5, 1, "q", 1, "v1", "<think>"), ("toy", 5, 1, "q", 2, "v2", "<think>")]
    assert warehouse.query(home, "select dataset, query_id, reward_total from grpo_episodes").rows() == [
        ("toy", "q", 0.5)
    ]
    assert warehouse.query(home, "select * from curves").rows() == [("toy", "grpo_checkpoint", 5, "loss", 2.0)]


def test_datasets_keep_their_names_whatever_these_look_like(home: Path) -> None:
    for name in ("2024", "01", "true", "a+b", "2024-01-01"):
        commit_rows(Lake(home / "lake"), "moments", name, "query_id", MOMENT_COLUMNS, fake_moments(1))
    names = warehouse.query(home, "select dataset from moments order by 1")["dataset"].to_list()
    assert names == ["01", "2024", "2024-01-01", "a+b", "true"]


def test_a_table_written_before_a_column_was_added_still_answers(home: Path) -> None:
    old = {name: dtype for name, dtype in MOMENT_COLUMNS.items() if name != "clamped"}
    rows = [{k: v for k, v in row.items() if k != "clamped"} for row in fake_moments(2)]
    commit_rows(Lake(home / "lake"), "moments", "old", "query_id", old, rows)
    assert warehouse.query(home, "select clamped from moments")["clamped"].to_list() == [None, None]


def test_plain_duckdb_opens_the_file_from_any_folder(home: Path, tmp_path: Path) -> None:
    commit_results(home / "lake", "toy", num_queries=3)
    code = "import duckdb, sys; "
    code += "print(duckdb.connect(sys.argv[1]).execute('select count(*) from moments').fetchone()[0])"
    command = [sys.executable, "-c", code, str(warehouse.database_path(home))]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip() == "3"


def test_a_reader_goes_on_while_the_views_are_replaced(home: Path) -> None:
    commit_results(home / "lake", "toy", num_queries=3)
    with warehouse.connect(home) as reader:
        warehouse.refresh(home, {"moments": fake_stages()["moments"]})
        assert reader.execute("select count(*) from predictions").fetchone() == (12,)
    with pytest.raises(ValueError, match="predictions does not exist"):
        warehouse.query(home, "select * from predictions")


NUM_STATES = 6
"""The reader goes on until it has read so many states."""
READER = """
import duckdb, sys
database, num_asked, num_states = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
states = set()
while num_asked > 0 or len(states) < num_states:
    num_asked -= 20
    with duckdb.connect(database, read_only=True) as connection:
        for _ in range(20):
            row = connection.execute("select count(*), min(duration_s), max(duration_s) from moments").fetchone()
            assert row[1] == row[2] and row[0] == 300 + row[1], row
            states.add(row[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_asked", [200, pytest.param(1_000, marks=pytest.mark.sweep)])
def test_another_process_reads_whole_tables_while_commits_replace_them(home: Path, num_asked: int) -> None:
    """Where a commit replaced the file of rows itself, a query in three commits failed or mixed two states."""

    def commit(state: int) -> None:
        rows = [{**row, "duration_s": float(state)} for row in fake_moments(300 + state, seed=state)]
        commit_rows(Lake(home / "lake"), "moments", "toy", "query_id", MOMENT_COLUMNS, rows)

    commit(0)
    command = [sys.executable, "-c", READER, str(warehouse.database_path(home)), str(num_asked), str(NUM_STATES)]
    with subprocess.Popen(command, cwd="/") as reader:
        for number in itertools.count(1):
            commit(number % 100)
            if number % 10 == 0:
                warehouse.refresh(home, fake_stages())
            time.sleep(0.05)
            if reader.poll() is not None:
                break
    assert reader.returncode == 0, "it told what it read on stderr"


def test_outcomes_are_those_of_the_report(home: Path) -> None:
    moments = moments_frame(commit_results(home / "lake", "toy", num_queries=60, num_failed=2))
    table = fake_stages()["predictions.sqr_sft"]
    predictions = Lake(home / "lake").table(table.name, "toy", table.key, table.dtypes).rows()
    expected = dict(outcomes(load_episodes(moments, predictions)).iter_rows())
    found = warehouse.query(home, "select query_id, outcome, query from outcomes where method = 'sqr_sft'")
    assert dict(found.select("query_id", "outcome").iter_rows()) == expected
    assert len(set(expected.values())) == 6
    assert not found["query"].null_count(), "failed rows know their query too"


def test_verifications_agree_with_the_metric(home: Path) -> None:
    moments = moments_frame(commit_results(home / "lake", "toy", num_queries=60, num_failed=0))
    table = fake_stages()["predictions.sqr_sft"]
    predictions = Lake(home / "lake").table(table.name, "toy", table.key, table.dtypes).rows()
    expected = values(score(load_episodes(moments, predictions)))["verification_accuracy"]
    asked = "select avg(is_correct::int) from verifications where method = 'sqr_sft'"
    assert warehouse.query(home, asked).item() == pytest.approx(expected)


def test_each_state_of_the_metrics_is_kept_once(home: Path) -> None:
    view = View(Lake(home / "lake"), DatasetEntry("toy", "toy"), NANO, fake_stages())
    for num_queries in (12, 12, 30):
        commit_results(home / "lake", "toy", num_queries=num_queries)
        view.stages["metrics"].build(view, Execution())
    asked = "select builds_ago, any_value(num_queries) from metrics_history where metric = 'mrr' group by 1 order by 1"
    assert warehouse.query(home, asked).rows() == [(0, 30), (1, 12)]


def test_another_process_that_holds_the_file_blocks_nobody(home: Path) -> None:
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(warehouse.database_path(home))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "open"
        warehouse.refresh(home, fake_stages())
        assert warehouse.query(home, "select count(*) from moments").item() == 0
        holder.communicate("")


def test_a_moved_home_reads_its_own_rows(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsr1_core.stages.graph.all_stages", fake_stages)
    commit_results(home / "lake", "toy", num_queries=3)
    moved = tmp_path / "moved"
    home.rename(moved)
    commit_results(home / "lake", "toy", num_queries=5)
    assert warehouse.query(moved, "select count(*) from moments").item() == 3


def test_the_views_are_made_when_the_file_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsr1_core.stages.graph.all_stages", fake_stages)
    assert warehouse.query(tmp_path, "select * from metrics").is_empty()
    assert warehouse.database_path(tmp_path).exists()


def test_every_view_says_what_it_holds(home: Path) -> None:
    asked = "select view_name, comment from duckdb_views() where database_name = 'vsr1'"
    comments = dict(warehouse.query(home, asked).iter_rows())
    assert {*DESIGNED, "report", "lake"} <= set(comments)
    assert all(comments.values())


@pytest.mark.slow
def test_every_column_says_what_it_means(tmp_path: Path) -> None:
    """Stages and views say them where they are declared."""
    warehouse.refresh(tmp_path)
    asked = "select table_name, column_name from duckdb_columns() where not internal and comment is null"
    assert warehouse.query(tmp_path, asked).rows() == []


def test_a_query_cannot_change_anything(home: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        warehouse.query(home, "drop view moments", is_restricted=False)


@pytest.mark.parametrize(
    "sql",
    [
        "copy (select 1) to '{inside}'",
        "explain analyze copy (select 1) to '{inside}'",
        "select 1; copy (select 1) to '{inside}'",
        "/* read */ explain /* only */ analyze copy (select 1) to '{inside}'",
        "from read_csv('{outside}', delim = '|')",
        "from read_text('{outside}')",
        "from glob('{outside}')",
        "attach '{outside}' as other",
        "set enable_external_access = true",
        "install httpfs",
        "create table t as select 1",
    ],
)
def test_a_query_writes_nothing_and_reads_nothing_outside(home: Path, tmp_path: Path, sql: str) -> None:
    (tmp_path / "secret.csv").write_text("a secret\n")
    inside = home / "lake" / "written.csv"
    with pytest.raises(ValueError, match="The views are: ") as refused:
        warehouse.query(home, sql.format(inside=inside, outside=tmp_path / "secret.csv"))
    assert "a secret" not in str(refused.value)
    assert not inside.exists()


def test_a_query_that_is_allowed_to_may_write_a_file(home: Path, tmp_path: Path) -> None:
    for sql in ("explain select * from moments", "explain analyze from moments", "describe moments", "show tables"):
        assert warehouse.query(home, sql).height > 0
    with pytest.raises(ValueError, match=r"COPY is not allowed.*--unrestricted"):
        warehouse.query(home, f"copy (from moments) to '{tmp_path / 'out.csv'}'")
    warehouse.query(home, f"copy (from moments) to '{tmp_path / 'out.csv'}'", is_restricted=False)
    assert (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("  ", "there is no SQL to run"),
        ("select * from nowhere", "Table with name nowhere does not exist!"),
        ("select nothing from moments", 'Referenced column "nothing" not found'),
        ("selec 1", 'syntax error at or near "selec"'),
    ],
)
def test_bad_sql_is_explained_in_one_line_that_names_the_views(home: Path, sql: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"The views are: .*moments, outcomes, predictions") as raised:
        warehouse.query(home, sql)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_of_rows_that_cannot_be_read_is_named(home: Path, inside: bool) -> None:
    """Where the middle of a file is damaged, DuckDB names no file."""
    commit_results(home / "lake", "toy", num_queries=12, num_failed=2)
    files = Lake(home / "lake").table("moments", "toy", "query_id", {}).files()
    assert files is not None
    content = files.base.read_bytes()
    files.base.write_bytes(content[:4] + b"\xff" * 200 + content[204:] if inside else content[:-20])
    said = f"{files.base}, a file of the table moments of toy, cannot be read (parquet: "
    with pytest.raises(UnreadableRows, match=re.escape(said)):
        warehouse.query(home, "from moments")
    with pytest.raises(ValueError, match="The views are"):
        warehouse.query(home, "select nothing from videos")


def test_no_scratch_file_is_left(home: Path) -> None:
    assert [path.name for path in home.iterdir() if path.is_file()] == ["vsr1.duckdb"]


def test_results_arrive_as_polars_types(home: Path) -> None:
    commit_results(home / "lake", "toy", num_queries=3)
    frame = warehouse.query(home, "select start_s, num_turns, query_id from predictions")
    assert frame.schema == {"start_s": pl.Float64, "num_turns": pl.Int64, "query_id": pl.String}
