"""The API against its own description: Schemathesis makes requests from it, and no answer is a server error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.core.serve.served import FakeModels, state_of
from vsr1_core.serve.app import create_app
from vsr1_core.serve.guards import Access

EXAMPLES = 15
HOST = {"Host": "localhost"}

pytestmark = pytest.mark.slow


def test_no_described_request_is_a_server_error(home: Path) -> None:
    app = create_app(state_of(home, FakeModels()), Access())
    described = schemathesis.openapi.from_asgi("/api/openapi.json", app, headers=HOST)
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) >= 10
    statuses = set[int]()
    for operation in operations:

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(headers=HOST)
            statuses.add(answer.status_code)
            assert answer.status_code < 500, (case, answer.text)

        ask()
    assert 200 in statuses
