"""VideoSearch-R1: find the video, and the moment in it, that a text describes.

The face of the library; each name is imported when it is first used, so `import vsr1_core` loads no torch and no
polars. Nothing here imports Dagster.

Example:
    >>> import vsr1_core as vsr1
    >>> index = vsr1.Index.from_folder("~/clips", models="toy")     # doctest: +SKIP
    >>> for hit in index.search("a person opens a fridge"):         # doctest: +SKIP
    ...     print(hit.video, hit.start_s, hit.end_s, hit.reasoning)
    >>> home = vsr1.Home("vsr1_home")
    >>> home.search("a red circle moves left", dataset="toy")       # doctest: +SKIP
    >>> home.sql("from metrics")                                    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsr1_core.home.face import search as search
    from vsr1_core.home.face import sql as sql
    from vsr1_core.home.folder_index import Index as Index
    from vsr1_core.home.home import Home as Home
    from vsr1_core.home.search_result import Found as Found
    from vsr1_core.home.search_result import Hit as Hit
    from vsr1_core.models.checkpoints import load_policy as load_policy

_WHERE = {
    "Found": "vsr1_core.home.search_result",
    "Hit": "vsr1_core.home.search_result",
    "Home": "vsr1_core.home.home",
    "Index": "vsr1_core.home.folder_index",
    "load_policy": "vsr1_core.models.checkpoints",
    "sql": "vsr1_core.home.face",
}
__all__ = ["Found", "Hit", "Home", "Index", "__version__", "load_policy", "search", "sql"]


class _CallablePackage(ModuleType):
    """The package `vsr1_core.search`, which is a function of the face as well.

    An import of one of its modules puts the package in the place of anything else of that name.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("vsr1_core.home.face").search(*args, **kwargs)


importlib.import_module("vsr1_core.search").__class__ = _CallablePackage


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; of a checkout that is not installed, `0+unknown`."""
    from vsr1_core.rows.checkout import version_of_package

    return version_of_package() or "0+unknown"
