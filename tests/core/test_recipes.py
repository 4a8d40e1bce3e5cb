"""Fingerprints: equal recipes agree, different ones differ, and what has no stable spelling is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from vsr1_core.configurations import CONFIGURATIONS, NANO, TINY
from vsr1_core.recipes import FrameRecipe, ModelRecipe, SFTRecipe
from vsr1_core.rows.versions import fingerprint, fingerprint_of_all
from vsr1_core.stages.graph import all_stages


def test_equal_recipes_have_equal_fingerprints() -> None:
    assert fingerprint(FrameRecipe()) == fingerprint(FrameRecipe(fps=1.0))


def test_the_tiny_models_are_a_pair() -> None:
    with pytest.raises(ValueError, match=r"'tiny' and the embedder 'Qwen/E' cannot be used together.*set both"):
        ModelRecipe(embedder="Qwen/E")


def test_when_automation_trains_changes_no_row() -> None:
    by_hand = dataclasses.replace(TINY, retrain="manual")
    assert TINY.retrain == "auto"
    for stage in all_stages().values():
        assert fingerprint(stage.recipe(by_hand)) == fingerprint(stage.recipe(TINY)), stage.name


def test_recipes_of_different_kinds_never_share_a_fingerprint() -> None:
    @dataclasses.dataclass(frozen=True)
    class A:
        x: int = 1

    @dataclasses.dataclass(frozen=True)
    class B:
        x: int = 1

    assert fingerprint(A()) != fingerprint(B())


def test_the_order_of_a_dict_does_not_count() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [{1, 2}, object(), Path("x"), lambda: 0, SFTRecipe])
def test_values_without_a_stable_spelling_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no stable spelling"):
        fingerprint({"value": value})


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from vsr1_core.configurations import TINY; from vsr1_core.rows.versions import fingerprint; "
        "print(fingerprint(TINY))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == fingerprint(TINY)


def test_recipes_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FrameRecipe().fps = 2.0  # type: ignore[misc]


def test_configurations_are_named_by_their_key() -> None:
    assert all(name == config.name for name, config in CONFIGURATIONS.items())
    assert fingerprint(NANO) != fingerprint(TINY)


@pytest.mark.parametrize("number", [0, 1, 2, 4096, 4097, 9000])
def test_the_fingerprint_of_many_items_is_that_of_their_list(number: int) -> None:
    items = [(f'"é{i}', i / 7, None, ["a", FrameRecipe()]) for i in range(number)]
    assert fingerprint_of_all(iter(items)) == fingerprint(items)
