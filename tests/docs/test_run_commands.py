"""Every command and every Python block of the pages runs, in order, in one home of the smallest size.

The world: a folder that is both HOME and the working directory, so that `~/clips` and `vsr1_home` mean what the pages
say. In it `toy` has the configuration `nano` (36 rendered videos, two training steps) and is built, as after
`make demo`; Charades is a few clips with annotations in the published form. Blocks that cannot run here say why, in the
comment before them. A build that ran once does not run again: that it would find nothing to do is `test_nano_build`'s.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import app
from tests.core.datasets.prepared_folder import VIDEOS, write_prepared
from tests.docs.pages import Block, blocks, commands, pages
from tests.nano_home import copy_nano_home
from tests.undrawn import draw_nothing
from tests.videos import write_video

pytestmark = pytest.mark.slow

RUN = [block for page in pages() for block in blocks(page) if block.directive.kind != "skip"]
ELSEWHERE = {
    "make": "a target is a recipe of commands that are tested by themselves",
    "source": "the tests run in the environment already",
}
"""Programs whose commands are checked by `test_pages.py` and not run."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        patch.setenv("VSR1_DEVICE", "cpu")
        patch.setenv("VSR1_WORKERS", "1")
        patch.delenv("VSR1_HOME", raising=False)
        write_clips(folder)
        write_benchmark(folder)
        copy_nano_home(tmp_path_factory, folder / "vsr1_home")
        draw_nothing(patch)
        yield folder


def write_clips(folder: Path) -> None:
    """Three videos of one's own, `~/clips`, `clips.csv` with a moment in two of them, and a picture."""
    (folder / "clips").mkdir()
    for name in ("fridge", "garden", "stairs"):
        write_video(folder / f"clips/{name}.mp4", range(8))
    lines = ["video,start,end,query", "fridge.mp4,1,4,a person opens a fridge", "garden.mp4,2,6,a dog runs"]
    Image.new("RGB", (64, 64), "red").save(folder / "frame.png")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")


def write_benchmark(folder: Path) -> None:
    """What is published of Charades, at a small size: `~/verified_fig`, `~/charades/videos`, and the authors' prepared
    folder `~/data/charades-sta`, all about the same queries."""
    prepared = write_prepared(folder / "data/charades-sta")
    for name in ("verified_fig", "charades/videos"):
        (folder / name).mkdir(parents=True)
    for split, videos in VIDEOS.items():
        shutil.copy(prepared / f"raw_annotation/{split}.jsonl", folder / f"verified_fig/charades_fig_{split}.jsonl")
        write_video(folder / f"charades/videos/{videos[0]}.mp4", range(8))


def expanded(word: str) -> str:
    """As a shell does it."""
    return str(Path(word).expanduser()) if word.startswith("~") else word


BUILT = {("build", "--dataset", "toy")}
"""The builds that were run, of which the world begins with one."""


def vsr1_once(*arguments: str) -> None:
    """The command of a build, run once."""
    if arguments not in BUILT:
        vsr1(arguments)
        BUILT.add(arguments)


def vsr1(arguments: Sequence[str], code: int = 0) -> None:
    words = [expanded(word) for word in arguments]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, f"vsr1 {shlex.join(arguments)}\n{result.output}"


def run(words: list[str], code: int, patch: pytest.MonkeyPatch) -> None:
    """One command of a `sh` block. Variables that it sets or exports end with the block."""
    exports = words[0] == "export"
    for word in words[1:] if exports else words:
        name, equals, value = word.partition("=")
        if not equals or not name.isupper():
            break
        patch.setenv(name, expanded(value))
    words = [] if exports else words
    while words and "=" in words[0] and words[0].split("=")[0].isupper():
        words = words[1:]
    if words[:2] == ["vsr1", "build"]:
        vsr1_once(*words[1:])
    elif words and words[0] == "vsr1":
        vsr1(words[1:], code)
    elif words:
        assert words[0] in ELSEWHERE, f"{shlex.join(words)}: skip the block with a reason"


@pytest.fixture(scope="module")
def namespaces() -> dict[str, dict[str, Any]]:
    """The Python names of each page: a block goes on from the blocks before it."""
    return {}


@pytest.mark.parametrize("block", [b for b in RUN if b.language in ("sh", "python")], ids=lambda b: b.place)
def test_a_block_runs(
    world: Path, namespaces: dict[str, dict[str, Any]], block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block.language == "python":
        code = compile("\n" * (block.line - 1) + block.text, block.page, "exec")
        exec(code, namespaces.setdefault(block.page, {"__name__": block.page}))
        return
    lines = commands(block)
    other = dict(block.directive.words)
    for number, line in enumerate(lines):
        words = [other.get(word, word) for word in line]
        run(words, block.directive.code if number == len(lines) - 1 else 0, monkeypatch)
