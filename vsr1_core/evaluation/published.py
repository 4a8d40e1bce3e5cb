"""The results that the paper publishes, in percent, as printed. Nothing here was measured by this project.

Source: "VideoSearch-R1" (ECCV 2026, arXiv 2607.00446), its main table. A dash in the table is None here.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "VideoSearch-R1, ECCV 2026, arXiv 2607.00446"


@dataclass(frozen=True)
class PublishedRow:
    """One row of the table, in percent. `MethodInfo.published` says which of our methods corresponds to it."""

    method: str
    """The name, as printed."""
    vcmr: tuple[float | None, float | None, float | None]
    """R@1 at IoU 0.3, 0.5, 0.7."""
    verification_accuracy: float | None
    recall: tuple[float, float, float, float]
    """Video R@1, 5, 10, 100."""


Numbers = tuple[tuple[float | None, float | None, float | None], float | None, tuple[float, float, float, float]]


def _rows(*numbers: Numbers) -> tuple[PublishedRow, ...]:
    return tuple(PublishedRow(name, *of_row) for name, of_row in zip(_PRINTED, numbers, strict=True))


_PRINTED = ("CONQUER", "SQuiDNet", "Qwen3-VL-2B ZS", "Qwen3-VL-2B FT", "VideoSearch-R1")

PUBLISHED: dict[str, tuple[PublishedRow, ...]] = {
    "charades": _rows(
        ((None, 1.2, 0.7), None, (2.8, 9.0, 14.1, 51.7)),
        ((None, 2.6, 0.9), None, (11.7, 33.9, 44.0, 51.7)),
        ((12.2, 7.2, 2.9), 30.0, (21.6, 41.8, 51.5, 84.2)),
        ((12.9, 10.4, 7.2), 74.7, (21.6, 41.8, 51.5, 84.2)),
        ((16.5, 13.4, 8.2), 75.7, (24.6, 42.9, 52.2, 84.7)),
    ),
    "didemo": _rows(
        ((None, 5.5, 3.7), None, (14.8, 40.4, 54.0, 91.5)),
        ((None, 2.9, 0.5), None, (16.9, 44.6, 59.3, 91.5)),
        ((22.0, 10.6, 4.0), 62.8, (54.8, 79.3, 85.6, 97.0)),
        ((23.6, 22.1, 16.7), 73.1, (54.8, 79.3, 85.6, 97.0)),
        ((33.3, 30.2, 19.7), 74.6, (59.0, 82.0, 87.8, 97.5)),
    ),
    "activitynet": _rows(
        ((None, 3.0, 1.6), None, (13.5, 36.4, 50.0, 89.3)),
        ((None, 4.7, 2.1), None, (32.6, 79.9, 87.9, 89.3)),
        ((17.2, 10.1, 5.8), 63.0, (55.1, 78.8, 86.7, 98.1)),
        ((29.1, 19.2, 11.4), 83.1, (55.1, 78.8, 86.7, 98.1)),
        ((33.8, 22.3, 12.3), 83.3, (61.1, 81.7, 88.5, 98.4)),
    ),
}
"""Dataset name -> rows. The paper prints "same" for the retrieval of FT, which equals that of ZS, because FT never
refines a query."""
