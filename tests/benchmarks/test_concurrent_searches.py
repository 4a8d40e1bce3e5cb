"""What a server gains from searches that come at the same time, against one at a time in the same run: `make bench`.

The server is the real one, over HTTP. Its models have the tiny configuration's size and are untrained: they write to
the limit of tokens and search in all turns, which is the longest search. Counted is the processor time of the process
that serves and asks, on one thread, so that other work on the machine changes no ratio.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import torch

from tests.benchmarks.lent_models import LENDER, lend_untrained_models
from tests.benchmarks.measuring import PROCESSOR, interleaved, line
from tests.core.fake_corpus import Given
from tests.core.serve.served import running
from vsr1_core.serve.app import state_of_home
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.loading import one_row
from vsr1_core.stages.methods import ALL
from vsr1_core.toy_recipe import ToyRecipe

NUM_SEARCHES, REPEATS = 32, 1
SEARCHED_BY = ALL["sqr_sft"]
CORPUS = ToyRecipe(num_train=24, num_val=4, num_test=64)


def searched_home(home: Path) -> list[str]:
    """Build a corpus of toy videos, its index and untrained models. Returns a text for each search."""
    view = lend_untrained_models(home, corpus=CORPUS)
    for name in ("video_embeddings", "video_index"):
        view.stages[name].build(view, Execution(workers=1))
    _give_policy(view)
    moments = view.rows("moments").sort("query_id").to_dicts()
    return [moment["query"] for moment in moments if moment["split"] == "test"][:NUM_SEARCHES]


def _give_policy(view: View) -> None:
    """The base policy in place of what stage 1 makes of it."""
    base, stage = one_row(view, "base_models", "policy"), view.stages[SEARCHED_BY.model]
    row = {name: base[name] for name in stage.columns if name in base}
    Given(stage, [{stage.key: SEARCHED_BY.row_id, **row}]).build(view, Execution())


def test_32_searches_at_once_against_one_at_a_time(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    texts = searched_home(tmp_path)
    assert len(set(texts)) == NUM_SEARCHES
    state = state_of_home(tmp_path, lambda: Execution(workers=1))
    with running(state) as address, httpx2.Client(base_url=address, timeout=600) as client:

        def ask(text: str) -> dict[str, Any]:
            answer = client.post("/api/search", json={"text": text, "dataset": LENDER, "method": SEARCHED_BY.name})
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        def at_once() -> list[dict[str, Any]]:
            with ThreadPoolExecutor(NUM_SEARCHES) as pool:
                return list(pool.map(ask, texts))

        at_once()  # opens the models, and encodes the videos that are shown
        alone, together = interleaved(REPEATS, PROCESSOR, lambda: [ask(text) for text in texts], at_once)
    counts = state.engine.counts
    assert (counts.num_searches, counts.num_failed) == (NUM_SEARCHES * (1 + 2 * REPEATS), 0), "none is lost"
    for one, other, text in zip(alone.result, together.result, texts, strict=True):
        assert one["text"] == other["text"] == text
        assert [place["video"] for place in one["first"]] == [place["video"] for place in other["first"]]
    ratio, turns = alone.median / together.median, sum(len(found["turns"]) for found in together.result)
    rates = (f"{NUM_SEARCHES / measured.median:.1f} per s" for measured in (alone, together))
    print(f"\n{NUM_SEARCHES} searches of {turns} turns, up to {counts.largest_batch} in a batch")
    what = f"a server's searches, {NUM_SEARCHES} at once"
    print(line(what, *rates, ratio, "at least 2", against="one at a time"))
