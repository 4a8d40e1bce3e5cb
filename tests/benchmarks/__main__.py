"""All benchmarks, one table: `make bench`.

    python -m tests.benchmarks                                # all, into build/bench.md
    python -m tests.benchmarks test_search test_decoding      # these files
    python -m tests.benchmarks -k stage_1 --scale 0.1         # tests by name, at a tenth of the sizes

Each file of benchmarks runs in a process of its own: what one of them loads, sets or breaks is not the next one's. The
table is written after each of them, and printed at the end. The exit status is 1 where a benchmark failed, and 0 where
one of them does not give what is wanted: these are numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.measuring import CHILDREN
from tests.benchmarks.rows import KEPT_IN, SCALE, Row, about, keep, kept, markdown, name_of
from vsr1_core.rows.files import atomic_path

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parents[1]
NOTHING_SELECTED = 5
"""pytest's exit status where `-k` leaves no test of a file."""
PLUGINS = ("no:cacheprovider", "no:schemathesis", "no:hypothesispytest", "tests.benchmarks.as_rows")
"""The benchmarks use none of those, and each process would import what is behind them."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    found = {path.stem: path for path in sorted(options.folder.glob("test_*.py"))}
    chosen = {Path(name).stem for name in options.files} or found.keys()
    if unknown := chosen - found.keys():
        print(f"no file of benchmarks is called {', '.join(unknown)}; there are: {', '.join(found)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        rows, said = Path(folder) / "rows.jsonl", about(REPOSITORY, options.scale)
        try:
            for path in (found[name] for name in found if name in chosen):
                run(path, options, rows)
                write(options.out, markdown(kept(rows), said))
        except KeyboardInterrupt:
            keep(Row("the other benchmarks", why="skipped: stopped by hand"), rows)
        table = kept(rows)
        write(options.out, markdown(table, said))
    print(f"\n{markdown(table, said)}\nwritten to {options.out}")
    return 1 if any(row.why.startswith("failed") for row in table) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="names of files of benchmarks; all by default")
    parser.add_argument("-k", default="", help="only tests that match, as pytest's -k")
    parser.add_argument("--scale", type=float, default=1.0, help="all sizes times this; 1 takes about 15 minutes")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build/bench.md", help="the file of the table")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a file of benchmarks is stopped")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files of benchmarks are")
    return parser


def run(path: Path, options: argparse.Namespace, rows: Path) -> None:
    """Run one file, whose rows are added to the file `rows`. What ends its process is a row as well."""
    plugins = [part for name in PLUGINS for part in ("-p", name)]
    flags = ["-q", "-s", "--continue-on-collection-errors", *plugins]
    command = [sys.executable, "-m", "pytest", *flags, str(path), "-k", options.k]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, KEPT_IN: str(rows), SCALE: str(options.scale)}
    print(f"\n== {path.stem}", flush=True)
    started, used = time.monotonic(), CHILDREN()
    with subprocess.Popen(command, start_new_session=True, cwd=REPOSITORY, env=environment) as process:
        ended = _ended(process, options.limit)
    took, spent = time.monotonic() - started, CHILDREN() - used
    print(f"== {path.stem}: {took:.0f} s, {spent:.0f} of processor time", flush=True)
    if ended not in ("0", "1", str(NOTHING_SELECTED)):
        keep(Row(name_of(path.name), why=f"failed: its process ended with {ended}"), rows)


def _ended(process: subprocess.Popen[bytes], limit_s: float) -> str:
    """How a process ended. It and all that it started are stopped after `limit_s`, and where this one is."""
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"its limit of {limit_s:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return signal.Signals(-code).name if code < 0 else str(code)


def write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what runs now is stopped, and the table written
    sys.exit(main())
