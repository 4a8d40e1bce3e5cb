"""What `tests.fault_sweep` strikes: builds of a small corpus whose models are hashes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tests.cheap_stages import cheap_stages
from tests.core.datasets.prepared_folder import write_prepared
from tests.core.datasets.prepared_home import Home as PreparedHome
from tests.fault_sweep import Scenario
from tests.small_world import SmallWorld, clip, fill
from vsr1_core.configurations import NANO
from vsr1_core.home.building import build
from vsr1_core.home.correcting import WantedCorrection, correct, listed_corrections
from vsr1_core.rows import row_files
from vsr1_core.rows.lake import Lake
from vsr1_core.stages.adopted import Adopted, write_adopted
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import writing

METHODS = ("sqr_sft", "videosearch_r1")
CONFIG = dataclasses.replace(
    NANO,
    evaluation=dataclasses.replace(NANO.evaluation, methods=METHODS, num_turns=1, num_resamples=1),
    pool=dataclasses.replace(NANO.pool, num_matched=2, num_not_matched=3),
    retrieval=dataclasses.replace(NANO.retrieval, top_k=4, num_hard_negatives=2),
)
LEFT_OUT = ("fine_tuned", "hard_refine", "drop_above_positive", "verification_probe.sqr_sft")


def opened(home: Path) -> View:
    stages = {
        name: stage
        for name, stage in cheap_stages().items()
        if not name.startswith(LEFT_OUT) and ("." not in name or name.partition(".")[2] in METHODS)
    }
    return View(Lake(home / "lake"), SmallWorld(home).entry, CONFIG, stages, home=home)


def corpus(home: Path) -> SmallWorld:
    return fill(SmallWorld(home), num_train=2, num_test=2)


def build_all(home: Path) -> None:
    """As users build, in this process; a shard has five rows, so that there are some."""
    view = opened(home)
    for _ in build(view, Execution(workers=1, shard_rows=5), list(view.stages)):
        pass


def built(home: Path) -> SmallWorld:
    world = corpus(home)
    build_all(home)
    return world


def edited(home: Path) -> None:
    """A built home in which a text, a video and a span changed, and a query and a video came."""
    world = built(home)
    world.find(101)[1]["fig_desc"] = "another thing"
    world.find(900)[1]["time"] = [0.5, 2.0]
    world.put_video("train_1", clip(77))
    world.put_video("new_0", clip(78))
    world.add_query("test", 1000, "new_0")
    for split in world.rows:
        world.write_annotations(split)


def build_by_deltas(home: Path) -> None:
    """As if all tables were large."""
    usual, row_files.ONE_FILE_BYTES = row_files.ONE_FILE_BYTES, -1
    try:
        build_all(home)
    finally:
        row_files.ONE_FILE_BYTES = usual


def adopt_and_build(home: Path) -> None:
    checkpoint = home.with_name("checkpoint")
    checkpoint.mkdir(exist_ok=True)
    soft_query = {"num_soft_tokens": 2, "accumulate": True, "seed_hidden": "last", "system_prompt": ""}
    (checkpoint / "config.json").write_text(json.dumps({"soft_query": soft_query}))
    with writing(opened(home), "an adoption") as held:
        write_adopted(held, "sft_checkpoint", Adopted(str(checkpoint), "digest", "org/name"))
    build_all(home)


def correct_and_build(home: Path) -> None:
    """A query is rejected, unless an earlier try did it, and the corpus is built."""
    view = opened(home)
    if not listed_corrections(view, "900_fig"):
        correct(view, WantedCorrection("reject", "900_fig"))
    build_all(home)


def prepared(home: Path) -> None:
    write_prepared(home / "prepared")


def import_all(home: Path) -> None:
    PreparedHome(home).take(home / "prepared")


SCENARIOS = {
    "first": Scenario(corpus, build_all),
    "edit": Scenario(edited, build_all),
    "deltas": Scenario(edited, build_by_deltas),
    "adopt": Scenario(built, adopt_and_build),
    "correct": Scenario(built, correct_and_build),
    "import": Scenario(prepared, import_all),
}
