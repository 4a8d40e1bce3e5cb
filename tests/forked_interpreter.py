"""The processes of `pytest -n`, as forks of one that has imported torch, transformers and Dagster: 6 s for each.

pytest-xdist starts a process by the command of an interpreter, which is a small program here (`PROGRAM`). It sends what
it was started with (its standard files, its folder and its code) to the process that is forked, and ends when the fork
does. As in `vsr1_core.rows.forks`, what is forked has imported and done nothing else: it has no thread but those of
allocators, and one of polars that removes spilled files, of which there are none.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

IMPORTED = (
    *("torch", "polars", "duckdb", "dagster", "dagster_graphql.schema", "peft", "trl", "datasets", "accelerate"),
    *("vsr1_core.training.sft", "vsr1_core.training.grpo", "vsr1_core.home.home", "pipelines.definitions"),
)
"""What is not installed is left out."""
END_S = 10.0
"""A fork that has not ended so many seconds after all tests is killed."""
PROGRAM = """
import json, os, signal, socket, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the fork as well
to = socket.socket(socket.AF_UNIX)
to.connect(sys.argv[1])
socket.send_fds(to, [json.dumps([os.getcwd(), sys.argv[-1]]).encode()], [0, 1, 2])
to.recv(1)  # of a connection that only the fork holds
"""


@contextlib.contextmanager
def forked_interpreters(imported: Sequence[str] = IMPORTED) -> Iterator[str]:
    """The command of an interpreter that is forked, while the process that is forked runs."""
    with tempfile.TemporaryDirectory() as folder:
        address, program = Path(folder, "asked"), Path(folder, "interpreter.py")
        program.write_text(PROGRAM)
        with socket.socket(socket.AF_UNIX) as asked:
            asked.bind(str(address))
            asked.listen()
            call = f"serve({asked.fileno()}, {tuple(imported)!r})"
            code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; {call}"
            origin = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[asked.fileno()])
        assert origin.stdin is not None
        with origin, origin.stdin:
            yield shlex.join([sys.executable, "-I", "-S", str(program), str(address)])


def serve(fileno: int, imported: Sequence[str]) -> None:
    """The process that is forked for each connection, until its standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and pytest ends its processes
    importlib.import_module("tests.conftest")  # what has to be set before other imports
    gc.disable()
    for name in imported:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    with socket.socket(fileno=fileno) as asked:
        while sys.stdin not in select.select([asked, sys.stdin], [], [])[0]:
            with asked.accept()[0] as connection:
                message, files, _, _ = socket.recv_fds(connection, 1 << 16, 3)
                with warnings.catch_warnings():  # Python from 3.12 on warns where there is a thread
                    warnings.simplefilter("ignore", DeprecationWarning)
                    pid = os.fork()
                if not pid:
                    asked.close()
                    _become(files, message)
            for file in files:
                os.close(file)
    _wait_for_forks(time.monotonic() + END_S)


def _become(files: list[int], message: bytes) -> None:
    """Do in this fork what an interpreter does that was started with these standard files. The connection ends with
    it."""
    status = 1
    try:
        for standard, file in enumerate(files):
            os.dup2(file, standard)
            os.close(file)
        folder, code = json.loads(message)
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.enable()
        exec(code, {"__name__": "__main__"})
        status = 0
    except BaseException:  # noqa: BLE001  # nothing of what the parent does may go on here
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait_for_forks(deadline: float) -> None:
    """Reap all forks, so that their processor time counts as that of the tests; kill those that do not end."""
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.05)
        for pid in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
            os.kill(pid, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
