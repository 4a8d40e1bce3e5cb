"""Which code a build ran: the commit of the checkout, or the version of the installed package."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def commit_of_checkout() -> str:
    """The git commit of the checkout that this library is in; empty for an installed package, or without git."""
    if not (ROOT / ".git").exists():  # an installed package may lie in a checkout of something else
        return ""
    try:
        said = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""


@functools.cache
def version_of_package() -> str:
    """The version of the installed package; empty where it is not installed."""
    try:
        return importlib.metadata.version("videosearch-r1")
    except importlib.metadata.PackageNotFoundError:
        return ""
