"""The device and the number of processes that work runs on when a person starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

MAX_CPU_PROCESSES = 4
MIN_SHARED_STEPS = 5
"""On a CPU, a training of fewer steps runs in one process unless told: what several are forked from imports for 5 s
first, and each of them then reads all rows."""

_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files of GPUs: NVIDIA, WSL, AMD."""


def choose_device(device: str) -> str:
    """The torch device that `device` means: `auto` is the first GPU where there is one, else the CPU.

    torch is imported only where the system has the device file of a GPU, so that a build without work starts fast.
    """
    if device != "auto":
        return device
    if sys.platform == "linux" and not any(Path(path).exists() for path in _GPU_FILES):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_processes(processes: int, device: str) -> tuple[int, int]:
    """How many processes train one model together, and the fewest steps that they share. 0 means one process on a GPU,
    and on a CPU one per core up to 4 (each needs memory for weights and gradients of its own)."""
    if processes:
        return processes, 0
    return (min(MAX_CPU_PROCESSES, os.cpu_count() or 1), MIN_SHARED_STEPS) if device == "cpu" else (1, 0)
