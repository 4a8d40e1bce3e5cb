"""The command line where Dagster cannot be imported: `python -m tests.pipelines.without_dagster ARGUMENTS`; with
`-c CODE` that code instead.
"""

from __future__ import annotations

import sys
from typing import Any


class NoDagster:
    """A finder that is asked before all others, and refuses Dagster."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0].startswith("dagster"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main() -> None:
    sys.meta_path.insert(0, NoDagster())  # type: ignore[arg-type]
    if sys.argv[1:2] == ["-c"]:
        exec(sys.argv[2], {"__name__": "code"})
    else:
        from vsr1_core.__main__ import main as vsr1

        vsr1()


if __name__ == "__main__":
    main()
