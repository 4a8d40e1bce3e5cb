"""Formats what the CLI prints: rich tables for a terminal, JSON and CSV for programs. Nothing is computed here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsr1_core.home.status import causes, status_frame
from vsr1_core.rows.increments import STATES
from vsr1_core.rows.texts import visible
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import StagePlan

if TYPE_CHECKING:
    import polars as pl

    from vsr1_core.evaluation.expected import ExpectedRanges
    from vsr1_core.home.building import BuiltAsset
    from vsr1_core.home.capacity import Estimate
    from vsr1_core.home.trial import Tried
    from vsr1_core.home.unused import UnusedFile


def console() -> Console:
    """A console on the current stdout; if that is not a terminal, it is wide enough for whole tables."""
    probe = Console()
    return probe if probe.is_terminal else Console(width=160)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table in which numbers are aligned to the right. Cells are shown as text; markup in them has no effect."""
    listed = [list(row) for row in rows]
    shown = Table(title=plain(title), title_justify="left", header_style="bold")
    for index, name in enumerate(header):
        numeric = bool(listed) and all(_is_number(row[index]) for row in listed)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        shown.add_row(*(plain(text(value)) for value in row))
    return shown


def _is_number(value: Any) -> bool:
    """Whether a cell counts as a number: a number, its text with thousands separated, or an empty cell."""
    return (
        isinstance(value, int | float) or (isinstance(value, str) and value.replace(",", "").isdigit()) or value == ""
    )


def plain(foreign: str) -> str:
    """Foreign text for a console: markup in it has no effect, and characters that a terminal would obey are spelled."""
    return escape(visible(foreign))


