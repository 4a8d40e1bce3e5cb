"""Files of registered datasets that were edited or copied by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vsr1_core.datasets.registry import DatasetEntry, load_entries, save_entry


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "it has no field 'name'"),
        ("[1]", "is no registration"),
        ('{"name": "x", "kind": "folder", "nope": 1}', "it has the unknown field 'nope'"),
        ('{"name": 5, "kind": "folder"}', "is no registration"),
        ('{"name": "x", "kind": "folder", "videos": 5}', "is no registration"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_file_that_is_no_registration_is_named(tmp_path: Path, text: str, reason: str) -> None:
    save_entry(tmp_path, DatasetEntry("x", "folder"))
    (tmp_path / "datasets/x.json").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json.*{reason}"):
        load_entries(tmp_path)


def test_a_copied_registration_does_not_replace_the_one_it_was_copied_from(tmp_path: Path) -> None:
    save_entry(tmp_path, DatasetEntry("mine", "folder", "old"))
    shutil.copy(tmp_path / "datasets/mine.json", tmp_path / "datasets/other.json")
    save_entry(tmp_path, DatasetEntry("mine", "folder", "new"))
    with pytest.raises(ValueError, match=r"other\.json is no registration.* it says that it is 'mine'"):
        load_entries(tmp_path)
