"""Row work on a real Ray cluster of this machine: every item has one result, whatever becomes of nodes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from pipelines import doctor
from pipelines.settings import Settings
from tests.ray_cluster import NODE_MEMORY, START_S, outcomes, small_cluster
from tests.small_world import NOT_A_VIDEO, SmallWorld, build, fill
from tests.waiting import until
from tests.workers import misbehave, square, started_process, threads_and_process, wait_for_file
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.media.frame_store import read_frames
from vsr1_core.rows import ray_cluster, ray_shares, ray_workers
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.process_identity import identity_of
from vsr1_core.rows.ray_workers import map_rows_on_ray
from vsr1_core.rows.results import Result
from vsr1_core.stages import corpus, frames
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import in_order
from vsr1_core.toy_recipe import ToyRecipe

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
NANO = CONFIGURATIONS["nano"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with small_cluster() as made:
        yield made


@pytest.fixture(scope="module")
def joined(cluster: Any) -> Iterator[Any]:
    """The cluster, with a connection that tests share, as each new one starts worker processes."""
    with ray_cluster.connected(cluster.address):
        yield cluster


def test_a_connection_of_its_own_ends_with_the_work(cluster: Any, tmp_path: Path) -> None:
    """This one and the next ones come before `joined` is first asked for: a process has one connection."""
    assert len(outcomes(map_rows_on_ray(square, range(3), cluster.address, [tmp_path]))) == 3
    assert not ray.is_initialized()


def test_the_doctor_says_what_the_cluster_has(cluster: Any, tmp_path: Path) -> None:
    found = {finding.name: finding for finding in doctor.examine(Settings(tmp_path, ray=cluster.address))}
    assert (found["Ray"].level, found["Ray"].found) == ("ok", f"{cluster.address}: 2 nodes, 2 CPUs, 0 GPUs")
    assert "Ray's dashboard" not in found
    wrong = {finding.name: finding for finding in doctor.examine(Settings(tmp_path, ray="127.0.0.1:1"))}
    assert wrong["Ray"].level == "problem"


def test_no_items_need_no_cluster(tmp_path: Path) -> None:
    assert list(map_rows_on_ray(square, [], "nowhere:1", [tmp_path])) == []


def test_no_cluster_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot join the Ray cluster of VSR1_RAY=127\.0\.0\.1:1"):
        list(map_rows_on_ray(square, range(3), "127.0.0.1:1", [tmp_path]))


def test_a_machine_on_which_ray_does_not_start_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does, where the machine is busy

    monkeypatch.setenv(*ray_cluster._LOOPBACK)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(ValueError, match="Ray cannot be started on this machine: The current node timed out"):
        list(map_rows_on_ray(square, range(3), ray_cluster.THIS_MACHINE, [tmp_path]))


def test_every_item_has_one_result(joined: Any, tmp_path: Path) -> None:
    results = outcomes(map_rows_on_ray(square, range(41), joined.address, [tmp_path]))
    assert {item: result.value for item, result in results.items()} == {n: n * n for n in range(41)}
    assert list(tmp_path.iterdir()) == []
    assert ray.is_initialized()


def test_rows_are_done_in_other_processes_with_one_thread_each(joined: Any, tmp_path: Path) -> None:
    done = [r.value for r in map_rows_on_ray(threads_and_process, range(20), joined.address, [tmp_path])]
    assert {threads for threads, _ in done} == {"1"}
    assert os.getpid() not in {process for _, process in done}
    assert len({process for _, process in done}) == 3  # one a task, of 8 rows each


def test_crashes_hangs_and_errors_fail_only_their_row(joined: Any, tmp_path: Path) -> None:
    items = ["a", "crash", "b", "hang", "c", "refuse", "bug", "d"]
    results = outcomes(map_rows_on_ray(misbehave, items, joined.address, [tmp_path], deadline_s=15))
    assert {item: result.value for item, result in results.items() if result.error is None} == {
        item: item.upper() for item in "abcd"
    }
    assert "signal 11" in str(results["crash"].error)
    assert "longer than 15 s" in str(results["hang"].error)
    assert results["refuse"].error == "the video is not a video"
    assert "unexpected KeyError at workers.py" in str(results["bug"].error)


def test_rows_of_a_dead_node_go_to_another(joined: Any, tmp_path: Path) -> None:
    gate, log = tmp_path / "gate", list[str]()

    def note(line: str) -> None:
        log.append(line)
        gate.touch()

    extra = joined.add_node(num_cpus=2, **NODE_MEMORY)
    joined.wait_for_nodes(START_S)
    items = [(n, str(gate)) for n in range(32)]  # in tasks on all 4 CPUs; none can end before a loss is noticed
    results = map_rows_on_ray(wait_for_file, [(-1, ""), *items], joined.address, [tmp_path], log=note)
    found = [next(results)]
    until(lambda: len(list(tmp_path.glob("gate.*"))) == 4)  # on both nodes
    joined.remove_node(extra, allow_graceful=False)
    found += results
    assert sorted(result.item[0] for result in found) == [-1, *range(32)]
    assert [result.error for result in found if result.error] == []
    assert any("a worker was lost" in line for line in log)


def test_a_row_that_loses_nodes_again_and_again_is_given_up(joined: Any, tmp_path: Path) -> None:
    log = list[str]()
    items = ["a", "crash-parent", "b"]
    results = outcomes(map_rows_on_ray(misbehave, items, joined.address, [tmp_path], log=log.append))
    assert "3 times with this row" in str(results["crash-parent"].error)
    assert [results[item].value for item in "ab"] == ["A", "B"]
    assert len(log) == 2


def test_a_node_that_says_nothing_is_given_up(joined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_shares, "SLACK_S", -590.0)  # the node itself would stop the row after 600 s
    monkeypatch.setattr(ray_shares, "MAX_LOSSES", 2)
    results = outcomes(map_rows_on_ray(misbehave, ["a", "hang", "b"], joined.address, [tmp_path], deadline_s=600))
    assert "said nothing for 10 s, 2 times" in str(results["hang"].error)
    assert [results[item].value for item in "ab"] == ["A", "B"]


def test_leaving_early_ends_the_work(joined: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = map_rows_on_ray(wait_for_file, [(0, ""), (1, str(gate))], joined.address, [tmp_path])
    assert next(results).value == 0
    process = started_process(gate, 1)
    assert identity_of(process).state() == "alive"
    results.close()
    until(lambda: identity_of(process).state() == "dead")  # also where nobody waits for it


def test_a_node_that_does_not_see_the_lake_stops_the_work(
    joined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = contextlib.nullcontext(SimpleNamespace(name=str(tmp_path / "on-another-disk")))
    monkeypatch.setattr(ray_cluster.tempfile, "NamedTemporaryFile", lambda **_: elsewhere)
    with pytest.raises(ValueError, match=r"cannot do this work: it does not see .* on storage that all nodes share"):
        list(map_rows_on_ray(square, range(3), joined.address, [tmp_path]))


def test_a_node_with_another_version_stops_the_work(
    joined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "code_digest", lambda: "another")
    with pytest.raises(ValueError, match="cannot do this work: it has another version of this project"):
        list(map_rows_on_ray(square, range(3), joined.address, [tmp_path]))


def test_a_node_that_lacks_the_code_stops_the_work(
    joined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def work(item):\n    return item\n")
    monkeypatch.syspath_prepend(str(tmp_path))  # after joining, which is when nodes hear of this process's path
    only_here = importlib.import_module("only_here")
    with pytest.raises(ValueError, match=r"cannot do this work: .*only_here"):
        list(map_rows_on_ray(only_here.work, range(3), joined.address, [tmp_path]))


def test_what_a_node_needs_is_checked(tmp_path: Path) -> None:
    sign, videos = tmp_path / "sign", tmp_path / "videos"
    sign.touch()
    needed = ray_cluster.Needed(sign, [videos], ray_cluster.code_digest())
    with pytest.raises(ValueError, match=r"does not see .*videos, which"):
        needed.check()
    videos.mkdir()
    needed.check()
    assert sorted(tmp_path.iterdir()) == [sign, videos]
    sign.unlink()
    with pytest.raises(ValueError, match=f"does not see {tmp_path}, which"):
        needed.check()


@pytest.fixture
def on_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of functions that were applied on the cluster."""
    names = list[str]()

    def spy(function: Any, *arguments: Any) -> Iterator[Result[Any, Any]]:
        names.append(function.function.__name__)  # of what `Execution.map_rows` wraps
        return map_rows_on_ray(function, *arguments)

    monkeypatch.setattr(ray_workers, "map_rows_on_ray", spy)
    return names


