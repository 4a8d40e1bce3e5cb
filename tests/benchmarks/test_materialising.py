"""A build step of ours, against a bare Dagster asset that computes the same rows and writes them with pyarrow.

Rows of a millisecond of work are cheap ones here: to decode a short clip takes forty. Rows of no work show what plan,
versions, commit, metadata and checks of a stage cost by themselves. What these buy is in the later builds: ours makes
what changed, and the bare asset all rows again.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks.measuring import PROCESSOR, Measured, in_seconds, interleaved, line, scaled
from tests.fakes import numbers_path, write_numbers
from tests.one_connection import instance_in_memory
from tests.ticker import Ticker
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.columns import integer, text
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view

NUM_ROWS, NUM_FREE_ROWS, REPEATS, SHARE_CHANGED = 100 * scaled(20), 100 * scaled(500), 3, 0.01
BARE = "a bare Dagster asset, pyarrow"
ROUNDS = 4500
"""Of a digest, for a millisecond."""


def digest_of(value: int, rounds: int) -> str:
    return hashlib.pbkdf2_hmac("sha256", str(value).encode(), b"salt", rounds).hex()


def lines_of(path: Path) -> Iterator[tuple[str, int]]:
    for each in path.read_text().splitlines():
        name, value = each.split()
        yield name, int(value)


class Digests(Stage):
    """One row a line of numbers.txt."""

    name, key, group = "digests", "number_id", "sources"
    says = "One row per line of numbers.txt."
    key_says = "Name of the number."
    columns = {"value": integer("The number."), "digest": text("Its digest.")}

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def plan(self, view: View) -> dict[str, Row]:
        return {name: Row({"value": str(value)}, {"value": value}) for name, value in lines_of(numbers_path(view))}

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        for number_id, row in rows.items():
            yield {"number_id": number_id, **row.known, "digest": digest_of(row.known["value"], self.rounds)}


def bare_asset(source: Path, target: Path, rounds: int) -> dg.AssetsDefinition:
    @dg.asset(name="digests", partitions_def=dg.StaticPartitionsDefinition(["toy"]))
    def bare() -> dg.MaterializeResult:
        names, values = zip(*lines_of(source), strict=True)
        columns = {"number_id": names, "value": values, "digest": [digest_of(value, rounds) for value in values]}
        pq.write_table(pa.table(columns), target)
        return dg.MaterializeResult(metadata={"dagster/row_count": len(names)})

    return bare


class Pair:
    """Our asset and the bare one over the same file of numbers."""

    def __init__(self, home: Path, instance: dg.DagsterInstance, num_rows: int, rounds: int) -> None:
        self.home, self.instance = home, instance
        self.values = {f"n{number:07d}": number for number in range(num_rows)}
        write_numbers(home, "toy", self.values)
        self.stages: Mapping[str, Stage] = {"digests": Digests(rounds)}
        self.ticker = Ticker(home, instance, lambda: self.stages)
        self.bare = bare_asset(home / "data/toy/numbers.txt", home / "bare.parquet", rounds)

    def change(self, share: float) -> None:
        for name in list(self.values)[:: round(1 / share)]:
            self.values[name] += 1
        write_numbers(self.home, "toy", self.values)

    def ours(self) -> int:
        return self.ticker.run("toy", [dg.AssetKey("digests")])["digests"]

    def plain(self) -> None:
        assert dg.materialize([self.bare], instance=self.instance, partition_key="toy").success

    def agree(self) -> bool:
        bare = pl.read_parquet(self.home / "bare.parquet")
        return open_view(self.home, "toy", dict(self.stages)).rows("digests", bare.columns).equals(bare)


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[Callable[[int, int], list[Pair]]]:
    """(number of rows, rounds of the work of each) -> a pair for each repeat."""
    logging.getLogger("dagster").setLevel(logging.ERROR)
    with instance_in_memory() as instance:
        Pair(tmp_path / "warm", instance, 1, 1).ours()  # imports
        yield lambda *of: [Pair(tmp_path / str(number), instance, *of) for number in range(REPEATS)]


def built(pairs: Sequence[Pair]) -> list[Measured]:
    """The first build of each pair: of the bare asset, and of ours."""
    bares, others = iter(pairs), iter(pairs)
    measured = interleaved(len(pairs), PROCESSOR, lambda: next(bares).plain(), lambda: next(others).ours())
    assert measured[1].result == len(pairs[0].values)
    assert all(pair.agree() for pair in pairs)
    return measured


def shown(what: str, wanted: str, plain: Measured, ours: Measured) -> None:
    times = in_seconds(plain.median, ours.median)
    print(line(what, *times, ours.median / plain.median, wanted, against=BARE))


def test_building_rows(pairs: Callable[[int, int], list[Pair]]) -> None:
    every = pairs(NUM_ROWS, ROUNDS)
    plain, first = built(every)
    again, part = Measured(), Measured()
    for pair in every:
        again.run(pair.ours, PROCESSOR)
        pair.change(SHARE_CHANGED)
        part.run(pair.ours, PROCESSOR)
        pair.plain()
    assert (again.result, part.result) == (0, round(SHARE_CHANGED * NUM_ROWS))
    assert all(pair.agree() for pair in every)
    of = f"{NUM_ROWS:,} rows of {plain.median / NUM_ROWS * 1e3:.1f} ms of work"
    shown(f"a first build of {of}", "at most 1.1", plain, first)
    shown(f"a build after {SHARE_CHANGED:.0%} changed of {of}", "at most 0.1", plain, part)
    shown(f"a build after nothing changed of {of}", "at most 0.1", plain, again)


def test_building_rows_of_no_work(pairs: Callable[[int, int], list[Pair]]) -> None:
    plain, ours = ([s / NUM_FREE_ROWS for s in each.seconds] for each in built(pairs(NUM_FREE_ROWS, 1)))
    plain_s, ours_s = statistics.median(plain), statistics.median(ours)
    texts = (f"{1e6 * seconds:.1f} us" for seconds in (plain_s, ours_s))
    what = f"a row of no work in a first build of {NUM_FREE_ROWS:,}"
    print(line(what, *texts, ours_s / plain_s, "at most 40 us", against=BARE, judged=1e6 * ours_s))
