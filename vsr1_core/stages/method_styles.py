"""The methods as what shows them needs them: plots, the report and the UI, which know no stage."""

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
"""Every method, with its options."""
