"""The teacher at an endpoint: a real chat server with an untrained model, bad networks, kills, and what is asked."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assets.sft import trace_extras
from pipelines.settings import read_endpoint
from tests.chat_server import FAULTS, LASTING, NUM_TOKENS, ChatServer, FaultyProxy, Seen, running
from tests.core.teacher_run import CONFIG, corpus_of
from tests.waiting import until
from vsr1_core.media.encode import mp4_bytes
from vsr1_core.reasoning.endpoint import MAX_RETRY_AFTER_S, EndpointTeacher, retry_after_s
from vsr1_core.reasoning.evidence import build_messages, read_reply
from vsr1_core.reasoning.tasks import ConfigurationError, EndpointSettings, EventNote, StoredFrames, TeacherTask
from vsr1_core.reasoning.teacher import refusal
from vsr1_core.recipes import EndpointRecipe, TeacherRecipe
from vsr1_core.stages.execution import Execution

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-very-secret"
MAX_REQUESTS = 4
HOLD_AFTER = 90


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    made = ChatServer()
    assert made.policy  # loading it takes longer than a request may
    with running(made):
        yield made


def faults_of(row: str) -> list[str]:
    """Every second row goes well; of the others each meets its own mishap, some two, some an end or no end of it."""
    number = int(row.split("_")[1]) * 2 + int(row.split("_")[2])
    if number % 2:
        return []
    kinds = [[f] for f in FAULTS if f != "timeout"] + [[f] for f in LASTING] + [["500", "cut"], ["500"] * MAX_REQUESTS]
    return ["timeout"] if number % 100 == 2 else kinds[number // 2 % len(kinds)]


def environ_of(proxy: FaultyProxy, run: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
        "VSR1_TEACHER_URL": proxy.url,
        "VSR1_TEACHER_API_KEY": f"{KEY}-{run}",
        "VSR1_TEACHER_CONCURRENCY": "8",
        "VSR1_TEACHER_TIMEOUT_S": "30",  # eight requests wait for one another at the server
        "VSR1_TEACHER_MAX_REQUESTS": str(MAX_REQUESTS),
    }


def is_done(requests: list[Seen]) -> bool:
    """Whether a row needs no more requests: it got its answer, or all its tries failed."""
    return any(r.is_final for r in requests) or sum(r.answered_s > 0 for r in requests) == MAX_REQUESTS


def by_row(seen: list[Seen], run: str) -> dict[str, list[Seen]]:
    """The requests of one run, told by its key, row by row."""
    rows: dict[str, list[Seen]] = {}
    for request in seen:
        if request.key.endswith(run):
            rows.setdefault(request.row, []).append(request)
    return rows


@pytest.mark.long
@pytest.mark.slow
def test_every_row_ends_and_none_that_ended_is_asked_again_after_a_kill(tmp_path: Path, server: ChatServer) -> None:
    corpus = corpus_of(tmp_path)
    corpus.draw_frames()
    corpus.build("video_index", "first_ranking", "top1_pool")
    proxy = FaultyProxy(server, faults_of, HOLD_AFTER)
    table = corpus.view.table("reasoning_traces")
    command = [sys.executable, "-m", "tests.core.teacher_run", str(tmp_path)]
    with running(proxy):
        first = subprocess.Popen(command, cwd=ROOT, env=environ_of(proxy, "first"))
        try:
            until(lambda: proxy.num_final == HOLD_AFTER, 300)  # the proxy answers no more
            done = {row for row, requests in by_row(proxy.seen, "first").items() if is_done(requests)}
            until(lambda: set(table.pending()["query_id"]) >= done)
        finally:
            first.kill()
            first.wait()
        proxy.hold_after = None
        subprocess.run(command, cwd=ROOT, env=environ_of(proxy, "second"), check=True)
    before, after = by_row(proxy.seen, "first"), by_row(proxy.seen, "second")
    rows = corpus.rows("reasoning_traces")

    assert len(rows) == 200
    assert len(done) >= HOLD_AFTER
    assert not done & set(after)
    assert done | set(after) == set(rows)
    for row, requests in (*before.items(), *after.items()):
        assert len(requests) <= MAX_REQUESTS
        assert sum(r.is_final for r in requests) == (is_done(requests) and requests[-1].outcome != "500")
        for earlier, later in pairwise(requests):
            assert not earlier.is_final
            if earlier.outcome.startswith("429"):
                assert later.at_s - earlier.answered_s >= 0.99, row

    for row, stored in rows.items():
        last = (after.get(row) or before[row])[-1].outcome
        assert stored["status"] == ("failed" if stored["error"] else "ok")
        assert stored["num_requests"] == len(after.get(row) or before[row])
        wanted = {
            "passed": stored["error"],
            "400": "the teacher failed: HTTP 400: ",
            "no verdict": "the teacher failed: the reply does not end with a verdict",
            "length": "the trace was cut off",
            "empty": "the teacher wrote nothing",
            "500": f"the teacher failed: {MAX_REQUESTS} requests failed, the last one: HTTP 500",
        }[last]
        assert (stored["error"] or "").startswith(wanted or "")
        if last == "passed":
            assert bool(stored["error"]) == (stored["verdict"] != stored["label"]), stored["error"]
            assert stored["trace"].startswith("It shows")
            assert 0 < stored["num_tokens"] <= NUM_TOKENS
    statuses = Counter(row["status"] for row in rows.values())
    assert statuses["ok"] > 40
    assert {s.outcome for s in proxy.seen} == {*FAULTS, *LASTING, "passed"}

    shown = trace_extras(corpus.view, "reasoning_traces")
    assert shown["teacher/requests"] == sum(row["num_requests"] for row in rows.values())
    assert shown["teacher/retries"] == shown["teacher/requests"] - 200
    assert shown["teacher/contradictions"] == sum("contradicts" in (row["error"] or "") for row in rows.values()) > 40
    assert shown["teacher/prompt_tokens"] > 100 * statuses["ok"]
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

    num_requests = len(proxy.seen)
    corpus.stages["reasoning_traces"].build(corpus.view, Execution(endpoint=EndpointSettings(proxy.url)))
    assert len(proxy.seen) == num_requests


def task_of(tmp_path: Path, label: Any = "matched", query: str = "a {dog} jumps") -> TeacherTask:
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "v.npy", frames)
    stored = StoredFrames(str(tmp_path / "v.npy"), (0.5, 20.25, 40.0, 60.0, 80.0, 100.0), "c")
    return TeacherTask("q", query, label, "v", EventNote(12.0, 61.5, "a dog jumps"), (), stored)


RECIPE = EndpointRecipe(model="nano", num_frames=3, max_tokens=32)


@pytest.mark.parametrize("frames_as", ["images", "video"])
def test_a_model_sees_the_frames_as_the_recipe_says(tmp_path: Path, server: ChatServer, frames_as: str) -> None:
    task = task_of(tmp_path)
    recipe = dataclasses.replace(RECIPE, frames_as=frames_as)
    (reply,) = EndpointTeacher(recipe, EndpointSettings(server.url, KEY)).write([task])
    assert (reply.error, reply.finish_reason, reply.num_requests) == ("", "stop", 1)
    request, headers = server.requests[-1], server.headers[-1]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert {k: v for k, v in request.items() if k != "messages"} == {
        "model": "nano", "temperature": 0.4, "max_tokens": 32,
    }  # fmt: skip
    kinds = [part["type"] for part in request["messages"][-1]["content"]]
    said = json.dumps([p for p in request["messages"][-1]["content"] if p["type"] == "text"])
    if frames_as == "images":
        assert kinds == ["text", "image_url"] * 3 + ["text"]
        assert [t in said for t in ("At 0.5 seconds", "At 40.0 seconds", "At 100.0 seconds")] == [True] * 3
    else:
        assert kinds == ["text", "video_url", "text"]
        assert "0.5, 40.0, 100.0" in said


def test_the_question_holds_query_and_label_and_for_a_match_both_boundaries(tmp_path: Path) -> None:
    match, mismatch = (
        build_messages(task_of(tmp_path, label), RECIPE)[-1]["content"][-1]["text"]
        for label in ("matched", "not_matched")
    )
    assert 'Query: "a {dog} jumps"' in match
    assert "Label: match, from 12.0 to 61.5 seconds" in match
    assert "Label: mismatch" in mismatch
    assert "12.0" not in mismatch, "the span is in another video"
    assert "missing" in mismatch


def test_a_clip_keeps_its_frames_times() -> None:
    import av

    times = [0.5, 2.4, 4.1, 6.0, 9.25]
    frames = np.random.default_rng(0).integers(0, 256, (5, 33, 48, 3), dtype=np.uint8)
    with av.open(io.BytesIO(mp4_bytes(frames, times))) as container:
        decoded = list(container.decode(video=0))
    assert [round(0.5 + float(f.pts * f.time_base), 3) for f in decoded] == times
    with pytest.raises(ValueError, match="increasing times"):
        mp4_bytes(frames, [1.0, 1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize(
    ("content", "trace", "verdict"),
    [
        ("A dog jumps at 2.0 seconds.\nVerdict: match", "A dog jumps at 2.0 seconds.", "matched"),
        ("So, no.</think>\n\nOne.\nTwo.\n\n**Verdict: mismatch.**\n", "One. Two.", "not_matched"),
        ("x\nVERDICT: NOT MATCHED", "x", "not_matched"),
        ("x\nverdict - no match", "x", "not_matched"),
        ("x\nVerdict: matched", "x", "matched"),
        ("Verdict: match", "", "matched"),
        ("x\nVerdict: match or mismatch", "x Verdict: match or mismatch", None),
        ("A dog matches.", "A dog matches.", None),
        ("", "", None),
    ],
)
def test_replies_are_read_with_their_verdict(content: str, trace: str, verdict: str | None) -> None:
    assert read_reply(content) == (trace, verdict)


def test_nobody_there_stops_the_run_and_says_what_to_set(tmp_path: Path) -> None:
    settings = EndpointSettings("http://127.0.0.1:9/v1", max_requests=2, first_wait_s=0.01)
    with pytest.raises(ConnectionError, match=r"cannot be reached.*VSR1_TEACHER_URL"):
        list(EndpointTeacher(RECIPE, settings).write([task_of(tmp_path)] * 3))


def test_a_model_that_is_not_served_stops_the_run_without_showing_the_key(tmp_path: Path, server: ChatServer) -> None:
    settings = EndpointSettings(server.url, "nano-7")
    assert "nano-7" not in repr(settings)
    recipe = dataclasses.replace(RECIPE, model="nano-7b")
    with pytest.raises(ConfigurationError, match=r"HTTP 404.*no model \*\*\*b"):
        list(EndpointTeacher(recipe, settings).write([task_of(tmp_path)]))


@contextlib.contextmanager
def answering(answer: Callable[[Any], None]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers each request with `answer(handler)`: its URL, and the keys that it was sent."""
    keys = list[str]()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers.get("Authorization", ""))
            answer(self)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", keys
    server.shutdown()
    server.server_close()


