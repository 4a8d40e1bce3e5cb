"""Damaged videos: each is a row that is ok or has failed with a reason, within its limits, and the worker goes on."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.test_cage import sampled
from tests.core.test_differential_decoding import CONTAINERS, STARTS_LATE, make
from vsr1_core.media.video_limits import VideoLimits
from vsr1_core.recipes import FrameRecipe

RECIPE = FrameRecipe(fps=10.0, max_frames=16, max_pixels=64 * 64)
LIMITS = VideoLimits(memory_gb=1.0, cpu_s=20.0)
HEADER = 1_500
"""Bytes at the beginning and at the end of a file in which containers say what is where."""
MADE = [
    *((codec, container, "25", 9, False, 0.0) for codec, containers in CONTAINERS.items() for container in containers),
    *(("libx264", container, "30", 250, container != "ts", 3.5) for container in STARTS_LATE),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [make(tmp_path_factory.mktemp("made"), *how) for how in MADE]


def bits_anywhere(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 8, 100))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def bits_in_a_header(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 4, 20))):
        place = rng.randrange(HEADER)
        data[place if rng.random() < 0.5 else -1 - place] = rng.randrange(256)


def a_number_in_a_header(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(HEADER)
    number = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.randrange(1 << 32)))
    data[place : place + 4] = number.to_bytes(4, rng.choice(("big", "little")))


def cut_off(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def a_part_left_out(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    del data[place : place + rng.randrange(1, 5_000)]


def a_part_twice(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    data[place:place] = data[place : place + rng.randrange(1, 5_000)]


def a_part_overwritten(data: bytearray, rng: random.Random) -> None:
    place, length = rng.randrange(len(data)), rng.randrange(1, 2_000)
    data[place : place + length] = bytes([rng.choice((0, 255))]) * length


KINDS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(bits_anywhere, bits_in_a_header, a_number_in_a_header, cut_off),
    *(a_part_left_out, a_part_twice, a_part_overwritten),
)


def mutants(files: list[Path], folder: Path, seeds: range) -> list[Path]:
    """One mutant of every file for each seed; all kinds of damage come in turn."""
    made = []
    for seed in seeds:
        for number, path in enumerate(files):
            rng, data = random.Random(1000 * seed + number), bytearray(path.read_bytes())
            kind = KINDS[(seed + number) % len(KINDS)]
            kind(data, rng)
            made.append(folder / f"{seed:03d}_{number:02d}_{kind.__name__}{path.suffix}")
            made[-1].write_bytes(data)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.sweep) for part in range(1, 17))])
def test_a_damaged_video_is_a_row_with_a_reason_or_without(files: list[Path], tmp_path: Path, part: int) -> None:
    paths = mutants(files, tmp_path, range(3 * part, 3 * part + 3))
    results = sampled([*paths, files[0]], LIMITS, tmp_path, RECIPE, workers=2)
    assert len(results) == len(paths) + 1
    errors = {result.item[0]: result.error for result in results}
    assert errors.pop(files[0].name) is None, "the workers go on"
    failed = {name: error for name, error in errors.items() if error is not None}
    print(f"{len(errors) - len(failed)} of {len(errors)} are ok;", *sorted(set(failed.values())), sep="\n")
    assert 0 < len(failed) < len(errors)
    assert {n: e for n, e in failed.items() if not e or re.search("unexpected|signal|longer than|ran out", e)} == {}
