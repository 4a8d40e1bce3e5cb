"""Reads the environment; no other module does: VSR1_HOME, _DEVICE, _WORKERS, _RAY, _MODEL_WORKERS, _CACHE_GB,
_PROCESSES, _MICRO_BATCH, _PRECISION, _TEXT_WRITER, _ROLLOUT_WRITER, _SAVE_STEPS, _MAX_REMOVED, _TRACKERS,
_VIDEO_LIMITS, _SERVE_TOKEN and VSR1_TEACHER_*, and whether VSR1_POSTGRES_URL is set. Dagster is not imported here,
because most commands do not need it."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipelines.bars import show_step
from vsr1_core.media.video_limits import DEFAULT_LIMITS, VideoLimits

if TYPE_CHECKING:
    from vsr1_core.reasoning.tasks import EndpointSettings
    from vsr1_core.stages.execution import Execution, Precision, TextWriterName

_PROCESS_DEFAULTS = {
    # Unless this is set before torch is imported, threads of libgomp spin at barriers: one training step took
    # 3,780 ms instead of 46 while another process used a core.
    "OMP_WAIT_POLICY": "PASSIVE",
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Polars' allocator has four arenas for each core, and memory that one thread gave back to its own is not used by
    # others: a plan of 100,000 queries took 51 MiB where it takes 40, in as much processor time. Polars appends this to
    # what it sets itself.
    "_RJEM_MALLOC_CONF": "narenas:1",
}

POSTGRES_URL = "VSR1_POSTGRES_URL"


@dataclass(frozen=True)
class Settings:
    """Where files are kept, and what the work runs on."""

    home: Path
    device: str = "auto"
    """A device name of torch, or `auto`."""
    workers: int = 1
    """How many processes of this machine do row work."""
    ray: str = ""
    """Address of a Ray cluster that does the row work; empty for `workers` processes of this machine."""
    model_workers: int = 0
    """How many workers, one per GPU of the Ray cluster or of this machine, make what models say; 0: this process."""
    cache_gb: float = 20.0
    """GiB (2**30 bytes) of disk for the cache of vision features, and as much again for query vectors; 0 for none."""
    processes: int = 0
    """How many processes train together; 0: see `choose_processes`."""
    micro_batch_size: int = 0
    """How many episodes of stage 2 go through one backward pass; 0: as many as the GPU's memory allows, a few groups at
    most."""
    precision: Precision = "auto"
    """Precision of inference: `fp32`, `bf16`, or `auto`, which goes by the device and the models."""
    text_writer: TextWriterName = "in-process"
    """What writes the text in searches."""
    rollout_writer: TextWriterName = "in-process"
    """What writes the text of the episodes that stage 2 samples."""
    save_steps: int = 50
    """A training saves its state every so many steps."""
    max_removed: float = 0.1
    """Share of a dataset's known files that may be gone at once before a build stops."""
    trackers: tuple[str, ...] = ()
    """Names of the trackers to which a training reports what it logs."""
    video_limits: str = ""
    """What differs from the default `VideoLimits`, as assignments: `memory_gb=4 codecs=h264,hevc`."""


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from the environment. Raises ValueError, which says which variable is wrong."""
    from vsr1_core.stages.execution import Precision, TextWriterName

    workers = _count(environ, "VSR1_WORKERS", max(1, os.cpu_count() or 1))
    home = Path(environ.get("VSR1_HOME") or "vsr1_home").expanduser().absolute()
    device = environ.get("VSR1_DEVICE", "auto")
    return Settings(
        home,
        device,
        workers,
        ray=_ray_address(environ),
        model_workers=_count(environ, "VSR1_MODEL_WORKERS", Settings.model_workers, at_least=0),
        cache_gb=_cache_gb(environ),
        processes=_count(environ, "VSR1_PROCESSES", Settings.processes, at_least=0),
        micro_batch_size=_count(environ, "VSR1_MICRO_BATCH", Settings.micro_batch_size, at_least=0),
        precision=_choice(environ, "VSR1_PRECISION", Precision, Settings.precision),
        text_writer=_choice(environ, "VSR1_TEXT_WRITER", TextWriterName, Settings.text_writer),
        rollout_writer=_choice(environ, "VSR1_ROLLOUT_WRITER", TextWriterName, Settings.rollout_writer),
        save_steps=_count(environ, "VSR1_SAVE_STEPS", Settings.save_steps, at_least=0),
        max_removed=_max_removed(environ),
        trackers=tuple(name.strip() for name in environ.get("VSR1_TRACKERS", "").split(",") if name.strip()),
        video_limits=_video_limits(environ),
    )


def _count(environ: Mapping[str, str], name: str, default: int, at_least: int = 1) -> int:
    text = environ.get(name, str(default))
    if not text.isdigit() or int(text) < at_least:
        raise ValueError(f"{name} must be a number of at least {at_least}, not {text!r}")
    return int(text)


def _ray_address(environ: Mapping[str, str]) -> str:
    address = environ.get("VSR1_RAY", "").strip()
    if address == "auto":
        address = environ.get("RAY_ADDRESS", "").strip() or address  # which Ray itself would use
    host, _, port = address.rpartition(":")
    if address not in ("", "auto") and (not host or "/" in host or not port.isdigit()):
        # A Ray client (`ray://`) cannot stream answers.
        raise ValueError(f"VSR1_RAY must be `auto` or HOST:PORT of the head node, not {address!r}")
    return address


def _choice(environ: Mapping[str, str], variable: str, choices: Any, default: str) -> Any:
    """The value of a variable that has to be one of `choices`, which is a Literal."""
    name = environ.get(variable) or default
    if name not in get_args(choices):
        raise ValueError(f"{variable} must be one of {', '.join(get_args(choices))}, not {name!r}")
    return name


def _video_limits(environ: Mapping[str, str]) -> str:
    text = environ.get("VSR1_VIDEO_LIMITS", "").strip()
    video_limits_of(text)
    return text


def video_limits_of(text: str) -> VideoLimits:
    """The default limits with the assignments of `text`, such as `memory_gb=4 codecs=h264,hevc`. Raises ValueError,
    which names the limit and what it may be."""
    from vsr1_core.settings import Source, changed, parsed

    names = ", ".join(field.name for field in dataclasses.fields(VideoLimits))
    for part in text.split():
        if "=" not in part:
            raise ValueError(f"VSR1_VIDEO_LIMITS has to be NAME=VALUE NAME=VALUE, not {part!r}; the names are: {names}")
    return changed(DEFAULT_LIMITS, parsed(text.split(), DEFAULT_LIMITS), Source("VSR1_VIDEO_LIMITS"))


def _cache_gb(environ: Mapping[str, str]) -> float:
    text = environ.get("VSR1_CACHE_GB", str(Settings.cache_gb))
    value = _float_of(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"VSR1_CACHE_GB must be a number of at least 0, not {text!r}")
    return value


def _max_removed(environ: Mapping[str, str]) -> float:
    text = environ.get("VSR1_MAX_REMOVED", str(Settings.max_removed))
    value = _float_of(text)
    if not 0 <= value <= 1:
        raise ValueError(f"VSR1_MAX_REMOVED must be a share between 0 and 1, not {text!r}")
    return value


def _float_of(text: str) -> float:
    """The number that a text stands for; nan, which lies in no range, where it stands for none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def read_endpoint(environ: Mapping[str, str] = os.environ) -> EndpointSettings | None:
    """The teacher's endpoint from VSR1_TEACHER_URL, _API_KEY, _CONCURRENCY, _TIMEOUT_S and _MAX_REQUESTS; None if no
    URL is set. Raises ValueError, which says which variable is wrong."""
    from vsr1_core.reasoning.tasks import EndpointSettings

    url = environ.get("VSR1_TEACHER_URL", "").strip()
    if not url:
        return None
    default = EndpointSettings(url)
    return EndpointSettings(
        url,
        environ.get("VSR1_TEACHER_API_KEY", "").strip(),
        int(_number(environ, "VSR1_TEACHER_CONCURRENCY", default.concurrency)),
        _number(environ, "VSR1_TEACHER_TIMEOUT_S", default.timeout_s),
        int(_number(environ, "VSR1_TEACHER_MAX_REQUESTS", default.max_requests)),
    )