def test_a_redirect_is_not_followed_and_the_key_stays(tmp_path: Path) -> None:
    def redirect(handler: Any) -> None:
        handler.send_response(307)
        handler.send_header("Location", f"{elsewhere}/chat/completions")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with answering(redirect) as (elsewhere, sent), answering(redirect) as (url, keys):
        settings = EndpointSettings(url, "a-key")
        with pytest.raises(ConfigurationError, match=r"redirects to 'http://127.*VSR1_TEACHER_URL"):
            list(EndpointTeacher(RECIPE, settings).write([task_of(tmp_path)]))
    assert keys == ["Bearer a-key"]
    assert sent == []


@pytest.mark.parametrize(("encoding", "said"), [("", "longer than 16 MiB"), ("gzip", "compresses its replies")])
def test_a_reply_of_any_size_fails_its_row_and_is_not_read_to_its_end(tmp_path: Path, encoding: str, said: str) -> None:
    written = list[int]()

    def endless(handler: Any) -> None:
        handler.send_response(200)
        if encoding:
            handler.send_header("Content-Encoding", encoding)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                written.append(handler.wfile.write(bytes(1 << 20)))

    with answering(endless) as (url, _):
        (reply,) = EndpointTeacher(RECIPE, EndpointSettings(url)).write([task_of(tmp_path)])
    assert said in reply.error
    assert len(written) < 64