def text(value: Any) -> str:
    """The text of one cell: floats have 4 digits, integers separate thousands, nested values are JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | dict):
        nested = json.dumps(value, ensure_ascii=False, default=str)
        return nested if len(nested) <= 80 else nested[:79] + "…"
    return str(value)


def plan_json(plans: Iterable[StagePlan]) -> str:
    """The plan as JSON: `{"assets": {name: {new, stale, orphaned, failed, unchanged}}, "why": {name: {cause: rows}}}`.

    Counts that are not yet known are `{"waits_for": name}`. `"imported": {name: rows}` is added if rows were imported.
    """
    listed = list(plans)
    assets = {p.asset: p.plan.counts() if p.plan else {"waits_for": p.waits_for} for p in listed}
    why = {p.asset: p.plan.why() for p in listed if p.plan and p.plan.causes}
    imported = {p.asset: p.num_imported for p in listed if p.num_imported}
    return json.dumps({"assets": assets, "why": why} | ({"imported": imported} if imported else {}), indent=2)


def plan_table(view: View, plans: Iterable[StagePlan]) -> Table:
    """One line per asset that concerns the dataset: its counts, and why rows are due."""
    rows = []
    for item in plans:
        if not _concerns(view, item.asset) and not (item.plan and any(item.plan.counts().values())):
            continue
        if item.plan is None:
            rows.append([item.asset, *[""] * len(STATES), f"known after {item.waits_for} has run"])
        else:
            rows.append([item.asset, *(f"{n:,}" if n else "" for n in item.plan.counts().values()), causes(item)])
    return table(f"What `vsr1 build --dataset {view.entry.name}` would do", ["asset", *STATES, "why"], rows)


def print_forecast(title: str, estimates: Sequence[Estimate]) -> None:
    """Print disk, GPU memory and hours of each stage, their totals, and the assumptions behind the numbers."""
    from vsr1_core.home.capacity import ASSUMED, GIB

    header = ["stage", "disk GiB", "GPU GiB", "hours", "based on"]
    rows = [[e.stage, *(_amount(v) for v in (e.disk / GIB, e.gpu / GIB, e.hours)), e.how] for e in estimates]
    disk, hours = sum(e.disk for e in estimates), sum(e.hours for e in estimates)
    rows.append(["all", _amount(disk / GIB), _amount(max(e.gpu for e in estimates) / GIB), _amount(hours), ""])
    out = console()
    out.print(table(f"Forecast: {title}", header, rows))
    out.print("Sizes are computed from shapes, for the longest video; hours are estimates from:")
    for name, constant in ASSUMED.items():
        out.print(f"  {name} = {constant.value:g}: {constant.source}", markup=False, highlight=False)
    out.print(
        "  and the peak bf16 operations per second that the maker of the GPU states", markup=False, highlight=False
    )


def print_trial(title: str, steps: Iterable[Tried]) -> None:
    """Print each step of a trial beside its forecast, as soon as it is done."""
    from vsr1_core.home.capacity import GIB

    out = console()
    out.print(f"Trial of {title}: measured, and in brackets as forecast", markup=False)
    for step in steps:
        seconds = "" if step.forecast_s is None else f" ({step.forecast_s:,.1f})"
        memory = "" if step.forecast_bytes is None else f" ({step.forecast_bytes / GIB:.2f})"
        line = f"  {step.name}: {step.seconds:,.1f}{seconds} s, {step.peak_bytes / GIB:.2f}{memory} GiB; {step.found}"
        out.print(line, markup=False, highlight=False)


def _amount(value: float) -> str:
    if not value:
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else "< 0.1"


def build_table(view: View, assets: Iterable[BuiltAsset]) -> Table:
    """One line per asset that concerns the dataset: how many rows ran and failed, and how long it took."""
    asked = {name.replace("+", "_") for name in view.stages if _concerns(view, name)}  # Dagster's keys have no `+`
    shown = [a for a in assets if a.num_rows or a.num_processed or a.name in asked]
    rows = [[a.name, a.num_rows, a.num_processed, a.num_failed, round(a.seconds, 1)] for a in shown]
    return table(f"Built {view.entry.name}", ["asset", "rows", "processed", "failed", "seconds"], rows)


def status_table(view: View) -> Table:
    """One line per asset that concerns the dataset: what was built, and when."""
    rows = [
        [name, f"{num_rows:,}", num_failed or "", version, f"{changed_at:%Y-%m-%d %H:%M} UTC"]
        if version is not None
        else [name, "", "", "", "not built"]
        for name, num_rows, num_failed, version, changed_at in status_frame(view).iter_rows()
        if num_rows or _concerns(view, name)
    ]
    return table(f"Status of {view.entry.name}", ["asset", "rows", "failed", "data version", "last change"], rows)


def _concerns(view: View, asset: str) -> bool:
    return view.stages[asset].concerns(view)


def metrics_table(dataset: str, frame: pl.DataFrame) -> Table:
    """One line per metric and one column per method; values with their intervals."""
    from vsr1_core.home.metrics_grid import metrics_grid

    return table(f"Metrics of {dataset}, with 95 % intervals", *metrics_grid(frame))


def expected_lines(frame: pl.DataFrame, expected: ExpectedRanges) -> tuple[Table, str]:
    """The metrics beside their expected ranges, and one sentence that says whether they are in them."""
    from vsr1_core.home.metrics_grid import OUTSIDE, expected_grid

    header, rows = expected_grid(frame, expected)
    cells = [cell for row in rows for cell in row[1:] if cell]
    num_outside = sum(cell.endswith(OUTSIDE) for cell in cells)
    title = f"Here, in %, and the range in which 95 % of the runs are to be expected, from {expected.num_runs} runs"
    measured = f"The ranges were measured with: {expected.command}"
    if num_outside:
        verdict = (
            f"{num_outside} of {len(cells)} values are OUTSIDE the range that is to be expected; one in twenty is by "
            f"chance. {measured}"
        )
    else:
        verdict = f"All {len(cells)} values are in the range that is to be expected. {measured}"
    return table(title, header, rows), verdict


def frame_csv(frame: pl.DataFrame) -> str:
    """The frame as CSV. Lists and structs are written as JSON, because CSV has no nested values."""
    import polars as pl

    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    flat = [
        pl.Series(name, [json.dumps(v, ensure_ascii=False, default=str) for v in frame[name].to_list()])
        for name in nested
    ]
    return frame.with_columns(flat).write_csv()


def frame_json(frame: pl.DataFrame) -> str:
    """The frame as a JSON list with one object per row."""
    return json.dumps(frame.to_dicts(), ensure_ascii=False, indent=2, default=str)


def print_frame(frame: pl.DataFrame, output: str) -> None:
    """Print the frame as `csv` or `json`."""
    typer.echo(frame_csv(frame) if output == "csv" else frame_json(frame), nl=output == "json")


MIN_CELL = 9
"""Columns of a terminal that a cell needs to be readable, with its border."""


def fits(num_columns: int, width: int) -> bool:
    """Whether a table of so many columns can be read in a terminal that is `width` wide."""
    return num_columns * MIN_CELL <= width


def print_records(frame: pl.DataFrame) -> None:
    """Print each row as a block with one line per column; a value may take several lines."""
    longest = max((len(name) for name in frame.columns), default=0)
    for number, row in enumerate(frame.iter_rows(named=True), 1):
        typer.echo(f"row {number:,} of {frame.height:,}")
        for name, value in row.items():
            lines = visible(text(value)).splitlines() or [""]
            typer.echo(f"  {name:<{longest}}  " + f"\n{' ' * (longest + 4)}".join(lines))
    if frame.is_empty():
        typer.echo("no rows")


def unused_table(files: Sequence[UnusedFile]) -> Table:
    """One line per model; other files are counted by suffix, because there are many of them."""
    from vsr1_core.home.unused import DAY_S

    groups: dict[tuple[str, str, str], list[UnusedFile]] = {}
    for file in files:
        name = file.path.name if file.path.is_dir() else f"*{file.path.suffix}"
        groups.setdefault((file.dataset, file.asset, name), []).append(file)
    rows = [
        (*group, len(same), f"{_mib(same):,.1f}", f"{min(file.age_s for file in same) / DAY_S:.1f}")
        for group, same in sorted(groups.items())
    ]
    header = ("dataset", "asset", "name", "number", "MiB", "age in days")
    return table(f"Files that no row points to: {len(files):,}, {_mib(files):,.1f} MiB", header, rows)


def _mib(files: Sequence[UnusedFile]) -> float:
    return sum(file.num_bytes for file in files) / 2**20
