"""`vsr1 compare`: prints what `vsr1_core.home.compare` finds about two builds of the same videos and queries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands import check_choice, command
from pipelines.config_commands import difference_rows
from pipelines.settings import read_settings

if TYPE_CHECKING:
    from vsr1_core.home.compare import Comparison

MAX_LISTED = 10
"""How many queries the table lists for each method and kind of change; JSON has all of them."""
comparisons = typer.Typer()


@comparisons.command(
    "compare",
    epilog="Examples: [bold]vsr1 compare tiny-seed-1 tiny-seed-2[/bold]; [bold]vsr1 compare tiny longer --method "
    "sqr_sft --metric recall_at_1[/bold] (all seeds of two experiments)",
)
@command
def compare_command(
    a: Annotated[str, typer.Argument(help="A dataset, or a configuration that vsr1 experiment has trained.")],
    b: Annotated[
        str, typer.Argument(help="The dataset or configuration to compare with A. Differences are B minus A.")
    ],
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Only this method; may be given several times.")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Only this metric; may be given several times.")
    ] = None,
    output: Annotated[str, typer.Option("--format", "-f", help="table or json (all metrics and queries).")] = "table",
) -> None:
    """Compare two builds of the same videos: settings, metrics with paired intervals, queries won and lost."""
    from vsr1_core.home.compare import compare

    check_choice("format", output, "table", "json")
    found = compare(read_settings().home, a, b, methods or [], metrics or [])
    if output == "json":
        typer.echo(json.dumps(found.record(), ensure_ascii=False, indent=2))
    else:
        _print(found, is_short=not metrics)


def _print(found: Comparison, is_short: bool) -> None:
    """Print the comparison as tables. is_short: print only the metrics that the tables of an experiment have."""
    from pipelines import show
    from vsr1_core.evaluation.metrics import metrics_shown
    from vsr1_core.home.compare import CHANGES

    out, a, b = show.console(), found.a, found.b
    if found.recipes:
        out.print(show.table("Settings that differ", ["setting", a, b], difference_rows(found.recipes)))
    else:
        typer.echo(f"{a} and {b} have the same settings.")
    main = {metric.name for metric in metrics_shown("experiment")}
    rows = [row for row in found.metrics.iter_rows(named=True) if not is_short or row["metric"] in main]
    title = f"{b} minus {a} over {found.num_queries:,} queries, with paired 95 % intervals"
    header = ["method", "metric", a, b, "difference", "interval", ""]
    out.print(show.table(title, header, [_metric_row(row) for row in rows]))
    counts = [[method, *number.values()] for method, number in found.counts().items()]
    says = f"Queries that only {b} found (won), that only {a} found (lost), or that the two rank differently"
    out.print(show.table(says, ["method", *CHANGES], counts))
    _print_queries(found)


def _metric_row(row: dict[str, Any]) -> list[Any]:
    """The cells of one metric; the last one says in words whether 0 is outside the interval."""
    low, high = row["low"], row["high"]
    if low is None or high is None:
        return [row["method"], row["metric"], row["a"], row["b"], row["difference"], "", ""]
    verdict = "higher" if low > 0 else "lower" if high < 0 else "no clear difference"
    interval = f"{low:+.4g} to {high:+.4g}"
    return [row["method"], row["metric"], row["a"], row["b"], f"{row['difference']:+.4g}", interval, verdict]


def _print_queries(found: Comparison) -> None:
    """Print the first queries that were won and lost."""
    from pipelines import show
    from vsr1_core.home.compare import CHANGES

    kinds = [(method, change) for method in found.counts() for change in CHANGES[:2]]
    groups = [[q for q in found.queries if (q.method, q.change) == kind] for kind in kinds]
    rows = [
        [q.method, q.change, q.query_id, q.query, q.rank_a, q.rank_b] for group in groups for q in group[:MAX_LISTED]
    ]
    if not rows:
        return
    header = ["method", "", "query", "text", f"rank in {found.a}", f"rank in {found.b}"]
    show.console().print(show.table("Queries won and lost", header, rows))
    num_left = sum(len(group) for group in groups) - len(rows)
    if num_left:
        typer.echo(f"{num_left:,} more queries are listed by: vsr1 compare {found.a} {found.b} --format json")