def test_a_row_without_frames_fails_alone(tmp_path: Path, server: ChatServer) -> None:
    lost = dataclasses.replace(task_of(tmp_path), query_id="lost", frames=None)
    gone = StoredFrames(str(tmp_path / "gone.npy"), (0.5,), "c")
    tasks = [task_of(tmp_path), lost, dataclasses.replace(lost, query_id="gone", frames=gone)]
    replies = {r.query_id: r for r in EndpointTeacher(RECIPE, EndpointSettings(server.url)).write(tasks)}
    assert refusal(replies["lost"], "matched") == (
        "the teacher failed: video v has no frames to show; build frame_tensors"
    )
    assert "are missing" in replies["gone"].error
    assert replies["q"].error == ""


def test_a_changed_video_redoes_its_traces_only_where_a_model_looks_at_it(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, 12)
    corpus.build("video_index", "first_ranking", "top1_pool")
    shown = Counter(row["shown_video_id"] for row in corpus.rows("top1_pool").values())
    video_id = shown.most_common(1)[0][0]
    for config, num_due in ((CONFIG, shown[video_id]), (dataclasses.replace(CONFIG, teacher=TeacherRecipe()), 0)):
        corpus.config = config
        before = corpus.stages["reasoning_traces"].due(corpus.view)
        corpus.contents = {video_id: f"redrawn for {config.teacher.kind}"}
        corpus.write()
        after = corpus.stages["reasoning_traces"].due(corpus.view)
        assert len(before.new) == len(after.new) == 24
        inputs = [corpus.stages["reasoning_traces"].plan(corpus.view)[i].inputs for i in sorted(after.new)]
        assert sum("redrawn" in json.dumps(i) for i in inputs) == num_due


