"""Draws what `vsr1_core.home.explain` found about a row as a tree, for `vsr1 explain`."""

from __future__ import annotations

from rich.tree import Tree

from pipelines.show import plain
from vsr1_core.home.explain import ExplainedInput, ExplainedRow

_STYLES = {"unchanged": "green", "failed": "red"}
_DUE_STYLE = "yellow"


def tree(row: ExplainedRow) -> Tree:
    """A tree of the row, its inputs, and below each input the upstream rows that it stands for."""
    root = Tree(_row_label(row), guide_style="dim")
    _add_inputs(root, row)
    return root


def _add_inputs(node: Tree, row: ExplainedRow) -> None:
    for item in row.inputs:
        branch = node.add(_input_label(item))
        for upstream in item.rows:
            _add_inputs(branch.add(_row_label(upstream)), upstream)
        left = item.num_rows - len(item.rows)
        if left:
            due = max(0, item.num_due - len(item.rows))
            branch.add(f"[dim]and {left:,} more rows, {f'{due:,} of them due' if due else 'none of them due'}[/dim]")


def _row_label(row: ExplainedRow) -> str:
    style = _STYLES.get(row.state, _DUE_STYLE)
    parts = [f"[bold]{plain(row.asset)}[/bold] {plain(row.row_id)}", f"[{style}]{row.state}[/{style}]"]
    if row.version:
        parts.append(f"[dim]{row.version}[/dim]")
    if row.causes:
        parts.append(f"[{_DUE_STYLE}]{plain('; '.join(row.causes))}[/{_DUE_STYLE}]")
    if row.waits_for:
        parts.append(f"known after {row.waits_for} has run")
    if row.error:
        parts.append(f"[red]{plain(row.error)}[/red]")
    if row.source:
        parts.append(f"from {plain(row.source)}")
    if row.is_shown_above:
        parts.append("[dim](see above)[/dim]")
    return "  ".join(parts)


def _input_label(item: ExplainedInput) -> str:
    """`name version`, and the earlier version if it has changed."""
    text = f"{item.name} [dim]{plain(item.version or 'none')}[/dim]"
    if item.is_changed:
        text = f"[{_DUE_STYLE}]{text}, was {plain(item.was or 'none')}[/{_DUE_STYLE}]"
    return f"{text} (known after {item.waits_for} has run)" if item.waits_for else text
