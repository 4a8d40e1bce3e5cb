"""What a server refuses: foreign hosts and origins, no token, endless bodies, ids that climb out of the dataset."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.core.serve.served import DATASET, URL, FakeModels, client_of, running, state_of
from vsr1_core.serve.engine import Limits
from vsr1_core.serve.guards import COOKIE, Access

TOKEN = "0123456789abcdef0123"
OF = f"/api/datasets/{DATASET}"
ASK = {"text": "a dog", "dataset": DATASET}


@pytest.fixture(scope="module")
def guarded(home: Path) -> Iterator[TestClient]:
    access = Access(TOKEN, frozenset({"films.example"}), any_address=True)
    with client_of(state_of(home, FakeModels()), access) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "is_known"),
    [
        ("127.0.0.1:8321", True),
        ("localhost", True),
        ("[::1]:8321", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8321", False),
        ("192.168.1.7", False),
        ("evil.example#127.0.0.1", False),
        ("user@evil.example", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_a_server_of_this_machine_knows_its_own_names_alone(client: TestClient, host: str, is_known: bool) -> None:
    answer = client.get("/api/health", headers={"Host": host})
    assert answer.status_code == (200 if is_known else 421)


def test_an_open_server_knows_addresses_and_the_names_it_was_given() -> None:
    access = Access(TOKEN, frozenset({"films.example"}), any_address=True)
    assert all(map(access.knows_host, ["films.example", "192.168.1.7:80", "[fe80::1]:80", "localhost"]))
    assert not any(map(access.knows_host, ["evil.example", "films.example.evil", "1.2.3.4.evil"]))
    spelled = Access(TOKEN, frozenset({"Films.Example", "MyBox:8321"}))
    assert all(map(spelled.knows_host, ["films.example:8321", "FILMS.example", "mybox", "MyBox:8321"]))
    assert not any(map(spelled.knows_host, ["evil.example", ""]))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": URL}, 200),
        ({"Origin": URL, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
    ],
)
def test_another_site_may_neither_search_nor_read(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.post("/api/search", json=ASK, headers=headers).status_code == status
    assert client.get(f"{OF}/videos", headers=headers).status_code == status


def test_a_link_from_another_site_opens_the_page_and_nothing_else(client: TestClient) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get("/api/datasets", headers=link).status_code == 403
    answer = client.get("/")
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


def test_without_the_token_nothing_is_answered(guarded: TestClient) -> None:
    for path in ("/", "/page/app.js", "/api/health", "/metrics", "/api/openapi.json", f"{OF}/videos", "/nothing"):
        assert guarded.get(path).status_code == 401, path
    assert guarded.post("/api/search", json=ASK).status_code == 401
    for wrong in ("Bearer", "Bearer 0123", f"Basic {TOKEN}", "Bearer \u00e9"):
        refused = guarded.get("/api/health", headers={"Authorization": wrong.encode("latin-1")})
        assert refused.status_code == 401
    assert guarded.get("/api/health", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert guarded.get(f"/api/health?token={TOKEN}").status_code == 401, "a token in an address is for the page alone"


def test_many_fields_in_an_address_are_refused_like_any_other(guarded: TestClient) -> None:
    assert guarded.get("/?" + "a=1&" * 30).status_code == 401
    entered = guarded.get("/?" + "a=1&" * 30 + f"token={TOKEN}", follow_redirects=False)
    assert entered.status_code == 303
    guarded.cookies.clear()


def test_the_printed_address_gives_a_cookie_and_hides_the_token(guarded: TestClient) -> None:
    assert guarded.get("/?token=wrong", follow_redirects=False).status_code == 401
    entered = guarded.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert guarded.get("/api/health").status_code == 200
    guarded.cookies.delete(COOKIE)


@pytest.mark.parametrize(
    "video_id",
    ["../../etc/passwd", "/etc/passwd", "..\\..\\x", "a/../../x", "%2e%2e%2fetc", "a\0b", "pool\n", "./pool", "C:\\x"],
)
def test_an_id_is_looked_up_and_never_a_path(client: TestClient, video_id: str) -> None:
    for part in ("", "/file", "/thumbnail", "/file?converted=true"):
        joined = "&" if "?" in part else "?"
        answer = client.get(f"{OF}/video{part}{joined}", params={"id": video_id})
        assert answer.status_code == 404, answer.text
        assert "root:" not in answer.text
    for path in (
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/app.py",
        "//etc/passwd",
        "/api/datasets/..%2f/videos",
    ):
        assert client.get(path).status_code in (404, 400), path


def test_a_body_is_bounded_in_length(client: TestClient) -> None:
    long = b'{"text": "' + b"x" * 70_000 + b'"}'
    headers = {"Content-Type": "application/json"}
    assert client.post("/api/search", content=long, headers=headers).status_code == 413
    for length in ("-1", "9" * 400, "x"):
        asked = client.build_request("POST", "/api/search", content=b"{}", headers=headers)
        asked.headers["content-length"] = length
        assert client.send(asked).status_code == 413, length


def exchange(address: str, request: bytes, then: bytes = b"", times: int = 0) -> bytes:
    """What a server answers to raw bytes; `then` is sent up to `times` times, until it answers."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request)
        for _ in range(times):
            try:
                connection.sendall(then)
            except OSError:  # it answered and closed
                break
        try:
            return connection.recv(4096)
        except OSError:
            return b"closed"