def test_the_environment_sets_the_endpoint_up() -> None:
    assert read_endpoint({}) is None
    environ = {"VSR1_TEACHER_URL": "http://h/v1", "VSR1_TEACHER_TIMEOUT_S": "9", "VSR1_TEACHER_CONCURRENCY": "3"}
    assert read_endpoint(environ) == EndpointSettings("http://h/v1", concurrency=3, timeout_s=9)
    with pytest.raises(ValueError, match="VSR1_TEACHER_CONCURRENCY must be a number"):
        read_endpoint({**environ, "VSR1_TEACHER_CONCURRENCY": "many"})
    with pytest.raises(ConfigurationError, match="not into the URL"):
        read_endpoint({"VSR1_TEACHER_URL": "http://user:pass@h/v1"})


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("", 0, 0),
        ("2", 2, 2),
        ("1.5", 1.5, 1.5),
        ("-3", 0, 0),
        ("nan", 0, 0),
        ("99999", MAX_RETRY_AFTER_S, MAX_RETRY_AFTER_S),
        ("soon", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", MAX_RETRY_AFTER_S, MAX_RETRY_AFTER_S),
    ],
)
def test_a_server_may_ask_for_a_wait_in_seconds_or_by_date(header: str, low: float, high: float) -> None:
    assert low <= retry_after_s(header) <= high
