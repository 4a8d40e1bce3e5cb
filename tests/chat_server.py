"""An OpenAI-compatible chat server on loopback with a tiny untrained Qwen3-VL, and a misbehaving proxy before it."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

NUM_TOKENS = 8
"""So many tokens the model writes; it has learned no end, so the server sets it."""
FAULTS = ("timeout", "429", "429 date", "500", "cut", "half", "garbage", "no choices")
"""What may befall a request and pass."""
LASTING = ("400", "no verdict", "length", "empty")
"""Answers that are a row's end."""


class ChatServer(ThreadingHTTPServer):
    """POST /v1/chat/completions. `requests` keeps what was asked, `headers` of the same."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ChatHandler)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.one_at_a_time = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @cached_property
    def policy(self) -> Any:
        from tests.core.tiny_models import tiny_policy

        return tiny_policy()

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write about the request's frames. The verdict line, which an untrained model does not know, is set behind
        it, as guided decoding would; which of the two depends on what the model wrote."""
        import torch

        from vsr1_core.models.decoding import decode
        from vsr1_core.models.protocols import DecodeSettings, VideoFrames

        content = request["messages"][-1]["content"]
        texts = [part["text"] for part in content if part["type"] == "text"]
        pixels = np.stack(list(_pictures(content)))
        with self.one_at_a_time, torch.no_grad():
            frames, encoder = VideoFrames(pixels, [float(i) for i in range(len(pixels))]), self.policy.encoder
            features = encoder.encode([encoder.prepare(frames)])
            message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": texts[-1]}]}
            prompts = self.policy.prompts([[message]], [features[0].layout])
            settings = DecodeSettings(min(NUM_TOKENS, request["max_tokens"]), request["temperature"], 0)
            written = decode(self.policy, prompts, features, settings, wants_refine=lambda text: False)[0]
        verdict = ("match", "mismatch")[sum(written.token_ids) % 2]
        is_cut = request["max_tokens"] <= NUM_TOKENS
        words = f"It shows {re.sub('[<>]', '', written.text)}"
        return {
            "id": "chat-1",
            "object": "chat.completion",
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": words if is_cut else f"{words}\nVerdict: {verdict}"},
                    "finish_reason": "length" if is_cut else "stop",
                }
            ],
            "usage": {"prompt_tokens": len(prompts[0].token_ids), "completion_tokens": len(written.token_ids)},
        }


def _pictures(content: Sequence[Mapping[str, Any]]) -> Iterator[np.ndarray]:
    """The frames of a user turn, uint8 [H, W, 3], in order."""
    import av
    from PIL import Image

    for part in content:
        if part["type"] == "image_url":
            kind, _, data = part["image_url"]["url"].partition(";base64,")
            assert kind == "data:image/jpeg"
            yield np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        if part["type"] == "video_url":
            kind, _, data = part["video_url"]["url"].partition(";base64,")
            assert kind == "data:video/mp4"
            with av.open(io.BytesIO(base64.b64decode(data))) as container:
                yield from (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, status: int, content: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class _ChatHandler(_Handler):
    server: ChatServer

    def do_POST(self) -> None:
        request = json.loads(self.body())
        self.server.requests.append(request)
        self.server.headers.append(dict(self.headers))
        if self.path != "/v1/chat/completions" or request["model"] != "nano":
            self.answer(404, json.dumps({"error": {"message": f"no model {request['model']}"}}).encode())
        else:
            self.answer(200, json.dumps(self.server.complete(request)).encode())


@dataclass
class Seen:
    """One request that the proxy got: whose it was, what became of it, and when it was there and answered."""

    row: str
    key: str
    outcome: str
    at_s: float = field(default_factory=time.monotonic)
    answered_s: float = 0.0

    @property
    def is_final(self) -> bool:
        """Whether the row needs no further request after this one."""
        return self.answered_s > 0 and self.outcome in ("passed", *LASTING)


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to `target`. `faults(row)` says what befalls a row's first requests, one after the other.

    Once `hold_after` requests have had a final answer, all others hang until `hold_after` is None.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, target: ChatServer, faults: Callable[[str], Sequence[str]], hold_after: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.target, self.faults, self.hold_after = target, faults, hold_after
        self.seen: list[Seen] = []
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def arrived(self, body: bytes, key: str) -> Seen:
        row = re.findall(r"query (\S+_fig)", body.decode())[-1]
        with self.lock:
            faults, number = self.faults(row), self.counts[row]
            self.counts[row] += 1
            seen = Seen(row, key, faults[number] if number < len(faults) else "passed")
            self.seen.append(seen)
        return seen

    def may_answer(self, seen: Seen) -> bool:
        """False where the request has to hang. Counts final answers, so that exactly `hold_after` are given."""
        with self.lock:
            if self.hold_after is not None and self.num_final >= self.hold_after:
                return False
            seen.answered_s = time.monotonic()
            return True

    @property
    def num_final(self) -> int:
        return sum(seen.is_final for seen in self.seen)


class _ProxyHandler(_Handler):
    server: FaultyProxy

    def do_POST(self) -> None:
        body = self.body()
        seen = self.server.arrived(body, self.headers["Authorization"])
        reply = b"" if seen.outcome in FAULTS else self._asked(body)
        if seen.outcome == "timeout" or not self.server.may_answer(seen):
            self._hang()
        elif seen.outcome.startswith("429"):
            date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
            self.answer(429, b'{"error": "too many"}', {"Retry-After": date if "date" in seen.outcome else "1"})
        elif seen.outcome in ("400", "500"):
            self.answer(int(seen.outcome), json.dumps({"error": {"message": "a made-up error"}}).encode())
        elif seen.outcome == "cut":
            self.close_connection = True
        elif seen.outcome == "half":
            self.answer(200, b'{"choices": [{"mess', {"Content-Length": "1000"})
            self.close_connection = True
        elif seen.outcome in ("garbage", "no choices"):
            self.answer(200, b"<html>busy</html>" if seen.outcome == "garbage" else b'{"choices": []}')
        else:
            self.answer(200, _spoiled(reply, seen.outcome))

    def _asked(self, body: bytes) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target.server_address[1])
        connection.request("POST", self.path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse().read()
        connection.close()
        return reply

    def _hang(self) -> None:
        """Until the other side gives up."""
        self.connection.settimeout(60)
        self.connection.recv(1)
        self.close_connection = True


def _spoiled(reply: bytes, outcome: str) -> bytes:
    """The model's answer, with what `outcome` makes of it."""
    answer = json.loads(reply)
    choice = answer["choices"][0]
    if outcome == "no verdict":
        choice["message"]["content"] = choice["message"]["content"].split("\nVerdict")[0]
    elif outcome == "length":
        choice["finish_reason"] = "length"
    elif outcome == "empty":
        choice["message"]["content"] = None
    return json.dumps(answer).encode()


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