def test_stages_make_the_same_rows_on_a_cluster(joined: Any, tmp_path: Path, on_ray: list[str]) -> None:
    world = fill(SmallWorld(tmp_path / "home"))
    world.put_video("train_1", NOT_A_VIDEO)
    found = []
    for execution in (Execution(workers=1), Execution(ray=joined.address)):
        root = tmp_path / f"lake-{execution.ray or 'here'}"
        stages = in_order([stage() for stage in (*corpus.STAGES, *frames.STAGES)])
        view = world.view(stages, NANO, root)
        build(view, execution)
        rows = {name: view.table(name).rows().sort(stage.key) for name, stage in view.stages.items()}
        tables = {name: frame.drop("path" if name == "frame_tensors" else ()) for name, frame in rows.items()}
        arrays = {row["video_id"]: read_frames(Path(row["path"])) for row in view.rows("frame_tensors").to_dicts()}
        found.append((tables, arrays))
    assert on_ray == ["probe_video", "sample_video"]
    (here, here_arrays), (there, there_arrays) = found
    for name in here:
        assert_frame_equal(here[name], there[name])
    assert len(here_arrays) == 8
    for video_id, array in here_arrays.items():
        np.testing.assert_array_equal(array, there_arrays[video_id])


def test_clips_are_rendered_on_a_cluster_in_a_new_home(joined: Any, tmp_path: Path, on_ray: list[str]) -> None:
    entry = DatasetEntry("drawn", "toy", str(tmp_path / "videos"), str(tmp_path / "annotations"))
    config = dataclasses.replace(NANO, toy=ToyRecipe(num_train=2, num_val=1, num_test=1))
    view = View(Lake(tmp_path / "home" / "lake"), entry, config, in_order([stage() for stage in corpus.STAGES]))
    view.stages["raw_videos"].build(view, Execution(ray=joined.address))
    assert on_ray == ["_render_video"]
    paths = view.rows("raw_videos")["path"].to_list()
    assert sorted(map(Path, paths)) == sorted((tmp_path / "videos").glob("*.mp4"))
    assert len(paths) == 4
