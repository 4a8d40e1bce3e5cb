"""Model workers on a real Ray cluster of this machine: the same rows as in one process, whatever becomes of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.core.fake_corpus import Given
from tests.core.tiny_models import write_published
from tests.ray_cluster import kill_model_workers, model_workers, outcomes, small_cluster
from tests.small_world import build
from tests.waiting import until
from tests.workers import shard_maker
from vsr1_core.configurations import NANO
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.recipes import ModelRecipe
from vsr1_core.rows import ray_cluster, ray_shares
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.ray_actors import ModelWorkers, map_shards_on_ray
from vsr1_core.rows.results import Result
from vsr1_core.stages.base import Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, in_order
from vsr1_core.stages.model_rows import ModelRows

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
NAMES = list("abcdefghijkl")
LOST = r"a worker was lost \(Actor(Died|Unavailable)Error\)"
"""Ray says the one or the other of a worker that was killed, by whether it has noticed the death of its process yet."""
SAID = ("predictions.sqr_sft", "verification_probe.sqr_sft", "reasoning_traces")
"""Stages that are built here; those that embed are upstream of them."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with small_cluster() as made, ray_cluster.connected(made.address):
        yield made


def made(cluster: Any, folder: Path, names: list[str], count: int = 2, size: int = 4, **more: Any) -> Any:
    workers = ModelWorkers(count, on_gpu=False, shard_size=size)
    return map_shards_on_ray(shard_maker, names, cluster.address, [folder], workers, **more)


def test_every_row_is_made_by_a_few_workers_that_end_with_the_work(cluster: Any, tmp_path: Path) -> None:
    results = outcomes(made(cluster, tmp_path, [*NAMES, "refuse"]))
    assert results.pop("refuse").error == "not a name"
    assert {item: str(r.value).split()[0] for item, r in results.items()} == {name: name.upper() for name in NAMES}
    assert 1 <= len({str(r.value).split()[1] for r in results.values()}) <= 2
    until(lambda: model_workers(cluster) == [])
    assert list(tmp_path.iterdir()) == []


def test_no_rows_start_no_worker(cluster: Any, tmp_path: Path) -> None:
    assert list(made(cluster, tmp_path, [])) == []


def test_rows_that_end_their_worker_are_found_and_given_up(cluster: Any, tmp_path: Path) -> None:
    log = list[str]()
    results = outcomes(made(cluster, tmp_path, [*NAMES[:6], "crash", "broken"], size=8, log=log.append))
    errors = {item: r.error for item, r in results.items() if r.error}
    assert re.fullmatch(f"{LOST}, 3 times with this row", errors.pop("crash"))
    assert errors == {"broken": "a worker's GPU failed, 3 times with this row"}
    assert "its 8 unfinished rows are started again" in log[0]
    assert len(log) <= 8


def test_a_worker_that_says_nothing_is_cut_off(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_shares, "SLACK_S", 12.0)  # a worker says that it is alive every 5 s
    log, stops = list[str](), str(tmp_path / "stopped")
    results = outcomes(made(cluster, tmp_path, ["a", stops, "b"], count=1, size=3, log=log.append))
    assert [r.error for r in results.values()] == [None, None, None]
    assert log
    assert {line.partition("; its ")[0] for line in log} == {"Ray: a node said nothing for 12 s"}


