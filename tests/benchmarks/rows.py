"""The table of `make bench`: a row per number, how rows are kept while benchmarks run, and their form as Markdown.

A row is a line of a file as soon as it is measured, so that nothing is lost where a later benchmark breaks. Nothing is
measured here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

KEPT_IN = "VSR1_BENCH_ROWS"
"""The variable with the file that rows are added to; processes that a benchmark starts add theirs to it as well."""
SCALE = "VSR1_BENCH_SCALE"
HEAD = ("what", "against", "baseline", "ours", "ratio", "wanted", "met")
PACKAGES = ("torch", "faiss-cpu", "av", "decord", "torchcodec", "dagster", "duckdb", "polars", "pyarrow")
WANTED = re.compile(r"(at most|at least|<=|>=) *(\d+(?:\.\d+)?)(?: *(\S.*))?")
MOST_REASON = 160
"""Characters of a reason that are shown."""


@dataclass(frozen=True)
class Row:
    """A number of ours beside that of a baseline in the same run.

    ratio: ours by the baseline's, of costs, where `wanted` says `at most`; how many times better ours is where it says
    `at least`. wanted: a bound of the ratio, such as `at most 1.3` or `at least 10`, or of `judged` where that is
    given, such as `at most 0.3 s`; empty where nothing is asked for. why: the reason of a row that was not measured.
    """

    what: str
    against: str = ""
    baseline: str = ""
    ours: str = ""
    ratio: float | None = None
    wanted: str = ""
    judged: float | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if self.wanted and not WANTED.fullmatch(self.wanted):
            raise ValueError(f"{self.what}: wanted is {self.wanted!r}; write it as `at most 1.3` or `at least 10`")

    @property
    def bound(self) -> str:
        """What is wanted, spelled in one way."""
        return WANTED.sub(_spelled, self.wanted)

    @property
    def met(self) -> str:
        """`yes` or `no`; the reason of a row that was not measured; empty where nothing is wanted."""
        number = self.ratio if self.judged is None else self.judged
        found = WANTED.fullmatch(self.wanted)
        if self.why or found is None or number is None:
            return self.why
        is_most = found[1] in ("at most", "<=")
        return "yes" if (number <= float(found[2]) if is_most else number >= float(found[2])) else "**no**"

    @property
    def cells(self) -> list[str]:
        ratio = "" if self.ratio is None else short(self.ratio)
        return [self.what, self.against, self.baseline, self.ours, ratio, self.bound, self.met]


def _spelled(found: re.Match[str]) -> str:
    sense = {"<=": "at most", ">=": "at least"}.get(found[1], found[1])
    unit = "" if found[3] in (None, "x") else f" {found[3]}"
    return f"{sense} {found[2]}{unit}"


def short(ratio: float) -> str:
    """Two or three digits."""
    if ratio >= 10:
        return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.1f}"
    return f"{ratio:.2g}" if ratio < 0.1 else f"{ratio:.2f}"


def keep(row: Row, path: str | Path = "") -> None:
    """Add a row to a file, by default the one that the environment names. Without one, rows are not kept."""
    if path := path or os.environ.get(KEPT_IN, ""):
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def kept(path: Path) -> list[Row]:
    """The rows of a file. A line that a killed process did not finish is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Row(**json.loads(line)) for line in lines if line.endswith("}\n")]


def markdown(rows: Iterable[Row], about: str) -> str:
    """The table, below what is said about the run."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for row in rows:
        lines.append(f"| {' | '.join(map(_cell, row.cells))} |")
    return "\n".join([about, "", *lines, ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or "-"


def reason(text: str) -> str:
    """The first line of an error, as much of it as a table has room for."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason was given")
    return line if len(line) <= MOST_REASON else f"{line[:MOST_REASON]}..."


def name_of(node: str) -> str:
    """What the id of a test says: `test_search.py::test_searching[32]` -> `searching [32]`."""
    last = node.rpartition("::")[2].rpartition("/")[2].removesuffix(".py").removeprefix("test_")
    return re.sub(r"\[", " [", last.replace("_", " "), count=1)


def about(repository: Path, scale: float) -> str:
    """Commit, date, machine and versions."""
    sizes = "" if scale == 1 else f" Sizes: {scale:g} times the usual."
    versions = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    absent = [name for name in PACKAGES if not _version(name)]
    missing = f"; not installed: {', '.join(absent)}" if absent else ""
    return (
        f"Commit {_commit(repository)}, {datetime.now(UTC):%Y-%m-%d}, {processor()}, {os.cpu_count()} cores; "
        f"{versions}{missing}.{sizes}"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit(repository: Path) -> str:
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty=, changed", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """The model's name and, as a virtual machine hides most of that, its family and model number."""
    facts: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    numbers = [facts[name] for name in ("cpu family", "model") if name in facts]
    named = facts.get("model name", "an unknown processor")
    return f"{named} (family {numbers[0]}, model {numbers[1]})" if len(numbers) == 2 else named
