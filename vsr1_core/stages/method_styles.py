"""The methods in the form that plots, the report and the UI need, none of which know stages."""

from __future__ import annotations

from vsr1_core.evaluation.method_style import MethodInfo, MethodStyles
from vsr1_core.stages.methods import ALL, Method


def _info(method: Method) -> MethodInfo:
    return MethodInfo(
        name=method.name,
        label=method.label,
        says=method.says,
        order=method.order,
        colour=method.colour,
        refine=method.refine,
        published=method.published,
        checkpoint=method.row_id,
    )


STYLES = MethodStyles(tuple(_info(method) for method in ALL.values()))
"""The style of every method, ablations included."""
