"""Many builds by one process, with an edit before each: what it holds stays flat, and so does what it leaves."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.few_stages import START, stages
from tests.small_world import SmallWorld, build, clip, fill
from vsr1_core.rows import row_files

WARM_UP = 12
"""Builds after which libraries have allocated what they keep."""
GROWTH_MIB = 16.0


@dataclass(frozen=True)
class Held:
    """Memory and open files of the process; files that hold rows, of the table that has most of them; other files of
    the home, but for what is kept of each build on purpose."""

    memory_mib: float
    open_files: int
    row_files: int
    other_files: int

    @classmethod
    def of(cls, lake: Path) -> Held:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        folders = [path for path in lake.glob("tables/*/*") if path.is_dir()]
        rows = [len(list(folder.glob("rows*.parquet"))) for folder in folders]
        files = [path for path in lake.rglob("*") if path.is_file() and path.relative_to(lake).parts[0] != "history"]
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            len(list(Path("/proc/self/fd").iterdir())),
            max(rows),
            len(files) - sum(rows),
        )


def edit(world: SmallWorld, number: int) -> None:
    """In turn: another video under a name, another text, one query more, one query less."""
    if number % 4 == 0:
        world.put_video("test_0", clip(200 + number))
    elif number % 4 == 1:
        world.rows["test"][0]["fig_desc"] = f"the thing of build {number} moves along"
    elif number % 4 == 2:
        world.add_query("test", 5000, "test_1")
    else:
        world.rows["test"] = [row for row in world.rows["test"] if row["desc_id"] != 5000]
    world.write_annotations("test")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("count", [16, pytest.param(100, marks=pytest.mark.sweep)])
def test_builds_with_edits_hold_and_leave_no_more_than_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(row_files, "SUPERSEDED_S", 0.0)  # ten minutes otherwise
    world = fill(SmallWorld(tmp_path), num_train=3, num_test=2).register()
    seen = list[Held]()
    for number in range(count):
        edit(world, number)
        outcomes = build(world.view(stages(), START))
        assert sum(outcome.num_processed + outcome.num_dropped for outcome in outcomes.values()) > 0
        seen.append(Held.of(world.home / "lake"))
    print(*seen[:: count // 12], sep="\n")
    warm, last = seen[WARM_UP - 1], seen[-1]
    assert last.memory_mib < warm.memory_mib + GROWTH_MIB
    assert last.open_files <= warm.open_files
    assert max(held.row_files for held in seen) <= row_files.MAX_ROW_FILES + 1
    assert last.other_files <= warm.other_files