def test_a_body_that_does_not_end_or_does_not_come_is_given_up(home: Path) -> None:
    with running(state_of(home, FakeModels())) as address:
        head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
        endless = exchange(address, head + b"Transfer-Encoding: chunked\r\n\r\n", chunk, times=1000)
        assert endless.startswith(b"HTTP/1.1 413") or endless == b"closed"
        twice = exchange(address, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert twice.startswith(b"HTTP/1.1 421")
        assert exchange(address, b"\x16\x03\x01 not http\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert exchange(address, b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200")
    with running(state_of(home, FakeModels(), Limits(body_s=0.2))) as address:
        assert exchange(address, head + b"Content-Length: 100\r\n\r\n{").startswith(b"HTTP/1.1 408")


@pytest.mark.slow
@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.sweep)])
def test_odd_requests_get_an_answer_and_no_server_error(client: TestClient, count: int) -> None:
    """Each kind of route with values that no client should send; a fixed seed."""
    rng = random.Random(0)
    parts = ("videos", "predictions", "prediction", "video", "video/file", "video/thumbnail")
    paths = [*(f"{OF}/{name}" for name in parts), "/api/datasets", "/api/datasets/../..", "/metrics", "/"]
    paths += ["/page/app.js", "/api/search", "/api/%00", "/api/" + "x" * 3000]
    names = ("id", "frame", "limit", "offset", "method", "outcome", "text", "split", "converted", "token")
    values = ("", "-1", "9" * 30, "1e9", "NaN", "'; drop table x; --", "\0", "é" * 90, "../" * 40, "<script>", "true")
    methods = ("GET", "GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "ODD")
    odd_headers = (("Range", "bytes=9-1"), ("Cookie", 'x="'), ("If-Range", "*"), ("Authorization", "bytes=-"))
    bodies = (None, b"", b"{}", b"[" * 5000, b"\xff\xfe", b'{"text": 1e999}', b'{"text": "\\ud800"}')
    for _ in range(count):
        params = {rng.choice(names): rng.choice(values) for _ in range(rng.randrange(4))}
        headers, body = dict([rng.choice(odd_headers)]), rng.choice(bodies)
        path, method = rng.choice(paths), rng.choice(methods)
        answer = client.request(method, path, params=params, headers=headers, content=body)
        assert answer.status_code < 500, (method, path, params, headers, body, answer.text)


def test_the_server_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    from vsr1_core.home.running import RunningServer, address_path, announced, running_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gone = RunningServer(f"http://127.0.0.1:{port}", TOKEN, "instance")
    with announced(tmp_path, gone):
        assert address_path(tmp_path).stat().st_mode & 0o777 == 0o600
        assert running_server(tmp_path) is None, "nothing answers there"
    assert not address_path(tmp_path).exists()
    address_path(tmp_path).write_text("[1]")
    assert running_server(tmp_path) is None
