"""The interpreters of `pytest -n`: forks that look like interpreters which were started."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked_interpreter import forked_interpreters

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries of other systems cannot be forked")
CODE = """
import json, os, sys
if (said := sys.stdin.readline()) == "fail":
    raise ValueError(said)
print(json.dumps([said, os.getcwd(), __name__, "wave" in sys.modules, os.getpid(), os.getppid()]))
"""


def test_forks_have_what_was_imported_and_what_they_were_started_with(tmp_path: Path) -> None:
    with forked_interpreters(["wave", "not.installed"]) as command:
        words = [*shlex.split(command), "-u", "-c", CODE]
        one, two, failed = (
            subprocess.run(words, cwd=tmp_path, input=said, capture_output=True, text=True, check=False)
            for said in ("one", "two", "fail")
        )
        *said, pid, origin = json.loads(one.stdout)
        *said_next, next_pid, next_origin = json.loads(two.stdout)
        assert (said, said_next) == tuple([text, str(tmp_path), "__main__", True] for text in ("one", "two"))
        assert len({pid, next_pid, origin, os.getpid()}) == 4
        assert origin == next_origin
        assert (failed.stdout, failed.stderr.splitlines()[-1]) == ("", "ValueError: fail")
        os.kill(origin, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(origin, 0)
