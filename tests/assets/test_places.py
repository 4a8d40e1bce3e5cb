"""The place of an asset among those of its run, as its heading says it."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from assets._places import place_in_run, start_order

NEEDED = {"a": [], "b": ["a"], "c": ["a"], "d": ["c"], "e": ["b"], "f": ["d", "e"]}
Places = list[tuple[str, int, int]]


def an_asset(name: str, needed: Sequence[str], found: Places) -> dg.AssetsDefinition:
    # No annotation of `context`: Dagster would read it as a class, and here it is a text.
    @dg.asset(name=name, deps=list(needed))
    def body(context) -> None:
        found.append((name, *place_in_run(context)))

    return body


def places(selection: Sequence[str] = ()) -> Places:
    """(asset, its place, number of assets), in the order in which the assets of a run in this process started."""
    found: Places = []
    defs = dg.Definitions(
        assets=[an_asset(name, needed, found) for name, needed in NEEDED.items()],
        jobs=[dg.define_asset_job("all", dg.AssetSelection.all())],
    )
    job = defs.resolve_job_def("all")
    keys = [dg.AssetKey(name) for name in selection] or None
    assert job.execute_in_process(asset_selection=keys).success
    return found


def test_assets_are_numbered_in_the_order_in_which_they_start() -> None:
    assert [(number, total) for _, number, total in places()] == [(n, 6) for n in range(1, 7)]


def test_of_a_part_of_the_graph_only_its_assets_are_counted() -> None:
    assert places(["a", "d", "f"]) == [("a", 1, 3), ("d", 2, 3), ("f", 3, 3)]


def test_a_step_queues_behind_those_that_could_start_before_it() -> None:
    order = start_order({"last": {"b"}, "b": {"z", "a"}, "z": set(), "a": {"z"}, "c": {"z"}})
    assert order == ["z", "a", "c", "b", "last"]
