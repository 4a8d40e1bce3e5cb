"""A small home of committed tables behind a server whose searches are answered by a fake: no model is loaded."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from tests.core.fake_corpus import Given
from tests.videos import write_video
from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.home.search import SearchRequest, Told
from vsr1_core.home.search_result import Found, Hit, RankedVideo, ShownTurn
from vsr1_core.media.frame_store import write_frames
from vsr1_core.media.probe import probe
from vsr1_core.serve.app import create_app
from vsr1_core.serve.engine import Engine, Limits
from vsr1_core.serve.guards import Access
from vsr1_core.serve.library import Library
from vsr1_core.serve.media import Conversions
from vsr1_core.serve.state import ServerState
from vsr1_core.stages.base import Stage
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import all_stages, open_view

DATASET = "small"
VIDEOS = ("a/yard", "pool", "<img src=x onerror=alert(1)>")
"""The last one is a name that a page must not take for HTML."""
QUERY = "a dog <b>jumps</b>"
URL = "http://127.0.0.1:8321"


def turn_of(number: int, video: str, decision: str, order: Sequence[str], span: bool = True) -> dict[str, Any]:
    is_match = decision == "matched"
    return {
        "turn": number, "video_id": video, "score": 0.5, "rank": order.index("pool") + 1, "decision": decision,
        "matched_probability": 0.9 if is_match else 0.1, "reasoning": f"<i>seen</i> in {video}.",
        "start_s": 2.0 if is_match and span else None, "end_s": 4.0 if is_match and span else None,
        "num_text_tokens": 9, "num_latent_tokens": 0 if is_match else 8, "num_query_tokens": 0, "new_query": None,
        "text": "...", "top_video_ids": list(order), "top_scores": [0.5, 0.4, 0.3],
    }  # fmt: skip


def prediction(method: str) -> dict[str, Any]:
    first, last = [VIDEOS[0], "pool", VIDEOS[2]], ["pool", VIDEOS[0], VIDEOS[2]]
    turns = [turn_of(1, VIDEOS[0], "not_matched", first)]
    turns.append(turn_of(2, "pool", "matched" if method == "sqr_sft" else "not_matched", last))
    is_found = method == "sqr_sft"
    return {
        "query_id": "q1_fig", "split": "test", "query": QUERY, "gt_video_id": "pool",
        "gt_start_s": 2.0, "gt_end_s": 5.0,
        "video_id": "pool", "rank": 1, "first_rank": 2, "decision": turns[-1]["decision"],
        "start_s": 2.0 if is_found else None, "end_s": 4.0 if is_found else None, "iou": 2 / 3 if is_found else 0.0,
        "num_turns": 2, "num_text_tokens": 18, "num_latent_tokens": 8, "num_query_tokens": 0,
        "matched_probability": 0.9, "checkpoint": "0123", "best_video_id": "pool", "best_turn": 2, "best_start_s": 2.0,
        "best_end_s": 4.0, "best_iou": 2 / 3, "num_best_tokens": 0, "prefix_ranks": [2, 2, 1, 1, 1, 1, 1, 1, 1],
        "top_video_ids": last, "top_scores": [0.5, 0.4, 0.3], "turns": turns,
    }  # fmt: skip


def write_home(home: Path) -> Path:
    """Three videos, the first with a clock that begins at 5 s, the second in a codec that browsers do not play; and one
    query that two methods answered."""
    save_entry(home, DatasetEntry(DATASET, "folder", str(home / "videos"), config="nano"))
    stages, videos, frames = all_stages(), [], []
    for number, video_id in enumerate(VIDEOS):
        suffix, codec = (".mkv", "mpeg4") if video_id == "pool" else (".mp4", "libx264")
        path = home / f"videos/{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, [second + (0.0 if number else 5.0) for second in range(6)], codec=codec)
        facts, stored = probe(path), home / f"frames/{number}.npy"
        times = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
        write_frames(stored, np.full((6, 36, 64, 3), 40 * number + 20, np.uint8))
        common = {"video_id": video_id, "splits": ["test"], "duration_s": facts.duration_s, "start_s": facts.start_s}
        shape = {"width": facts.width, "height": facts.height, "codec": facts.codec, "content": f"c{number}"}
        videos.append({**common, **shape, "path": str(path)})
        frames.append(
            {**common, "path": str(stored), "timestamps_s": times, "height": 36, "width": 64, "num_frames": 6}
        )
    moment = {
        "query_id": "q1_fig", "split": "test", "query": QUERY, "plain_query": "a dog", "video_id": "pool",
        "start_s": 2.0, "end_s": 5.0, "duration_s": 6.0, "clamped": False,
    }  # fmt: skip
    vectors = [{"video_id": v, "splits": ["test"], "vector": [1.0, 0.0]} for v in VIDEOS]
    policy = {"model_id": "embedder", "path": "/nowhere", "digest": "e0"}
    trained = {"checkpoint": "sft_checkpoint", "path": "/nowhere", "digest": "s0"}
    tables: dict[str, list[dict[str, Any]]] = {
        "videos": videos, "frame_tensors": frames, "moments": [moment], "video_embeddings": vectors,
        "video_index": [{"split": "test", "num_videos": 3}], "base_models": [policy], "sft_checkpoint": [trained],
        "predictions.sqr_sft": [prediction("sqr_sft")], "predictions.videosearch_r1": [prediction("videosearch_r1")],
    }  # fmt: skip
    view = open_view(home, DATASET)
    for name, rows in tables.items():
        given: Stage = Given(stages[name], rows)
        given.build(view, Execution())
    return home


@dataclass
class FakeModels:
    """Answers in place of models. batches: the texts of each batch; a text that contains `poison` fails its batch;
    `wait` is called in each batch before it is answered."""

    wait: Callable[[], object] = lambda: None
    batches: list[list[str]] = field(default_factory=list)

    def run(self, dataset: str, requests: Sequence[SearchRequest], told: Told) -> list[Found]:
        self.batches.append([request.text for request in requests])
        self.wait()
        for request in requests:
            if "poison" in request.text:
                raise RuntimeError(f"cannot search for {request.text} in /secret/place")
        return [self.found(dataset, number, request, told) for number, request in enumerate(requests)]

    @staticmethod
    def found(dataset: str, number: int, request: SearchRequest, told: Told) -> Found:
        first = tuple(RankedVideo(video, 0.5) for video in VIDEOS)
        turns = (
            ShownTurn(1, VIDEOS[0], 0.5, "not_matched", 0.1, reasoning="<b>no</b> dog.", ranking=first, last_rank=2),
            ShownTurn(2, "pool", 0.6, "matched", 0.9, 2.0, 4.0, f"seen: {request.text}", ranking=first, last_rank=1),
        )
        for turn in turns:
            told(number, turn)
        hits = (
            Hit(1, "pool", 0.6, "/secret/place/pool.mkv", 2, 2, "matched", 0.9, 2.0, 4.0, "a dog."),
            Hit(2, VIDEOS[0], 0.5, None, 1, 1, "not_matched"),
            Hit(3, VIDEOS[2], 0.4, None, 3),
        )
        text = request.text.strip()
        return Found(text, dataset, request.split, hits[: request.top_k], first, turns, "sqr_sft", "s0", 0.1)


def state_of(home: Path, models: FakeModels, limits: Limits | None = None) -> ServerState:
    limits = limits or Limits()
    engine = Engine(models.run, limits.num_waiting, max_batch=8)
    return ServerState(Library(home), engine, Conversions(home / "converted", limits.converted_bytes, 300), limits)


@contextlib.contextmanager
def running(state: ServerState, access: Access | None = None) -> Iterator[str]:
    """A real server in a thread of this process; yields its address."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = create_app(state, access or Access())
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=60)


@contextlib.contextmanager
def client_of(state: ServerState, access: Access | None = None) -> Iterator[TestClient]:
    app = create_app(state, access or Access())
    with TestClient(app, base_url=URL, raise_server_exceptions=False) as client:
        yield client
