"""No package is pinned to, or allowed in, a version that has a published hole (`tests/known_holes.toml`)."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
HOLES = tomllib.loads((ROOT / "tests/known_holes.toml").read_text())


def requirements(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def below(requirement: Requirement) -> list[str]:
    """The hole that the lowest allowed version has, if it has one. A range without a lower bound has them all."""
    known = HOLES.get(canonicalize_name(requirement.name))
    lowest = [Version(part.version) for part in requirement.specifier if part.operator in ("==", ">=", "~=")]
    if known is None or (lowest and max(lowest) >= Version(known["fixed"])):
        return []
    return [f"{requirement}: {known['hole']}, fixed in {known['fixed']}"]


def test_pinned_versions_are_above_every_known_hole() -> None:
    pinned = requirements((ROOT / "constraints.txt").read_text().splitlines())
    assert len({canonicalize_name(pin.name) for pin in pinned} & set(HOLES)) >= 20
    assert [hole for pin in pinned for hole in below(pin)] == []


def test_the_ranges_of_the_project_are_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = [line for lines in project["project"]["optional-dependencies"].values() for line in lines]
    asked = requirements([*project["project"]["dependencies"], *extras, *project["build-system"]["requires"]])
    assert [hole for requirement in asked for hole in below(requirement)] == []


def test_an_old_version_is_found() -> None:
    for line, found in (("pillow>=10", 1), ("pillow==11.3.0", 0), ("Pillow<12", 1), ("numpy>=1", 0)):
        assert len(below(Requirement(line))) == found, line
