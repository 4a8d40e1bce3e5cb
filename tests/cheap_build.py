"""`vsr1` over cheap stages, as a process: `VSR1_HOME=... python -m tests.cheap_build build --dataset=small`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cheap_stages import cheap_main_stages
from tests.command_line import use_stages
from vsr1_core.__main__ import main

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        use_stages(patch, cheap_main_stages, Path(os.environ["VSR1_HOME"]))
        main()
