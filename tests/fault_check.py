"""`python -m tests.fault_check FOLDER`: whether a process that is killed leaves what `tests.faults` says.

Prints the points, and those where something else was left, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from tests.fault_states import Tree, digest_of, read_tree
from tests.fault_sweep import Same
from tests.faults import Half, Writes, install
from vsr1_core.rows.files import append_lines, atomic_folder, write_json


def act(home: Path) -> None:
    """Write as builds do; what is not flushed yet is more than one buffer."""
    for text in ("first", "second"):
        write_json(home / "rows/manifest.json", {"text": text})
        append_lines(home / "steps.jsonl", f"{text}\n")
        with atomic_folder(home / "files") as folder, (folder / "lines.txt").open("w") as out:
            out.writelines(f"{number} é {text}".ljust(1000) for number in range(20))
    shutil.rmtree(home / "rows")


def main() -> None:
    home = Path(sys.argv[1], "home")
    writes, same, said = Writes(home), Same(), list[Tree]()
    install(writes)

    def run(kill_at: int | None) -> None:
        def look(number: int, half: Half | None) -> None:
            if kill_at is None:
                said.append(writes.left_by(half)["kill"])
            elif number == kill_at:
                if half:
                    half.leave()
                os.kill(os.getpid(), signal.SIGKILL)

        same.begin("struck")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        writes.begin(on_point=look)
        act(home)
        writes.end()

    run(None)
    points, differ = writes.seen, []
    for at, tree in enumerate(said):
        if (child := os.fork()) == 0:
            run(at)
        os.waitpid(child, 0)
        if digest_of(read_tree(str(home))) != digest_of(tree):
            differ.append(points[at])
    print(json.dumps({"points": points, "differ": differ}))


if __name__ == "__main__":
    main()
