"""Random edits of a small corpus, and of the lake that was made of it, for tests of what is built again.

Each edit takes two small numbers that decide what it changes and how.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.few_stages import START, stages
from tests.short_cuts import KEPT
from tests.small_world import NOT_A_VIDEO, SmallWorld, clip, fill
from vsr1_core.datasets.corrections import Annotated, Correction, appending, corrections_path
from vsr1_core.recipes import Configuration
from vsr1_core.segments import SegmentRecipe
from vsr1_core.stages.corrections import annotated_moments
from vsr1_core.stages.execution import Execution

TEXTS = ("a dog runs", "A DOG runs ", "a cat sleeps", "rain falls on a red roof")
SAVED = "saved"
"""The folder beside the home that has it as it was before any edit, of the same files."""


@dataclass
class Edited:
    """The corpus on disk, and how it is built."""

    world: SmallWorld
    config: Configuration = START
    execution: Execution = dataclasses.field(default_factory=lambda: Execution(workers=1))
    first: Configuration = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.first = self.config

    def query(self, number: int) -> dict[str, Any]:
        """One of the queries, but never the first two, which train."""
        rows = [row for split in ("train", "test") for row in self.world.rows[split]][2:]
        return rows[number % len(rows)]

    def video(self, number: int) -> str:
        """A video that is annotated, on disk, or neither; never the first one, which trains."""
        return ("train_1", "test_0", "test_1", "new_0", "new_1")[number % 5]


Edit = Callable[[Edited, int, int], None]


def add_query(at: Edited, a: int, b: int) -> None:
    split = ("train", "test")[b % 2]
    at.world.add_query(split, 1000 + a, at.video(b), fig_desc=TEXTS[a % 4], time=[a % 3, a % 3 + 2.0])


def add_video_with_two_queries(at: Edited, a: int, b: int) -> None:
    at.world.put_video("new_0", clip(50 + a))
    for number in range(2):
        at.world.add_query(("train", "test")[b % 2], 2000 + 10 * a + number, "new_0")


def delete_query(at: Edited, a: int, b: int) -> None:
    row = at.query(a)
    for rows in at.world.rows.values():
        if row in rows and len(rows) > 2:
            rows.remove(row)


def move_query(at: Edited, a: int, b: int) -> None:
    row = at.query(a)
    for split, other in (("train", "test"), ("test", "train")):
        if row in at.world.rows[split] and len(at.world.rows[split]) > 2:
            at.world.rows[split].remove(row)
            at.world.rows[other].insert(2, row)
            return


def change_text(at: Edited, a: int, b: int) -> None:
    at.query(a)["fig_desc"] = TEXTS[b % 4]


def change_caption(at: Edited, a: int, b: int) -> None:
    at.query(a)["cog_desc"] = TEXTS[b % 4]


def change_span(at: Edited, a: int, b: int) -> None:
    """Within the video, beyond its end, reversed, or after it."""
    at.query(a)["time"] = [[0.5, 2.5], [2, 99], [4, 1], [50, 60]][b % 4]


def change_id(at: Edited, a: int, b: int) -> None:
    """A new one, or that of another query."""
    at.query(a)["desc_id"] = 3000 + b if b % 2 else at.query(b)["desc_id"]


def spoil_line(at: Edited, a: int, b: int) -> None:
    at.query(a)["fig_desc"] = ""


def replace_video(at: Edited, a: int, b: int) -> None:
    at.world.put_video(at.video(a), clip(70 + b))


def spoil_video(at: Edited, a: int, b: int) -> None:
    at.world.put_video(at.video(a), NOT_A_VIDEO)


def delete_video(at: Edited, a: int, b: int) -> None:
    at.world.delete_video(at.video(a))


def move_video(at: Edited, a: int, b: int) -> None:
    path = at.world.video_path(at.video(a))
    if path.exists():
        (path.parent / "elsewhere").mkdir(exist_ok=True)
        path.rename(path.parent / "elsewhere" / path.name)


def claim_the_same_id(at: Edited, a: int, b: int) -> None:
    """A second file of the same name with another suffix; gone again the next time."""
    path = at.world.video_path(at.video(a)).with_suffix(".mkv")
    if path.exists():
        path.unlink()
    else:
        path.write_bytes(clip(a))


def touch_all(at: Edited, a: int, b: int) -> None:
    for path in sorted(at.world.annotations.rglob("*.*")):
        at.world.touch(path)


STORES: tuple[Literal["auto", "npy", "jpeg"], ...] = ("auto", "npy", "jpeg")


def change_recipe(at: Edited, a: int, b: int) -> None:
    models = at.config.models
    changes: tuple[dict[str, Any], ...] = (
        {"models": dataclasses.replace(models, tiny=dataclasses.replace(models.tiny, contrastive_lr=0.1 * (b + 1)))},
        {"models": dataclasses.replace(models, options=dataclasses.replace(models.options, num_soft_tokens=1 + b))},
        {"frames": dataclasses.replace(at.config.frames, max_frames=2 + 2 * (b % 3), store=STORES[b // 3 % 3])},
        {"retrieval": dataclasses.replace(at.config.retrieval, num_hard_negatives=1 + b % 3)},
        {"pool": dataclasses.replace(at.config.pool, num_not_matched=1 + b % 4)},
        {"sft": dataclasses.replace(at.config.sft, lr=0.1 * (b + 1))},
        {"evaluation": dataclasses.replace(at.config.evaluation, max_new_tokens=8 + b)},
        {"segments": SegmentRecipe(window_s=(0.0, 3.0, 4.0)[b % 3], overlap=0.25)},
    )
    at.config = dataclasses.replace(at.config, **changes[a % len(changes)])


def change_batch_size(at: Edited, a: int, b: int) -> None:
    at.execution = Execution(workers=1, batch_size=1 + a, shard_rows=1 + b)


EDITS: tuple[Edit, ...] = (
    *(add_query, add_video_with_two_queries, delete_query, move_query, change_text, change_caption, change_span),
    *(change_id, spoil_line, replace_video, spoil_video, delete_video, move_video, claim_the_same_id, touch_all),
    *(change_recipe, change_batch_size),
)


def apply(at: Edited, script: list[tuple[Edit, int, int]]) -> None:
    for edit, a, b in script:
        edit(at, a, b)
    for split in at.world.rows:
        at.world.write_annotations(split)


# ---- of the lake -----------------------------------------------------------------------------------------------------


def undo_all(at: Edited, a: int, b: int) -> None:
    """The corpus and the configuration as they were at first; the lake stays."""
    at.world.rows = {"train": [], "test": []}
    shutil.rmtree(at.world.videos)
    clock, at.world.clock = at.world.clock, 0  # the same files, of the same times
    fill(at.world, num_train=2, num_test=2)
    at.world.clock, at.config = max(clock, at.world.clock), at.first


def correct_text(at: Edited, a: int, b: int) -> None:
    """By a person, in the home."""
    view = at.world.view(stages(), at.config)
    query_id, said = sorted(annotated_moments(view).items())[a % 4]
    if (before := Annotated.of(said)) is not None:
        after = dataclasses.replace(before, query=TEXTS[b % 4])
        with appending(corrections_path(at.world.home, at.world.name)) as corrections:
            corrections.append(Correction.made("someone", "change", query_id, before=before, after=after))


def lose_table(at: Edited, a: int, b: int) -> None:
    shutil.rmtree(_table_folder(at.world.home, 10 * a + b), ignore_errors=True)


def restore_table(at: Edited, a: int, b: int) -> None:
    """As it was at first: the same files."""
    folder = _table_folder(at.world.home, 10 * a + b)
    shutil.rmtree(folder, ignore_errors=True)
    saved = at.world.home.with_name(SAVED) / folder.relative_to(at.world.home)
    shutil.copytree(saved, folder, copy_function=os.link)


def restore_what_is_kept(at: Edited, a: int, b: int) -> None:
    shutil.rmtree(at.world.home / KEPT, ignore_errors=True)
    shutil.copytree(at.world.home.with_name(SAVED) / KEPT, at.world.home / KEPT, copy_function=os.link)


def _table_folder(home: Path, number: int) -> Path:
    found = sorted((home.with_name(SAVED) / "lake/tables").glob("*/dataset=small"))
    return home / found[number % len(found)].relative_to(home.with_name(SAVED))


LAKE_EDITS: tuple[Edit, ...] = (undo_all, correct_text, lose_table, restore_table, restore_what_is_kept)
