"""Folders that are exchanged while they are read: what is read is of one of the two, whole."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.core.tiny_models import tiny_policy
from vsr1_core.models import checkpoints
from vsr1_core.models.checkpoints import load_policy, save_policy
from vsr1_core.rows import whole_folders
from vsr1_core.rows.files import atomic_folder
from vsr1_core.rows.whole_folders import read_whole
from vsr1_core.search import index as index_module
from vsr1_core.search.index import build_index, read_index, write_index


def put(folder: Path, text: str) -> None:
    with atomic_folder(folder) as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text(text)


def reading(between: Callable[[], Any]) -> Callable[[Path], tuple[str, str]]:
    """Reads both files of `put`, with something in between."""

    def read(folder: Path) -> tuple[str, str]:
        first = (folder / "a").read_text()
        between()
        return first, (folder / "b").read_text()

    return read


def test_a_folder_that_is_exchanged_is_read_again(tmp_path: Path) -> None:
    texts = ["2", "3"]
    put(tmp_path / "x", "1")
    found = read_whole(tmp_path / "x", reading(lambda: put(tmp_path / "x", texts.pop(0)) if texts else None))
    assert found == ("3", "3")
    assert texts == []


def test_what_was_read_in_vain_is_gone_before_the_folder_is_read_again(tmp_path: Path) -> None:
    put(tmp_path / "x", "1")
    made: list[weakref.ref[Any]] = []

    class Model:
        pass

    def read(_folder: Path) -> Model:
        assert [model() for model in made] == [None] * len(made)
        model = Model()
        made.append(weakref.ref(model))
        if len(made) < 3:
            put(tmp_path / "x", "2")
        return model

    assert read_whole(tmp_path / "x", read) is made[2]()


def test_an_error_of_a_folder_that_stood_is_raised_at_once(tmp_path: Path) -> None:
    put(tmp_path / "x", "1")
    tries: list[None] = []

    def read(folder: Path) -> None:
        tries.append(None)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        read_whole(tmp_path / "x", read)
    assert len(tries) == 1
    with pytest.raises(FileNotFoundError):
        read_whole(tmp_path / "missing", reading(lambda: None))


def test_a_folder_without_a_name_for_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "y", "1")
    monkeypatch.setattr(whole_folders.time, "sleep", lambda _: (tmp_path / "y").rename(tmp_path / "x"))
    assert read_whole(tmp_path / "x", reading(lambda: None)) == ("1", "1")


def test_a_folder_that_never_stands_is_said_to_be_so(tmp_path: Path) -> None:
    put(tmp_path / "x", "1")
    with pytest.raises(OSError, match="x was exchanged for another one 5 times while it was read; try again"):
        read_whole(tmp_path / "x", reading(lambda: put(tmp_path / "x", "2")))


def test_a_folder_that_never_stands_tells_what_was_wrong_in_it(tmp_path: Path) -> None:
    put(tmp_path / "x", "1")

    def read(folder: Path) -> str:
        put(folder, "2")
        raise ValueError("broken")

    with pytest.raises(OSError, match="was exchanged for another one 5 times") as found:
        read_whole(tmp_path / "x", read)
    assert str(found.value.__cause__) == "broken"


def test_vectors_and_ids_of_an_index_are_of_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.eye(3, dtype=np.float32)
    write_index(tmp_path / "index", build_index(["a", "b", "c"], vectors))
    read_json, exchanged = index_module.read_json, threading.Event()

    def exchange(path: Path) -> Any:
        if not exchanged.is_set():
            exchanged.set()
            write_index(tmp_path / "index", build_index(["d", "e", "f"], vectors[::-1]))
        return read_json(path)

    monkeypatch.setattr(index_module, "read_json", exchange)
    found = read_index(tmp_path / "index")
    assert exchanged.is_set()
    assert found.ids == ("d", "e", "f")
    np.testing.assert_array_equal(found.vectors, vectors[::-1])


def test_weights_and_options_of_a_policy_are_of_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_policy(tiny_policy(seed=0), tmp_path / "policy", {})
    new = tiny_policy(seed=1, seed_hidden="pre_norm")
    own, exchanged = checkpoints.policy_family_of, threading.Event()

    class Family:
        """Reads the options, and then the weights of another policy."""

        def load_policy(self, folder: Path, device: str, dtype: Any) -> Any:
            if not exchanged.is_set():
                exchanged.set()
                old = own(folder).load_policy(folder, device, dtype)
                save_policy(new, tmp_path / "policy", {})
                return old
            return own(folder).load_policy(folder, device, dtype)

    monkeypatch.setattr(checkpoints, "policy_family_of", lambda folder: Family())
    found = load_policy(tmp_path / "policy")
    assert exchanged.is_set()
    assert found.model.soft_query.seed_hidden == "pre_norm"