def test_what_no_row_causes_stops_the_work_with_its_reason(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot do this work: 'width'"):
        list(made(cluster, tmp_path, ["a", "bug"]))


def test_leaving_early_ends_the_workers(cluster: Any, tmp_path: Path) -> None:
    results = made(cluster, tmp_path, NAMES)
    next(results)
    assert model_workers(cluster)
    results.close()
    until(lambda: model_workers(cluster) == [])


@dataclass
class World:
    """Tables whose rows this process made, as far as models make them without training."""

    view: View
    tables: dict[str, pl.DataFrame]

    def by_workers(self, name: str, cluster: Any, count: int, log: list[str]) -> Iterator[dict[str, Any]]:
        stage = self.view.stages[name]
        run = Execution(ray=cluster.address, model_workers=count, batch_size=1, log=log.append)
        return stage.make(self.view, stage.planned_rows(self.view), run)

    def check(self, name: str, rows: list[dict[str, Any]]) -> None:
        table, columns = self.view.table(name), [self.view.stages[name].key, *self.view.stages[name].columns]
        expected, found = self.tables[name][columns].sort(table.key), table.frame(rows)[columns].sort(table.key)
        assert expected.height > 2
        assert_frame_equal(found, expected, abs_tol=1e-5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    home = tmp_path_factory.mktemp("home")
    policy, embedder = write_published(home / "policy", seed=1), write_published(home / "embedder", seed=2)
    config = replace(
        NANO,
        toy=replace(NANO.toy, num_train=6, num_val=1, num_test=4),
        models=ModelRecipe(str(policy), str(embedder)),
        pool=replace(NANO.pool, num_matched=3, num_not_matched=3),
        evaluation=replace(NANO.evaluation, methods=("sqr_sft",), max_new_tokens=12),
    )
    entry = DatasetEntry("shown", "toy", str(home / "data/videos"), str(home / "data"))
    view = View(Lake(home / "lake"), entry, config, {}, home=home)
    view = replace(view, stages=_without_training(view, policy))
    build(view, Execution(batch_size=4))
    return World(view, {name: view.table(name).rows() for name in view.stages})


def _without_training(view: View, policy: Path) -> dict[str, Stage]:
    """The stages up to predictions and probes; the checkpoint of `sqr_sft` is the base policy."""
    stages = all_stages()
    names = {"sft_checkpoint", *SAID}
    for _ in stages:
        names |= {read for name in names - {"sft_checkpoint"} for read in stages[name].upstream}
    checkpoint = {"checkpoint": "sft_checkpoint", "path": str(policy), "digest": "one"}
    checkpoint |= {"options": asdict(view.config.models.options)}
    given = Given(stages["sft_checkpoint"], [checkpoint])
    return in_order([given if name == "sft_checkpoint" else stages[name] for name in names])


@pytest.mark.parametrize("name", ["video_embeddings", "reasoning_traces", "verification_probe.sqr_sft"])
def test_workers_make_the_rows_of_one_process(world: World, cluster: Any, name: str) -> None:
    assert isinstance(world.view.stages[name], ModelRows)
    world.check(name, list(world.by_workers(name, cluster, 1, [])))


@pytest.mark.long
def test_workers_killed_in_the_middle_cost_no_row_and_change_none(world: World, cluster: Any) -> None:
    log = list[str]()
    rows = world.by_workers("predictions.sqr_sft", cluster, 1, log)
    first = next(rows)
    kill_model_workers(cluster)  # by now it may have ended this share, or be between its last row and its end
    world.check("predictions.sqr_sft", [first, *rows])
    assert re.search(LOST, "\n".join(log))


@pytest.mark.sweep
def test_a_build_that_was_stopped_keeps_what_its_workers_had_finished(world: World, cluster: Any) -> None:
    name = "query_embeddings"
    stage, table = world.view.stages[name], world.view.table(name)
    seen, run = list[str](), Execution(ray=cluster.address, model_workers=1, batch_size=1, shard_rows=1)
    committed = table.rows()
    table.commit(committed.clear(), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelRows, "_by_workers", _stopping_after(3, ModelRows._by_workers, seen))
        with pytest.raises(KeyboardInterrupt):
            stage.build(world.view, run)
    outcome = stage.build(world.view, run)
    assert outcome.num_processed == committed.height - 3
    world.check(name, table.rows().to_dicts())


def _stopping_after(count: int, real: Any, seen: list[str]) -> Any:
    """A user stops the build after so many rows."""

    def by_workers(*arguments: Any) -> Iterator[Result[str, Any]]:
        for result in real(*arguments):
            if len(seen) == count:
                raise KeyboardInterrupt
            seen.append(result.item)
            yield result

    return by_workers


ALONE = """
import sys
from pathlib import Path
from tests.ray_cluster import listening
from tests.workers import shard_maker
from vsr1_core.rows.ray_actors import ModelWorkers, map_shards_on_ray
from vsr1_core.rows.ray_cluster import THIS_MACHINE
results = map_shards_on_ray(shard_maker, "abc", THIS_MACHINE, [Path(sys.argv[1])], ModelWorkers(2, False, 1))
print("made", next(results).item in "abc", "listening", *sorted(listening()))
print("rest", len(list(results)))
"""


@pytest.mark.long
def test_workers_of_this_machine_need_no_cluster_and_listen_to_nobody_else(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    output = subprocess.run(command, check=False, capture_output=True, text=True, env=environ, timeout=300)
    assert output.returncode == 0, output.stderr
    said, rest = output.stdout.splitlines()
    assert said == "made True listening 127.0.0.1"
    assert rest == "rest 2"
