"""Processes that begin with their imports done: each is a fork of one process that has imported everything.

Importing torch and the trainers takes 5 s of processor time, which every process of every training would pay again.
What is forked has imported and done nothing else: no kernel ran, so there is no pool of threads and no lock that a fork
could copy in the middle of its work. That holds on Linux where models run on the CPU; libraries of macOS cannot be
forked.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from vsr1_core.rows.workers import end_with

MAX_MESSAGE = 1 << 16
MAX_FILES = 4
_SHOWN_BYTES = 2000


def can_fork(device: str) -> bool:
    """Whether processes that use `device` may be forks. No GPU can be used in a fork of a process that looked at it."""
    return sys.platform == "linux" and device == "cpu"


@dataclass(frozen=True)
class Forked:
    """A process that was forked, as `subprocess.Popen` would show it. `wait` waits for its end and is called once."""

    pid: int
    wait: Callable[[], int]

    def kill(self) -> None:
        """End the process; forks of it end within a second."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Forks:
    """Starts processes that are forks of one process, which is started for the first of them and ended by `close`.

    prepare: `module:function`, which imports what the processes need. environment: of all of them, set before anything
    is imported.
    """

    def __init__(self, prepare: str, environment: Mapping[str, str]) -> None:
        self._prepare, self._environment = prepare, dict(environment)
        self._one_at_a_time = threading.Lock()
        self._origin: _Origin | None = None

    def start(self, function: str, args: Sequence[Any], files: Sequence[int] = ()) -> Forked:
        """Call `function(*args, *files)` in a new process. function: `module:function`. args: small, and picklable.
        files: descriptors, which have other numbers there.

        Raises:
            RuntimeError: The process that is forked ended while it imported; the message has the end of what it said.
        """
        with self._one_at_a_time:
            if self._origin is None or not self._origin.is_alive():
                self._end()
                self._origin = _Origin(self._prepare, self._environment)
            origin = self._origin
            pid = self._asked(origin, (function, tuple(args)), files)
        return Forked(pid, lambda: self._wait(origin, pid))

    def _wait(self, origin: _Origin, pid: int) -> int:
        """The exit code of a process; that of a killed one where the process that it was forked from is gone."""
        with self._one_at_a_time, contextlib.suppress(RuntimeError):
            if origin.is_alive():
                return self._asked(origin, pid)
        return -int(signal.SIGKILL)

    def _asked(self, origin: _Origin, what: Any, files: Sequence[int] = ()) -> int:
        try:
            return origin.ask(what, files)
        except BaseException:  # the answer of a request that was stopped would be taken for that of the next one
            self._end()
            raise

    def close(self) -> None:
        """End the process that is forked, and with it all of its forks."""
        with self._one_at_a_time:
            self._end()

    def _end(self) -> None:
        if self._origin is not None:
            self._origin.close()
            self._origin = None


class _Origin:
    """The process that is forked, as the one that started it sees it."""

    def __init__(self, prepare: str, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        call = f"serve({theirs.fileno()}, {os.getpid()}, {prepare!r})"
        code = f"import sys; sys.path[:] = {sys.path!r}; from vsr1_core.rows.forks import serve; {call}"
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            env=dict(environment),
        )
        theirs.close()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, what: Any, files: Sequence[int]) -> int:
        """Send a request and return the number that answers it."""
        try:
            socket.send_fds(self._socket, [pickle.dumps(what)], list(files))
            if answer := self._socket.recv(MAX_MESSAGE):
                return int(answer)
        except (BrokenPipeError, ConnectionResetError):
            pass
        code = self._process.wait()
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - _SHOWN_BYTES))
        said = self._said.read().decode(errors="replace")
        raise RuntimeError(f"the process that others are forked from ended with exit code {code}\n{said}")

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._said.close()


def serve(fileno: int, parent: int, prepare: str) -> None:
    """The program of the process that is forked. A request is (function, arguments), and answered by the id of a new
    process; or such an id, and answered by its exit code, once it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the build ends its processes
    pkgutil.resolve_name(prepare)()
    ours = socket.socket(fileno=fileno)
    while os.getppid() == parent:
        message, files, _, _ = socket.recv_fds(ours, MAX_MESSAGE, MAX_FILES)
        if not message:
            break
        asked = pickle.loads(message)
        if isinstance(asked, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1])
        else:
            function, args = asked
            answer = fork(pkgutil.resolve_name(function), (*args, *files), ours.close)
            for file in files:
                os.close(file)
        ours.send(str(answer).encode())


def fork(function: Callable[..., Any], args: Sequence[Any], begin: Callable[[], Any] = lambda: None) -> int:
    """Call `begin` and `function(*args)` in a fork of this process, which ends with this process at the latest. Returns
    its id; its exit code is 1 where the function raised."""
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():  # Python from 3.12 on warns where there is a thread, such as those of jemalloc
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        begin()
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()
        function(*args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # nothing of what the parent does may go on here
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
