"""`vsr1 doctor`: says whether this machine is ready and, if it is not, what to do. Each check is one function.

`pipelines.doctor_build` has what the build of a dataset needs.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.settings import Settings
from vsr1_core.configuration_files import load_configuration, own_names
from vsr1_core.home.capacity import GIB
from vsr1_core.rows.files import atomic_path
from vsr1_core.rows.ray_cluster import connected

PACKAGES = (
    *("torch", "transformers", "trl", "accelerate", "datasets", "polars", "duckdb", "faiss-cpu", "av"),
    *("httpx2", "tenacity"),
)
MIN_FREE_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """Result of one check. `level` is ok, note or problem; `advice` says what to do, and is empty if nothing has to be
    done."""

    name: str
    level: str
    found: str
    advice: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Run all checks of the machine, one at a time, the cheap ones first."""
    yield _python()
    for package in PACKAGES:
        yield _package(package)
    for check in (_home, _disk):
        yield check(settings.home)
    yield from _configurations(settings.home)
    others: tuple[Callable[[], Finding], ...] = (_ffmpeg, _wait_policy, _torch, _faiss)
    for other in others:
        yield other()
    advice = 'run: pip install -c constraints.txt -e ".[{}]"'
    yield _package("dagster", level="note", advice="`vsr1 build` and the graph need it; " + advice.format("dagster"))
    yield _package("dagster-webserver", "web UI", "note", "`vsr1 ui` needs it; " + advice.format("ui"))
    if settings.ray:
        yield from _ray(settings.ray)
    elif settings.model_workers:
        yield _package("ray", advice="VSR1_MODEL_WORKERS needs it; " + advice.format("ray"))


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "problem", version, "" if good else "use Python 3.11 or newer")


def _package(
    name: str,
    label: str = "",
    level: str = "problem",
    advice: str = 'run: pip install -c constraints.txt -e "."',
) -> Finding:
    """Whether a package is installed, under `label`. level, advice: those of the finding where it is not."""
    try:
        return Finding(label or name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(label or name, level, "not installed", advice)


def _home(home: Path) -> Finding:
    try:
        with atomic_path(home / ".doctor", lasting=False) as probe:
            probe.write_text("")
        (home / ".doctor").unlink()
    except OSError as error:
        return Finding("home", "problem", f"{home}: {error}", "set VSR1_HOME to a folder that you can write to")
    return Finding("home", "ok", str(home))


def _disk(home: Path) -> Finding:
    free = free_bytes(home) / GIB
    advice = "" if free >= MIN_FREE_GIB else "free some space, or set VSR1_HOME to a larger disk"
    return Finding("disk", "problem" if advice else "ok", f"{free:.1f} GiB free", advice)


def free_bytes(home: Path) -> int:
    """Free space on the disk of `home`, which need not exist yet."""
    return shutil.disk_usage(next(p for p in (home, *home.parents) if p.exists())).free


def _configurations(home: Path) -> Iterator[Finding]:
    """Whether the user's own configurations can be read; no finding if there are none."""
    usable = []
    for name in own_names(home):
        try:
            load_configuration(home, name)
            usable.append(name)
        except (ValueError, LookupError) as error:
            yield Finding("configuration", "problem", str(error.args[0]), f"correct it, then: vsr1 config show {name}")
    if usable:
        yield Finding("configurations", "ok", ", ".join(usable))


def _ffmpeg() -> Finding:
    if shutil.which("ffprobe"):
        return Finding("ffprobe", "ok", str(shutil.which("ffprobe")))
    return Finding("ffprobe", "note", "not installed", "only the tests need it; run: apt-get install ffmpeg")


def _wait_policy() -> Finding:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    is_passive = policy.upper() == "PASSIVE"
    advice = "" if is_passive else "unset OMP_WAIT_POLICY, or set it to PASSIVE: otherwise waiting threads use cores"
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
        return Finding("faiss runs", "problem", str(error), "run: pip install --force-reinstall --no-deps faiss-cpu")
    has_gpu_build = "GPU" in faiss.get_compile_options()
    wants_gpu = _is_installed("faiss-gpu")
    if wants_gpu and not has_gpu_build:
        advice = "faiss-cpu has overwritten faiss-gpu; run: pip install --force-reinstall --no-deps faiss-gpu"
        return Finding("faiss runs", "problem", "the CPU build, although faiss-gpu is installed", advice)
    return Finding("faiss runs", "ok", "GPU build" if has_gpu_build else "CPU build")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _ray(address: str) -> Iterator[Finding]:
    try:
        with connected(address) as ray:
            num_nodes, total = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()
            dashboard = ray.init(ignore_reinit_error=True).dashboard_url or ""  # joins nothing: it is connected
    except ValueError as error:
        yield Finding("Ray", "problem", str(error), "or unset VSR1_RAY, so that row work runs on this machine")
        return
    num_cpus, num_gpus = total.get("CPU", 0), total.get("GPU", 0)
    advice = "" if num_cpus else "start a node with CPUs; builds wait until one joins"
    found = f"{address}: {num_nodes} nodes, {num_cpus:g} CPUs, {num_gpus:g} GPUs"
    yield Finding("Ray", "note" if advice else "ok", found, advice)
    yield from _dashboard(dashboard)


def _dashboard(url: str) -> Iterator[Finding]:
    """Whoever reaches the dashboard of a Ray cluster can run programs on it."""
    if url and url.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
        advice = "start the head with --include-dashboard=false, or with --dashboard-host=127.0.0.1"
        yield Finding("Ray's dashboard", "note", f"{url} lets everyone in the network run programs", advice)
