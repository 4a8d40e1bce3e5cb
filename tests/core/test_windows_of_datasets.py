"""Which datasets search long videos in windows: new folders of videos do, and no registered one changes by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vsr1_core.configuration_files import write_configuration
from vsr1_core.configurations import CONFIGURATIONS
from vsr1_core.datasets.registry import DatasetEntry, builtin_entries, configuration_of, own_configuration, save_entry
from vsr1_core.home.adding import OWN_WINDOW_S, Wanted, entry_of, frames_of, new_window_s, next_steps
from vsr1_core.segments import SegmentRecipe
from vsr1_core.settings import nested


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"film")
    return folder


def wanted(videos: Path, window_s: float | None = None, name: str = "mine") -> Wanted:
    return Wanted(name, videos, None, "toy", None, window_s=window_s)


def test_every_configuration_and_built_in_dataset_keeps_whole_videos(tmp_path: Path) -> None:
    assert all(config.segments == SegmentRecipe(window_s=0.0) for config in CONFIGURATIONS.values())
    assert not any(configuration_of(tmp_path, entry).segments.window_s for entry in builtin_entries(tmp_path).values())


def test_a_new_folder_of_videos_is_searched_in_windows_whatever_models_it_borrows(tmp_path: Path, videos: Path) -> None:
    entry = entry_of(tmp_path, wanted(videos), "tiny")
    assert entry.window_s == OWN_WINDOW_S
    save_entry(tmp_path, entry)
    config = configuration_of(tmp_path, entry)
    assert config.segments == SegmentRecipe(window_s=OWN_WINDOW_S, overlap=0.25)
    assert "of videos longer than 120 s in windows of that length" in frames_of(tmp_path, entry)
    assert any("longer than 120 s are searched in windows" in line for line in next_steps(tmp_path, entry))


def test_a_registered_dataset_keeps_what_it_has_until_it_is_told_otherwise(tmp_path: Path, videos: Path) -> None:
    save_entry(tmp_path, DatasetEntry("mine", "folder", str(videos), models_from="toy"))
    assert entry_of(tmp_path, wanted(videos), "tiny").window_s == 0.0
    assert new_window_s(tmp_path, "mine", "tiny") == 0.0
    entry = entry_of(tmp_path, wanted(videos, 45.0), "tiny")
    save_entry(tmp_path, entry)
    assert entry_of(tmp_path, wanted(videos), "tiny").window_s == 45.0
    assert entry_of(tmp_path, wanted(videos, 0.0), "tiny").window_s == 0.0
    assert own_configuration(tmp_path, entry).segments.window_s == 45.0


def test_windows_of_a_configuration_of_ones_own_are_kept(tmp_path: Path, videos: Path) -> None:
    settings = nested({"segments.window_s": 20.0, "segments.overlap": 0.5})
    write_configuration(tmp_path, "short", "tiny", settings, "test")
    entry = entry_of(tmp_path, dataclasses.replace(wanted(videos), config="short"), "short")
    assert entry.window_s == 0.0
    assert own_configuration(tmp_path, entry).segments == SegmentRecipe(window_s=20.0, overlap=0.5)
    with pytest.raises(ValueError, match=r"short searches in windows of 20 s, .*: give --set segments\.window_s=0"):
        entry_of(tmp_path, dataclasses.replace(wanted(videos, 0.0), config="short"), "short")


def test_a_window_that_makes_no_sense_is_refused(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(ValueError, match="--window is a number of seconds, 0 for whole videos, not -1"):
        entry_of(tmp_path, wanted(videos, -1.0), "tiny")
    for other in (wanted(videos, 60.0, "charades"), dataclasses.replace(wanted(videos, 60.0), toy=True)):
        with pytest.raises(ValueError, match="--window is for a folder of your own videos"):
            entry_of(tmp_path, other, "tiny")
    with pytest.raises(ValueError, match=r"overlap has to be a number from 0 to 0\.5"):
        write_configuration(tmp_path, "odd", "tiny", nested({"segments.overlap": 0.9}), "test")
