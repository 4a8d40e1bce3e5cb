"""`vsr1`, and `python -m vsr1_core`: finds the command line of this installation and starts it.

A wheel keeps the packages `assets` and `pipelines` in `vsr1_core/_app/`, because other projects have packages of these
names; a checkout has them beside `vsr1_core`. Here their folder comes first on the path, of this process and of those
that it starts (Dagster's code servers and steps).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

_CORE = Path(__file__).resolve().parent


def application_folder() -> Path:
    """The folder that holds the packages `assets` and `pipelines` of this installation."""
    return next(
        (folder for folder in (_CORE / "_app", _CORE.parent) if (folder / "pipelines").is_dir()), _CORE / "_app"
    )


def use_application() -> None:
    """Make `import pipelines` and `import assets` find ours, here and in processes that are started from here.

    Raises ImportError where others of these names were imported before, or ours are not there.
    """
    folder = str(application_folder())
    sys.path[:] = [folder, *(place for place in sys.path if place != folder)]
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *(place for place in others if place not in ("", folder))])
    for name in ("assets", "pipelines"):
        found = importlib.util.find_spec(name)
        place = str(found.origin) if found else "nowhere"
        if not Path(place).is_relative_to(folder):
            raise ImportError(
                f"the package {name!r} that belongs to vsr1 is in {folder}, but Python found {place}; start vsr1 in a "
                "process of its own, or install videosearch-r1 anew"
            )


def main() -> None:
    """Run the command line."""
    use_application()
    importlib.import_module("pipelines.cli").app(prog_name="vsr1")


if __name__ == "__main__":
    main()
