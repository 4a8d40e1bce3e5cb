"""What a dataset takes from the one whose models it uses: frames and options, over any number of steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.cheap_stages import cheap_stages
from tests.small_world import SmallWorld, build, fill
from vsr1_core.configuration_files import configuration_path, write_configuration
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.registry import DatasetEntry, configuration_of, get_entry, models_owner, save_entry
from vsr1_core.stages.graph import open_view, stamp
from vsr1_core.stages.loading import one_row

REAL, TINY = CONFIGURATIONS["qwen3-vl-2b"], CONFIGURATIONS["tiny"]


def add(home: Path, name: str, config: str, models_from: str = "") -> DatasetEntry:
    entry = DatasetEntry(name, "folder", str(home), "", config, models_from)
    save_entry(home, entry)
    return entry


def test_frames_and_models_are_those_of_the_dataset_that_made_the_models(tmp_path: Path) -> None:
    add(tmp_path, "lender", "qwen3-vl-2b")
    mine = add(tmp_path, "mine", "tiny", "lender")
    config = configuration_of(tmp_path, mine)
    assert config == replace(TINY, frames=REAL.frames, models=REAL.models)
    assert open_view(tmp_path, "mine").config == config
    assert configuration_of(tmp_path, get_entry(tmp_path, "lender")) == REAL


def test_the_seed_of_borrowed_models_is_theirs(tmp_path: Path) -> None:
    lender = add(tmp_path, "lender", "nano")
    save_entry(tmp_path, replace(lender, seed=9))
    mine = replace(add(tmp_path, "mine", "nano", "lender"), seed=3)
    config = configuration_of(tmp_path, mine)
    assert (config.models.options.seed, config.sft.seed) == (9, 3)


def test_a_chain_ends_at_the_dataset_that_makes_its_own(tmp_path: Path) -> None:
    add(tmp_path, "first", "qwen3-vl-2b")
    add(tmp_path, "second", "nano", "first")
    third = add(tmp_path, "third", "tiny", "second")
    assert models_owner(tmp_path, third).name == "first"
    assert configuration_of(tmp_path, third).frames == REAL.frames


def test_models_that_are_nobodys_are_refused(tmp_path: Path) -> None:
    add(tmp_path, "a", "nano", "c")
    add(tmp_path, "b", "nano", "a")
    last = add(tmp_path, "c", "nano", "b")
    with pytest.raises(ValueError, match="borrow in a circle: c from b from a from c; one of them has to make its own"):
        models_owner(tmp_path, last)
    lost = add(tmp_path, "lost", "nano", "gone")
    with pytest.raises(LookupError, match="'lost' borrows the models of 'gone', which is not a known dataset"):
        configuration_of(tmp_path, lost)


@pytest.mark.slow
def test_a_chain_of_borrowing_is_built_with_the_models_at_its_end(tmp_path: Path) -> None:
    """The dataset in between need not be built."""
    world = fill(SmallWorld(tmp_path), num_train=3, num_test=2).register()
    build(open_view(tmp_path, "small", cheap_stages()))
    last = SmallWorld(tmp_path, "last", world.rows)
    for split in world.rows:
        last.write_annotations(split)
    save_entry(tmp_path, replace(world.entry, name="between", models_from="small"))
    save_entry(tmp_path, replace(last.entry, models_from="between", videos=world.entry.videos))
    view, owner = open_view(tmp_path, "last", cheap_stages()), open_view(tmp_path, "small", cheap_stages())
    build(view)
    for asset in ("base_models", "sft_checkpoint", "grpo_checkpoint"):
        columns = ["path", "digest", "options"]
        assert view.rows(asset)[columns].rows() == owner.rows(asset)[columns].rows()
        assert set(view.rows(asset)["source"]) == {"borrowed from small"}
    before = stamp(view)
    assert stamp(open_view(tmp_path, "last", cheap_stages())) == before
    save_entry(tmp_path, replace(world.entry, seed=3))
    assert stamp(open_view(tmp_path, "last", cheap_stages())) != before


@pytest.mark.slow
def test_a_checkpoint_that_the_owner_does_not_make_is_no_matter_of_building_the_borrower(tmp_path: Path) -> None:
    world = fill(SmallWorld(tmp_path), num_train=3, num_test=2)
    write_configuration(tmp_path, "few", "nano", {"evaluation": {"methods": ["sqr_sft"]}}, "test")
    save_entry(tmp_path, replace(world.entry, config="few"))
    build(open_view(tmp_path, "small", cheap_stages()))
    save_entry(tmp_path, replace(world.entry, name="mine", models_from="small"))
    view = open_view(tmp_path, "mine", cheap_stages())
    with pytest.raises(LookupError, match=r"uses the models of small, which makes none.* of few and build small"):
        one_row(view, "fine_tuned_checkpoint", "fine_tuned_checkpoint")
    with pytest.raises(LookupError, match="run: vsr1 build --dataset mine --assets sft_checkpoint"):
        one_row(view, "sft_checkpoint", "sft_checkpoint")


def test_which_checkpoints_are_borrowed_is_looked_at_again_when_their_owner_makes_others(tmp_path: Path) -> None:
    write_configuration(tmp_path, "few", "nano", {"evaluation": {"methods": ["sqr_sft"]}}, "test")
    add(tmp_path, "owner", "few")
    add(tmp_path, "mine", "nano", "owner")
    before = stamp(open_view(tmp_path, "mine", cheap_stages()))
    configuration_path(tmp_path, "few").write_text('base = "nano"\nevaluation.methods = ["hard_refine"]\n')
    assert stamp(open_view(tmp_path, "mine", cheap_stages())) != before
