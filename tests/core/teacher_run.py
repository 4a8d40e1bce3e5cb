"""`python -m tests.core.teacher_run HOME`: build the reasoning traces there as a process of its own, to be killed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from pipelines.settings import read_endpoint
from tests.core.fake_corpus import FakeCorpus, shape_corpus
from vsr1_core.configurations import NANO
from vsr1_core.recipes import Configuration, EndpointRecipe, PoolRecipe
from vsr1_core.stages.execution import Execution

CONFIG: Configuration = dataclasses.replace(
    NANO,
    pool=PoolRecipe(num_matched=1000, num_not_matched=1000),
    teacher=EndpointRecipe(model="nano", num_frames=4, max_tokens=64),
)


def corpus_of(home: Path, num_videos: int = 100) -> FakeCorpus:
    """Two train queries a video; each is in the pool."""
    return shape_corpus(home, num_videos, config=CONFIG)


def main(home: Path) -> None:
    endpoint = read_endpoint()
    assert endpoint is not None
    quick = dataclasses.replace(endpoint, first_wait_s=0.01, max_wait_s=0.05)
    corpus = corpus_of(home)
    corpus.stages["reasoning_traces"].build(corpus.view, Execution(endpoint=quick))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
