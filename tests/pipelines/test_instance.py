"""Dagster's own state: SQLite in the home, or PostgreSQL where the environment asks for it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
import yaml
from alembic.script import ScriptDirectory

from pipelines import instance
from pipelines.event_log import MAX_OPEN, EventLog
from pipelines.instance import dagster_home, free_places_assigned, open_instance
from pipelines.progress import progress_logger
from pipelines.settings import uses_postgres

URL = "postgresql+psycopg2://me:secret@127.0.0.1:5432/runs"


def test_without_a_database_everything_is_in_the_home(tmp_path: Path) -> None:
    with open_instance(tmp_path) as opened:
        assert opened.run_monitoring_enabled
        assert opened.get_concurrency_config().pool_config.default_pool_limit == 1
    assert (tmp_path / "dagster" / "history").is_dir()


OTHER_STORAGE = {
    "storage": {"sqlite": {"base_dir": "{folder}/other"}},
    "event_log_storage": {
        "module": "dagster._core.storage.event_log",
        "class": "ConsolidatedSqliteEventLogStorage",
        "config": {"base_dir": "{folder}/other"},
    },
}


@pytest.mark.parametrize("key", OTHER_STORAGE)
def test_storage_that_the_settings_name_is_used(tmp_path: Path, key: str) -> None:
    text = yaml.safe_dump({key: OTHER_STORAGE[key]}).replace("{folder}", str(tmp_path))
    (dagster_home(tmp_path) / "dagster.yaml").write_text(text)
    with open_instance(tmp_path) as opened:
        assert not isinstance(opened.event_log_storage, EventLog)
    assert list((tmp_path / "other").rglob("*.db"))


@dg.asset
def few_rows() -> int:
    return 1


def test_events_reach_dagsters_own_storage_from_several_threads_and_few_databases_stay_open(tmp_path: Path) -> None:
    with open_instance(tmp_path) as opened, dg.DagsterInstance.from_config(str(dagster_home(tmp_path))) as plain:
        log = opened.event_log_storage
        assert isinstance(log, EventLog)
        runs = [dg.materialize([few_rows], instance=opened).run_id for _ in range(MAX_OPEN + 2)]
        with ThreadPoolExecutor(4) as threads:
            seen = list(threads.map(lambda run: len(opened.all_logs(run)), runs * 3))
        assert seen == [len(plain.all_logs(run)) for run in runs] * 3
        assert min(seen) > 10
        assert len(plain.fetch_materializations(few_rows.key, limit=99).records) == len(runs)
        assert _open_databases(tmp_path) <= MAX_OPEN
    assert _open_databases(tmp_path) == 0
    with open_instance(tmp_path) as again:
        assert dg.materialize([few_rows], instance=again).success
        again.wipe()
        assert again.all_logs(runs[0]) == []


def _open_databases(home: Path) -> int:
    """Event databases that this process has open."""
    files = {fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    return sum(file.is_relative_to(home / "dagster/history/runs") and file.suffix == ".db" for file in files)


def test_the_migrations_are_read_once_and_new_databases_are_at_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_instance(tmp_path / "first"):
        pass
    read, count = ScriptDirectory._load_revisions, list[int]()
    monkeypatch.setattr(ScriptDirectory, "_load_revisions", lambda self: count.append(1) or read(self))
    with open_instance(tmp_path / "second") as opened:
        run = dg.materialize([few_rows], instance=opened)
        assert opened.all_logs(run.run_id)
        for storage in (opened.run_storage, opened.event_log_storage, opened.schedule_storage):
            found, last = storage.alembic_version()  # type: ignore[union-attr]
            assert found == last is not None
    assert count == []


def test_an_edited_file_is_kept(tmp_path: Path) -> None:
    path = dagster_home(tmp_path) / "dagster.yaml"
    path.write_text("telemetry: {enabled: false}\n")
    assert dagster_home(tmp_path) / "dagster.yaml" == path
    assert path.read_text() == "telemetry: {enabled: false}\n"


def test_a_database_has_a_folder_of_its_own_and_its_password_stays_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "find_spec", lambda name: object())
    plain = dagster_home(tmp_path)
    monkeypatch.setenv("VSR1_POSTGRES_URL", URL)
    folder = dagster_home(tmp_path)
    assert folder != plain
    text = (folder / "dagster.yaml").read_text()
    assert yaml.safe_load(text)["storage"] == {"postgres": {"postgres_url": {"env": "VSR1_POSTGRES_URL"}}}
    assert "secret" not in text


def test_a_missing_package_and_a_wrong_url_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "find_spec", lambda name: None)
    monkeypatch.setenv("VSR1_POSTGRES_URL", URL)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[postgres\]'"):
        dagster_home(tmp_path)
    with pytest.raises(ValueError, match=r"must be like postgresql\+psycopg2://") as raised:
        uses_postgres({"VSR1_POSTGRES_URL": "postgresql://me:secret@host/runs"})
    assert "secret" not in str(raised.value)


def test_a_free_place_of_a_pool_reaches_the_step_that_missed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place is given back between the second step's look and its entry in the list of those that wait."""
    monkeypatch.setattr(instance, "SECONDS_BETWEEN_ASSIGNMENTS", 0.1)
    with open_instance(tmp_path) as opened:
        storage = opened.event_log_storage
        storage.initialize_concurrency_limit_to_default("decode")
        assert storage.claim_concurrency_slot("decode", "first", "videos").is_claimed
        look = storage.has_unassigned_slots

        def look_then_give_back(key: str) -> bool:
            found = look(key)
            storage.free_concurrency_slot_for_step("first", "videos")
            return bool(found)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "has_unassigned_slots", look_then_give_back)
            assert not storage.claim_concurrency_slot("decode", "second", "frame_tensors").is_claimed
        assert not storage.claim_concurrency_slot("decode", "second", "frame_tensors").is_claimed
        deadline, is_claimed = time.monotonic() + 60, False
        with free_places_assigned(opened):
            while not is_claimed and time.monotonic() < deadline:
                time.sleep(0.1)
                is_claimed = storage.claim_concurrency_slot("decode", "second", "frame_tensors").is_claimed
    assert is_claimed


@pytest.mark.slow
def test_a_step_that_waits_for_a_place_in_a_pool_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "SECONDS_BETWEEN_ASSIGNMENTS", 1.0)

    @dg.op(pool="gpu")
    def trains() -> None:
        pass

    @dg.job(logger_defs={"progress": progress_logger})
    def job() -> None:
        trains()

    with open_instance(tmp_path) as opened:
        other = opened.create_run_for_job(job)
        storage = opened.event_log_storage
        storage.initialize_concurrency_limit_to_default("gpu")
        assert storage.claim_concurrency_slot("gpu", other.run_id, "trains").is_claimed
        results = []
        loggers = {"loggers": {"progress": {}}}
        waiting = threading.Thread(
            target=lambda: results.append(job.execute_in_process(instance=opened, run_config=loggers))
        )
        waiting.start()
        said = ""
        with free_places_assigned(opened):  # as in a build: without it, a step may wait for ever beside a free place
            try:
                deadline = time.monotonic() + 60
                while "waits" not in said and time.monotonic() < deadline:
                    time.sleep(0.1)
                    said += capfd.readouterr().err
            finally:
                storage.free_concurrency_slots_for_run(other.run_id)
                waiting.join(120)
    assert "trains waits, because another run holds the place in pool gpu" in said
    assert [result.success for result in results] == [True]
