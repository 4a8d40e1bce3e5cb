"""Digests of files are computed once for each content that has another size or time."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsr1_core.rows import files
from vsr1_core.rows.files import digest_file, read_stamp
from vsr1_core.rows.known_digests import digests_of


def test_only_files_without_a_known_stamp_are_read_and_the_order_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("c", "a", "b")]
    for path in paths:
        path.write_text(path.name)
    read = list[Path]()
    monkeypatch.setattr(files, "digest_file", lambda path: (read.append(path), digest_file(path))[1])
    found = digests_of(paths, {read_stamp(paths[1]): "as known"})
    assert found == [
        (read_stamp(paths[0]), digest_file(paths[0])),
        (read_stamp(paths[1]), "as known"),
        (read_stamp(paths[2]), digest_file(paths[2])),
    ]
    assert sorted(read) == [paths[2], paths[0]]