def read_token(environ: Mapping[str, str] = os.environ) -> str:
    """The token that `vsr1 serve` asks for, from VSR1_SERVE_TOKEN; empty where it is not set. ValueError: it is too
    short to be secret."""
    token = environ.get("VSR1_SERVE_TOKEN", "").strip()
    if token and (len(token) < 16 or not token.isascii() or not token.isprintable()):
        raise ValueError("VSR1_SERVE_TOKEN must have at least 16 ASCII characters")
    return token


def uses_postgres(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether Dagster keeps its runs in the database of VSR1_POSTGRES_URL. Raises ValueError if the URL cannot be used.

    Dagster reads the URL itself, through SQLAlchemy, where from 2.1 on `postgresql://` means another driver than the
    one that dagster-postgres installs. The URL contains a password, so no message shows it.
    """
    url = environ.get(POSTGRES_URL, "")
    if url and not url.startswith("postgresql+psycopg2://"):
        raise ValueError(f"{POSTGRES_URL} must be like postgresql+psycopg2://user:password@host:5432/database")
    return bool(url)


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(environ.get(name) or default)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {environ[name]!r}") from None


def prepare_process(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that must be in the environment before torch and polars are imported. A value that the user set
    is kept."""
    for name, value in _PROCESS_DEFAULTS.items():
        environ.setdefault(name, value)
    if not sys.stderr.isatty():  # in captured logs a progress bar would be thousands of lines
        environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def execution_of(settings: Settings, log: Callable[[str], Any]) -> Execution:
    """How work runs under these settings. The teacher's endpoint is read from the environment."""
    from vsr1_core.home.execution import choose_device, choose_processes
    from vsr1_core.rows.progress import Log
    from vsr1_core.stages.execution import Execution

    device = choose_device(settings.device)
    processes, fewest = choose_processes(settings.processes, device)
    return Execution(
        device=device,
        workers=settings.workers,
        ray=settings.ray,
        model_workers=settings.model_workers,
        endpoint=read_endpoint(),
        cache_bytes=int(settings.cache_gb * (1 << 30)),
        processes=processes,
        min_shared_steps=fewest,
        micro_batch_size=settings.micro_batch_size,
        precision=settings.precision,
        text_writer=settings.text_writer,
        rollout_writer=settings.rollout_writer,
        save_steps=settings.save_steps,
        max_removed=settings.max_removed,
        trackers=settings.trackers,
        video_limits=video_limits_of(settings.video_limits),
        is_caged=True,
        log=Log(log, show_step),
    )
