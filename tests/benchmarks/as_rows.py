"""A plugin of pytest with which a benchmark that fails or is skipped stays a row of the table, with its reason."""

from __future__ import annotations

import pytest

from tests.benchmarks.rows import Row, keep, name_of, reason


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed or report.skipped:
        keep(Row(name_of(report.nodeid), why=why(report)))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        keep(Row(name_of(report.nodeid), why=why(report)))


def why(report: pytest.TestReport | pytest.CollectReport) -> str:
    found = report.longrepr
    if report.skipped and isinstance(found, tuple):
        return f"skipped: {reason(found[2].removeprefix('Skipped: '))}"
    crash = getattr(found, "reprcrash", None)
    errors = [line.removeprefix("E ") for line in str(found).splitlines() if line.startswith("E ")]  # of an import
    return f"failed: {reason(crash.message if crash else errors[-1] if errors else str(found))}"
