"""The home behind the servers of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.core.serve.served import FakeModels, client_of, state_of, write_home


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[TestClient]:
    with client_of(state_of(home, FakeModels())) as client:
        yield client
