"""Runs the parts of the check one after another, each in a process of its own, within a time limit.

A part's result is written as soon as it is made, one JSON object per line, so that nothing is lost when the loan ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.gpu_check import index, training  # noqa: F401 - registers their parts
from tests.gpu_check.measures import PARTS, Setup, machine, run_part


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.part:
        print(json.dumps(run_part(options.part, Setup(options.device, options.size))))
        return 0
    end = time.monotonic() + 60 * options.minutes
    results = [_written(options.out, {"part": "machine", **machine(options.device)})]
    for part in options.parts:
        results.append(_written(options.out, _in_a_process(part, options, end - time.monotonic())))
    return int(any("error" in result for result in results))


def _in_a_process(part: str, options: argparse.Namespace, seconds_left: float) -> dict[str, Any]:
    """The result of a part, or why there is none. A crash or a lack of memory in one part does not end the others."""
    if seconds_left < 5:
        return {"part": part, "error": "no time was left"}
    command = [sys.executable, "-m", "tests.gpu_check", "--device", options.device, "--size", options.size]
    started = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "--part", part], capture_output=True, text=True, timeout=seconds_left, check=False
        )
    except subprocess.TimeoutExpired:
        return {"part": part, "error": f"not finished after {seconds_left:.0f} s"}
    wall_s = round(time.monotonic() - started, 1)
    if done.returncode:
        return {"part": part, "error": "\n".join(done.stderr.splitlines()[-12:]), "wall_s": wall_s}
    return {"part": part, **json.loads(done.stdout.splitlines()[-1]), "wall_s": wall_s}


def _written(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    line = json.dumps(result)
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=["2b", "tiny"], default="2b")
    parser.add_argument("--minutes", type=float, default=8, help="parts that do not fit into this are left out")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.jsonl"), help="results are appended to this file")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help="only this one, in this process; its result goes to stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
