"""Notebooks, run in this process or in a kernel of their own."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import polars as pl


def outputs_in_kernel(path: Path) -> str:
    """All that the code cells show, as Jupyter runs them. A kernel imports everything anew, which takes 1 to 5 s."""
    from nbclient import NotebookClient

    notebook, where = nbformat.read(path, as_version=4), {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=600, startup_timeout=400, kernel_name="python3", resources=where).execute()
    return str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])


def outputs_here(path: Path) -> str:
    """All that the code cells show, run by IPython in a module of their own. An error in a cell is raised."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    module, before = ModuleType("notebook"), (sys.displayhook, sys.excepthook)
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}), user_module=module)
    try:
        with contextlib.chdir(path.parent), pl.Config(), capture_output() as shown:
            for cell in nbformat.read(path, as_version=4).cells:
                if cell.cell_type == "code":
                    shell.run_cell(cell.source).raise_error()
        return shown.stdout + str([output.data for output in shown.outputs])
    finally:
        InteractiveShell.clear_instance()
        sys.modules.pop(module.__name__, None)
        sys.displayhook, sys.excepthook = before
