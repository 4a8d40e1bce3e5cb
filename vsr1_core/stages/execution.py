"""How the work of stages runs: devices, processes, batches, and what it logs. Nothing here changes a result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal

from vsr1_core.media.video_limits import DEFAULT_LIMITS, VideoLimits
from vsr1_core.reasoning.tasks import EndpointSettings
from vsr1_core.rows.blocks import SHARD_ROWS
from vsr1_core.rows.files import WriteRefused
from vsr1_core.rows.forks import Forks
from vsr1_core.rows.results import Item, Result, Value
from vsr1_core.rows.workers import map_in_processes, map_rows

TextWriterName = Literal["in-process", "vllm"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Execution:
    """How the work runs. No setting here changes a result, so none is part of a version."""

    device: str = "cpu"
    workers: int = field(default_factory=lambda: max(1, os.cpu_count() or 1))
    ray: str = ""
    """Address of a Ray cluster whose processes make rows instead of local `workers`; empty for no cluster."""
    model_workers: int = 0
    """Number of Ray actors, one per GPU, that make the rows of `ModelRows`; 0 makes them in this process."""
    batch_size: int = 32
    shard_rows: int = SHARD_ROWS
    retry_failed: bool = False
    max_removed: float | None = 0.1
    """Share of what is known of a dataset on disk that may be gone at once (`stages.removals`); None: all of it."""
    endpoint: EndpointSettings | None = None
    """The endpoint that serves the teacher's model; None where none is set up."""
    processes: int = 1
    """Number of processes that train one model together, each on its own GPU."""
    min_shared_steps: int = 0
    """A training of fewer steps runs in this process, where starting others would take longer than it."""
    micro_batch_size: int = 0
    """Number of episodes per backward pass of stage 2; fewer episodes need less memory. 0: a few groups, and half as
    many whenever the GPU's memory does not suffice."""
    precision: Precision = "auto"
    """Precision of inference; `auto`: see `loading.precision`."""
    text_writer: TextWriterName = "in-process"
    """What decodes text in a search: the decoding loop of this project, or vLLM on a GPU (the extra `vllm`)."""
    rollout_writer: TextWriterName = "in-process"
    """What decodes the text of the episodes that stage 2 samples. vLLM draws other samples than the loop, as another
    machine would. Trainings in several processes use the loop."""
    cache_bytes: int = 20 << 30
    """Bytes on disk that the cached vision features may take, and as many for query vectors; 0 caches nothing."""
    save_steps: int = 50
    """A training saves its state every so many steps and resumes from it after it was killed; 0 saves none."""
    video_limits: VideoLimits = DEFAULT_LIMITS
    """What one video may cost, and which containers and codecs are opened."""
    is_caged: bool = False
    """Whether videos are read in other processes even with one worker. Only there can memory and time be bounded."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that trainings also report to, by TRL's names: trackio, tensorboard, wandb."""
    forks: Forks | None = field(default=None, compare=False, repr=False)
    """What starts the processes of trainings, and of rows that models make, on the CPU. A build keeps it, so that they
    need not import everything for each training; None: a training starts one of its own, and rows are made here."""
    run_id: str = ""
    """The build that the work belongs to, which is noted in the history of builds; empty where nothing is noted."""
    log: Callable[[str], None] = lambda line: None
    """Called with each line about the progress; a `Log` also shows steps."""

    @property
    def has_own_processes(self) -> bool:
        """Whether `map_rows` calls its function in other processes than this one."""
        return bool(self.ray) or self.is_caged or self.workers > 1

    def map_rows(
        self,
        function: Callable[[Item], Value],
        items: Iterable[Item],
        folders: Sequence[Path],
        deadline_s: float = 900.0,
    ) -> Iterator[Result[Item, Value]]:
        """`workers.map_rows`, in processes of this machine or on a Ray cluster, whose nodes see `folders`.
        deadline_s: seconds that one item may take.

        Raises:
            WriteRefused: The system refused a write of `function`, for which no item is to blame.
        """
        for result in self._mapped(_Writing(function), items, folders, deadline_s):
            if isinstance(result.value, _Refused):
                raise result.value.error()
            yield Result(result.item, result.value, result.error)

    def _mapped(
        self, function: Callable[[Item], Value], items: Iterable[Item], folders: Sequence[Path], deadline_s: float
    ) -> Iterator[Result[Item, Value]]:
        if not self.ray and self.is_caged:
            return map_in_processes(function, items, max(1, self.workers), deadline_s)
        if not self.ray:
            return map_rows(function, items, self.workers, deadline_s)
        from vsr1_core.rows.ray_workers import map_rows_on_ray

        return map_rows_on_ray(function, items, self.ray, folders, deadline_s, self.log)


@dataclass(frozen=True)
class _Refused:
    """A refused write, as processes send it to each other. code: the system's error."""

    text: str
    code: int | None

    def error(self) -> WriteRefused:
        refused = WriteRefused(self.text)
        refused.errno = self.code
        return refused


@dataclass(frozen=True)
class _Writing(Generic[Item, Value]):
    """`function`, whose value is a refused write where there was one. Any other error is that of its item."""

    function: Callable[[Item], Value]

    def __call__(self, item: Item) -> Value | _Refused:
        try:
            return self.function(item)
        except WriteRefused as error:
            return _Refused(str(error), error.errno)
