"""`vsr1 doctor`: is this machine ready, and if not, what to do. Each check is one function."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.resources import Settings
from vsr1_core.lake import atomic_path

PACKAGES = ("torch", "transformers", "trl", "dagster", "polars", "duckdb", "faiss-cpu", "av")
MIN_FREE_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """level: ok | note | problem. `advice` says what to do; empty when nothing is to be done."""

    name: str
    level: str
    found: str
    advice: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """All checks, one at a time, cheap ones first."""
    yield _python()
    for package in PACKAGES:
        yield _package(package)
    for check in (_home, _disk):
        yield check(settings.home)
    others: tuple[Callable[[], Finding], ...] = (_ffmpeg, _wait_policy, _torch, _faiss, _ui)
    for other in others:
        yield other()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "problem", version, "" if good else "use Python 3.11 or newer")


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "problem", "not installed", 'run: pip install -c constraints.txt -e "."')


def _home(home: Path) -> Finding:
    try:
        with atomic_path(home / ".doctor") as probe:
            probe.write_text("")
        (home / ".doctor").unlink()
    except OSError as error:
        return Finding("home", "problem", f"{home}: {error}", "set VSR1_HOME to a folder that you can write to")
    return Finding("home", "ok", str(home))


def _disk(home: Path) -> Finding:
    place = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    advice = "" if free >= MIN_FREE_GIB else "free some space, or set VSR1_HOME to a larger disk"
    return Finding("disk", "problem" if advice else "ok", f"{free:.1f} GiB free", advice)


def _ffmpeg() -> Finding:
    if shutil.which("ffprobe"):
        return Finding("ffprobe", "ok", str(shutil.which("ffprobe")))
    return Finding("ffprobe", "note", "not installed", "only tests need it: apt-get install ffmpeg")


def _wait_policy() -> Finding:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    advice = (
        "" if policy.upper() == "PASSIVE" else "unset OMP_WAIT_POLICY, or set it to PASSIVE: threads spin otherwise"
    )
    return Finding("OpenMP", "note" if advice else "ok", f"OMP_WAIT_POLICY={policy}", advice)


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("torch runs", "problem", str(error), "run: make setup")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    on = ", ".join(devices) if devices else "the CPU"
    return Finding("torch runs", "ok", f"on {on}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")


def _faiss() -> Finding:
    try:
        import faiss
    except ImportError as error:
        return Finding("faiss runs", "problem", str(error), "pip install --force-reinstall --no-deps faiss-cpu")
    has_gpu_build = "GPU" in faiss.get_compile_options()
    wants_gpu = _is_installed("faiss-gpu")
    if wants_gpu and not has_gpu_build:
        advice = "faiss-cpu overwrote faiss-gpu: pip install --force-reinstall --no-deps faiss-gpu"
        return Finding("faiss runs", "problem", "the CPU build, though faiss-gpu is installed", advice)
    return Finding("faiss runs", "ok", "GPU build" if has_gpu_build else "CPU build")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _ui() -> Finding:
    if _is_installed("dagster-webserver"):
        return Finding("web UI", "ok", importlib.metadata.version("dagster-webserver"))
    return Finding("web UI", "note", "not installed", 'for `vsr1 ui`: pip install -c constraints.txt -e ".[ui]"')
