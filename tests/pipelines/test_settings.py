"""What the environment says, and how a wrong value is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipelines.resources import workplace
from pipelines.settings import prepare_process, read_settings
from vsr1_core.home.execution import choose_processes


@pytest.mark.parametrize("text", ["-1", "much", "nan", "inf", ""])
def test_a_wrong_cache_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="VSR1_CACHE_GB"):
        read_settings({"VSR1_CACHE_GB": text})


def test_an_unknown_text_writer_is_refused_with_the_known_ones() -> None:
    for variable in ("VSR1_TEXT_WRITER", "VSR1_ROLLOUT_WRITER"):
        with pytest.raises(ValueError, match=f"{variable} must be one of in-process, vllm"):
            read_settings({variable: "pen"})


@pytest.mark.parametrize("text", ["ray://head:10001", "head", "head:", ":6379", "head:port"])
def test_an_address_that_is_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="VSR1_RAY must be `auto` or HOST:PORT of the head node"):
        read_settings({"VSR1_RAY": text})
    with pytest.raises(ValueError, match="not 'ray://head:10001'"):
        read_settings({"VSR1_RAY": "auto", "RAY_ADDRESS": "ray://head:10001"})  # which Ray itself would take
    assert read_settings({"RAY_ADDRESS": "ray://head:10001"}).ray == ""
    assert [read_settings({"VSR1_RAY": text}).ray for text in ("", "auto", "head:6379")] == ["", "auto", "head:6379"]


def test_settings_reach_the_stages(tmp_path: Path) -> None:
    environ = {"VSR1_CACHE_GB": "0.5", "VSR1_WORKERS": "3", "VSR1_DEVICE": "cpu", "VSR1_PROCESSES": "2"}
    environ |= {"VSR1_HOME": str(tmp_path), "VSR1_TEXT_WRITER": "vllm", "VSR1_RAY": "auto"}
    environ |= {"VSR1_ROLLOUT_WRITER": "vllm", "VSR1_MAX_REMOVED": "0.5"}
    environ |= {"VSR1_MODEL_WORKERS": "4"}
    environ |= {"VSR1_SAVE_STEPS": "0", "VSR1_TRACKERS": "tensorboard, trackio,"}
    execution = workplace(read_settings(environ)).execution(print)
    assert (execution.device, execution.workers, execution.cache_bytes) == ("cpu", 3, 1 << 29)
    assert (execution.ray, execution.model_workers, execution.max_removed) == ("auto", 4, 0.5)
    assert (execution.processes, execution.text_writer, execution.rollout_writer) == (2, "vllm", "vllm")
    assert (execution.save_steps, execution.trackers) == (0, ("tensorboard", "trackio"))


def test_trainings_share_the_cores_of_a_cpu_and_take_one_gpu_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings({}).processes == 0
    for cores, expected in ((None, 1), (1, 1), (2, 2), (16, 4)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert choose_processes(0, "cpu") == (expected, 5)
    assert choose_processes(0, "cuda") == (1, 0)
    assert choose_processes(3, "cpu") == choose_processes(3, "cuda") == (3, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only processes of Linux are forked")
def test_the_steps_of_a_run_fork_one_process_that_ends_with_the_run(tmp_path: Path) -> None:
    used: list[Any] = []

    @dg.op(required_resource_keys={"workplace"})
    def step(context) -> None:  # Dagster reads the annotation, which is a string here
        forks = context.resources.workplace.execution(print).forks
        forks._prepare = "tests.core.forked:prepare"
        assert forks.start("tests.core.forked:end_with_code", [5]).wait() == 5
        used.append(forks._origin)

    @dg.job(resource_defs={"workplace": workplace(read_settings({"VSR1_HOME": str(tmp_path)}))})
    def run() -> None:
        step.alias("one")()
        step.alias("two")()

    assert run.execute_in_process().success
    assert used[0] is used[1]
    assert used[0] is not None
    assert not used[0].is_alive()


def test_polars_is_told_how_to_keep_memory_unless_the_user_said_how() -> None:
    own = {"_RJEM_MALLOC_CONF": "narenas:8"}
    prepare_process(own)
    assert own["_RJEM_MALLOC_CONF"] == "narenas:8"
    code = "from pipelines.settings import prepare_process; prepare_process(); import os, polars"
    code += "; print(os.environ['_RJEM_MALLOC_CONF'])"
    clean = {name: value for name, value in os.environ.items() if name not in own}
    told = subprocess.run([sys.executable, "-c", code], env=clean, check=True, stdout=subprocess.PIPE, text=True)
    assert told.stdout.strip().endswith(",narenas:1")
