"""The JSON API over a small home: what it answers, and that no answer has a path of this machine."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import av
import pytest
from starlette.testclient import TestClient

from tests.core.serve.served import DATASET, QUERY, VIDEOS, FakeModels, client_of, running, state_of
from tests.waiting import until
from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.home.search_result import Found
from vsr1_core.serve.engine import Limits
from vsr1_core.serve.media import Conversions
from vsr1_core.serve.page_routes import FILES
from vsr1_core.stages.base import View

ASK = {"text": "a dog", "dataset": DATASET}
OF = f"/api/datasets/{DATASET}"


def converted(kept: Conversions, view: View, video: str) -> Path:
    """The converted video of a folder in which nothing else is converted."""
    made = kept.made(kept.wanted(view, video))
    assert made is not None
    return made.path


def events_of(text: str) -> list[tuple[str, dict[str, object]]]:
    blocks = [block for block in text.split("\n\n") if block.startswith("event: ")]
    lines = (block.split("\n") for block in blocks)
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def test_a_search_is_answered_with_the_result_and_without_paths(client: TestClient) -> None:
    answer = client.post("/api/search", json={**ASK, "top_k": 2})
    assert answer.status_code == 200, answer.text
    found = Found.from_dict(answer.json())
    assert (found.verdict, [hit.video for hit in found]) == ("matched in turn 2", ["pool", VIDEOS[0]])
    assert [turn.video for turn in found.turns] == [VIDEOS[0], "pool"]
    assert "/secret/place" not in answer.text


def test_events_tell_turn_by_turn_and_end_with_the_same_result(client: TestClient) -> None:
    answer = client.post("/api/search/events", json=ASK)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event for event in events_of(answer.text) if event[0] != "waiting"]
    assert [name for name, _ in events] == ["turn", "turn", "found"]
    assert events[-1][1] == client.post("/api/search", json=ASK).json()
    assert [turn["video"] for _, turn in events[:2]] == [VIDEOS[0], "pool"]


@pytest.mark.parametrize(
    ("values", "status", "message"),
    [
        ({"dataset": "nope"}, 404, "no dataset 'nope'"),
        ({"split": "dev"}, 404, "no videos in the split 'dev'; its splits: test"),
        ({"method": "sqr"}, 404, "did you mean 'sqr_sft'"),
        ({"method": "fine_tuned"}, 404, "fine_tuned_checkpoint has no row"),
        ({"text": "  "}, 400, "search text is blank"),
        ({"verify": False, "turns": 2}, 400, "without verification has no method"),
        ({"text": "x" * 2001}, 422, "at most 2000 characters"),
        ({"top_k": 10**12}, 422, "less than or equal to 1000"),
        ({"turns": 0}, 422, "greater than or equal to 1"),
        ({"top_k": "many"}, 422, "valid integer"),
        ({"path": "/etc/passwd"}, 422, "not permitted"),
    ],
)
@pytest.mark.parametrize("route", ["/api/search", "/api/search/events"])
def test_what_cannot_be_searched_is_refused_with_the_reason(
    client: TestClient, route: str, values: dict[str, object], status: int, message: str
) -> None:
    answer = client.post(route, json={**ASK, **values})
    assert answer.status_code == status, answer.text
    assert message in str(answer.json()["detail"])


def test_a_search_that_breaks_says_nothing_of_this_machine(client: TestClient) -> None:
    answer = client.post("/api/search", json={**ASK, "text": "poison"})
    assert (answer.status_code, answer.json()) == (500, {"detail": "the server made a mistake; its log says which"})
    (name, data) = events_of(client.post("/api/search/events", json={**ASK, "text": "poison"}).text)[-1]
    assert (name, data) == ("failed", answer.json())


def test_a_search_that_takes_too_long_is_given_up(home: Path) -> None:
    given_up = threading.Event()
    with client_of(state_of(home, FakeModels(lambda: given_up.wait(60)), Limits(search_s=0.2))) as client:
        answer = client.post("/api/search", json=ASK)
        given_up.set()
        assert (answer.status_code, answer.json()["detail"]) == (504, "the search did not end within 0.2 s")


def test_datasets_have_their_splits_and_methods(client: TestClient) -> None:
    said = client.get("/api/datasets").json()
    assert [dataset["name"] for dataset in said["datasets"]] == [DATASET], "what is not built is left out"
    dataset = said["datasets"][0]
    assert (dataset["num_videos"], dataset["splits"]) == (3, {"test": 3})
    assert "sqr_sft" in [method["name"] for method in dataset["methods"]]
    assert [method["name"] for method in dataset["evaluated"]] == ["sqr_sft", "videosearch_r1"]
    assert said["outcomes"]["never_shown"] == "never shown"


def test_a_dataset_that_cannot_be_read_does_not_take_the_others_away(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    save_entry(copy, DatasetEntry("other", "folder", str(copy / "videos"), config="longer"))
    with client_of(state_of(copy, FakeModels())) as client:
        found = client.get("/api/datasets").json()
        assert [dataset["name"] for dataset in found["datasets"]] == [DATASET]
        assert "no configuration 'longer'" in found["problems"]["other"]
        rows = next((copy / "lake/tables/video_index").rglob("rows_*.parquet"))
        rows.write_bytes(rows.read_bytes()[:-20])
        damaged = client.get("/api/datasets").json()
    assert damaged["datasets"] == []
    said = "rows_0000000001.parquet, a file of the table video_index of small, cannot be read (parquet: "
    assert damaged["problems"][DATASET].startswith(said)
    assert "vsr1 build --dataset small --assets video_index" in damaged["problems"][DATASET]
    assert str(tmp_path) not in str(damaged)


def test_videos_are_listed_by_id(client: TestClient) -> None:
    found = client.get(f"{OF}/videos", params={"text": "o"}).json()
    assert [video["video_id"] for video in found["videos"]] == [VIDEOS[2], "pool"]
    assert client.get(f"{OF}/videos", params={"limit": 1, "offset": 1}).json()["videos"][0]["video_id"] == VIDEOS[1 - 1]


@pytest.mark.slow
def test_evaluated_queries_are_filtered_by_outcome_and_counted(client: TestClient) -> None:
    everything = client.get(f"{OF}/predictions").json()
    assert (everything["total"], everything["counts"]) == (2, {"found": 1, "right_video_rejected": 1})
    rejected = client.get(f"{OF}/predictions", params={"outcome": "right_video_rejected"}).json()
    assert [row["method"] for row in rejected["queries"]] == ["videosearch_r1"]
    assert client.get(f"{OF}/predictions", params={"text": "DOG <B>"}).json()["total"] == 2
    assert client.get(f"{OF}/predictions", params={"method": "' OR true --"}).json()["total"] == 0
    assert client.get(f"{OF}/predictions", params={"text": "%"}).json()["total"] == 0


@pytest.mark.slow
def test_a_query_has_its_moment_and_every_turn_of_every_method(client: TestClient) -> None:
    found = client.get(f"{OF}/prediction", params={"id": "q1_fig"}).json()
    assert (found["moment"]["query"], found["moment"]["video_id"]) == (QUERY, "pool")
    first, second = found["answers"]
    assert (first["method"], first["outcome"], second["outcome"]) == ("sqr_sft", "found", "right_video_rejected")
    assert [turn["top_video_ids"][0] for turn in first["turns"]] == [VIDEOS[0], "pool"]
    assert first["prefix_ranks"][:3] == [2, 2, 1]
    assert client.get(f"{OF}/prediction", params={"id": "q2_fig"}).status_code == 404


def test_the_player_gets_length_and_clock_from_the_tables(client: TestClient) -> None:
    facts = client.get(f"{OF}/video", params={"id": "pool"}).json()
    assert (facts["has_file"], facts["plays"], facts["codec"]) == (True, False, "mpeg4")
    assert facts["frames_s"] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert facts["duration_s"] == pytest.approx(5.0, abs=1.1)
    own_clock = client.get(f"{OF}/video", params={"id": VIDEOS[0]}).json()
    assert (own_clock["plays"], own_clock["start_s"]) == (True, 5.0)
    assert "path" not in facts


def test_a_thumbnail_is_a_stored_frame(client: TestClient) -> None:
    answer = client.get(f"{OF}/video/thumbnail", params={"id": "pool", "frame": 5})
    assert answer.headers["content-type"] == "image/jpeg"
    from io import BytesIO

    from PIL import Image

    picture = Image.open(BytesIO(answer.content))
    assert picture.size == (160, 90)
    assert picture.getpixel((80, 45)) == pytest.approx((60, 60, 60), abs=3)
    assert client.get(f"{OF}/video/thumbnail", params={"id": "pool", "frame": 6}).status_code == 404
    assert client.get(f"{OF}/video/thumbnail", params={"id": "nope"}).status_code == 404


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=999999999-", 416, None),
        ("bytes=9-1", 400, None),
        ("bytes=x", 400, None),
        ("lines=1-2", 400, None),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(5000)), 200, slice(None)),
    ],
)
def test_videos_come_in_byte_ranges(
    client: TestClient, home: Path, asked: str, status: int, part: slice | None
) -> None:
    answer = client.get(f"{OF}/video/file", params={"id": VIDEOS[0]}, headers={"Range": asked})
    assert answer.status_code == status
    if part is not None:
        assert answer.content == (home / "videos/0.mp4").read_bytes()[part]
        assert answer.headers["content-type"] == "video/mp4"


def test_a_codec_that_browsers_do_not_play_is_converted_once(client: TestClient, home: Path) -> None:
    raw = client.get(f"{OF}/video/file", params={"id": "pool"})
    assert raw.content == (home / "videos/1.mkv").read_bytes()
    first, again = (client.get(f"{OF}/video/file", params={"id": "pool", "converted": True}) for _ in range(2))
    assert first.status_code == 200, first.text
    assert first.content == again.content
    (made,) = (home / "converted").glob("*.mp4")
    with av.open(str(made)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
    assert times == pytest.approx([0, 1, 2, 3, 4, 5])


def test_conversions_keep_their_bound_and_drop_what_was_used_longest_ago(home: Path, tmp_path: Path) -> None:
    view = state_of(home, FakeModels()).library.view(DATASET)
    kept = Conversions(tmp_path, 150, 60, convert=lambda source, target: target.write_bytes(b"x" * 100) and None)
    names = [VIDEOS[0], "pool"]
    for older, newer in (names, names[::-1]):
        first, second = converted(kept, view, older), converted(kept, view, newer)
        assert not first.exists()
        assert second.exists()


def test_a_converted_video_is_served_while_another_one_is_being_converted(home: Path, tmp_path: Path) -> None:
    view, begun, goes_on = state_of(home, FakeModels()).library.view(DATASET), threading.Event(), threading.Event()

    def convert(source: Path, target: Path) -> None:
        target.write_bytes(b"x")
        if source.name == "1.mkv":
            begun.set()
            assert goes_on.wait(60)

    kept = Conversions(tmp_path, 1 << 20, 60, convert)
    first = converted(kept, view, VIDEOS[0])
    other = threading.Thread(target=converted, args=(kept, view, "pool"))
    other.start()
    assert begun.wait(60)
    assert kept.made(kept.wanted(view, VIDEOS[2])) is None, "its turn has not come, and no thread waits for it"
    again = converted(kept, view, VIDEOS[0])
    goes_on.set()
    other.join()
    assert again == first
    assert first.is_file()


def test_videos_that_wait_for_their_conversion_hold_no_other_request_up(home: Path, tmp_path: Path) -> None:
    begun, goes_on, made = threading.Event(), threading.Event(), list[str]()

    def convert(source: Path, target: Path) -> None:
        begun.set()
        assert goes_on.wait(60)
        made.append(source.name)
        target.write_bytes(b"x")

    state = state_of(home, FakeModels())
    state.conversions = Conversions(tmp_path, 1 << 20, 60, convert)
    with running(state) as address, contextlib.ExitStack() as open_requests:
        host, port = address.removeprefix("http://").split(":")
        for number in range(45):  # more than the server has threads
            video = VIDEOS[0] if number else "pool"
            client = open_requests.enter_context(socket.create_connection((host, int(port)), timeout=60))
            path = f"{OF}/video/file?{urllib.parse.urlencode({'id': video, 'converted': True})}"
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert begun.wait(60)
        with urllib.request.urlopen(f"{address}/api/health", timeout=60) as answer:
            assert answer.status == 200
        open_requests.close()
        until(lambda: state.requests.num["GET", 503] == 44)  # each of those that left was noticed
        goes_on.set()
        until(lambda: made)
    assert made == ["1.mkv"], "nobody waits for the other video any more"


def test_a_file_that_cannot_be_converted_says_so(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    state = state_of(home, FakeModels())
    bad = Conversions(copy / "converted2", 1 << 20, 300)
    source = home / "videos/2.mp4"
    whole = source.read_bytes()
    try:
        source.write_bytes(b"no video")
        with pytest.raises(ValueError, match=r"the video cannot be converted: .*2\.mp4 cannot be opened") as error:
            converted(bad, state.library.view(DATASET), VIDEOS[2])
        assert str(home) not in str(error.value)
    finally:
        source.write_bytes(whole)


def test_health_and_metrics_say_what_happens(home: Path) -> None:
    state = state_of(home, FakeModels())
    with client_of(state) as client:
        assert client.get("/api/health").json()["instance"] == state.instance
        client.post("/api/search", json=ASK)
        client.get("/api/datasets/nope/videos")
        text = client.get("/metrics").text
    values = dict(re.findall(r"^(vsr1_\S+) (\S+)$", text, re.MULTILINE))
    assert values["vsr1_searches_total"] == "1"
    assert values['vsr1_requests_total{method="GET",status="404"}'] == "1"
    assert {line.split()[0] for line in text.splitlines() if not line.startswith("#")} == set(values)


def test_the_page_loads_nothing_from_elsewhere_and_makes_no_html_of_data(client: TestClient) -> None:
    page = client.get("/").text
    referred = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert referred
    for address in referred:
        assert client.get(address).status_code == 200, address
    for name, path in FILES.items():
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", source), name
        outside = [found for found in re.findall(r"https?://[^\s\"'`)]+", source) if "www.w3.org/" not in found]
        assert not outside, name
    assert client.get("/page/nothing.js").status_code == 404


def test_every_route_is_described(client: TestClient) -> None:
    described = client.get("/api/openapi.json").json()
    assert {"/api/search", "/api/search/events", "/api/datasets", "/metrics"} <= set(described["paths"])
    for path, operations in described["paths"].items():
        assert all(operation["summary"] and operation["description"] for operation in operations.values()), path
    assert client.get("/docs").status_code == 404, "its scripts would come from elsewhere"
